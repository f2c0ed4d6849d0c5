package relay

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"pizzaflow/sqldb"
)

// pruneRows is how many rows one transaction deletes: few enough that no other
// transaction waits long for it.
const pruneRows = 500

// pruneOnce deletes the events up to the low watermark that were published or
// skipped before a time, with their ranges. Blocked events stay. Each statement
// deletes nothing once the term is over: the operator who ended it may have lowered
// the low watermark, so that events are published again.
func (t *term) pruneOnce(ctx context.Context, before time.Time) (deleted int64, err error) {
	published, err := t.prunePublished(ctx, before)
	if err != nil {
		return published, err
	}
	skipped, err := t.pruneSkipped(ctx, before)
	return published + skipped, err
}

func (t *term) prunePublished(ctx context.Context, before time.Time) (deleted int64, err error) {
	var lowWatermark int64
	if err := t.db.Read().QueryRowContext(ctx, `SELECT floor FROM outbox_lease WHERE id = 1`).Scan(&lowWatermark); err != nil {
		return 0, fmt.Errorf("prune outbox: %w", err)
	}
	var last publishedRange
	for {
		rows, err := t.db.Read().QueryContext(ctx, `
			SELECT first_seq, last_seq, published_at FROM outbox_published
			WHERE published_at < $1 AND (published_at, first_seq) > ($2, $3) AND first_seq <= $4 ORDER BY published_at, first_seq LIMIT $5`,
			before, last.at, last.lo, lowWatermark, pruneRows)
		ranges, err := sqldb.ReadAll(rows, err, scanRange, "prune outbox")
		if err != nil {
			return deleted, err
		}
		n, err := t.pruneRanges(ctx, ranges, lowWatermark)
		if deleted += n; err != nil || len(ranges) < pruneRows {
			return deleted, err
		}
		last = ranges[len(ranges)-1]
	}
}

// pruneRanges deletes the events of ranges, a few at a time, and with the last event
// of a range the range itself, unless it reaches above the low watermark.
func (t *term) pruneRanges(ctx context.Context, ranges []publishedRange, lowWatermark int64) (deleted int64, err error) {
	var seqs, whole []int64
	flush := func() error {
		n, err := t.deleteEvents(ctx, seqs, whole)
		deleted, seqs, whole = deleted+n, seqs[:0], whole[:0]
		return err
	}
	for _, r := range ranges {
		for seq := r.lo; seq <= min(r.hi, lowWatermark); seq++ {
			if seqs = append(seqs, seq); len(seqs) == pruneRows {
				if err := flush(); err != nil {
					return deleted, err
				}
			}
		}
		if r.hi <= lowWatermark {
			whole = append(whole, r.lo)
		}
	}
	return deleted, flush()
}

// pruneSkipped deletes the events that were skipped before a time. Their rows in
// outbox_blocked stay for ever, so a term remembers which of them it has come to.
func (t *term) pruneSkipped(ctx context.Context, before time.Time) (deleted int64, err error) {
	for {
		rows, err := t.db.Read().QueryContext(ctx, `
			SELECT seq, seq, skipped_at FROM outbox_blocked
			WHERE skipped_at < $1 AND (skipped_at, seq) > ($2, $3) ORDER BY skipped_at, seq LIMIT $4`, before, t.pruned.at, t.pruned.lo, pruneRows)
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
		t.pruned = events[len(events)-1]
	}
}

// pruneSQL is one statement for the same reason as markAtOnce.
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
			if err := t.lease.fence(ctx, tx); err != nil {
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
