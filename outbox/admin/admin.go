// Package admin is what an operator does by hand to an outbox and an inbox:
// status, retry, skip and republish of events, and replay and discard of parked
// records.
package admin

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"pizzaflow/outbox/internal/store"
	"pizzaflow/sqldb"
)

// An Operator does by hand what nothing does by itself. Everything it does is
// one transaction on the database, so it works while the services run and while
// they do not, and of two operators who ask for the same thing one is told that
// there is nothing left to do. What is changed is written to operator_actions.
//
// A relay that runs learns of a change by the loss of its lease: it starts
// again from the tables, within half a second.
type Operator struct{ db *sqldb.DB }

// New makes the operator of a service's database.
func New(db *sqldb.DB) *Operator { return &Operator{db: db} }

// An Action says who changes something and why. With DryRun everything is done
// and undone: what is returned is what would be.
type Action struct {
	By     string
	Why    string
	DryRun bool
}

// ErrNothingSelected is returned for a filter that is empty where one must
// choose.
var ErrNothingSelected = errors.New("nothing is selected")

// ErrNoTables is returned by Check for a database without an outbox.
var ErrNoTables = errors.New("there is no outbox")

// ErrOldTables is returned by Check for an outbox that lacks a migration that
// an Operator needs.
var ErrOldTables = errors.New("the tables of the outbox are not up to date")

// Check reports whether the tables are there that an Operator needs. It changes
// nothing.
func (o *Operator) Check(ctx context.Context) error {
	for _, c := range []struct {
		query   string
		missing error
	}{
		{`SELECT COUNT(*) FROM outbox_lease`, ErrNoTables},
		{`SELECT (SELECT COUNT(*) FROM operator_actions WHERE 1 = 0) + COUNT(skipped_at) FROM outbox_blocked WHERE 1 = 0`, ErrOldTables},
	} {
		var n int64
		err := o.db.Read().QueryRowContext(ctx, c.query).Scan(&n)
		if err != nil && (sqldb.IsUnavailable(err) && !sqldb.IsFatal(err) || ctx.Err() != nil) {
			return fmt.Errorf("look for the outbox: %w", err)
		}
		if err != nil {
			return fmt.Errorf("%w: %w", c.missing, err)
		}
	}
	return nil
}

// aliveWithin is how long a holder may take to count up his renewal: the TTL
// of the lease, in which he does it four times, and some time for a busy machine.
const aliveWithin = 2500 * time.Millisecond

// Alive reports whether the holder of the lease renews it. It returns as soon as
// it sees him do so, and else after 2.5 s. When nobody holds the lease it returns
// false at once.
func (o *Operator) Alive(ctx context.Context) (bool, error) {
	type state struct {
		holder         string
		epoch, renewal int64
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var first state
	for began := time.Now(); ; {
		var s state
		err := o.db.Read().QueryRowContext(ctx, `SELECT holder, epoch, renewal FROM outbox_lease WHERE id = 1`).Scan(&s.holder, &s.epoch, &s.renewal)
		switch {
		case err != nil:
			return false, fmt.Errorf("read lease: %w", err)
		case s.holder == "":
			return false, nil
		case first == state{}:
			first = s
		case s != first:
			return true, nil
		case time.Since(began) > aliveWithin:
			return false, nil
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-tick.C:
		}
	}
}

// A Status is how the publishing of one database stands.
type Status struct {
	Holder         string    `json:"holder"`  // of the lease; "" when nobody leads
	Epoch          int64     `json:"epoch"`   // counts terms
	Renewal        int64     `json:"renewal"` // counts up while the holder lives
	Floor          int64     `json:"floor"`   // everything up to here is done with
	Unpublished    int64     `json:"unpublished"`
	OldestWaiting  time.Time `json:"oldest_unpublished,omitzero"`
	OldestRetained time.Time `json:"oldest_retained,omitzero"`
	Blocked        int64     `json:"blocked"`
	Skipped        int64     `json:"skipped"`
	Lanes          []Lane    `json:"refused"`
}

// A Lane is a topic, or a partition of one, that does not take events now.
type Lane struct {
	Name    string    `json:"lane"`
	Topic   string    `json:"topic"`
	Waiting int64     `json:"waiting"`
	Reason  string    `json:"reason"`
	Since   time.Time `json:"since"`
	TriedAt time.Time `json:"tried_at"`
}

// Status looks at everything that has to do with publishing, as it was at one
// moment.
func (o *Operator) Status(ctx context.Context) (s Status, err error) {
	ctx = store.Patient(ctx)
	db, err := store.Snapshot(ctx, o.db)
	if err != nil {
		return Status{}, fmt.Errorf("outbox status: %w", err)
	}
	defer db.Rollback() //nolint:errcheck // it has changed nothing
	err = db.QueryRowContext(ctx, `SELECT holder, epoch, renewal, floor FROM outbox_lease WHERE id = 1`).Scan(&s.Holder, &s.Epoch, &s.Renewal, &s.Floor)
	if err != nil {
		return Status{}, fmt.Errorf("read lease: %w", err)
	}
	unpublished, err := store.CountUnpublished(ctx, db, s.Floor, store.AllSeqs)
	if err != nil {
		return Status{}, err
	}
	s.Unpublished, s.OldestWaiting = unpublished.Events, unpublished.Oldest
	err = db.QueryRowContext(ctx, `SELECT COUNT(*) - COUNT(skipped_at), COUNT(skipped_at) FROM outbox_blocked`).Scan(&s.Blocked, &s.Skipped)
	if err != nil {
		return Status{}, fmt.Errorf("count blocked: %w", err)
	}
	err = db.QueryRowContext(ctx, `SELECT created_at FROM outbox_events ORDER BY seq LIMIT 1`).Scan(sqldb.Time(&s.OldestRetained))
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return Status{}, fmt.Errorf("read oldest event: %w", err)
	}
	s.Lanes, err = lanes(ctx, db)
	return s, err
}

func lanes(ctx context.Context, db *sql.Tx) ([]Lane, error) {
	rows, err := db.QueryContext(ctx, `SELECT lane, topic, waiting, reason, since, tried_at FROM outbox_lanes ORDER BY lane`)
	if err != nil {
		return nil, fmt.Errorf("read lanes: %w", err)
	}
	defer rows.Close()
	lanes := []Lane{}
	for rows.Next() {
		var l Lane
		if err := rows.Scan(&l.Name, &l.Topic, &l.Waiting, &l.Reason, sqldb.Time(&l.Since), sqldb.Time(&l.TriedAt)); err != nil {
			return nil, fmt.Errorf("read lanes: %w", err)
		}
		lanes = append(lanes, l)
	}
	return lanes, rows.Err()
}

// A BlockedFilter selects blocked events; what is zero selects all.
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

// String says in words what is selected.
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

// A BlockedEvent is one that the broker refuses for ever, one that waits behind
// such a one, or one that an operator has given up.
type BlockedEvent struct {
	Seq         int64     `json:"seq"`
	EventID     string    `json:"event_id"` // like type and aggregate "" once a skipped event is no longer retained
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
// key, and those without a key. The others wait behind them.
const refused = `(SELECT MIN(seq) AS seq FROM outbox_blocked WHERE skipped_at IS NULL GROUP BY topic, key, CASE WHEN key IS NULL THEN seq END) refused`

func scanBlocked(rows *sql.Rows) (b BlockedEvent, err error) {
	var key []byte
	err = rows.Scan(&b.Seq, &b.EventID, &b.EventType, &b.AggregateID, &b.Topic, &key, &b.Reason, sqldb.Time(&b.Since), sqldb.Time(&b.SkippedAt))
	b.Key = string(key)
	return b, err
}

// Blocked lists blocked events, the oldest first, at most limit of them.
func (o *Operator) Blocked(ctx context.Context, f BlockedFilter, limit int) ([]BlockedEvent, error) {
	where, args := f.where()
	rows, err := o.db.Read().QueryContext(ctx, selectBlocked+`WHERE `+where+fmt.Sprintf(` ORDER BY b.seq LIMIT $%d`, len(args)+1), append(args, limit)...)
	return sqldb.ReadAll(rows, err, scanBlocked, "list blocked events")
}

// Retry has blocked events, though not those that were skipped, published once
// more: when the topic takes them by now. One that is selected brings along all
// of its key, which else would stay blocked. It returns which they are. Lanes
// are tried at once as well.
func (o *Operator) Retry(ctx context.Context, f BlockedFilter, a Action) (released []BlockedEvent, err error) {
	ctx = store.Patient(ctx)
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
		var lanes int
		if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM outbox_lanes`).Scan(&lanes); err != nil || lanes == 0 {
			return 0, err
		}
		return 0, store.EndTerm(ctx, tx, store.AllSeqs)
	})
}

// release ends the term and takes events out of outbox_blocked, so that the
// next term publishes them.
func (o *Operator) release(ctx context.Context, tx *sql.Tx, events []BlockedEvent) error {
	first, rows := store.AllSeqs, make([][]any, len(events))
	for i, e := range events {
		first, rows[i] = min(first, e.Seq), []any{e.Seq}
	}
	unblock := sqldb.Batch{Columns: `nr BIGINT`, SQL: `DELETE FROM outbox_blocked WHERE seq IN (SELECT nr FROM {rows})`}
	if err := unblock.Query(ctx, o.db, tx, rows, nil); err != nil {
		return fmt.Errorf("release events: %w", err)
	}
	return store.EndTerm(ctx, tx, first)
}

// Skip gives events up for ever: the selected ones that the broker refuses, not
// those that only wait behind them, which are published next. It returns which
// were given up. Something must be selected.
func (o *Operator) Skip(ctx context.Context, f BlockedFilter, a Action) (skipped []BlockedEvent, err error) {
	ctx = store.Patient(ctx)
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
		// what was skipped just now was the first of its key: nothing blocks the rest of it any more
		rows, err = tx.QueryContext(ctx, selectBlocked+`
			WHERE b.skipped_at IS NULL AND (b.topic, b.key) IN (SELECT topic, key FROM outbox_blocked WHERE skipped_at = $1)`, at)
		followers, err := sqldb.ReadAll(rows, err, scanBlocked, "select what waits behind")
		if err != nil {
			return nil, err
		}
		return targets, o.release(ctx, tx, followers)
	})
}

// SkipRefused gives up all events for a topic that does not take them now, as
// many as wait for it, and returns how many.
func (o *Operator) SkipRefused(ctx context.Context, topic string, a Action) (n int64, err error) {
	ctx = store.Patient(ctx)
	if topic == "" {
		return 0, ErrNothingSelected
	}
	return n, o.change(ctx, a, "skip refused", "topic "+topic, func(tx *sql.Tx) (int, error) {
		if err := store.EndTerm(ctx, tx, store.AllSeqs); err != nil {
			return 0, err
		}
		if err := store.ByNumber(ctx, o.db, tx); err != nil {
			return 0, fmt.Errorf("skip events: %w", err)
		}
		var floor int64
		if err := tx.QueryRowContext(ctx, `SELECT floor FROM outbox_lease WHERE id = 1`).Scan(&floor); err != nil {
			return 0, fmt.Errorf("read lease: %w", err)
		}
		res, err := tx.ExecContext(ctx, `
			INSERT INTO outbox_blocked (seq, topic, key, reason, since, skipped_at)
			SELECT e.seq, e.topic, e.key, 'the topic did not take it', $2, $2 `+store.FromUnpublished+` WHERE e.topic = $3`, floor, sqldb.Now(), topic)
		if err != nil {
			return 0, fmt.Errorf("skip events: %w", err)
		}
		n, err = res.RowsAffected()
		return int(n), err
	})
}

// Republish has everything that is retained published again, from the first
// event written at or after since, in order. What is blocked or skipped stays
// so. It returns how many events these are, and nothing is doubled by it but
// the records: the inboxes know the events.
func (o *Operator) Republish(ctx context.Context, since time.Time, a Action) (n int64, err error) {
	ctx = store.Patient(ctx)
	return n, o.change(ctx, a, "republish", "since "+since.UTC().Format(time.RFC3339), func(tx *sql.Tx) (int, error) {
		var first sql.NullInt64
		if err := tx.QueryRowContext(ctx, `SELECT MIN(seq) FROM outbox_events WHERE created_at >= $1`, since.UTC()).Scan(&first); err != nil {
			return 0, fmt.Errorf("find the first event: %w", err)
		}
		if !first.Valid {
			return 0, nil
		}
		if err := store.Rewind(ctx, tx, first.Int64); err != nil {
			return 0, err
		}
		err := tx.QueryRowContext(ctx, `
			SELECT COUNT(*) FROM outbox_events e WHERE seq >= $1 AND NOT EXISTS (SELECT 1 FROM outbox_blocked b WHERE b.seq = e.seq)`, first.Int64).Scan(&n)
		if err != nil {
			return 0, fmt.Errorf("count events: %w", err)
		}
		return int(n), nil
	})
}

// errDry undoes a dry run.
var errDry = errors.New("dry run")

// change runs fn in a transaction and notes what was done. It takes the lease's
// row first, so that it and what the relay records come one after the other.
func (o *Operator) change(ctx context.Context, a Action, action, target string, fn func(*sql.Tx) (affected int, err error)) error {
	return o.do(ctx, a, action, func(tx *sql.Tx) error {
		if err := lockLease(ctx, tx); err != nil {
			return err
		}
		n, err := fn(tx)
		if err != nil || n == 0 {
			return err
		}
		return a.note(ctx, tx, action, []string{target}, n)
	})
}

// changeEach is change with a note for each thing that fn has changed.
func (o *Operator) changeEach(ctx context.Context, a Action, action string, fn func(*sql.Tx) (targets []string, err error)) error {
	return o.do(ctx, a, action, func(tx *sql.Tx) error {
		if err := lockLease(ctx, tx); err != nil {
			return err
		}
		targets, err := fn(tx)
		if err != nil {
			return err
		}
		return a.note(ctx, tx, action, targets, 1)
	})
}

func lockLease(ctx context.Context, tx *sql.Tx) error {
	if _, err := tx.ExecContext(ctx, `UPDATE outbox_lease SET epoch = epoch WHERE id = 1`); err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	return nil
}

// do runs fn in a transaction, which a dry run undoes.
func (o *Operator) do(ctx context.Context, a Action, action string, fn func(*sql.Tx) error) error {
	ctx = store.Patient(ctx)
	err := o.db.Tx(ctx, func(tx *sql.Tx) error {
		if err := fn(tx); err != nil || !a.DryRun {
			return err
		}
		return errDry
	})
	if err != nil && !errors.Is(err, errDry) {
		return fmt.Errorf("%s: %w", action, err)
	}
	return nil
}

// note writes down who did what, for each target.
func (a Action) note(ctx context.Context, tx *sql.Tx, action string, targets []string, affected int) error {
	at := sqldb.Now()
	return sqldb.Chunks(len(targets), 512, func(from, to int) error {
		args := make([]any, 0, 6*(to-from))
		for _, target := range targets[from:to] {
			args = append(args, at, store.Text(a.By, 200), action, store.Text(target, 500), store.Text(a.Why, 1000), affected)
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO operator_actions (at, operator, action, target, reason, affected) VALUES `+sqldb.Values(6, to-from), args...)
		if err != nil {
			return fmt.Errorf("note what was done: %w", err)
		}
		return nil
	})
}
