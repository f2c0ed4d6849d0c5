package payment

import (
	"context"
	"time"

	"pizzaflow/job"
	"pizzaflow/outbox"
)

// lastRefundRetry is the longest pause before a refund is tried again. It is
// tried until it is done: the money is the customer's.
const lastRefundRetry = 30 * time.Minute

// refund gives the money of a claimed row back. Its key never changes, so a
// repetition after a crash or a lost answer gives nothing twice.
func (s *Service) refund(ctx context.Context, c job.Job) error {
	r, err := claimedRefund(ctx, s.db.Read(), c)
	if err != nil {
		return err
	}
	p, err := paymentByID(ctx, s.db.Read(), r.PaymentID)
	if err != nil {
		return err
	}
	if !s.breaker.acquire() {
		return postponeWork(ctx, s.db, "refunds", c, s.afterBreaker(c))
	}
	a := s.giveBack(ctx, r)
	if a.Outcome == Refused && s.breaker.acquire() {
		a = s.lookRefunded(ctx, p, r, a)
	}
	return s.outbox.Tx(ctx, func(tx *outbox.Tx) error {
		pause := never
		if a.Outcome != Refunded {
			pause = job.Backoff(c.Attempt, firstRetry, lastRefundRetry)
		}
		if err := settleRefund(ctx, tx.Tx, s.db, c, a.Detail, pause); err != nil {
			return err
		}
		tx.AfterCommit(func() {
			log := s.log.With("payment_id", p.ID, "order_id", p.OrderID, "refund_id", r.ID, "attempt", c.Attempt)
			if a.Outcome != Refunded {
				log.ErrorContext(ctx, "payment refund not done yet", "outcome", string(a.Outcome), "detail", a.Detail)
				return
			}
			s.results.WithLabelValues(resultRefunded).Inc()
			log.InfoContext(ctx, "payment refunded")
		})
		return nil
	})
}

func (s *Service) giveBack(ctx context.Context, r refund) Answer {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	return s.breaker.call(ctx, func() Answer {
		return s.cfg.Provider.Refund(ctx, Refund{Key: r.ID, TransactionID: r.TransactionID, Amount: r.Amount, Currency: r.Currency})
	})
}

// lookRefunded asks whether a refused refund was refused because the money is
// back already, by an earlier try or by hand.
func (s *Service) lookRefunded(ctx context.Context, p Payment, r refund, refused Answer) Answer {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout/2)
	defer cancel()
	a := s.breaker.call(ctx, func() Answer { return s.cfg.Provider.Lookup(ctx, p.charge()) })
	if a.Outcome == Captured && a.TransactionID == r.TransactionID && a.Refunded >= r.Amount {
		return Answer{Outcome: Refunded, Detail: "was given back already"}
	}
	return refused
}
