package order

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"pizzaflow/sqldb"
)

// Run marks what is overdue and removes what is expired, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		// an order is marked at most a tenth of its deadline late
		s.every(ctx, min(max(s.deadline/10, 10*time.Millisecond), 10*time.Second), s.watchDeadlines)
		return nil
	})
	g.Go(func() error {
		s.every(ctx, 10*time.Minute, s.expireKeys)
		return nil
	})
	return g.Wait()
}

// every does the job now and then once an interval until ctx ends. A job that
// fails is done again the next time: it finds its work in the database.
func (s *Service) every(ctx context.Context, interval time.Duration, job func(context.Context) error) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if err := job(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("order job", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// watchDeadlines marks the overdue orders and counts the marked ones.
func (s *Service) watchDeadlines(ctx context.Context) error {
	return errors.Join(s.markOverdue(ctx), s.tellAttention(ctx))
}

func (s *Service) markOverdue(ctx context.Context) error {
	for {
		now := sqldb.Now()
		n, err := markOverdue(ctx, s.db.DB, now.Add(-s.deadline), now)
		if err != nil || n == 0 {
			return err
		}
		s.log.Warn("orders await their payment beyond the deadline", "orders", n)
	}
}

// tellAttention shows how many orders are marked, and nothing when that cannot
// be found out.
func (s *Service) tellAttention(ctx context.Context) error {
	counts, err := countAttention(ctx, s.db.Read())
	if err != nil {
		if ctx.Err() == nil {
			s.metrics.errors.Inc()
			s.metrics.attention.Reset()
		}
		return err
	}
	for _, reason := range []string{AttentionMismatch, AttentionOverdue} {
		s.metrics.attention.WithLabelValues(reason).Set(float64(counts[reason]))
	}
	return nil
}

// expireKeys removes the idempotency keys whose time is over.
func (s *Service) expireKeys(ctx context.Context) error {
	for {
		if n, err := deleteKeys(ctx, s.db.DB, sqldb.Now().Add(-keyLifetime)); err != nil || n == 0 {
			return err
		}
	}
}
