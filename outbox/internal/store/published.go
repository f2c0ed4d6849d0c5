package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"time"

	"pizzaflow/sqldb"
)

// A Backlog counts the events that are neither published nor blocked.
type Backlog struct {
	Events int64
	Oldest time.Time // when the oldest was written; zero without any
}

// FromUnpublished is the FROM clause of the events e above the low watermark $1 that
// are neither published nor blocked: the gaps between published ranges and blocked
// events, and all above the last. No other event is read.
const FromUnpublished = `FROM (
	SELECT MAX(last_seq) OVER (ORDER BY first_seq, last_seq) + 1 AS lo, LEAD(first_seq) OVER (ORDER BY first_seq, last_seq) - 1 AS hi FROM (
		SELECT CAST($1 AS BIGINT) AS first_seq, CAST($1 AS BIGINT) AS last_seq
		UNION ALL SELECT first_seq, last_seq FROM outbox_published WHERE ` + RangesAbove + `
		UNION ALL SELECT seq, seq FROM outbox_blocked WHERE seq > $1) done
	) gap JOIN outbox_events e ON e.seq BETWEEN gap.lo AND COALESCE(gap.hi, 9223372036854775807)`

// CountUnpublished counts the unpublished events above the low watermark, up
// to limit.
func CountUnpublished(ctx context.Context, tx *sql.Tx, lowWatermark, limit int64) (r Backlog, err error) {
	err = tx.QueryRowContext(ctx, `SELECT COUNT(*), MIN(created_at) FROM (SELECT e.created_at `+FromUnpublished+` LIMIT $2) unpublished`, lowWatermark, limit).
		Scan(&r.Events, sqldb.Time(&r.Oldest))
	if err != nil {
		return Backlog{}, fmt.Errorf("count unpublished: %w", err)
	}
	return r, nil
}

// MaxSeq is above the number of every event.
const MaxSeq = int64(math.MaxInt64)

// UseIndexes has PostgreSQL find rows by index for the rest of the transaction: going
// by its statistics it might read a whole table for a part of it.
func UseIndexes(ctx context.Context, db *sqldb.DB, tx *sql.Tx) error {
	if db.Engine != sqldb.Postgres {
		return nil
	}
	_, err := tx.ExecContext(ctx, `SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true)`)
	return err
}

// Snapshot begins a transaction that reads the tables as they are at one moment.
func Snapshot(ctx context.Context, db *sqldb.DB) (*sql.Tx, error) {
	var opts *sql.TxOptions // a reader on SQLite sees one moment anyway
	if db.Engine == sqldb.Postgres {
		opts = &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true}
	}
	tx, err := db.Read().BeginTx(ctx, opts)
	if err != nil {
		return nil, err
	}
	if err := UseIndexes(ctx, db, tx); err != nil {
		return nil, errors.Join(err, tx.Rollback())
	}
	return tx, nil
}

// EndTerm ends the term of the relay that leads, if one does, and lowers the low
// watermark below first, the first event that the next term has to read again.
func EndTerm(ctx context.Context, tx *sql.Tx, first int64) error {
	_, err := tx.ExecContext(ctx, `
		UPDATE outbox_lease SET holder = '', epoch = epoch + 1, renewal = renewal + 1,
			floor = CASE WHEN floor >= $1 THEN $1 - 1 ELSE floor END
		WHERE id = 1`, first)
	if err != nil {
		return fmt.Errorf("end term: %w", err)
	}
	return nil
}

// RangesAbove is the condition for the published ranges that reach above the number
// $1. Ranges are disjoint and in order, so the last range that does not begin above
// $1 is the first that can reach above it: no earlier range is read.
const RangesAbove = `first_seq >= COALESCE((SELECT MAX(first_seq) FROM outbox_published WHERE first_seq <= $1), 0) AND last_seq > $1`

// cutSQL ends the published range that spans the number $1 just before it: only the
// last range that begins before $1 can.
const cutSQL = `
	UPDATE outbox_published SET last_seq = $1 - 1
	WHERE first_seq = (SELECT MAX(first_seq) FROM outbox_published WHERE first_seq < $1) AND last_seq >= $1`

// Rewind has all events from a seq on published again, by ending the term and
// deleting the published ranges from there on. Blocked events stay blocked.
func Rewind(ctx context.Context, tx *sql.Tx, from int64) error {
	if err := EndTerm(ctx, tx, from); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, `DELETE FROM outbox_published WHERE first_seq >= $1`, from); err != nil {
		return fmt.Errorf("rewind: %w", err)
	}
	if _, err := tx.ExecContext(ctx, cutSQL, from); err != nil {
		return fmt.Errorf("rewind: %w", err)
	}
	return nil
}
