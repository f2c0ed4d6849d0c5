package load

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nyaruka/phonenumbers"
)

const menu = `{"currency":"RUB","pizzas":[
	{"id":"sold-out","available":false,"prices":{"small":100.00}},
	{"id":"margherita","available":true,"prices":{"small":450.00,"large":650.50}}]}`

// A shop answers POST as its test says and records the requests.
type shop struct {
	*httptest.Server
	mu    sync.Mutex
	posts []post
}

type post struct {
	key  string
	body string
	at   time.Time
}

// newShop answers orders with place, which gets the number of the try under its key,
// from 0, and reads of an order with status.
func newShop(t *testing.T, place func(w http.ResponseWriter, key string, try int), status func(w http.ResponseWriter, id string)) *shop {
	t.Helper()
	s := &shop{}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/menu", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, menu) })
	mux.HandleFunc("POST /api/v1/orders", func(w http.ResponseWriter, r *http.Request) {
		var body bytes.Buffer
		if _, err := body.ReadFrom(r.Body); err != nil {
			t.Error(err)
		}
		key := r.Header.Get("Idempotency-Key")
		s.mu.Lock()
		try := 0
		for _, p := range s.posts {
			if p.key == key {
				try++
			}
		}
		s.posts = append(s.posts, post{key, body.String(), time.Now()})
		s.mu.Unlock()
		place(w, key, try)
	})
	mux.HandleFunc("GET /api/v1/orders/{id}", func(w http.ResponseWriter, r *http.Request) { status(w, r.PathValue("id")) })
	s.Server = httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

func (s *shop) seen() []post {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.posts)
}

// created answers 201. The order's id contains its key.
func created(w http.ResponseWriter, key string, _ int) {
	w.WriteHeader(http.StatusCreated)
	fmt.Fprintf(w, `{"order_id":"id-%s","order_number":"P-1","status":"payment_pending","total_amount":1301.00}`, key)
}

func config(urls ...string) Config {
	return Config{URLs: urls, Rate: 200, Orders: 20, InFlight: 1000, Patience: 20 * time.Second, Timeout: 10 * time.Second}
}

// place runs a load to its end.
func place(t *testing.T, cfg Config) Report {
	t.Helper()
	r, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	report, err := r.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// await polls until ok, for at most 10 s.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(30 * time.Second); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("waited 30 s for: " + what)
		}
	}
}

func TestScheduleIsKeptWhileTheServerStalls(t *testing.T) {
	const stall = time.Second
	over := make(chan struct{})
	begun := sync.OnceFunc(func() { time.AfterFunc(stall, func() { close(over) }) })
	s := newShop(t, func(w http.ResponseWriter, key string, try int) {
		begun()
		<-over
		created(w, key, try)
	}, nil)
	cfg := config(s.URL)
	cfg.Rate, cfg.Orders = 100, 100
	r, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	report, err := r.Wait()
	if err != nil || report.Placed != 100 {
		t.Fatalf("%v; %+v", err, report)
	}
	for what, at := range map[string]time.Time{"scheduled": r.scheduledTime(1), "placed": r.tally.last} {
		if !strings.Contains(at.String(), " m=") { // the only sign of a monotonic clock
			t.Errorf("%s at %s: a clock that is set would move it", what, at)
		}
	}
	// order n is scheduled n·10 ms after the first, and answered 1 s after it
	if l := report.Latency; l.Max < 990 || l.P50 < 480 || l.P90 < 880 {
		t.Errorf("latency %+v: not counted from the scheduled times", l)
	}
	early := 0
	for _, p := range s.seen() {
		if p.at.Before(r.start.Add(stall)) {
			early++
		}
	}
	if early < 90 {
		t.Errorf("%d of 100 orders were sent within the second they were scheduled in", early)
	}
}

func TestLatencyCountsFromTheAppointedTimeThroughEveryTry(t *testing.T) {
	t.Parallel()
	s := newShop(t, func(w http.ResponseWriter, key string, try int) {
		if try == 0 {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		created(w, key, try)
	}, nil)
	report := place(t, config(s.URL))
	if report.Latency.P50 < 1000 || report.Placed != 20 || report.Tries != 40 {
		t.Errorf("%+v: want every order placed at its second try, the pause asked for in its latency", report)
	}
}

func TestWhatExceedsTheBoundIsNotSent(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	s := newShop(t, func(w http.ResponseWriter, key string, try int) { <-release; created(w, key, try) }, nil)
	cfg := config(s.URL)
	cfg.InFlight = 5
	r, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	await(t, "15 orders not sent", func() bool { return r.Progress().NotSent == 15 })
	if p := r.Progress(); p.UnderWay != 5 || p.Begun != 5 {
		t.Errorf("%+v", p)
	}
	close(release)
	report, err := r.Wait()
	if err != nil || report.Placed != 5 || report.NotSent != 15 || report.Orders != 20 || report.OK() || len(s.seen()) != 5 {
		t.Errorf("%v; %+v; %d sent", err, report, len(s.seen()))
	}
}

func TestOneKeyForEveryTry(t *testing.T) {
	t.Parallel()
	cut := newShop(t, func(w http.ResponseWriter, _ string, _ int) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		conn.Close() // the order is placed and the answer is lost
	}, nil)
	busy := newShop(t, func(w http.ResponseWriter, key string, try int) {
		if try == 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		created(w, key, try)
	}, nil)
	cfg := config(cut.URL, busy.URL)
	report := place(t, cfg)
	if report.Placed != 20 || !report.OK() || report.Answers["503"] != 20 || report.Answers["201"] != 20 || report.Answers["connection error"] < 20 {
		t.Errorf("%+v", report)
	}
	bodies := map[string]string{} // by key
	for _, p := range append(cut.seen(), busy.seen()...) {
		if uuid.Validate(p.key) != nil {
			t.Fatalf("key %q is no UUID", p.key)
		}
		if first, seen := bodies[p.key]; seen && first != p.body {
			t.Errorf("key %s came with another body", p.key)
		}
		bodies[p.key] = p.body
		if strings.Contains(p.body, "sold-out") || !strings.Contains(p.body, "margherita") {
			t.Errorf("ordered %s", p.body)
		}
	}
	if len(bodies) != 20 {
		t.Errorf("%d keys for 20 orders", len(bodies))
	}
}

func TestEndsOfAnOrder(t *testing.T) {
	t.Parallel()
	answers := func(codes ...int) func(http.ResponseWriter, string, int) {
		return func(w http.ResponseWriter, key string, try int) {
			if code := codes[min(try, len(codes)-1)]; code != http.StatusCreated {
				w.WriteHeader(code)
				return
			}
			created(w, key, try)
		}
	}
	for name, c := range map[string]struct {
		place  func(http.ResponseWriter, string, int)
		held   int // tries without an answer
		kind   string
		status int
	}{
		"placed":                   {answers(201), 0, KindPlaced, 201},
		"key in progress":          {answers(409, 201), 0, KindPlaced, 201},
		"refused":                  {answers(422), 0, KindRefused, 422},
		"refused after a limit":    {answers(429, 422), 0, KindRefused, 422},
		"refused after a lost try": {answers(500, 422), 0, KindUnknown, 422},
		"never answered well":      {answers(503), 0, KindUnknown, 503},
		"redirected": {func(w http.ResponseWriter, _ string, _ int) {
			w.Header().Set("Location", "/api/v1/menu")
			w.WriteHeader(http.StatusSeeOther)
		}, 0, KindUnknown, http.StatusSeeOther},
		"held once":                 {created, 1, KindPlaced, 201},
		"a 201 that names no order": {func(w http.ResponseWriter, _ string, _ int) { w.WriteHeader(201) }, 0, KindUnknown, 0},
		"a 201 that is cut in two": {func(w http.ResponseWriter, _ string, _ int) {
			w.Header().Set("Content-Length", "99")
			w.WriteHeader(201)
		}, 0, KindUnknown, 0},
		"never answered": {created, 99, KindUnknown, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			over := make(chan struct{})
			s := newShop(t, func(w http.ResponseWriter, key string, try int) {
				if try < c.held {
					<-over
					return
				}
				c.place(w, key, try)
			}, nil)
			defer close(over)
			cfg := config(s.URL)
			cfg.Orders, cfg.Patience, cfg.Timeout = 3, 400*time.Millisecond, 300*time.Millisecond
			if c.kind == KindPlaced {
				cfg.Patience = 1900 * time.Millisecond
			}
			log, path := newLog(t)
			cfg.Log = log
			report := place(t, cfg)
			count := map[string]int{KindPlaced: report.Placed, KindRefused: report.Refused, KindUnknown: report.Unknown}
			lines := readLog(t, path)
			if count[c.kind] != 3 || report.Orders != 3 || report.OK() != (c.kind == KindPlaced) || len(lines[c.kind]) != 3 || len(lines[KindAttempt]) != 3 {
				t.Errorf("%+v; log %+v", report, lines)
			}
			for key, l := range lines[c.kind] {
				if l.Status != c.status || l.At.Before(lines[KindAttempt][key].At) {
					t.Errorf("%+v", l)
				}
				if c.kind == KindPlaced && (l.OrderID != "id-"+key || l.OrderNumber != "P-1" || l.Total != 130100 || l.OrderStatus != "payment_pending") {
					t.Errorf("%+v", l)
				}
			}
		})
	}
}

func TestLineIsInTheLogBeforeItCounts(t *testing.T) {
	t.Parallel()
	log, path := newLog(t)
	started := make(chan *Run, 1)
	running := sync.OnceValue(func() *Run { return <-started })
	s := newShop(t, func(w http.ResponseWriter, key string, try int) {
		counted := running().Progress().Placed
		lines := readLog(t, path)
		if _, ok := lines[KindAttempt][key]; !ok {
			t.Errorf("%s was sent before its line was written", key)
		}
		if len(lines[KindPlaced]) < counted {
			t.Errorf("%d orders count as placed, the log has %d", counted, len(lines[KindPlaced]))
		}
		created(w, key, try)
	}, nil)
	cfg := config(s.URL)
	cfg.Log = log
	r, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	started <- r
	if report, err := r.Wait(); err != nil || report.Placed != 20 {
		t.Errorf("%v; %+v", err, report)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, personal := range []string{"guest", "Guest", "@", "+79", "street"} {
		if strings.Contains(string(text), personal) {
			t.Errorf("the log has %q", personal)
		}
	}
}

func TestFollowed(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	asked := map[string]int{}
	number := map[string]int{}
	s := newShop(t, func(w http.ResponseWriter, key string, try int) {
		mu.Lock()
		number["id-"+key] = len(number)
		mu.Unlock()
		created(w, key, try)
	}, func(w http.ResponseWriter, id string) {
		mu.Lock()
		defer mu.Unlock()
		asked[id]++
		state := []string{"paid", "payment_failed", "payment_pending", ""}[number[id]%4]
		switch {
		case state == "":
			w.WriteHeader(http.StatusNotFound)
		case asked[id] == 1:
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			fmt.Fprintf(w, `{"order_id":%q,"status":%q,"history":[
				{"status":"created","at":"2026-01-02T03:04:05Z"},{"status":%q,"at":"2026-01-02T03:04:05.25Z"}]}`, id, state, state)
		}
	})
	cfg := config(s.URL)
	cfg.Follow = time.Second
	report := place(t, cfg)
	f := report.Followed
	if f == nil || f.Paid != 5 || f.PaymentFailed != 5 || f.Pending != 5 || f.Missing != 5 || report.OK() {
		t.Fatalf("%+v", f)
	}
	if f.Latency.P50 != 250 || f.Latency.Max != 250 {
		t.Errorf("%+v: want the 250 ms of the order's own history", f.Latency)
	}
}

// Orders without an answer do not queue for their last poll.
func TestFollowingEndsThoughNobodyAnswers(t *testing.T) {
	t.Parallel()
	over := make(chan struct{})
	s := newShop(t, created, func(http.ResponseWriter, string) { <-over })
	t.Cleanup(func() { close(over) })
	cfg := config(s.URL)
	cfg.Orders, cfg.Timeout, cfg.Follow = 8*maxPolls, 2*time.Second, 200*time.Millisecond
	r, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the end of the run", func() bool {
		select {
		case <-r.Done():
			return true
		default:
			return false
		}
	})
	if report, err := r.Wait(); err != nil || report.Placed != cfg.Orders || report.Followed.Pending != cfg.Orders {
		t.Errorf("%v; %+v %+v", err, report, report.Followed)
	}
}

func TestInterruptedRunSettlesWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	s := newShop(t, func(w http.ResponseWriter, key string, try int) { <-release; created(w, key, try) }, nil)
	cfg := config(s.URL)
	cfg.Orders = 100_000
	ctx, cancel := context.WithCancel(t.Context())
	r, err := Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	await(t, "30 orders at the server", func() bool { return len(s.seen()) >= 30 })
	cancel()
	await(t, "the end of the schedule", func() bool {
		p := r.Progress()
		return p.UnderWay == len(s.seen()) && !time.Now().Before(r.scheduledTime(p.Begun+1))
	})
	begun := r.Progress().Begun
	close(release)
	report, err := r.Wait()
	if err != nil || report.Placed != begun || report.Orders != begun || !report.OK() {
		t.Errorf("%v; %+v, begun %d", err, report, begun)
	}
}

func TestNoMenuNoRun(t *testing.T) {
	t.Parallel()
	s := newShop(t, created, nil)
	gone := httptest.NewServer(http.NotFoundHandler())
	defer gone.Close()
	if report := place(t, config(gone.URL, s.URL+"/")); report.Refused+report.Placed != 20 || report.Placed == 0 {
		t.Errorf("%+v: the second address has the menu", report)
	}
	secret := strings.Replace(gone.URL, "http://", "http://shop:secret@", 1)
	if _, err := Start(t.Context(), config(secret)); err == nil || !strings.Contains(err.Error(), "read menu") || !strings.Contains(err.Error(), "404") || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v", err)
	}
	if err := CheckURL("http://shop:secret%zz@host"); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v", err)
	}
}

func TestCustomers(t *testing.T) {
	r := &Run{menu: []item{{"margherita", "small", 1}}, cfg: Config{Declined: 12.5}}
	phones, tagged := map[string]bool{}, 0
	for n := range 4000 {
		body, err := r.encodeOrder(n * 9973)
		if err != nil {
			t.Fatal(err)
		}
		var c struct {
			Email string `json:"customer_email"`
			Phone string `json:"customer_phone"`
		}
		if err := json.Unmarshal(body, &c); err != nil {
			t.Fatal(err)
		}
		phone, err := phonenumbers.Parse(c.Phone, "")
		if err != nil || phones[c.Phone] || phonenumbers.GetNumberType(phone) != phonenumbers.MOBILE {
			t.Fatalf("%s: %v, or twice, or no mobile", c.Phone, err)
		}
		phones[c.Phone] = true
		if isDeclined(n, 12.5) {
			tagged++
		}
		if want := isDeclined(n*9973, 12.5); strings.Contains(c.Email, "+declined@load.example") != want {
			t.Fatalf("%s: declined is %v", c.Email, want)
		}
	}
	if tagged != 500 || isDeclined(1, 0) || !isDeclined(0, 100) {
		t.Errorf("%d of 4000 declined, want 12.5 %%", tagged)
	}
}

func TestPercentiles(t *testing.T) {
	var took []time.Duration
	for ms := 1000; ms > 0; ms-- {
		took = append(took, time.Duration(ms)*time.Millisecond)
	}
	if got, want := latency(took), (Latency{500, 900, 990, 999, 1000}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got, want := latency(took[:1]), (Latency{1, 1, 1, 1, 1}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}
