package load

import (
	"context"
	"time"

	"pizzaflow/internal/retry"
)

const (
	maxPolls  = 32 // polls under way, however many orders are followed
	firstPoll = 200 * time.Millisecond
	maxPoll   = 5 * time.Second
)

// Final states of a followed order.
const (
	statePaid    = "paid"
	stateFailed  = "payment_failed"
	statePending = "pending"
	stateMissing = "missing" // the system does not have the order that it promised
)

// followOrder polls a placed order until it is final or Config.Follow has passed. The
// last poll is made after that and has the time of one try, including its wait for
// other polls.
func (r *Run) followOrder(ctx context.Context, id string, placed time.Time) {
	end := placed.Add(r.cfg.Follow)
	ctx, cancel := context.WithDeadline(ctx, end.Add(r.cfg.Timeout))
	defer cancel()
	for n, pause := 0, firstPoll; ; n, pause = n+1, min(2*pause, maxPoll) {
		retry.Sleep(ctx, min(pause, time.Until(end)))
		last := !time.Now().Before(end)
		select {
		case r.polls <- struct{}{}:
		case <-ctx.Done():
			r.tally.addFollowed(statePending, 0)
			return
		}
		order, found, err := r.api.getOrder(ctx, n, id)
		<-r.polls
		switch {
		case err == nil && (order.Status == statePaid || order.Status == stateFailed):
			r.tally.addFollowed(order.Status, order.timeToFinal())
			return
		case last && err == nil && !found:
			r.tally.addFollowed(stateMissing, 0)
			return
		case last:
			r.tally.addFollowed(statePending, 0)
			return
		}
	}
}

// timeToFinal returns how long the order took to its final state, by the times in its
// history, which do not depend on when it was polled.
func (o *orderView) timeToFinal() time.Duration {
	if len(o.History) == 0 {
		return 0
	}
	return max(0, o.History[len(o.History)-1].At.Sub(o.History[0].At))
}
