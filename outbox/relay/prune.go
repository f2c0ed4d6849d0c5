package relay

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"pizzaflow/internal/retry"
	"pizzaflow/sqldb"
)

// pruneEvery is how often old rows are looked for, give or take a fifth.
const pruneEvery = time.Hour

// pruneRows is how many rows go in one transaction: few enough that nobody
// waits for it.
const pruneRows = 500

// tidy folds the published ranges and deletes old events until ctx ends.
func (t *term) tidy(ctx context.Context) {
	t.folded = min(t.folded, t.floor()+1)                              // what was rewound is marked anew, above the floor
	pruneAt := time.Now().Add(pruneEvery*4/5 + rand.N(pruneEvery*2/5)) //nolint:gosec // jitter
	for retry.Sleep(ctx, foldEvery*4/5+rand.N(foldEvery*2/5)) {        //nolint:gosec // jitter
		next, err := t.fold(ctx, t.folded, sqldb.Now())
		if t.folded = next; err != nil && ctx.Err() == nil {
			t.cfg.Log.Warn("fold published ranges", "service", t.cfg.Service, "err", err)
		}
		if time.Now().Before(pruneAt) {
			continue
		}
		pruneAt = time.Now().Add(pruneEvery*4/5 + rand.N(pruneEvery*2/5)) //nolint:gosec // jitter
		n, err := t.pruneOnce(ctx, sqldb.Now().Add(-t.cfg.Retention))
		if err != nil && ctx.Err() == nil {
			t.cfg.Log.Warn("delete old events", "service", t.cfg.Service, "err", err)
		}
		if n > 0 {
			t.cfg.Log.Info("old events deleted", "service", t.cfg.Service, "events", n)
		}
	}
}

// pruneOnce deletes the events that were published, or skipped, before that
// time, with the ranges that speak of them, up to the floor. Blocked events
// stay. Everything it deletes it deletes only while the term goes on: an operator
// may have lowered the floor, and what he wants published is not what this term
// knows to be done with.
func (t *term) pruneOnce(ctx context.Context, before time.Time) (deleted int64, err error) {
	published, err := t.prunePublished(ctx, before)
	if err != nil {
		return published, err
	}
	skipped, err := t.pruneSkipped(ctx, before)
	return published + skipped, err
}

func (t *term) prunePublished(ctx context.Context, before time.Time) (deleted int64, err error) {
	var floor int64
	if err := t.db.Read().QueryRowContext(ctx, `SELECT floor FROM outbox_lease WHERE id = 1`).Scan(&floor); err != nil {
		return 0, fmt.Errorf("prune outbox: %w", err)
	}
	var last publishedRange
	for {
		rows, err := t.db.Read().QueryContext(ctx, `
			SELECT first_seq, last_seq, published_at FROM outbox_published
			WHERE published_at < $1 AND (published_at, first_seq) > ($2, $3) AND first_seq <= $4 ORDER BY published_at, first_seq LIMIT $5`,
			before, last.at, last.lo, floor, pruneRows)
		ranges, err := sqldb.ReadAll(rows, err, scanRange, "prune outbox")
		if err != nil {
			return deleted, err
		}
		n, err := t.pruneRanges(ctx, ranges, floor)
		if deleted += n; err != nil || len(ranges) < pruneRows {
			return deleted, err
		}
		last = ranges[len(ranges)-1]
	}
}

// pruneRanges deletes the events of ranges, a few at a time, and each range that
// does not reach beyond the floor with the last of them.
func (t *term) pruneRanges(ctx context.Context, ranges []publishedRange, floor int64) (deleted int64, err error) {
	var seqs, whole []int64
	flush := func() error {
		n, err := t.deleteEvents(ctx, seqs, whole)
		deleted, seqs, whole = deleted+n, seqs[:0], whole[:0]
		return err
	}
	for _, r := range ranges {
		for seq := r.lo; seq <= min(r.hi, floor); seq++ {
			if seqs = append(seqs, seq); len(seqs) == pruneRows {
				if err := flush(); err != nil {
					return deleted, err
				}
			}
		}
		if r.hi <= floor {
			whole = append(whole, r.lo)
		}
	}
	return deleted, flush()
}

// pruneSkipped deletes the events that were skipped before that time, once each:
// that they were skipped is remembered for ever.
func (t *term) pruneSkipped(ctx context.Context, before time.Time) (deleted int64, err error) {
	for {
		rows, err := t.db.Read().QueryContext(ctx, `
			SELECT seq, seq, skipped_at FROM outbox_blocked
			WHERE skipped_at < $1 AND (skipped_at, seq) > ($2, $3) ORDER BY skipped_at, seq LIMIT $4`, before, t.skipped.at, t.skipped.lo, pruneRows)
		events, err := sqldb.ReadAll(rows, err, scanRange, "prune skipped events")
		if err != nil || len(events) == 0 {
			return deleted, err
		}
		var seqs []int64
		for _, e := range events {
			seqs = append(seqs, e.lo)
		}
		n, err := t.deleteEvents(ctx, seqs, nil)
		if deleted += n; err != nil {
			return deleted, err
		}
		t.skipped = events[len(events)-1]
	}
}

// pruneSQL is one statement, for the reason that markAtOnce is one.
const pruneSQL = `
	WITH l AS (SELECT 1 FROM outbox_lease WHERE id = 1 AND epoch = $1 FOR NO KEY UPDATE),
		r AS (DELETE FROM outbox_published WHERE first_seq = ANY($2::bigint[]) AND EXISTS (SELECT 1 FROM l))
	DELETE FROM outbox_events WHERE seq = ANY($3::bigint[]) AND EXISTS (SELECT 1 FROM l)`

// deleteEvents deletes events, and ranges by their first numbers, unless the
// term is over.
func (t *term) deleteEvents(ctx context.Context, seqs, ranges []int64) (n int64, err error) {
	if len(seqs)+len(ranges) == 0 {
		return 0, nil
	}
	if t.db.Engine == sqldb.Postgres {
		n, err = affected(t.db.ExecContext(ctx, pruneSQL, t.lease.epoch, ranges, seqs))
	} else {
		err = t.db.Tx(ctx, func(tx *sql.Tx) error {
			if err := t.lease.holds(ctx, tx); err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, `DELETE FROM outbox_published WHERE first_seq IN (SELECT value FROM json_each($1))`, t.array(ranges)); err != nil {
				return err
			}
			n, err = affected(tx.ExecContext(ctx, `DELETE FROM outbox_events WHERE seq IN (SELECT value FROM json_each($1))`, t.array(seqs)))
			return err
		})
	}
	if err != nil && !errors.Is(err, errLeaseLost) { // a term that is over deletes nothing
		return n, fmt.Errorf("prune outbox: %w", err)
	}
	return n, nil
}

func affected(res sql.Result, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}
