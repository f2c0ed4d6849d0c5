package payment

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pizzaflow/event"
	"pizzaflow/job"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// frozen is the real provider of a process that stops dead once, at its first
// charge: before the request goes out or after the answer came in.
type frozen struct {
	Provider
	after   bool
	used    atomic.Bool
	reached chan struct{} // closed when it has stopped
	thaw    chan struct{} // lets it go on
}

func freeze(p Provider, after bool) *frozen {
	return &frozen{Provider: p, after: after, reached: make(chan struct{}), thaw: make(chan struct{})}
}

func (f *frozen) Charge(ctx context.Context, c Charge) Answer {
	stop := func() {
		if f.used.CompareAndSwap(false, true) {
			close(f.reached)
			<-f.thaw
		}
	}
	if !f.after {
		stop()
		return f.Provider.Charge(ctx, c)
	}
	a := f.Provider.Charge(ctx, c)
	stop()
	return a
}

// TestCrashAroundTheCharge stops a process around its call. Another one takes
// the payment over when the lease has run out, and the first wakes up again when the
// payment is final: it changes nothing any more.
func TestCrashAroundTheCharge(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		after   bool
		history string
	}{
		{"after the attempt row", false, "charge unknown, lookup absent, charge captured"},
		{"after the answer", true, "charge unknown, lookup captured"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
				t.Parallel()
				b := openBank(t)
				f := freeze(b.provider(), c.after)
				// like a dead process it renews no lease
				first := newService(t, db, f, func(c *Config) { c.Limit, c.Timeout, c.jobTimeout = 1, 10*time.Second, 2*time.Second })
				stopFirst := run(t, first)
				thaw := sync.OnceFunc(func() { close(f.thaw) })
				t.Cleanup(thaw)
				o := order("")
				accept(t, first, o)
				<-f.reached
				if r := readRow(t, db, o.OrderID); r.Status != Processing || history(t, db, r.ID) != "charge open" {
					t.Errorf("while it is charged the payment is %s after %s", r.Status, history(t, db, r.ID))
				}
				go stopFirst() // like a dead process it takes no further row
				run(t, newService(t, db, b.provider(), func(c *Config) { c.Timeout = 20 * time.Second }))
				awaitFinal(t, db, o)
				before := audit(t, db, b, o)
				if got := history(t, db, before.ID); got != c.history {
					t.Errorf("ended by %s, want %s", got, c.history)
				}
				thaw()
				stopFirst()
				if after := audit(t, db, b, o); after != before {
					t.Errorf("the first process changed %+v to %+v", before, after)
				}
				auditKeys(t, b)
			}, schemas...)
		})
	}
}

// interloper is the real provider, but while it works another process takes
// the row over.
type interloper struct {
	Provider
	takeOver func()
}

func (i interloper) Charge(ctx context.Context, c Charge) Answer {
	defer i.takeOver()
	return i.Provider.Charge(ctx, c)
}

func (i interloper) Refund(ctx context.Context, r Refund) Answer {
	defer i.takeOver()
	return i.Provider.Refund(ctx, r)
}

// TestLostLeaseChangesNothing: a worker that lost its lease in the middle of a call
// changes no row and emits nothing.
func TestLostLeaseChangesNothing(t *testing.T) {
	t.Parallel()
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		b := openBank(t)
		exec := func(query string, args ...any) {
			if _, err := db.ExecContext(t.Context(), query, args...); err != nil {
				t.Error(err)
			}
		}
		table := "payments"
		s := newService(t, db, interloper{b.provider(), func() { exec(`UPDATE ` + table + ` SET lease_token = 'theirs'`) }}, patient)
		o := order("")
		accept(t, s, o)
		r := readRow(t, db, o.OrderID)
		lost := job.Job{ID: r.ID, Token: "ours", Attempt: 1}
		if err := s.charge(t.Context(), lost); !errors.Is(err, job.ErrLeaseLost) {
			t.Errorf("charge without a lease: %v", err)
		}
		if len(b.ledger(o.OrderID)) != 0 {
			t.Error("charged without a lease")
		}
		exec(`UPDATE payments SET lease_token = 'ours'`)
		if err := s.charge(t.Context(), lost); !errors.Is(err, job.ErrLeaseLost) {
			t.Errorf("record an answer without the lease: %v", err)
		}
		r = readRow(t, db, o.OrderID)
		if _, err := s.recordAttempt(t.Context(), lost, r.Payment, CallLookup, interrupted, sqldb.Now()); !errors.Is(err, job.ErrLeaseLost) {
			t.Errorf("record an attempt without the lease: %v", err)
		}
		if r := readRow(t, db, o.OrderID); r.Status != Processing || !r.leased || history(t, db, r.ID) != "charge open" || countRows(t, db, "outbox_events") != 0 {
			t.Errorf("%s after %s, %d events", r.Status, history(t, db, r.ID), countRows(t, db, "outbox_events"))
		}
		if err := postpone(t.Context(), db, "payments", lost, time.Second); !errors.Is(err, job.ErrLeaseLost) {
			t.Errorf("postpone without the lease: %v", err)
		}

		table = "refunds"
		err := db.Tx(t.Context(), func(tx *sql.Tx) error {
			return insertRefund(t.Context(), tx, refund{
				ID: o.OrderID, PaymentID: r.ID, TransactionID: b.ledger(o.OrderID)[0].ID, Amount: o.TotalAmount, Currency: "RUB",
			})
		})
		if err != nil {
			t.Fatal(err)
		}
		exec(`UPDATE refunds SET lease_token = 'ours'`)
		if err := s.refund(t.Context(), job.Job{ID: o.OrderID, Token: "ours", Attempt: 1}); !errors.Is(err, job.ErrLeaseLost) {
			t.Errorf("update a refund without the lease: %v", err)
		}
		if n := countRows(t, db, "refunds WHERE status = 'pending' AND lease_token = 'theirs'"); n != 1 {
			t.Error("a refund was updated without the lease")
		}
	}, schemas...)
}

// TestTwoServicesOnOneDatabase has two processes charge 200 orders, a quarter
// of them with trouble.
func TestTwoServicesOnOneDatabase(t *testing.T) {
	t.Parallel()
	for _, engine := range []sqldb.Engine{sqldb.SQLite, sqldb.Postgres} {
		t.Run(string(engine), func(t *testing.T) {
			t.Parallel()
			url := sqltest.URL(t, engine)
			one, two := sqltest.Connect(t, url, schemas...), sqltest.Connect(t, url)
			b := openBank(t)
			services := []*Service{newService(t, one, b.provider(), nil), newService(t, two, b.provider(), nil)}
			for _, s := range services {
				run(t, s)
			}
			orders := make([]event.OrderCreated, 200)
			for i := range orders {
				tag := ""
				if i%4 == 0 {
					tag = []string{"lost", "error", "declined", "timeout"}[i/4%4]
				}
				orders[i] = order(tag)
				accept(t, services[i%2], orders[i])
				if i%3 == 0 {
					accept(t, services[(i+1)%2], orders[i]) // and once more to the other
				}
			}
			awaitFinal(t, one, orders...)
			for _, o := range orders {
				r, want := audit(t, one, b, o), Completed
				if strings.Contains(o.CustomerEmail, "declined") {
					want = Failed
				}
				if r.Status != want {
					t.Errorf("order of %s: %s", o.CustomerEmail, r.Status)
				}
			}
			auditKeys(t, b)
		})
	}
}

// TestCleanStop ends the service in the middle of a call: Run returns when the
// call is recorded, and a payment that was not begun waits for the next start.
func TestCleanStop(t *testing.T) {
	t.Parallel()
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		t.Parallel()
		b := openBank(t)
		f := freeze(b.provider(), true)
		s := newService(t, db, f, func(c *Config) { c.Limit, c.Timeout, c.Lease = 1, 10*time.Second, time.Minute })
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		running, waiting := order(""), order("")
		accept(t, s, running)
		<-f.reached
		accept(t, s, waiting)
		cancel()
		select {
		case err := <-ended:
			t.Fatalf("Run returned in the middle of a call: %v", err)
		case <-time.After(50 * time.Millisecond):
		}
		close(f.thaw)
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if r := audit(t, db, b, running); r.Status != Completed {
			t.Errorf("the running call ended as %s", r.Status)
		}
		// its attempt is on record, and will be resolved like one that a crash broke off
		if r := readRow(t, db, waiting.OrderID); r.Status != Processing || r.leased || r.due.After(sqldb.Now()) || len(b.ledger(waiting.OrderID)) != 0 {
			t.Errorf("the waiting payment is %s, leased %v, due %s", r.Status, r.leased, r.due)
		}
		run(t, newService(t, db, b.provider(), nil))
		awaitFinal(t, db, waiting)
		audit(t, db, b, waiting)
	}, schemas...)
}

// TestProviderDownThenUp keeps orders while nobody answers, with few calls,
// and charges all when the provider is back.
func TestProviderDownThenUp(t *testing.T) {
	t.Parallel()
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		t.Parallel()
		b := openBank(t)
		b.setFront(away)
		s := newService(t, db, b.provider(), nil)
		run(t, s)
		orders := make([]event.OrderCreated, 40)
		for i := range orders {
			orders[i] = order("")
			accept(t, s, orders[i])
		}
		eventually(t, func() string {
			if s.circuit.policy.IsClosed() {
				return "the circuit never opened"
			}
			return ""
		})
		for _, o := range orders {
			if r := readRow(t, db, o.OrderID); r.Status == Completed || r.Status == Failed {
				t.Errorf("%s while the provider is away", r.Status)
			}
		}
		b.setFront(nil)
		awaitFinal(t, db, orders...)
		for _, o := range orders {
			if r := audit(t, db, b, o); r.Status != Completed {
				t.Errorf("%s after %s", r.Status, history(t, db, r.ID))
			}
		}
		auditKeys(t, b)
	}, schemas...)
}

// TestOpenCircuitIsNoAttempt: nothing is called, nothing is recorded, nothing
// fails while the circuit is open.
func TestOpenCircuitIsNoAttempt(t *testing.T) {
	t.Parallel()
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		t.Parallel()
		b := openBank(t)
		var calls atomic.Int32
		b.setFront(func(w http.ResponseWriter, r *http.Request, box http.Handler) {
			calls.Add(1)
			box.ServeHTTP(w, r)
		})
		s := newService(t, db, b.provider(), patient)
		s.circuit.policy.Open()
		run(t, s)
		o := order("")
		accept(t, s, o)
		eventually(t, func() string {
			if r := readRow(t, db, o.OrderID); r.claims == 0 || r.leased {
				return "the payment was never put off"
			}
			return ""
		})
		r := readRow(t, db, o.OrderID)
		story, n := history(t, db, r.ID), calls.Load()
		if s.circuit.policy.IsOpen() && (r.Status != Pending || story != "" || n != 0) { // and was all the time
			t.Errorf("%s after %q and %d calls", r.Status, story, n)
		}
		awaitFinal(t, db, o)
		if r = audit(t, db, b, o); history(t, db, r.ID) != "charge captured" {
			t.Errorf("ended by %s", history(t, db, r.ID))
		}
	}, schemas...)
}

// TestTTL: without a charge until the TTL, nor by the one that is made after it,
// the payment fails, but only when a lookup says so. One that nobody worked on
// until it was too old is charged: that may have been a clock.
func TestTTL(t *testing.T) {
	t.Parallel()
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		t.Parallel()
		const ttl = 3 * time.Second // long enough for the first charge of each
		b := openBank(t)
		s := newService(t, db, b.provider(), func(c *Config) {
			c.TTL = ttl
			c.LateChecks = []time.Duration{50 * time.Millisecond, 300 * time.Millisecond}
		})
		refusing, old, taken := order("error-always"), order(""), order("lost")
		accept(t, s, old) // nobody works on it until it is too old
		eventually(t, func() string {
			if r := readRow(t, db, old.OrderID); !r.expired(sqldb.Now(), ttl) {
				return "the payment does not grow old"
			}
			return ""
		})
		// every lookup is lost until all of them are past the TTL
		b.setFront(func(w http.ResponseWriter, r *http.Request, box http.Handler) {
			if r.Method == http.MethodGet {
				away(w, r, box)
				return
			}
			box.ServeHTTP(w, r)
		})
		run(t, s)
		awaitOpen(t, s)
		accept(t, s, refusing)
		accept(t, s, taken)
		eventually(t, func() string {
			for _, o := range []event.OrderCreated{refusing, old, taken} {
				if r := readRow(t, db, o.OrderID); r.Calls < 2 || !r.expired(sqldb.Now(), ttl) {
					return fmt.Sprintf("order of %s: %d calls", o.CustomerEmail, r.Calls)
				}
			}
			return ""
		})
		for o, want := range map[*event.OrderCreated]Status{&refusing: Unknown, &old: Pending, &taken: Unknown} {
			if r := readRow(t, db, o.OrderID); r.Status != want {
				t.Errorf("order of %s: %s while lookups do not answer, want %s", o.CustomerEmail, r.Status, want)
			}
		}
		b.setFront(nil)
		awaitFinal(t, db, refusing, old, taken)
		for o, want := range map[*event.OrderCreated]string{&refusing: CodeProviderUnavailable, &old: "", &taken: ""} {
			if r := audit(t, db, b, *o); r.ErrorCode != want {
				t.Errorf("order of %s: %s %q", o.CustomerEmail, r.Status, r.ErrorCode)
			}
		}
		eventually(t, func() string { // it is looked for again, and then it is over
			if r := readRow(t, db, refusing.OrderID); r.Checks != 2 || !r.due.IsZero() {
				return fmt.Sprintf("%d late checks, due at %s", r.Checks, r.due)
			}
			return ""
		})
		audit(t, db, b, refusing)
		if story := history(t, db, readRow(t, db, old.OrderID).ID); !strings.HasSuffix(story, "lookup absent, charge captured") || strings.Count(story, "charge") != 1 {
			t.Errorf("a payment that grew old untried: %s", story)
		}
		var after int
		if err := db.Read().QueryRow(`SELECT COUNT(*) FROM payment_attempts a JOIN payments p ON p.id = a.payment_id
			WHERE p.order_id = $1 AND a.kind = 'charge' AND a.started_at >= $2`, refusing.OrderID, readRow(t, db, refusing.OrderID).CreatedAt.Add(ttl)).Scan(&after); err != nil {
			t.Fatal(err)
		}
		if after != 1 {
			t.Errorf("%d charges after the TTL, want 1", after)
		}
		awaitResults(t, s, "provider_unavailable", 1)
	}, schemas...)
}

// slowPost holds back the first charge it sees, like a network that delivers a
// request long after everybody stopped waiting for it.
type slowPost struct {
	mu   sync.Mutex
	held *http.Request
	got  chan struct{}
}

func (p *slowPost) front(w http.ResponseWriter, r *http.Request, box http.Handler) {
	if r.Method != http.MethodPost || !strings.HasSuffix(r.URL.Path, "/charges") {
		box.ServeHTTP(w, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	p.mu.Lock()
	if p.held == nil && err == nil {
		p.held = httptest.NewRequest(r.Method, r.URL.String(), bytes.NewReader(body))
		p.held.Header = r.Header.Clone()
		close(p.got)
	}
	p.mu.Unlock()
	<-r.Context().Done()
}

func (p *slowPost) deliver(t *testing.T, box http.Handler) {
	t.Helper()
	w := httptest.NewRecorder()
	box.ServeHTTP(w, p.held)
	if w.Code != http.StatusCreated {
		t.Fatalf("the late charge was answered %d: %s", w.Code, w.Body)
	}
}

// TestLateCaptureIsRefunded: the money is taken after the failure was emitted. It is
// refunded in full, once, even if answers to the refund are lost or an operator has
// refunded it.
func TestLateCaptureIsRefunded(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		refund func(b *bank, calls *atomic.Int32) func(http.ResponseWriter, *http.Request, http.Handler)
	}{
		{"at once", func(_ *bank, calls *atomic.Int32) func(http.ResponseWriter, *http.Request, http.Handler) {
			return func(w http.ResponseWriter, r *http.Request, box http.Handler) {
				calls.Add(1)
				box.ServeHTTP(w, r)
			}
		}},
		{"the answer is lost twice", func(_ *bank, calls *atomic.Int32) func(http.ResponseWriter, *http.Request, http.Handler) {
			return func(w http.ResponseWriter, r *http.Request, box http.Handler) {
				if calls.Add(1) < 3 {
					proxy(r, box)
					panic(http.ErrAbortHandler)
				}
				box.ServeHTTP(w, r)
			}
		}},
		{"refunded by hand", func(b *bank, calls *atomic.Int32) func(http.ResponseWriter, *http.Request, http.Handler) {
			return func(w http.ResponseWriter, r *http.Request, box http.Handler) {
				calls.Add(1)
				byHand := r.Clone(r.Context())
				body, err := io.ReadAll(r.Body)
				if err != nil {
					b.t.Error(err)
				}
				r.Body, byHand.Body = io.NopCloser(bytes.NewReader(body)), io.NopCloser(bytes.NewReader(body))
				byHand.Header.Set("Idempotency-Key", "by hand")
				if w := proxy(byHand, box); w.Code != http.StatusCreated {
					b.t.Errorf("refund by hand: %d", w.Code)
				}
				box.ServeHTTP(w, r)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
				t.Parallel()
				b := openBank(t)
				post, refunds := &slowPost{got: make(chan struct{})}, &atomic.Int32{}
				refund := c.refund(b, refunds)
				b.setFront(func(w http.ResponseWriter, r *http.Request, box http.Handler) {
					if strings.HasSuffix(r.URL.Path, "/refunds") {
						refund(w, r, box)
						return
					}
					post.front(w, r, box)
				})
				s := newService(t, db, b.provider(), func(c *Config) {
					c.TTL = 300 * time.Millisecond
					c.LateChecks = []time.Duration{time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 10 * time.Second, 20 * time.Second}
				})
				run(t, s)
				awaitOpen(t, s) // a payment that is handed over is charged, however old it grows meanwhile
				o := order("")
				accept(t, s, o)
				<-post.got
				awaitFinal(t, db, o)
				failed := audit(t, db, b, o) // nothing is taken yet
				if failed.ErrorCode != CodeProviderUnavailable {
					t.Fatalf("%s %q", failed.Status, failed.ErrorCode)
				}
				post.deliver(t, b.box)
				eventually(t, func() string {
					if n := countRows(t, db, "refunds WHERE status = 'completed' AND due_at IS NULL AND lease_token IS NULL"); n != 1 {
						return fmt.Sprintf("%d refunds are done; %s", n, history(t, db, failed.ID))
					}
					return ""
				})
				r := audit(t, db, b, o) // and nothing is kept
				if taken := b.ledger(o.OrderID); len(taken) != 1 || taken[0].RefundedAmount != taken[0].Amount {
					t.Errorf("the ledger has %+v", taken)
				}
				if r.Status != Failed || !r.due.IsZero() || countRows(t, db, "refunds") != 1 {
					t.Errorf("%s, due %s, %d refunds", r.Status, r.due, countRows(t, db, "refunds"))
				}
				if refunds.Load() == 0 {
					t.Error("no refund passed the front")
				}
				for _, result := range []string{"provider_unavailable", "late_capture", "refunded"} {
					awaitResults(t, s, result, 1)
				}
			}, schemas...)
		})
	}
}
