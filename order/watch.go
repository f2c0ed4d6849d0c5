package order

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"pizzaflow/sqldb"
)

// How long the database's clock has to be steady, since the start or since it was
// set, before orders are marked and keys removed for their age: a clock that was
// set may be all that made them old, and in the meantime payments are tried and
// requests repeated.
const (
	markAfter   = time.Minute
	removeAfter = time.Hour
)

// Run marks overdue orders and removes expired idempotency keys until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	var marks, keys sqldb.ClockWatch
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		// an order is marked at most a tenth of its deadline late, once the clock is steady
		s.every(ctx, min(max(s.deadline/10, 10*time.Millisecond), 10*time.Second), func(ctx context.Context) error {
			steady, err := s.observeClock(ctx, &marks, min(markAfter, s.deadline))
			if err != nil || !steady {
				return errors.Join(err, s.measureAttention(ctx))
			}
			return s.watchDeadlines(ctx)
		})
		return nil
	})
	g.Go(func() error {
		s.every(ctx, 10*time.Minute, func(ctx context.Context) error {
			steady, err := s.observeClock(ctx, &keys, removeAfter)
			if err == nil && steady {
				err = s.expireKeys(ctx)
			}
			return err
		})
		return nil
	})
	return g.Wait()
}

// observeClock shows the database's clock to the watch, and reports whether it
// has been steady for at least so long.
func (s *Service) observeClock(ctx context.Context, watch *sqldb.ClockWatch, least time.Duration) (steady bool, err error) {
	var now time.Time
	asked := time.Now()
	if err := s.db.Read().QueryRowContext(ctx, `SELECT `+sqldb.Clock).Scan(sqldb.Time(&now)); err != nil {
		return false, fmt.Errorf("read the clock: %w", err)
	}
	return watch.Observe(now, asked, time.Second) >= least, nil
}

// every runs task now and then once an interval until ctx ends. A task that fails
// finds its rows in the database again the next time.
func (s *Service) every(ctx context.Context, interval time.Duration, task func(context.Context) error) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if err := task(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("periodic task failed", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// watchDeadlines marks the overdue orders and measures how many are marked.
func (s *Service) watchDeadlines(ctx context.Context) error {
	return errors.Join(s.markOverdue(ctx), s.measureAttention(ctx))
}

func (s *Service) markOverdue(ctx context.Context) error {
	for {
		n, err := markOverdue(ctx, s.db, s.deadline)
		if err != nil || n == 0 {
			return err
		}
		s.log.Warn("orders marked overdue", "orders", n)
	}
}

// measureAttention sets the gauges of marked orders, or removes them when the
// orders cannot be counted.
func (s *Service) measureAttention(ctx context.Context) error {
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

// expireKeys removes the idempotency keys that are older than keyLifetime.
func (s *Service) expireKeys(ctx context.Context) error {
	for {
		if n, err := deleteKeys(ctx, s.db, keyLifetime); err != nil || n == 0 {
			return err
		}
	}
}
