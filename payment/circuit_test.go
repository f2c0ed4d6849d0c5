package payment

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"pizzaflow/outbox"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// A circuit that is half-open has three permits. They come back when the provider
// panics, and when it never returns.
func TestPermitsComeBack(t *testing.T) {
	for name, provider := range map[string]func(ctx context.Context, over <-chan struct{}) Answer{
		"panics": func(context.Context, <-chan struct{}) Answer { panic("oops") },
		"hangs":  func(_ context.Context, over <-chan struct{}) Answer { <-over; return captured() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, over := newCircuit(slog.New(slog.DiscardHandler)), make(chan struct{})
				defer close(over)
				for round := range 3 {
					c.policy.HalfOpen()
					for range 3 { // before the first call, whose failure opens the circuit again
						if !c.tryAcquire() {
							t.Fatalf("round %d: no permit", round)
						}
					}
					for range 3 {
						go func() {
							defer func() { _ = recover() }()
							ctx, cancel := context.WithTimeout(t.Context(), time.Second)
							defer cancel()
							c.call(ctx, func() Answer { return provider(ctx, over) })
						}()
					}
					time.Sleep(2 * time.Second) // virtual
					if !c.policy.IsOpen() {
						t.Fatalf("round %d: the circuit is %s after three calls without an answer", round, c.policy.State())
					}
					time.Sleep(time.Minute)
				}
				for range 3 {
					if !c.tryAcquire() || c.call(t.Context(), captured).Outcome != Captured {
						t.Fatal("no call is made when the provider is well again")
					}
				}
				if !c.closed() {
					t.Errorf("the circuit is %s after three answers", c.policy.State())
				}
			})
		})
	}
}

func TestCircuit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCircuit(slog.New(slog.DiscardHandler))
		call := func(o Outcome) bool {
			if !c.tryAcquire() {
				return false
			}
			c.record(Answer{Outcome: o})
			return true
		}
		for i := range 30 { // a third of the calls fail: that is no outage
			if !call([]Outcome{Captured, Declined, Unanswered}[i%3]) {
				t.Fatalf("open after %d calls with two of three answered", i)
			}
		}
		<-time.After(time.Minute)
		for i := range 20 {
			if !call(Unanswered) {
				t.Fatalf("open after %d calls", i)
			}
		}
		if call(Captured) {
			t.Fatal("closed after 20 calls without an answer")
		}
		<-time.After(c.pause())
		if !call(Absent) || !call(Unanswered) || call(Captured) {
			t.Fatal("a call without an answer does not open it again")
		}
		<-time.After(c.pause())
		if !c.tryAcquire() {
			t.Fatal("no call is let through")
		}
		c.release()
		if call(Captured) {
			t.Fatal("a permit that was not used counts as an answer")
		}
		<-time.After(c.pause())
		for range 3 {
			if !call(Captured) {
				t.Fatal("no call is let through")
			}
		}
		if !c.policy.IsClosed() || !call(Unanswered) {
			t.Fatal("open after three answers")
		}
	})
}

// panicky is the real provider, which panics a few times first.
type panicky struct {
	Provider
	left *atomic.Int32
}

func (p panicky) panics() {
	if p.left.Add(-1) >= 0 {
		panic("oops")
	}
}

func (p panicky) Charge(ctx context.Context, c Charge) Answer {
	p.panics()
	return p.Provider.Charge(ctx, c)
}

func (p panicky) Lookup(ctx context.Context, c Charge) Answer {
	p.panics()
	return p.Provider.Lookup(ctx, c)
}

func (p panicky) Refund(ctx context.Context, r Refund) Answer {
	p.panics()
	return p.Provider.Refund(ctx, r)
}

// A provider that panics for every permit of a half-open circuit is called again, for
// charges and refunds, and the gauge has the circuit's state.
func TestCircuitSurvivesPanics(t *testing.T) {
	t.Parallel()
	db := sqltest.Open(t, sqldb.SQLite, schemas...)
	b, left := openBank(t), &atomic.Int32{}
	s := newService(t, db, panicky{b.provider(), left}, unhurried)
	run(t, s)
	closed := func() bool {
		return testutil.ToFloat64(circuitGauge(s.circuit, circuitbreaker.ClosedState)) == 1
	}
	o := order("")
	left.Store(3)
	s.circuit.policy.HalfOpen()
	accept(t, s, o)
	awaitFinal(t, db, o)
	r := audit(t, db, b, o)
	if left.Load() >= 0 {
		t.Error("the provider did not panic as often as it should")
	}

	left.Store(3)
	s.circuit.policy.HalfOpen()
	if closed() {
		t.Error("the gauge calls a half-open circuit closed")
	}
	err := s.outbox.Tx(t.Context(), func(tx *outbox.Tx) error {
		tx.AfterCommit(s.refunds.Wake)
		return insertRefund(t.Context(), tx.Tx, refund{ID: uuid.NewString(), PaymentID: r.ID, TransactionID: r.TransactionID, Amount: r.Amount, Currency: r.Currency})
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if countRows(t, db, "refunds WHERE status = 'completed'") != 1 {
			return "the refund is not made"
		}
		return ""
	})
	for range 3 { // answers that close it
		if s.circuit.tryAcquire() {
			s.circuit.call(t.Context(), captured)
		}
	}
	if !closed() {
		t.Errorf("the circuit is %s after the answers", s.circuit.policy.State())
	}
}
