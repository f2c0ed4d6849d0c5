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

// The pauses before the provider is asked for an unanswered payment again, each
// twice the one before. The first are short, because the provider mostly has the
// charge already whose answer was lost. They exceed waitingRetry only after the TTL,
// when no customer waits any more.
const (
	firstRetry   = 200 * time.Millisecond
	waitingRetry = 10 * time.Second // until the TTL
	lastRetry    = 30 * time.Second
)

// interrupted is the answer of an attempt that a crash broke off.
var interrupted = Answer{Outcome: Unanswered, Detail: "interrupted"}

// charge makes the next attempt for the payment of a job.
func (s *Service) charge(ctx context.Context, j job.Job) error {
	p, begun := j.Data.(Payment) // onOrderCreated has recorded the first attempt
	clock, call := sqldb.NewReading(sqldb.Now()), CallCharge
	if !begun {
		r, err := s.reads.Do(ctx, j)
		if err = errors.Join(err, r.err); err != nil {
			return err
		}
		p, clock = r.payment, r.clock
		call = p.Next(clock.Now(), s.cfg.TTL)
	}
	if !s.circuit.tryAcquire() {
		return postpone(ctx, s.db, "payments", j, s.circuitPause(j))
	}
	return s.makeAttempts(ctx, j, p, call, begun, clock)
}

// makeAttempts records the attempt unless it is begun, calls the provider with no
// transaction open, and records what the answer led to. The caller has taken a
// permit for the call. When a lookup finds no charge, it charges at once: the
// older the answer to a lookup, the less it is worth.
func (s *Service) makeAttempts(ctx context.Context, j job.Job, p Payment, call Call, begun bool, clock sqldb.Reading) error {
	before, permitted := interrupted, true
	defer func() {
		if permitted { // and not used
			s.circuit.release()
		}
	}()
	for {
		if !begun {
			var err error
			if p, err = s.recordAttempt(ctx, j, p, call, before, clock.Now()); err != nil {
				return err
			}
		}
		begun, permitted = false, false
		a := s.callProvider(ctx, p, call)
		next, step := p.Apply(a, clock.Now(), s.cfg.TTL)
		if permitted = step == StepCharge && s.circuit.tryAcquire(); !permitted {
			j.CallDone()
			return s.recordAnswer(ctx, update{job: j, from: p, next: next, step: step, answer: a, pause: s.pause(next, step, clock.Now())})
		}
		call, before = CallCharge, a
	}
}

// readPayments reads the payments of many jobs. Where the database's clock was seen to
// be set forward, the payments get the age they would have without that.
func (s *Service) readPayments(ctx context.Context, jobs []job.Job) ([]leasedPayment, error) {
	asked := time.Now()
	all, err := selectLeased(ctx, s.db, jobs)
	for i := range all {
		if all[i].err != nil {
			continue
		}
		watch, p := s.observeClock(all[i].clock.Now(), asked), &all[i].payment
		p.CreatedAt = p.CreatedAt.Add(watch.SetForwardSince(p.CreatedAt))
		if !p.ChargedAt.IsZero() {
			p.ChargedAt = p.ChargedAt.Add(watch.SetForwardSince(p.ChargedAt))
		}
	}
	return all, err
}

// observeClock shows a reading of the database's clock to the watch, and returns the
// watch as it is then.
func (s *Service) observeClock(read, asked time.Time) sqldb.ClockWatch {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watch.Observe(read, asked, time.Second)
	return s.watch
}

// recordAttempt commits, with others, that the call is about to be made.
func (s *Service) recordAttempt(ctx context.Context, j job.Job, p Payment, call Call, before Answer, now time.Time) (Payment, error) {
	next := p.Begin(call, now)
	lost, err := s.attempts.Do(ctx, attempt{job: j, from: p.Status, next: next, call: call, before: before})
	return next, errors.Join(err, lost)
}

// storeAttempts stores many attempts. The result of each is job.ErrLeaseLost or nil.
func (s *Service) storeAttempts(ctx context.Context, all []attempt) (results []error, err error) {
	err = s.db.Tx(ctx, func(tx *sql.Tx) error {
		held, err := beginAttempts(ctx, tx, s.db, all)
		results = make([]error, len(all))
		for i, a := range all {
			if !held[a.next.ID] {
				results[i] = job.ErrLeaseLost
			}
		}
		return err
	})
	return results, err
}

// callProvider makes the call, for which a permit was taken. A lookup gets half of
// the time that a charge gets.
func (s *Service) callProvider(ctx context.Context, p Payment, call Call) Answer {
	timeout, fn := s.cfg.Timeout, s.cfg.Provider.Charge
	if call == CallLookup {
		timeout, fn = timeout/2, s.cfg.Provider.Lookup
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return p.Believe(call, s.circuit.call(ctx, func() Answer { return fn(ctx, p.request()) }))
}

// request is the charge that the provider is asked for.
func (p Payment) request() Charge {
	return Charge{Key: p.ID, OrderID: p.OrderID, Amount: p.Amount, Currency: p.Currency, CustomerEmail: p.CustomerEmail}
}

// recordAnswer commits, with others, what an answer led to. The lease token and
// the status are the fence: of two workers on one payment only one can commit.
func (s *Service) recordAnswer(ctx context.Context, u update) error {
	lost, err := s.updates.Do(ctx, u)
	if err = errors.Join(err, lost); err != nil {
		return err
	}
	s.countUpdate(u)
	s.logUpdate(ctx, u)
	return nil
}

// storeUpdates stores many updates. The result of each is job.ErrLeaseLost or nil.
func (s *Service) storeUpdates(ctx context.Context, all []update) (results []error, err error) {
	err = s.outbox.Tx(ctx, func(tx *outbox.Tx) error {
		held, err := updatePayments(ctx, tx.Tx, s.db, all)
		if err != nil {
			return err
		}
		results = make([]error, len(all))
		ends := make([]attemptEnd, 0, len(all))
		for i, u := range all {
			if !held[u.next.ID] {
				results[i] = job.ErrLeaseLost
				continue
			}
			ends = append(ends, attemptEnd{u.next.ID, u.answer})
			if err := s.takeStep(ctx, tx, u); err != nil {
				return err
			}
		}
		return endAttempts(ctx, tx.Tx, s.db, ends)
	})
	return results, err
}

// takeStep adds the event or the refund that the step of an update asks for.
func (s *Service) takeStep(ctx context.Context, tx *outbox.Tx, u update) error {
	tx.Cause(u.from.CausationID, u.from.Traceparent)
	switch u.step {
	case StepComplete:
		tx.Add(u.next.Version, u.next.completed())
	case StepFail:
		tx.Add(u.next.Version, u.next.failed())
	case StepRefund:
		return s.addRefund(ctx, tx, u.next, u.answer)
	case StepRest, StepRetry, StepCharge, StepCheck:
	}
	return nil
}

// addRefund adds the refund of a captured charge.
func (s *Service) addRefund(ctx context.Context, tx *outbox.Tx, p Payment, a Answer) error {
	id, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("add refund: %w", err)
	}
	tx.AfterCommit(s.refunds.Wake)
	return insertRefund(ctx, tx.Tx, refund{
		ID: id.String(), PaymentID: p.ID, TransactionID: a.TransactionID, Amount: a.Amount - a.Refunded, Currency: a.Currency,
	})
}

// pause is how long it takes until the payment is due again, or never.
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

// longestPause is the longest pause before a payment is due again, for
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

// circuitPause is the pause before a row is due again that the circuit gave no permit
// for. The more often the row was taken, the longer the pause, so that the rows
// spread out.
func (s *Service) circuitPause(j job.Job) time.Duration {
	return s.circuit.pause() + job.Backoff(j.Attempt, firstRetry, 5*time.Second)
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

// countUpdate counts the result of a payment, when the update is one.
func (s *Service) countUpdate(u update) {
	var result string
	switch {
	case u.step == StepComplete:
		result = resultCompleted
	case u.step == StepFail && u.next.ErrorCode == CodeProviderUnavailable:
		result = resultUnavailable
	case u.step == StepFail:
		result = resultDeclined
	case u.step == StepRetry && u.from.Status == Processing:
		result = resultUnknown
	case u.step == StepRefund:
		result = resultLate
	default:
		return
	}
	s.metrics.payments.WithLabelValues(result).Inc()
}

// logUpdate logs an update.
func (s *Service) logUpdate(ctx context.Context, u update) {
	log := s.log.With("payment_id", u.next.ID, "order_id", u.next.OrderID, "attempt", u.next.Calls)
	switch u.step {
	case StepComplete:
		log.InfoContext(ctx, "payment completed")
	case StepFail:
		log.InfoContext(ctx, "payment failed", "error_code", u.next.ErrorCode)
	case StepRetry:
		log.WarnContext(ctx, "payment outcome unknown", "detail", u.answer.Detail)
	case StepRefund:
		log.WarnContext(ctx, "payment captured after it failed: refunding")
	case StepRest, StepCharge, StepCheck:
	}
}
