package relay

import (
	"context"
	"time"

	"pizzaflow/internal/retry"
)

// A commit wakes the relay of its own process through a channel. A relay that stands
// by wakes the one that leads, in another process, with a NOTIFY: one for all commits
// since the last, outside of their transactions, because a NOTIFY in a transaction
// makes commits wait for each other. When a NOTIFY is lost, the poll finds the events.

const (
	wakeChannel = "outbox"
	notifyPause = 2 * time.Millisecond // at least, between two notifications
)

// notify passes wake-ups on to the relay that leads, until ctx ends, and then the
// last one, if there is one.
func (r *Relay) notify(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			r.notifyLast(context.WithoutCancel(ctx))
			return
		case <-r.cfg.Outbox.Local().Woken():
		}
		if err := r.db.Notify(ctx, wakeChannel); err != nil && ctx.Err() == nil {
			r.cfg.Log.Warn("waking the leading relay failed", "service", r.cfg.Service, "err", err)
		}
		retry.Sleep(ctx, notifyPause)
	}
}

func (r *Relay) notifyLast(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	select {
	case <-r.cfg.Outbox.Local().Woken():
		if err := r.db.Notify(ctx, wakeChannel); err != nil {
			r.cfg.Log.Warn("waking the leading relay failed", "service", r.cfg.Service, "err", err)
		}
	default:
	}
}

// listen wakes the relay when other processes have committed, until ctx ends. While
// the server refuses or ends the session, the poll finds their commits.
func (t *term) listen(ctx context.Context) {
	for attempt := 1; ; attempt++ {
		began := time.Now()
		err := t.db.Listen(ctx, wakeChannel, t.cfg.Outbox.Local().Wake)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > stableListen {
			attempt = 1
		}
		t.cfg.Log.Warn("relay is not notified of commits of other processes", "service", t.cfg.Service, "err", err)
		if !retry.Sleep(ctx, retry.Backoff(attempt, 200*time.Millisecond, 5*time.Second)) {
			return
		}
	}
}

// stableListen is how long a session must have listened for the next one to be
// opened after the shortest pause.
const stableListen = 10 * time.Second
