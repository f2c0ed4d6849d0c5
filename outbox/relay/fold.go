package relay

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"time"

	"pizzaflow/outbox/internal/store"
	"pizzaflow/sqldb"
)

// Every mark adds ranges to outbox_published: under a light load, one for each
// event. Neighbours that were published in the same minute are folded into one
// range, so that the number of ranges depends on the time and on the holes between
// the numbers, and not on the number of events.

const (
	foldWithin = time.Minute // by which the time of a folded range may be too late for an event
	foldRows   = 1000        // ranges that are read at once
)

// A publishedRange is a row of outbox_published.
type publishedRange struct {
	span
	at time.Time
}

// foldsWith reports whether r and the next range can become one.
func (r publishedRange) foldsWith(next publishedRange) bool {
	return r.hi+1 == next.lo && r.at.Truncate(foldWithin).Equal(next.at.Truncate(foldWithin))
}

// A folding is the range that neighbours become: the first of them is extended, and
// the others are deleted. Its time is the latest of theirs.
type folding struct {
	publishedRange
	gone []int64 // first_seq of the deleted ones
}

// foldTogether folds ranges, in order, into open, the folding before them, and into
// new ones. Ranges that were published at or after closed stay as they are, because
// neighbours of theirs may still come. The last folding is open for the next call.
func foldTogether(open folding, ranges []publishedRange, closed time.Time) []folding {
	out := []folding{open}
	for _, r := range ranges {
		last := &out[len(out)-1]
		if !r.at.Before(closed) || !last.foldsWith(r) {
			out = append(out, folding{publishedRange: r})
			continue
		}
		last.hi, last.gone = r.hi, append(last.gone, r.lo)
		if r.at.After(last.at) {
			last.at = r.at
		}
	}
	return out
}

// fold folds the ranges from a number on, a few at a time, and returns the number
// from which on the next call has ranges to fold.
func (t *term) fold(ctx context.Context, from int64, now time.Time) (next int64, err error) {
	closed := now.Add(-foldWithin).Truncate(foldWithin) // a mark is committed some time after its published_at
	next = store.MaxSeq
	var open folding
	for {
		ranges, err := t.rangesFrom(ctx, from)
		if err != nil {
			return min(next, from), fmt.Errorf("fold ranges: %w", err)
		}
		folded := foldTogether(open, ranges, closed)
		if err := t.storeFolded(ctx, folded); err != nil {
			return min(next, from), fmt.Errorf("fold ranges: %w", err)
		}
		for _, r := range ranges {
			from = r.hi + 1
			if !r.at.Before(closed) {
				next = min(next, r.lo)
			}
		}
		if len(ranges) < foldRows {
			return min(next, from), nil
		}
		open = folded[len(folded)-1]
		open.gone = nil
	}
}

func (t *term) rangesFrom(ctx context.Context, from int64) ([]publishedRange, error) {
	rows, err := t.db.Read().QueryContext(ctx, `
		SELECT first_seq, last_seq, published_at FROM outbox_published WHERE first_seq >= $1 ORDER BY first_seq LIMIT $2`, from, foldRows)
	return sqldb.ReadAll(rows, err, scanRange, "read ranges")
}

func scanRange(rows *sql.Rows) (r publishedRange, err error) {
	err = rows.Scan(&r.lo, &r.hi, sqldb.Time(&r.at))
	return r, err
}

// foldSQL is one statement for the same reason as markAtOnce.
const foldSQL = `
	WITH l AS (SELECT 1 FROM outbox_lease WHERE id = 1 AND epoch = $1 FOR NO KEY UPDATE),
		gone AS (DELETE FROM outbox_published WHERE first_seq = ANY($2::bigint[]) AND EXISTS (SELECT 1 FROM l))
	UPDATE outbox_published r SET last_seq = f.hi, published_at = f.at
	FROM l, (SELECT * FROM unnest($3::bigint[], $4::bigint[], $5::timestamptz[]) u (lo, hi, at) LIMIT $6) f WHERE r.first_seq = f.lo`

// storeFolded stores foldings, unless the term is over.
func (t *term) storeFolded(ctx context.Context, folded []folding) error {
	folded = slices.DeleteFunc(slices.Clone(folded), func(f folding) bool { return len(f.gone) == 0 })
	if len(folded) == 0 {
		return nil
	}
	if t.db.Engine == sqldb.Postgres {
		var gone, los, his []int64
		var ats []time.Time
		for _, f := range folded {
			gone, los, his, ats = append(gone, f.gone...), append(los, f.lo), append(his, f.hi), append(ats, f.at)
		}
		_, err := t.db.ExecContext(ctx, foldSQL, t.lease.epoch, gone, los, his, ats, len(folded))
		return err
	}
	return t.db.Tx(ctx, func(tx *sql.Tx) error {
		if err := t.lease.fence(ctx, tx); err != nil {
			return err
		}
		for _, f := range folded {
			if _, err := tx.ExecContext(ctx, `DELETE FROM outbox_published WHERE first_seq > $1 AND first_seq <= $2`, f.lo, f.hi); err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, `UPDATE outbox_published SET last_seq = $1, published_at = $2 WHERE first_seq = $3`, f.hi, f.at, f.lo); err != nil {
				return err
			}
		}
		return nil
	})
}
