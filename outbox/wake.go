package outbox

import (
	"context"
	"time"
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
			case <-r.cfg.Outbox.wake:
				if err := r.db.Notify(last, wakeChannel); err != nil {
					r.cfg.Log.Warn("wake the relay that leads", "service", r.cfg.Service, "err", err)
				}
			default:
			}
			return
		case <-r.cfg.Outbox.wake:
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

// listen is woken by other processes.
func (t *term) listen(ctx context.Context) error {
	return t.db.Listen(ctx, wakeChannel, t.cfg.Outbox.poke)
}

// poke wakes the relay of this process.
func (o *Outbox) poke() {
	select {
	case o.wake <- struct{}{}:
	default: // it has a call waiting
	}
}
