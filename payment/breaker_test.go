package payment

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

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
