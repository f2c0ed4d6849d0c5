package admin

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"time"

	"pizzaflow/outbox/internal/store"
	"pizzaflow/sqldb"
)

// A BlockedFilter selects blocked events; a field that is zero selects all.
type BlockedFilter struct {
	Topic string
	Key   string
	Seq   int64
}

func (f BlockedFilter) where() (string, []any) {
	var conds []string
	var args []any
	add := func(cond string, arg any) {
		args = append(args, arg)
		conds = append(conds, fmt.Sprintf(cond, len(args)))
	}
	if f.Topic != "" {
		add("b.topic = $%d", f.Topic)
	}
	if f.Key != "" {
		add("b.key = $%d", []byte(f.Key))
	}
	if f.Seq != 0 {
		add("b.seq = $%d", f.Seq)
	}
	return strings.Join(append(conds, "1 = 1"), " AND "), args
}

// String describes the selection, for the audit.
func (f BlockedFilter) String() string {
	var parts []string
	if f.Topic != "" {
		parts = append(parts, "topic "+f.Topic)
	}
	if f.Key != "" {
		parts = append(parts, "key "+f.Key)
	}
	if f.Seq != 0 {
		parts = append(parts, fmt.Sprint("seq ", f.Seq))
	}
	if len(parts) == 0 {
		return "all"
	}
	return strings.Join(parts, ", ")
}

// A BlockedEvent is an event that the broker refuses for ever, an event of the same
// key that waits behind a refused one, or an event that an operator has skipped.
type BlockedEvent struct {
	Seq         int64     `json:"seq"`
	EventID     string    `json:"event_id"` // "" once a skipped event is no longer retained, as are type and aggregate
	EventType   string    `json:"event_type"`
	AggregateID string    `json:"aggregate_id"`
	Topic       string    `json:"topic"`
	Key         string    `json:"key"`
	Reason      string    `json:"reason"`
	Since       time.Time `json:"since"`
	SkippedAt   time.Time `json:"skipped_at,omitzero"`
}

const selectBlocked = `
	SELECT b.seq, COALESCE(CAST(e.id AS TEXT), ''), COALESCE(e.event_type, ''), COALESCE(e.aggregate_id, ''), b.topic, b.key, b.reason, b.since, b.skipped_at
	FROM outbox_blocked b LEFT JOIN outbox_events e ON e.seq = b.seq `

// refused are the blocked events that the broker itself refuses: the first of each
// key, and every event without a key. The other blocked events wait behind them.
const refused = `(SELECT MIN(seq) AS seq FROM outbox_blocked WHERE skipped_at IS NULL GROUP BY topic, key, CASE WHEN key IS NULL THEN seq END) refused`

func scanBlocked(rows *sql.Rows) (b BlockedEvent, err error) {
	var key []byte
	err = rows.Scan(&b.Seq, &b.EventID, &b.EventType, &b.AggregateID, &b.Topic, &key, &b.Reason, sqldb.Time(&b.Since), sqldb.Time(&b.SkippedAt))
	b.Key = string(key)
	return b, err
}

// Blocked lists the blocked events that f selects, skipped ones as well, the oldest
// first, at most limit of them.
func (o *Operator) Blocked(ctx context.Context, f BlockedFilter, limit int) ([]BlockedEvent, error) {
	where, args := f.where()
	rows, err := o.db.Read().QueryContext(ctx, selectBlocked+`WHERE `+where+fmt.Sprintf(` ORDER BY b.seq LIMIT $%d`, len(args)+1), append(args, limit)...)
	return sqldb.ReadAll(rows, err, scanBlocked, "list blocked events")
}

// Retry has the selected blocked events, though not skipped ones, published once
// more: the topic may take them by now. An event brings along all blocked events
// of its key, which would stay blocked without it. Retry returns the released
// events, and has the relay try paused partitions at once as well.
func (o *Operator) Retry(ctx context.Context, f BlockedFilter, a Action) (released []BlockedEvent, err error) {
	ctx = store.LongStatements(ctx)
	return released, o.change(ctx, a, "retry", f.String(), func(tx *sql.Tx) (int, error) {
		where, args := f.where()
		selected := `FROM outbox_blocked b WHERE b.skipped_at IS NULL AND ` + where
		rows, err := tx.QueryContext(ctx, selectBlocked+`WHERE b.skipped_at IS NULL
			AND (b.seq IN (SELECT b.seq `+selected+`) OR (b.topic, b.key) IN (SELECT b.topic, b.key `+selected+`)) ORDER BY b.seq`, args...)
		if released, err = sqldb.ReadAll(rows, err, scanBlocked, "select blocked events"); err != nil {
			return 0, err
		}
		if len(released) > 0 {
			return len(released), o.release(ctx, tx, released)
		}
		var paused int
		if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM outbox_lanes`).Scan(&paused); err != nil || paused == 0 {
			return 0, err
		}
		return 0, store.EndTerm(ctx, tx, store.MaxSeq)
	})
}

// release ends the relay's term and takes events out of outbox_blocked, so that
// the next term publishes them.
func (o *Operator) release(ctx context.Context, tx *sql.Tx, events []BlockedEvent) error {
	first, rows := store.MaxSeq, make([][]any, len(events))
	for i, e := range events {
		first, rows[i] = min(first, e.Seq), []any{e.Seq}
	}
	unblock := sqldb.Batch{Columns: `nr BIGINT`, SQL: `DELETE FROM outbox_blocked WHERE seq IN (SELECT nr FROM {rows})`}
	if err := unblock.Query(ctx, o.db, tx, rows, nil); err != nil {
		return fmt.Errorf("release events: %w", err)
	}
	return store.EndTerm(ctx, tx, first)
}

// Skip gives events up for ever: the selected ones that the broker refuses, but not
// events that wait behind them, which are published next. It returns the skipped
// events. The error is ErrNothingSelected for an empty filter.
func (o *Operator) Skip(ctx context.Context, f BlockedFilter, a Action) (skipped []BlockedEvent, err error) {
	ctx = store.LongStatements(ctx)
	if f == (BlockedFilter{}) {
		return nil, ErrNothingSelected
	}
	return skipped, o.changeEach(ctx, a, "skip", func(tx *sql.Tx) ([]string, error) {
		where, args := f.where()
		rows, err := tx.QueryContext(ctx, selectBlocked+`JOIN `+refused+` ON refused.seq = b.seq WHERE `+where+` ORDER BY b.seq`, args...)
		if skipped, err = sqldb.ReadAll(rows, err, scanBlocked, "select blocked events"); err != nil || len(skipped) == 0 {
			return nil, err
		}
		at, targets, seqs := sqldb.Now(), make([]string, len(skipped)), make([][]any, len(skipped))
		for i := range skipped {
			skipped[i].SkippedAt = at
			seqs[i] = []any{skipped[i].Seq, at}
			targets[i] = fmt.Sprintf("event %s, seq %d, %s", skipped[i].EventID, skipped[i].Seq, BlockedFilter{Topic: skipped[i].Topic, Key: skipped[i].Key})
		}
		skip := sqldb.Batch{
			Columns: `nr BIGINT, at TIMESTAMPTZ`,
			SQL:     `UPDATE outbox_blocked SET skipped_at = v.at FROM {rows} WHERE seq = v.nr`,
		}
		if err := skip.Query(ctx, o.db, tx, seqs, nil); err != nil {
			return nil, fmt.Errorf("skip events: %w", err)
		}
		// a skipped event was the first of its key: nothing blocks the rest of the key any more
		rows, err = tx.QueryContext(ctx, selectBlocked+`
			WHERE b.skipped_at IS NULL AND (b.topic, b.key) IN (SELECT topic, key FROM outbox_blocked WHERE skipped_at = $1)`, at)
		followers, err := sqldb.ReadAll(rows, err, scanBlocked, "select the events behind them")
		if err != nil {
			return nil, err
		}
		return targets, o.release(ctx, tx, followers)
	})
}

// SkipRefused gives up for ever all unpublished events for a topic that does not
// take them now, and returns how many. The error is ErrNothingSelected without a
// topic.
func (o *Operator) SkipRefused(ctx context.Context, topic string, a Action) (n int64, err error) {
	ctx = store.LongStatements(ctx)
	if topic == "" {
		return 0, ErrNothingSelected
	}
	return n, o.change(ctx, a, "skip refused", "topic "+topic, func(tx *sql.Tx) (int, error) {
		if err := store.EndTerm(ctx, tx, store.MaxSeq); err != nil {
			return 0, err
		}
		if err := store.UseIndexes(ctx, o.db, tx); err != nil {
			return 0, fmt.Errorf("skip events: %w", err)
		}
		var lowWatermark int64
		if err := tx.QueryRowContext(ctx, `SELECT floor FROM outbox_lease WHERE id = 1`).Scan(&lowWatermark); err != nil {
			return 0, fmt.Errorf("read lease: %w", err)
		}
		res, err := tx.ExecContext(ctx, `
			INSERT INTO outbox_blocked (seq, topic, key, reason, since, skipped_at)
			SELECT e.seq, e.topic, e.key, 'the topic did not take it', $2, $2 `+store.FromUnpublished+` WHERE e.topic = $3`, lowWatermark, sqldb.Now(), topic)
		if err != nil {
			return 0, fmt.Errorf("skip events: %w", err)
		}
		n, err = res.RowsAffected()
		return int(n), err
	})
}
