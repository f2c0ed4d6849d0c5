package outbox

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"pizzaflow/sqldb"
)

// pruneEvery is how often old rows are looked for, give or take a fifth.
const pruneEvery = time.Hour

// pruneRows is how many rows go in one transaction: few enough that nobody
// waits for it.
const pruneRows = 500

// prune deletes published events once they are older than the retention, the
// oldest first, and the ranges that spoke of them. Blocked events stay. The
// floor is asked for in the same statement: an operator may have lowered it,
// and what he wants published is not what this term knows to be done with.
func (t *term) prune(ctx context.Context) {
	for {
		wait := time.NewTimer(pruneEvery*4/5 + rand.N(pruneEvery*2/5)) //nolint:gosec // jitter
		select {
		case <-ctx.Done():
			wait.Stop()
			return
		case <-wait.C:
		}
		n, err := t.pruneOnce(ctx, sqldb.Now().Add(-t.cfg.Retention))
		if err != nil && ctx.Err() == nil {
			t.cfg.Log.Warn("delete old events", "service", t.cfg.Service, "err", err)
		}
		if n > 0 {
			t.cfg.Log.Info("old events deleted", "service", t.cfg.Service, "events", n)
		}
	}
}

func (t *term) pruneOnce(ctx context.Context, before time.Time) (deleted int64, err error) {
	for {
		// the oldest rows are taken and then judged by their age: by age alone the
		// whole table would be searched when nothing is old
		res, err := t.db.ExecContext(ctx, `
			DELETE FROM outbox_events WHERE seq IN (
				SELECT seq FROM (
					SELECT seq, created_at FROM outbox_events e
					WHERE seq <= (SELECT floor FROM outbox_lease WHERE id = 1 AND epoch = $3)
						AND NOT EXISTS (SELECT 1 FROM outbox_blocked b WHERE b.seq = e.seq AND b.skipped_at IS NULL)
					ORDER BY seq LIMIT $1) oldest
				WHERE created_at < $2)`, pruneRows, before, t.lease.epoch)
		if err != nil {
			return deleted, fmt.Errorf("prune outbox: %w", err)
		}
		n, err := res.RowsAffected()
		if deleted += n; err != nil {
			return deleted, fmt.Errorf("prune outbox: %w", err)
		}
		if n < pruneRows {
			break
		}
	}
	if deleted == 0 {
		return 0, nil
	}
	return deleted, t.pruneRanges(ctx)
}

// pruneRanges deletes the ranges below the oldest event that is not blocked: one
// that is may stay for ever.
func (t *term) pruneRanges(ctx context.Context) error {
	for {
		res, err := t.db.ExecContext(ctx, `
			DELETE FROM outbox_published WHERE first_seq IN (SELECT first_seq FROM (
				SELECT first_seq, last_seq FROM outbox_published ORDER BY first_seq LIMIT $1) oldest
			WHERE last_seq <= (SELECT floor FROM outbox_lease WHERE id = 1 AND epoch = $2)
				AND last_seq < COALESCE((SELECT seq FROM outbox_events e
					WHERE NOT EXISTS (SELECT 1 FROM outbox_blocked b WHERE b.seq = e.seq AND b.skipped_at IS NULL) ORDER BY seq LIMIT 1), last_seq + 1))`,
			pruneRows, t.lease.epoch)
		if err != nil {
			return fmt.Errorf("prune ranges: %w", err)
		}
		if n, err := res.RowsAffected(); err != nil || n < pruneRows {
			return err
		}
	}
}
