package order

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"pizzaflow/sqldb"
)

// What is marked or removed for its age waits until the database's clock has
// been steady for a while, since the start or since it was set: the clock may be
// all that made it old. Payments are tried in the meantime, and requests repeated.
const (
	markAfter   = time.Minute
	removeAfter = time.Hour
)

// Run marks what is overdue and removes what is expired, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	var marks, keys sqldb.ClockWatch
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		// an order is marked at most a tenth of its deadline late, once the clock is steady
		s.every(ctx, min(max(s.deadline/10, 10*time.Millisecond), 10*time.Second), func(ctx context.Context) error {
			steady, err := s.steady(ctx, &marks, min(markAfter, s.deadline))
			if err != nil || !steady {
				return errors.Join(err, s.tellAttention(ctx))
			}
			return s.watchDeadlines(ctx)
		})
		return nil
	})
	g.Go(func() error {
		s.every(ctx, 10*time.Minute, func(ctx context.Context) error {
			steady, err := s.steady(ctx, &keys, removeAfter)
			if err == nil && steady {
				err = s.expireKeys(ctx)
			}
			return err
		})
		return nil
	})
	return g.Wait()
}

// steady reads the database's clock and reports whether it has been steady for
// so long.
func (s *Service) steady(ctx context.Context, clock *sqldb.ClockWatch, least time.Duration) (bool, error) {
	var now time.Time
	asked := time.Now()
	if err := s.db.Read().QueryRowContext(ctx, `SELECT `+sqldb.Clock).Scan(sqldb.Time(&now)); err != nil {
		return false, fmt.Errorf("read the clock: %w", err)
	}
	return clock.Steady(now, asked, time.Second) >= least, nil
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
		n, err := markOverdue(ctx, s.db, s.deadline)
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
		if n, err := deleteKeys(ctx, s.db, keyLifetime); err != nil || n == 0 {
			return err
		}
	}
}
