package payment

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"
)

// A circuit keeps calls from a provider that does not answer. It opens when four of
// five calls of the last ten seconds were unanswered, and there were at least twenty
// calls; after two seconds it is half-open and three calls are made, and it closes
// when all three are answered.
type circuit struct {
	policy circuitbreaker.CircuitBreaker[any]
}

func newCircuit(log *slog.Logger) circuit {
	return circuit{circuitbreaker.NewBuilder[any]().
		WithFailureRateThreshold(0.8, 20, 10*time.Second).
		WithSuccessThreshold(3).
		WithDelay(2 * time.Second).WithJitterFactor(0.2).
		OnStateChanged(func(e circuitbreaker.StateChangedEvent) {
			log.Warn("payment provider circuit changed", "from", e.OldState.String(), "to", e.NewState.String())
		}).
		Build()}
}

// tryAcquire takes the permit for a call, and reports whether there was one. A
// permit that was taken has to be used by call or given back by release, on every
// path: a half-open circuit has three permits, and without any it would stay half-open
// for ever.
func (c circuit) tryAcquire() bool { return c.policy.TryAcquirePermit() }

// call makes a call that a permit was taken for, and records its outcome. A call
// that panics counts as unanswered, and so does a call that still runs when its ctx
// ends, although no provider should run on.
func (c circuit) call(ctx context.Context, fn func() Answer) (a Answer) {
	var once sync.Once
	record := func(a Answer) { once.Do(func() { c.record(a) }) }
	a = Answer{Outcome: Unanswered}
	stop := context.AfterFunc(ctx, func() { record(Answer{Outcome: Unanswered}) })
	defer func() {
		stop()
		record(a)
	}()
	return fn()
}

// record counts a call as answered or not.
func (c circuit) record(a Answer) {
	if a.Outcome == Unanswered {
		c.policy.RecordFailure()
	} else {
		c.policy.RecordSuccess()
	}
}

// release gives back a permit that was not used. Only a half-open circuit counts its
// permits, and it takes them back by results alone, so the call counts as failed.
func (c circuit) release() {
	if c.policy.IsHalfOpen() {
		c.policy.RecordFailure()
	}
}

// closed reports whether every call is made.
func (c circuit) closed() bool { return c.policy.IsClosed() }

// pause is how long there will be no permit for certain.
func (c circuit) pause() time.Duration { return c.policy.RemainingDelay() }
