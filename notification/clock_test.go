package notification

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"pizzaflow/job"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// A clock that was set forward gives nothing up, however long the mail server
// was away before; one that was set back holds nothing up.
func TestClockIsSet(t *testing.T) {
	for _, by := range []time.Duration{25 * time.Hour, 20 * time.Minute, -20 * time.Minute, -25 * time.Hour} {
		t.Run(by.String(), func(t *testing.T) {
			each(t, func(t *testing.T, db *sqldb.DB) {
				w := newWorld(t, db)
				w.edit = briefly
				w.mail.set(func() { w.mail.shut = true })
				stop := w.run(w.service())
				o := newOrder("")
				w.handle(w.service(), o.created())
				w.eventually("the mail was tried", func() bool { return w.attempts(o) >= 1 })
				stop()
				sqltest.SetClock(t, db, by, "notification_deliveries", "created_at", "due_at")
				before := w.attempts(o)
				w.run(w.service())
				w.eventually("the mail was tried again, and again", func() bool { return w.attempts(o) > before+1 })
				w.mail.set(func() { w.mail.shut = false })
				w.awaitFinal()
				w.wantMessages(o, 1, 1)
			})
		})
	}
}

// attempts is how often the order's mail was tried.
func (w *world) attempts(o anOrder) (n int) {
	w.t.Helper()
	_, err := fmt.Sscanf(w.deliveries(o)["order_confirmation email"], "pending %d", &n)
	if err != nil {
		w.t.Fatalf("the mail is %v: %v", w.deliveries(o), err)
	}
	return n
}

// A turnstile sends nothing at the first attempt, which it says failed once first is
// closed. It sends the message at the second attempt, and returns once then is closed.
type turnstile struct {
	Sender
	calls atomic.Int32
	first chan struct{}
	then  chan struct{}
}

func (s *turnstile) Send(ctx context.Context, m Message) Result {
	if s.calls.Add(1) == 1 {
		<-s.first
		return Result{Outcome: Permanent, Err: errors.New("no such mailbox")}
	}
	defer func() { <-s.then }()
	return s.Sender.Send(ctx, m)
}

// A worker whose row was taken by another process, and then again by a worker of its
// own process, records nothing any more.
func TestStaleWorkerOfTheSameProcess(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		w := newWorld(t, db)
		s := w.service()
		slow := &turnstile{Sender: s.channels[Email].sender, first: make(chan struct{}), then: make(chan struct{})}
		s.channels[Email].sender = slow
		stale := make(chan error, 10) // the results of the first attempt's update
		s.updates = sqldb.NewGroup(db, func(ctx context.Context, all []update) ([]error, error) {
			results, err := updateDeliveries(ctx, db, all)
			if err == nil && all[0].job.Attempt == 1 && all[0].status == Failed {
				stale <- results[0]
			}
			return results, err
		})
		w.run(s)
		o := newOrder("")
		w.handle(s, o.created())
		w.eventually("the first attempt is under way", func() bool { return slow.calls.Load() == 1 && w.count(Sent) == 1 })
		// another process takes the row, and its attempt comes to nothing
		w.exec(`UPDATE notification_deliveries SET lease_token = NULL, due_at = ` + sqldb.Clock + `, attempts = attempts + 1 WHERE channel = 'email'`)
		w.eventually("the second is", func() bool { return slow.calls.Load() == 2 })
		close(slow.first)
		if err := <-stale; !errors.Is(err, job.ErrLeaseLost) {
			t.Errorf("the worker that had lost its lease recorded its result: %v", err)
		}
		close(slow.then)
		w.awaitFinal()
		w.want(o, map[string]string{"order_confirmation email": "sent 3", "order_confirmation sms": "sent 1"})
		w.wantMessages(o, 1, 1)
	})
}
