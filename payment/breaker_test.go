package payment

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// A circuit that is half-open has three permits. Whatever a provider does with
// them (it panics, or never comes back), they are there again.
func TestPermitsComeBack(t *testing.T) {
	for name, provider := range map[string]func(ctx context.Context, over <-chan struct{}) Answer{
		"panics": func(context.Context, <-chan struct{}) Answer { panic("oops") },
		"hangs":  func(_ context.Context, over <-chan struct{}) Answer { <-over; return captured() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, over := newBreaker(slog.New(slog.DiscardHandler)), make(chan struct{})
				defer close(over)
				for round := range 3 {
					b.circuit.HalfOpen()
					for range 3 {
						if !b.acquire() {
							t.Fatalf("round %d: no permit", round)
						}
						go func() {
							defer func() { _ = recover() }()
							ctx, cancel := context.WithTimeout(t.Context(), time.Second)
							defer cancel()
							b.call(ctx, func() Answer { return provider(ctx, over) })
						}()
					}
					time.Sleep(2 * time.Second) // virtual
					if !b.circuit.IsOpen() {
						t.Fatalf("round %d: the circuit is %s after three calls without an answer", round, b.circuit.State())
					}
					time.Sleep(time.Minute)
				}
				for range 3 {
					if !b.acquire() || b.call(t.Context(), captured).Outcome != Captured {
						t.Fatal("no call is made when the provider is well again")
					}
				}
				if !b.closed() {
					t.Errorf("the circuit is %s after three answers", b.circuit.State())
				}
			})
		})
	}
}

func TestBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(slog.New(slog.DiscardHandler))
		call := func(o Outcome) bool {
			if !b.acquire() {
				return false
			}
			b.record(Answer{Outcome: o})
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
		<-time.After(b.pause())
		if !call(Absent) || !call(Unanswered) || call(Captured) {
			t.Fatal("a call without an answer does not open it again")
		}
		<-time.After(b.pause())
		if !b.acquire() {
			t.Fatal("no call is let through")
		}
		b.release()
		if call(Captured) {
			t.Fatal("a permit that was not used counts as an answer")
		}
		<-time.After(b.pause())
		for range 3 {
			if !call(Captured) {
				t.Fatal("no call is let through")
			}
		}
		if !b.circuit.IsClosed() || !call(Unanswered) {
			t.Fatal("open after three answers")
		}
	})
}
