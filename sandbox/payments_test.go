package sandbox

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func (w *world) charge(key, email, order string) (int, charge) {
	w.t.Helper()
	status, body := w.post("/payments/charges", key, chargeBody(email, order))
	if status == http.StatusCreated || status == http.StatusPaymentRequired {
		return status, decodeAs[charge](w.t, body)
	}
	return status, charge{}
}

func (w *world) ledger(query string) []charge {
	w.t.Helper()
	return get[[]charge](w, "/payments/charges"+query)
}

// statuses returns the statuses of the requests of one key, oldest first.
func (w *world) statuses(method, key string) []int {
	w.t.Helper()
	var found []int
	for _, r := range get[[]loggedRequest](w, "/payments/requests") {
		if r.Method == method && r.IdempotencyKey == key {
			found = append(found, r.Status)
		}
	}
	return found
}

func TestChargeAndLookup(t *testing.T) {
	w := start(t, t.TempDir())
	if body := string(must(w.send(t.Context(), "GET", "/payments/charges", "", ""))); body != "[]\n" {
		t.Errorf("empty ledger: %q", body)
	}
	before := now()
	status, c := w.charge("key-1", "ivan@example.com", "order-1")
	want := charge{
		ID: c.ID, IdempotencyKey: "key-1", Status: "succeeded", CreatedAt: c.CreatedAt,
		chargeRequest: chargeRequest{Amount: 120000, Currency: "RUB", CustomerEmail: "ivan@example.com", OrderReference: "order-1"},
	}
	if status != 201 || c != want || c.ID == "" || c.CreatedAt.Before(before) {
		t.Fatalf("%d %+v", status, c)
	}
	if status, again := w.charge("key-1", "ivan@example.com", "order-1"); status != 201 || again != c {
		t.Errorf("repeated: %d %+v", status, again)
	}
	_, other := w.charge("key-2", "maria@example.com", "order-2")
	for query, found := range map[string][]charge{
		"":                       {c, other},
		"?idempotency_key=key-1": {c}, "?order_reference=order-2": {other},
		"?idempotency_key=key-1&order_reference=order-2": {}, "?idempotency_key=": {}, "?order_reference=nobody": {},
	} {
		if got := w.ledger(query); !slices.Equal(got, found) {
			t.Errorf("ledger%s: %+v", query, got)
		}
	}
	raw := string(must(w.send(t.Context(), "GET", "/payments/charges?idempotency_key=key-1", "", "")))
	for _, name := range []string{"id", "idempotency_key", "amount", "currency", "customer_email", "order_reference", "status", "code", "refunded_amount", "created_at"} {
		if !strings.Contains(raw, `"`+name+`":`) {
			t.Errorf("no %s in %s", name, raw)
		}
	}
}

func must(_ int, body []byte) []byte { return body }

func TestRequestLog(t *testing.T) {
	w := start(t, t.TempDir())
	w.charge("key-1", "ivan@example.com", "order-1")
	w.post("/payments/charges", "key-2", `{`)
	w.ledger("?order_reference=order-1")
	w.ledger("?idempotency_key=key-1")
	log := get[[]loggedRequest](w, "/payments/requests")
	want := []loggedRequest{
		{Method: "POST", Path: "/payments/charges", IdempotencyKey: "key-1", OrderReference: "order-1", Status: 201},
		{Method: "POST", Path: "/payments/charges", IdempotencyKey: "key-2", Status: 400},
		{Method: "GET", Path: "/payments/charges", OrderReference: "order-1", Status: 200},
		{Method: "GET", Path: "/payments/charges", IdempotencyKey: "key-1", Status: 200},
	}
	for i, r := range log {
		if r.ReceivedAt.IsZero() || i > 0 && r.ReceivedAt.Before(log[i-1].ReceivedAt) {
			t.Errorf("received at %v", r.ReceivedAt)
		}
		log[i].ReceivedAt = time.Time{}
	}
	if !slices.Equal(log, want) {
		t.Errorf("%+v", log)
	}
}

func TestTagsThatAnswer(t *testing.T) {
	w := start(t, t.TempDir())
	for i, c := range []struct {
		tag      string
		statuses []int    // of the first key twice, then of another key of the order
		code     string   // of the first answer
		ledger   []string // its statuses at the end
	}{
		{"declined", []int{402, 402, 201}, "card_declined", []string{"declined", "succeeded"}},
		{"insufficient_funds", []int{402, 402, 201}, "insufficient_funds", []string{"declined", "succeeded"}},
		{"declined-always", []int{402, 402, 402}, "card_declined", []string{"declined", "declined"}},
		{"error", []int{500, 201, 201}, "", []string{"succeeded", "succeeded"}},
		{"error-always", []int{500, 500, 500}, "", nil},
		{"lost", []int{0, 201, 201}, "", []string{"succeeded", "succeeded"}},
		{"lost-always", []int{0, 0, 0}, "", []string{"succeeded", "succeeded"}},
		{"LOST", []int{0, 201, 201}, "", []string{"succeeded", "succeeded"}},
		{"family+lost", []int{0, 201, 201}, "", []string{"succeeded", "succeeded"}},
		{"pizza", []int{201, 201, 201}, "", []string{"succeeded", "succeeded"}},
		{"bounce", []int{201, 201, 201}, "", []string{"succeeded", "succeeded"}},
	} {
		t.Run(c.tag, func(t *testing.T) {
			email, order := "ivan+"+c.tag+"@example.com", fmt.Sprintf("order-%d", i)
			var statuses []int
			var charges []charge
			for _, key := range []string{"a-", "a-", "b-"} {
				status, made := w.charge(key+order, email, order)
				statuses, charges = append(statuses, status), append(charges, made)
			}
			if !slices.Equal(statuses, c.statuses) || charges[0].Code != c.code {
				t.Errorf("statuses %v, code %q", statuses, charges[0].Code)
			}
			if statuses[0] == statuses[1] && charges[0] != charges[1] {
				t.Errorf("one key, two results: %+v", charges)
			}
			var ledger []string
			for _, found := range w.ledger("?order_reference=" + order) {
				ledger = append(ledger, found.Status)
			}
			if !slices.Equal(ledger, c.ledger) {
				t.Errorf("ledger %v", ledger)
			}
			if logged := w.statuses("POST", "a-"+order); !slices.Equal(logged, c.statuses[:2]) {
				t.Errorf("request log %v", logged)
			}
		})
	}
}

func TestTagsThatHang(t *testing.T) {
	w := start(t, t.TempDir())
	for _, c := range []struct {
		tag     string
		charged bool // by the first request
		again   int  // the status of the second request; 0 if it hangs, too
	}{
		{"timeout", true, 201}, {"timeout-always", true, 0}, {"hang", false, 201}, {"hang-always", false, 0},
	} {
		t.Run(c.tag, func(t *testing.T) {
			hangs := func(times int) {
				ctx, giveUp := context.WithCancel(t.Context())
				ended := make(chan int, 1)
				go func() {
					status, _ := w.send(ctx, "POST", "/payments/charges", c.tag, chargeBody("i+"+c.tag+"@example.com", c.tag))
					ended <- status
				}()
				eventually(t, "the request arrives", func() bool { return len(w.statuses("POST", c.tag)) == times })
				if c.charged {
					eventually(t, "it is charged", func() bool { return len(w.ledger("?idempotency_key="+c.tag)) == 1 })
				}
				select {
				case status := <-ended:
					t.Errorf("answered %d", status)
				default:
				}
				giveUp()
				if status := <-ended; status != 0 {
					t.Errorf("answered %d", status)
				}
			}
			hangs(1)
			if !c.charged && len(w.ledger("?idempotency_key="+c.tag)) != 0 {
				t.Error("charged")
			}
			if c.again == 0 {
				hangs(2)
			} else if status, _ := w.charge(c.tag, "i+"+c.tag+"@example.com", c.tag); status != c.again {
				t.Errorf("repeated: %d", status)
			}
			if made := len(w.ledger("?order_reference=" + c.tag)); c.charged != (made == 1) && c.again == 0 {
				t.Errorf("%d charges", made)
			}
			if log := w.statuses("POST", c.tag); !slices.Equal(log, []int{0, c.again}) {
				t.Errorf("request log %v", log)
			}
		})
	}
}

func post(ctx context.Context, key, body string) *http.Request {
	r := httptest.NewRequestWithContext(ctx, "POST", "/payments/charges", strings.NewReader(body))
	r.Header.Set("Idempotency-Key", key)
	return r
}

// lookup lists the charges of an order, without a network.
func lookup(t *testing.T, s *Sandbox, order string) []charge {
	t.Helper()
	status, body := serve(s, httptest.NewRequest("GET", "/payments/charges?order_reference="+order, nil))
	if status != 200 {
		t.Fatalf("lookup: %d %s", status, body)
	}
	return decodeAs[[]charge](t, body)
}

func reopen(t *testing.T, dir string) *Sandbox {
	t.Helper()
	s, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := reopen(t, t.TempDir())
		begun := time.Now()
		for try, wait := range []time.Duration{2 * time.Second, 0} {
			status, _ := serve(s, post(t.Context(), "k", chargeBody("a+slow@example.com", "o")))
			if took := time.Since(begun); status != 201 || took != wait {
				t.Errorf("try %d: %d after %v", try, status, took)
			}
			begun = time.Now()
		}
		if found := lookup(t, s, "o"); len(found) != 1 {
			t.Errorf("%+v", found)
		}
	})
}

func TestLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := reopen(t, t.TempDir())
		begun := time.Now()
		patience, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		body := chargeBody("a+late@example.com", "o")
		if status, _ := serve(s, post(patience, "k", body)); status != 0 || time.Since(begun) != 10*time.Second {
			t.Errorf("%d after %v", status, time.Since(begun))
		}
		if found := lookup(t, s, "o"); len(found) != 0 {
			t.Errorf("charged at once: %+v", found)
		}
		// The key is claimed: a request that repeats it waits for the result.
		status, _ := serve(s, post(t.Context(), "k", body))
		if took := time.Since(begun); status != 201 || took < 20*time.Second || took > 20*time.Second+time.Millisecond {
			t.Errorf("repeated: %d after %v", status, took)
		}
		found := lookup(t, s, "o")
		if len(found) != 1 || found[0].CreatedAt.Sub(begun) < 19*time.Second {
			t.Errorf("%+v", found)
		}
	})
}

func TestLateOutlivesRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := reopen(t, dir)
		patience, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		serve(s, post(patience, "k", chargeBody("a+late@example.com", "o")))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		<-time.After(3 * time.Second)
		s = reopen(t, dir)
		<-time.After(11 * time.Second)
		synctest.Wait()
		if found := lookup(t, s, "o"); len(found) != 0 {
			t.Errorf("charged before it was due: %+v", found)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Hour)
		s = reopen(t, dir)
		<-time.After(time.Millisecond)
		synctest.Wait()
		if found := lookup(t, s, "o"); len(found) != 1 {
			t.Errorf("not charged by itself: %+v", found)
		}
		status, _ := serve(s, post(t.Context(), "k", chargeBody("a+late@example.com", "o")))
		if found := lookup(t, s, "o"); status != 201 || len(found) != 1 {
			t.Errorf("%d %+v", status, found)
		}
	})
}

func TestSameKeyAtOnce(t *testing.T) {
	w := start(t, t.TempDir())
	for _, tag := range []string{"", "+declined"} {
		order := "order" + tag
		want := http.StatusCreated
		if tag == "+declined" {
			want = http.StatusPaymentRequired
		}
		ids := make(chan string, 50)
		var all sync.WaitGroup
		for range cap(ids) {
			all.Go(func() {
				status, c := w.charge("key-"+order, "ivan"+tag+"@example.com", order)
				if status != want {
					t.Errorf("status %d", status)
				}
				ids <- c.ID
			})
		}
		all.Wait()
		close(ids)
		ledger := w.ledger("")
		ledger = slices.DeleteFunc(ledger, func(c charge) bool { return c.OrderReference != order })
		if len(ledger) != 1 {
			t.Fatalf("%d charges", len(ledger))
		}
		for id := range ids {
			if id != ledger[0].ID {
				t.Errorf("id %s, ledger %s", id, ledger[0].ID)
			}
		}
	}
}

// TestTagOnceForManyKeys: of many keys of one order, one uses the tag.
func TestTagOnceForManyKeys(t *testing.T) {
	w := start(t, t.TempDir())
	var declined sync.Map
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			if status, c := w.charge(fmt.Sprint("key-", i), "ivan+declined@example.com", "order"); status == 402 {
				declined.Store(c.ID, true)
			}
		})
	}
	all.Wait()
	count := 0
	declined.Range(func(any, any) bool { count++; return true })
	if count != 1 {
		t.Errorf("declined %d times", count)
	}
}

func TestBadCharges(t *testing.T) {
	w := start(t, t.TempDir())
	w.charge("used", "ivan@example.com", "order")
	good := chargeBody("ivan@example.com", "order")
	for _, c := range []struct {
		name, key, body string
		status          int
		code            string
	}{
		{"no key", "", good, 400, "idempotency_key_required"},
		{"long key", strings.Repeat("k", 256), good, 400, "idempotency_key_required"},
		{"another body", "used", chargeBody("ivan@example.com", "other"), 422, "idempotency_key_reused"},
		{"empty", "k", "", 400, "invalid_json"},
		{"broken", "k", good[:20], 400, "invalid_json"},
		{"trailing", "k", good + "{}", 400, "invalid_json"},
		{"array", "k", "[]", 400, "invalid_json"},
		{"unknown field", "k", `{"amount":1,"card":"4242"}`, 400, "invalid_json"},
		{"decimals", "k", strings.Replace(good, "120000", "1200.00", 1), 400, "invalid_json"},
		{"text amount", "k", strings.Replace(good, "120000", `"120000"`, 1), 400, "invalid_json"},
		{"nothing", "k", strings.Replace(good, "120000", "0", 1), 422, "invalid_amount"},
		{"negative", "k", strings.Replace(good, "120000", "-1", 1), 422, "invalid_amount"},
		{"currency", "k", strings.Replace(good, "RUB", "rub", 1), 422, "invalid_currency"},
		{"e-mail", "k", chargeBody("nobody", "order"), 422, "invalid_customer_email"},
		{"no order", "k", chargeBody("ivan@example.com", ""), 422, "invalid_order_reference"},
		{"huge", "k", `{"currency":"` + strings.Repeat("x", 1<<20) + `"}`, 413, "too_large"},
	} {
		status, body := w.post("/payments/charges", c.key, c.body)
		if e := decodeAs[apiError](t, body); status != c.status || e.Code != c.code || e.Message == "" {
			t.Errorf("%s: %d %s", c.name, status, body)
		}
		if strings.Contains(string(body), "4242") {
			t.Errorf("%s: the value comes back: %s", c.name, body)
		}
	}
	if found := w.ledger(""); len(found) != 1 {
		t.Errorf("%d charges", len(found))
	}
}

func refundBody(id string, amount int) string {
	return fmt.Sprintf(`{"charge_id":%q,"amount":%d}`, id, amount)
}

func TestRefunds(t *testing.T) {
	w := start(t, t.TempDir())
	_, c := w.charge("key", "ivan@example.com", "order")
	_, declined := w.charge("key-d", "ivan+declined@example.com", "order-d")
	status, body := w.post("/payments/refunds", "r1", refundBody(c.ID, 50000))
	first := decodeAs[refund](t, body)
	if status != 201 || first != (refund{ID: first.ID, ChargeID: c.ID, Amount: 50000, Status: "succeeded"}) || first.ID == "" {
		t.Fatalf("%d %s", status, body)
	}
	for _, try := range []struct {
		name, key, body string
		status          int
	}{
		{"again", "r1", refundBody(c.ID, 50000), 201},
		{"another body", "r1", refundBody(c.ID, 50001), 422},
		{"too much", "r2", refundBody(c.ID, 70001), 422},
		{"declined", "r3", refundBody(declined.ID, 1), 422},
		{"nothing", "r4", refundBody(c.ID, 0), 422},
		{"unknown", "r5", refundBody("ch_nothing", 1), 404},
		{"no key", "", refundBody(c.ID, 1), 400},
		{"broken", "r6", "{", 400},
		{"the rest", "r7", refundBody(c.ID, 70000), 201},
		{"above", "r8", refundBody(c.ID, 1), 422},
	} {
		status, body := w.post("/payments/refunds", try.key, try.body)
		if status != try.status {
			t.Errorf("%s: %d %s", try.name, status, body)
		}
		if try.name == "again" && decodeAs[refund](t, body) != first {
			t.Errorf("again: %s", body)
		}
	}
	if found := w.ledger("?order_reference=order"); found[0].RefundedAmount != 120000 {
		t.Errorf("%+v", found)
	}
	if log := get[[]loggedRequest](w, "/payments/requests"); log[2].Path != "/payments/refunds" || log[2].OrderReference != "order" {
		t.Errorf("%+v", log[2])
	}
}

func TestRefundsAtOnce(t *testing.T) {
	w := start(t, t.TempDir())
	_, c := w.charge("key", "ivan@example.com", "order")
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() { w.post("/payments/refunds", fmt.Sprint("r", i), refundBody(c.ID, 50000)) })
	}
	all.Wait()
	if found := w.ledger(""); found[0].RefundedAmount != 100000 {
		t.Errorf("refunded %d of %d", found[0].RefundedAmount, found[0].Amount)
	}
}

func (w *world) behave(settings string) (int, []byte) {
	w.t.Helper()
	return w.send(w.t.Context(), "PUT", "/payments/behaviour", "", settings)
}

func TestBehaviour(t *testing.T) {
	w := start(t, t.TempDir())
	for i, c := range []struct {
		settings      string
		charge, found int
	}{
		{`{"decline_rate":1}`, 402, 1},
		{`{"error_rate":1}`, 500, 0},
		{`{"lost_rate":1}`, 0, 1},
		{`{}`, 201, 1},
	} {
		if status, body := w.behave(c.settings); status != 200 {
			t.Fatalf("%s: %d %s", c.settings, status, body)
		}
		order := fmt.Sprint("order-", i)
		if status, _ := w.charge("key-"+order, "ivan@example.com", order); status != c.charge {
			t.Errorf("%s: charge %d", c.settings, status)
		}
		found := slices.DeleteFunc(w.ledger(""), func(c charge) bool { return c.OrderReference != order })
		if len(found) != c.found {
			t.Errorf("%s: %+v", c.settings, found)
		}
		lookup, _ := w.send(t.Context(), "GET", "/payments/charges?order_reference="+order, "", "")
		want := map[int]int{402: 200, 500: 500, 0: 0, 201: 200}[c.charge]
		if lookup != want {
			t.Errorf("%s: lookup %d", c.settings, lookup)
		}
	}
	for _, bad := range []string{`{"lost_rate":1.1}`, `{"error_rate":-0.1}`, `{"decline_rate":2}`, `{"latency_ms":-1}`, `{"latency_ms":600001}`} {
		if status, body := w.behave(bad); status != 422 {
			t.Errorf("%s: %d %s", bad, status, body)
		}
	}
	if status, _ := w.behave(`{"mood":"bad"}`); status != 400 {
		t.Errorf("unknown setting: %d", status)
	}
}

func TestLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := reopen(t, t.TempDir())
		put := httptest.NewRequest("PUT", "/payments/behaviour", strings.NewReader(`{"latency_ms":700}`))
		if status, body := serve(s, put); status != 200 {
			t.Fatalf("%d %s", status, body)
		}
		begun := time.Now()
		if status, _ := serve(s, post(t.Context(), "k", chargeBody("a@example.com", "o"))); status != 201 {
			t.Errorf("status %d", status)
		}
		if took := time.Since(begun); took != 700*time.Millisecond {
			t.Errorf("took %v", took)
		}
	})
}

// TestRestart opens the folder again after a clean stop, and right after the last
// answer, as after a kill.
func TestRestart(t *testing.T) {
	for _, clean := range []bool{true, false} {
		t.Run(fmt.Sprint("clean=", clean), func(t *testing.T) {
			w := start(t, t.TempDir())
			_, c := w.charge("key", "ivan@example.com", "order")
			_, no := w.charge("key-d", "ivan+declined@example.com", "order-d")
			w.charge("key-e", "ivan+error@example.com", "order-e")
			w.charge("key-l", "ivan+lost@example.com", "order-l")
			_, refunded := w.post("/payments/refunds", "r", refundBody(c.ID, 100))
			w.behave(`{"latency_ms":1}`)
			ledger, log := w.ledger(""), get[[]loggedRequest](w, "/payments/requests")
			if clean {
				if err := w.stop(); err != nil {
					t.Fatal(err)
				}
			}
			w = start(t, w.dir)
			if got := w.ledger(""); !slices.Equal(got, ledger) || got[0].RefundedAmount != 100 || len(got) != 3 {
				t.Errorf("ledger %+v", got)
			}
			if got := get[[]loggedRequest](w, "/payments/requests"); !slices.Equal(got[:len(log)], log) {
				t.Errorf("request log %+v", got)
			}
			if status, again := w.charge("key", "ivan@example.com", "order"); status != 201 || again.ID != c.ID {
				t.Errorf("%d %+v", status, again)
			}
			if status, again := w.charge("key-d", "ivan+declined@example.com", "order-d"); status != 402 || again != no {
				t.Errorf("%d %+v", status, again)
			}
			for _, order := range []string{"d", "e", "l"} {
				tag := map[string]string{"d": "declined", "e": "error", "l": "lost"}[order]
				if status, _ := w.charge("new-"+order, "ivan+"+tag+"@example.com", "order-"+order); status != 201 {
					t.Errorf("+%s worked again: %d", tag, status)
				}
			}
			if _, again := w.post("/payments/refunds", "r", refundBody(c.ID, 100)); string(again) != string(refunded) {
				t.Errorf("refund %s, before %s", again, refunded)
			}
			if b := get[behaviour](w, "/payments/behaviour"); b != (behaviour{LatencyMS: 1}) {
				t.Errorf("%+v", b)
			}
		})
	}
}
