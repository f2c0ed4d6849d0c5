package load

import (
	"context"
	"time"

	"pizzaflow/internal/retry"
)

const (
	maxPolls  = 32 // questions at once, however many orders are followed
	firstPoll = 200 * time.Millisecond
	maxPoll   = 5 * time.Second
)

// Final states of a followed order.
const (
	statePaid    = "paid"
	stateFailed  = "payment_failed"
	statePending = "pending"
	stateMissing = "missing" // the system does not know what it promised
)

// follow asks after a placed order until it is final, or its time is up; the
// last question is asked after that, and has the time of one try: behind others
// that nobody answers it is not asked at all.
func (r *Run) follow(ctx context.Context, id string, placed time.Time) {
	end := placed.Add(r.cfg.Follow)
	ctx, cancel := context.WithDeadline(ctx, end.Add(r.cfg.Timeout))
	defer cancel()
	for n, pause := 0, firstPoll; ; n, pause = n+1, min(2*pause, maxPoll) {
		retry.Sleep(ctx, min(pause, time.Until(end)))
		last := !time.Now().Before(end)
		select {
		case r.polls <- struct{}{}:
		case <-ctx.Done():
			r.tally.followed(statePending, 0)
			return
		}
		order, found, err := r.api.get(ctx, n, id)
		<-r.polls
		switch {
		case err == nil && (order.Status == statePaid || order.Status == stateFailed):
			r.tally.followed(order.Status, order.took())
			return
		case last && err == nil && !found:
			r.tally.followed(stateMissing, 0)
			return
		case last:
			r.tally.followed(statePending, 0)
			return
		}
	}
}

// took is how long the order needed for its final state. The system's own times
// say so: when a question comes does not blur it.
func (o *orderView) took() time.Duration {
	if len(o.History) == 0 {
		return 0
	}
	return max(0, o.History[len(o.History)-1].At.Sub(o.History[0].At))
}
