package payment

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"pizzaflow/event"
	"pizzaflow/job"
	"pizzaflow/outbox"
	"pizzaflow/sqldb"
)

// The pauses before an unanswered payment is asked for again, each twice the
// one before. The first are short, because most lost answers are known to the
// provider already. They grow further only when nobody waits any more.
const (
	firstRetry   = 200 * time.Millisecond
	waitingRetry = 10 * time.Second // until the TTL
	lastRetry    = 30 * time.Second
)

// interrupted is what is known of an attempt that a crash broke off.
var interrupted = Answer{Outcome: Unanswered, Detail: "interrupted"}

// charge brings a claimed payment one step further: it asks the provider, with
// the attempt on record before and no transaction open, and settles what was
// learned. A lookup that finds nothing leads to a charge at once: the older
// its answer, the less it is worth.
func (s *Service) charge(ctx context.Context, c job.Job) error {
	p, begun := c.Data.(Payment) // its first attempt was recorded with it
	moment, call := sqldb.Heard(sqldb.Now()), CallCharge
	if !begun {
		f, err := s.loads.Do(ctx, c)
		if err = errors.Join(err, f.err); err != nil {
			return err
		}
		p, moment = f.payment, f.moment
		call = p.Next(moment.Now(), s.cfg.TTL)
	}
	if !s.breaker.acquire() {
		return postponeWork(ctx, s.db, "payments", c, s.afterBreaker(c))
	}
	return s.call(ctx, c, p, call, begun, moment)
}

// call makes the call, for which there is a permit, and a charge after it where
// that is what the answer leads to, and settles what was learned.
func (s *Service) call(ctx context.Context, c job.Job, p Payment, call Call, begun bool, moment sqldb.Moment) error {
	before, permitted := interrupted, true
	defer func() {
		if permitted { // and not used
			s.breaker.release()
		}
	}()
	for {
		if !begun {
			var err error
			if p, err = s.begin(ctx, c, p, call, before, moment.Now()); err != nil {
				return err
			}
		}
		begun, permitted = false, false
		a := s.ask(ctx, p, call)
		next, step := p.Apply(a, moment.Now(), s.cfg.TTL)
		if permitted = step == StepCharge && s.breaker.acquire(); !permitted {
			c.CallDone()
			return s.settle(ctx, c, p, next, step, a, moment.Now())
		}
		call, before = CallCharge, a
	}
}

// loadAll reads many claimed payments. Where the clock was seen to be set
// forward, they are as old as they would be without that.
func (s *Service) loadAll(ctx context.Context, claims []job.Job) ([]found, error) {
	asked := time.Now()
	all, err := claimedPayments(ctx, s.db, claims)
	for i := range all {
		if all[i].err != nil {
			continue
		}
		ahead, p := s.noteClock(all[i].moment.Now(), asked), &all[i].payment
		p.CreatedAt = p.CreatedAt.Add(ahead(p.CreatedAt))
		if !p.ChargedAt.IsZero() {
			p.ChargedAt = p.ChargedAt.Add(ahead(p.ChargedAt))
		}
	}
	return all, err
}

// noteClock notes a reading of the database's clock, and returns what tells how
// far it was set forward since a time.
func (s *Service) noteClock(said, asked time.Time) (ahead func(time.Time) time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clock.Steady(said, asked, time.Second)
	noted := s.clock
	return noted.Ahead
}

// begin commits that the call is about to be made.
func (s *Service) begin(ctx context.Context, c job.Job, p Payment, call Call, before Answer, now time.Time) (Payment, error) {
	next := p.Begin(call, now)
	lost, err := s.begins.Do(ctx, attempt{claim: c, from: p.Status, next: next, call: call, before: before})
	return next, errors.Join(err, lost)
}

// beginAll commits many at once. The result of each is errLeaseLost or nil.
func (s *Service) beginAll(ctx context.Context, all []attempt) (results []error, err error) {
	err = s.db.Tx(ctx, func(tx *sql.Tx) error {
		won, err := beginAttempts(ctx, tx, s.db, all)
		results = make([]error, len(all))
		for i, a := range all {
			if !won[a.next.ID] {
				results[i] = errLeaseLost
			}
		}
		return err
	})
	return results, err
}

// ask makes the call, for which there is a permit. Lookups get half of the time.
func (s *Service) ask(ctx context.Context, p Payment, call Call) Answer {
	timeout, fn := s.cfg.Timeout, s.cfg.Provider.Charge
	if call == CallLookup {
		timeout, fn = timeout/2, s.cfg.Provider.Lookup
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return p.Believe(call, s.breaker.call(ctx, func() Answer { return fn(ctx, p.charge()) }))
}

// charge is p as the provider is asked for it.
func (p Payment) charge() Charge {
	return Charge{Key: p.ID, OrderID: p.OrderID, Amount: p.Amount, Currency: p.Currency, CustomerEmail: p.CustomerEmail}
}

// A settlement is what an answer led to: the payment, the end of the attempt,
// and the event or the refund.
type settlement struct {
	claim      job.Job
	from, next Payment
	step       Step
	answer     Answer
	pause      time.Duration // before the payment is taken again, or never
}

// settle commits what an answer led to. The lease token and the status fence
// it, so that of two workers on one payment only one can.
func (s *Service) settle(ctx context.Context, c job.Job, p, next Payment, step Step, a Answer, now time.Time) error {
	lost, err := s.settles.Do(ctx, settlement{
		claim: c, from: p, next: next, step: step, answer: a, pause: s.pause(next, step, now),
	})
	if err = errors.Join(err, lost); err != nil {
		return err
	}
	s.tell(ctx, p, next, step, a)
	return nil
}

// settleAll commits many at once. The result of each is errLeaseLost or nil.
func (s *Service) settleAll(ctx context.Context, all []settlement) (results []error, err error) {
	err = s.outbox.Tx(ctx, func(tx *outbox.Tx) error {
		won, err := settlePayments(ctx, tx.Tx, s.db, all)
		if err != nil {
			return err
		}
		results = make([]error, len(all))
		ended := make([]ending, 0, len(all))
		for i, t := range all {
			if !won[t.next.ID] {
				results[i] = errLeaseLost
				continue
			}
			ended = append(ended, ending{t.next.ID, t.answer})
			if err := s.follow(ctx, tx, t); err != nil {
				return err
			}
		}
		return endAttempts(ctx, tx.Tx, s.db, ended)
	})
	return results, err
}

// follow adds what a settled payment leads to.
func (s *Service) follow(ctx context.Context, tx *outbox.Tx, t settlement) error {
	tx.Cause(t.from.CausationID, t.from.Traceparent)
	switch t.step {
	case StepComplete:
		tx.Add(t.next.Version, t.next.completed())
	case StepFail:
		tx.Add(t.next.Version, t.next.failed())
	case StepRefund:
		return s.orderRefund(ctx, tx, t.next, t.answer)
	case StepRest, StepRetry, StepCharge, StepCheck:
	}
	return nil
}

// pause is how long the payment rests before it is taken again, or never.
func (s *Service) pause(p Payment, step Step, now time.Time) time.Duration {
	switch step {
	case StepRetry, StepCharge:
		limit := waitingRetry
		if p.expired(now, s.cfg.TTL) {
			limit = lastRetry
		}
		return job.Backoff(p.Calls, firstRetry, limit)
	case StepFail, StepCheck:
		return p.NextCheck(s.cfg.LateChecks)
	case StepRest, StepComplete, StepRefund:
	}
	return never
}

// longestPause is the longest pause before a payment is taken again, for
// job.Config.
func longestPause(checks []time.Duration) string {
	var b strings.Builder
	b.WriteString("CASE")
	failed := Payment{Status: Failed, ErrorCode: CodeProviderUnavailable}
	for ; failed.Checks < len(checks); failed.Checks++ {
		fmt.Fprintf(&b, " WHEN status = 'failed' AND checks = %d THEN %d", failed.Checks, failed.NextCheck(checks).Microseconds())
	}
	fmt.Fprintf(&b, " WHEN true THEN %d END", lastRetry.Microseconds())
	return b.String()
}

// afterBreaker is how long a row that no call may be made for rests. The
// waiting spreads out the longer it lasts.
func (s *Service) afterBreaker(c job.Job) time.Duration {
	return s.breaker.pause() + job.Backoff(c.Attempt, firstRetry, 5*time.Second)
}

func (p Payment) completed() event.PaymentCompleted {
	return event.PaymentCompleted{
		PaymentID: p.ID, OrderID: p.OrderID, Amount: p.Amount, Currency: p.Currency,
		TransactionID: p.TransactionID, CompletedAt: p.CompletedAt,
	}
}

func (p Payment) failed() event.PaymentFailed {
	return event.PaymentFailed{
		PaymentID: p.ID, OrderID: p.OrderID, Amount: p.Amount, Currency: p.Currency,
		ErrorCode: p.ErrorCode, ErrorMessage: message(p.ErrorCode), FailedAt: p.CompletedAt,
	}
}

// orderRefund writes down that what was captured is to be given back.
func (s *Service) orderRefund(ctx context.Context, tx *outbox.Tx, p Payment, a Answer) error {
	id, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("order refund: %w", err)
	}
	tx.AfterCommit(s.refunds.Wake)
	return insertRefund(ctx, tx.Tx, refund{
		ID: id.String(), PaymentID: p.ID, TransactionID: a.TransactionID, Amount: a.Amount - a.Refunded, Currency: a.Currency,
	})
}

// tell counts and logs what was settled.
func (s *Service) tell(ctx context.Context, p, next Payment, step Step, a Answer) {
	log := s.log.With("payment_id", p.ID, "order_id", p.OrderID, "attempt", next.Calls)
	switch step {
	case StepComplete:
		s.results.WithLabelValues(resultCompleted).Inc()
		log.InfoContext(ctx, "payment completed")
	case StepFail:
		result := resultDeclined
		if next.ErrorCode == CodeProviderUnavailable {
			result = resultUnavailable
		}
		s.results.WithLabelValues(result).Inc()
		log.InfoContext(ctx, "payment failed", "error_code", next.ErrorCode)
	case StepRetry:
		if p.Status == Processing {
			s.results.WithLabelValues(resultUnknown).Inc()
		}
		log.WarnContext(ctx, "payment outcome unknown", "detail", a.Detail)
	case StepRefund:
		s.results.WithLabelValues(resultLate).Inc()
		log.WarnContext(ctx, "payment captured after it failed: refunding")
	case StepRest, StepCharge, StepCheck:
	}
}
