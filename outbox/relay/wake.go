package relay

import (
	"context"
	"time"

	"pizzaflow/internal/retry"
)

// A commit wakes the relay of its own process through a channel. When another
// process leads, this one tells it with a NOTIFY: one for all commits since the
// last, outside of their transactions, which it would make wait for each
// other. What is missed, the poll finds.

const (
	wakeChannel = "outbox"
	notifyPause = 2 * time.Millisecond // at least, between two notifications
)

// notify passes wake-ups on to the relay that leads, until ctx ends, and then
// the one that may be left.
func (r *Relay) notify(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			select {
			case <-r.cfg.Outbox.Local().Woken():
				if err := r.db.Notify(last, wakeChannel); err != nil {
					r.cfg.Log.Warn("wake the relay that leads", "service", r.cfg.Service, "err", err)
				}
			default:
			}
			return
		case <-r.cfg.Outbox.Local().Woken():
		}
		if err := r.db.Notify(ctx, wakeChannel); err != nil && ctx.Err() == nil {
			r.cfg.Log.Warn("wake the relay that leads", "service", r.cfg.Service, "err", err)
		}
		pause := time.NewTimer(notifyPause)
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		pause.Stop()
	}
}

// listen is woken by other processes, until ctx ends. While the server has no
// session for it, or has ended it, the poll finds what they commit.
func (t *term) listen(ctx context.Context) {
	for attempt := 1; ; attempt++ {
		began := time.Now()
		err := t.db.Listen(ctx, wakeChannel, t.cfg.Outbox.Local().Wake)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > listenWell {
			attempt = 1
		}
		t.cfg.Log.Warn("relay is not told of what other processes commit", "service", t.cfg.Service, "err", err)
		if !retry.Sleep(ctx, retry.Backoff(attempt, 200*time.Millisecond, 5*time.Second)) {
			return
		}
	}
}

// listenWell is how long a session must have listened that the next one is
// opened at once.
const listenWell = 10 * time.Second
