package payment

import (
	"context"
	"time"

	"pizzaflow/job"
	"pizzaflow/outbox"
)

// lastRefundRetry is the longest pause before a refund is tried again. A refund is
// tried until it is done: the money is the customer's.
const lastRefundRetry = 30 * time.Minute

// refund asks the provider for the refund of a job. Its key never changes, so a
// repetition after a crash or a lost answer refunds nothing twice.
func (s *Service) refund(ctx context.Context, j job.Job) error {
	r, err := selectLeasedRefund(ctx, s.db.Read(), j)
	if err != nil {
		return err
	}
	p, err := paymentByID(ctx, s.db.Read(), r.PaymentID)
	if err != nil {
		return err
	}
	if !s.circuit.tryAcquire() {
		return postpone(ctx, s.db, "refunds", j, s.circuitPause(j))
	}
	a := s.callRefund(ctx, r)
	if a.Outcome == Refused && s.circuit.tryAcquire() {
		a = s.checkRefused(ctx, p, r, a)
	}
	return s.outbox.Tx(ctx, func(tx *outbox.Tx) error {
		pause := never
		if a.Outcome != Refunded {
			pause = job.Backoff(j.Attempt, firstRetry, lastRefundRetry)
		}
		if err := updateRefund(ctx, tx.Tx, s.db, j, a.Detail, pause); err != nil {
			return err
		}
		tx.AfterCommit(func() {
			log := s.log.With("payment_id", p.ID, "order_id", p.OrderID, "refund_id", r.ID, "attempt", j.Attempt)
			if a.Outcome != Refunded {
				log.ErrorContext(ctx, "payment refund not done yet", "outcome", string(a.Outcome), "detail", a.Detail)
				return
			}
			s.metrics.payments.WithLabelValues(resultRefunded).Inc()
			log.InfoContext(ctx, "payment refunded")
		})
		return nil
	})
}

// callRefund makes the call, for which a permit was taken.
func (s *Service) callRefund(ctx context.Context, r refund) Answer {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	return s.circuit.call(ctx, func() Answer {
		return s.cfg.Provider.Refund(ctx, Refund{Key: r.ID, TransactionID: r.TransactionID, Amount: r.Amount, Currency: r.Currency})
	})
}

// checkRefused looks up, with a permit that was taken, whether a refund was refused
// because the money is refunded already, by an earlier attempt or by hand.
func (s *Service) checkRefused(ctx context.Context, p Payment, r refund, refused Answer) Answer {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout/2)
	defer cancel()
	a := s.circuit.call(ctx, func() Answer { return s.cfg.Provider.Lookup(ctx, p.request()) })
	if a.Outcome == Captured && a.TransactionID == r.TransactionID && a.Refunded >= r.Amount {
		return Answer{Outcome: Refunded, Detail: "was given back already"}
	}
	return refused
}
