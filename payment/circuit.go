package payment

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"
)

// A breaker keeps calls from a provider that does not answer. It opens when
// four of five calls of the last ten seconds, at least twenty, were
// unanswered; after two seconds three calls are let through, and it closes when all
// of them are answered.
type breaker struct {
	circuit circuitbreaker.CircuitBreaker[any]
}

func newBreaker(log *slog.Logger) breaker {
	return breaker{circuitbreaker.NewBuilder[any]().
		WithFailureRateThreshold(0.8, 20, 10*time.Second).
		WithSuccessThreshold(3).
		WithDelay(2 * time.Second).WithJitterFactor(0.2).
		OnStateChanged(func(e circuitbreaker.StateChangedEvent) {
			log.Warn("payment provider circuit changed", "from", e.OldState.String(), "to", e.NewState.String())
		}).
		Build()}
}

// acquire reports whether a call may be made. After it, either call has to make
// it or release has to be called, whatever happens in between: a half-open
// circuit has few permits, and without any it would stay as it is for good.
func (b breaker) acquire() bool { return b.circuit.TryAcquirePermit() }

// call makes a call for which there is a permit, and takes note of how it went.
// One that panics was not answered, nor was one that still runs when its ctx
// ends, although no provider should.
func (b breaker) call(ctx context.Context, fn func() Answer) (a Answer) {
	var once sync.Once
	record := func(a Answer) { once.Do(func() { b.record(a) }) }
	a = Answer{Outcome: Unanswered}
	stop := context.AfterFunc(ctx, func() { record(Answer{Outcome: Unanswered}) })
	defer func() {
		stop()
		record(a)
	}()
	return fn()
}

// record takes note of how a call went.
func (b breaker) record(a Answer) {
	if a.Outcome == Unanswered {
		b.circuit.RecordFailure()
	} else {
		b.circuit.RecordSuccess()
	}
}

// release gives back a permit that was not used. Only a half-open circuit
// counts its permits, and it has none to give back except by a result.
func (b breaker) release() {
	if b.circuit.IsHalfOpen() {
		b.circuit.RecordFailure()
	}
}

// closed reports whether nothing speaks against a call.
func (b breaker) closed() bool { return b.circuit.IsClosed() }

// pause is how long no call will be let through for certain.
func (b breaker) pause() time.Duration { return b.circuit.RemainingDelay() }
