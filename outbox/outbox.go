package outbox

import (
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/internal/crash"
	"pizzaflow/outbox/internal/handoff"
	"pizzaflow/outbox/internal/store"
	"pizzaflow/outbox/internal/wire"
	"pizzaflow/sqldb"
)

// Schema is the set of the library's tables; its name is "outbox".
//
//go:embed schema
var Schema embed.FS

// An Event is a fact that one service tells the others. Its methods work on
// the zero value, so that a type is enough to subscribe to it. It may also
// have Validate() error, which decides whether a decoded event can be acted
// on, and SchemaVersion() int, which is 1 without it.
type Event interface {
	EventType() string   // its name on the wire
	Topic() string       // the topic it travels on
	AggregateID() string // the record's key: events of one aggregate keep their order
}

// An Outbox writes events into its database in the transaction that makes
// them true.
type Outbox struct {
	db     *sqldb.DB
	source string
	local  *handoff.Queue // to the relay of this process
}

// New makes the outbox of a database. The source is what ce_source says of its
// events, such as /order-service.
func New(db *sqldb.DB, source string) *Outbox {
	return &Outbox{db: db, source: source, local: handoff.New()}
}

// DB is the database the outbox writes to.
func (o *Outbox) DB() *sqldb.DB { return o.db }

// Source is what ce_source says of the outbox's events.
func (o *Outbox) Source() string { return o.source }

// Local is the way to the relay of the same process, for the package relay.
func (o *Outbox) Local() *handoff.Queue { return o.local }

// Tx runs fn in a transaction that also collects events. They are written
// with its commit or not at all. Like sqldb.DB.Tx it may run fn again.
func (o *Outbox) Tx(ctx context.Context, fn func(*Tx) error) error {
	err := o.tx(ctx, fn)
	if !numberedTwice(err) {
		return err
	}
	if _, e := RepairNumbering(ctx, o.db); e != nil {
		return fmt.Errorf("%w, after %v", e, err) //nolint:errorlint // what counts is why it was not repaired
	}
	return o.tx(ctx, fn)
}

func (o *Outbox) tx(ctx context.Context, fn func(*Tx) error) error {
	var tx *Tx
	to := o.local.Open()
	err := o.db.Tx(ctx, func(t *sql.Tx) error {
		tx = &Tx{Tx: t, db: o.db, traceparent: Traceparent(ctx)}
		if err := fn(tx); err != nil {
			return err
		}
		err := tx.flush(ctx)
		crash.Point("tx: written")
		return err
	})
	if err != nil {
		if errors.Is(err, sqldb.ErrOutcomeUnknown) {
			o.local.Wake()
		}
		return err
	}
	crash.Point("tx: committed")
	if len(tx.rows) > 0 && !o.local.Offer(to, tx.rows) {
		o.local.Wake()
	}
	for _, fn := range tx.afterCommit {
		fn()
	}
	return nil
}

// A Tx is a database transaction that also collects events.
type Tx struct {
	*sql.Tx
	db          *sqldb.DB
	rows        []store.Row
	errs        []error
	afterCommit []func()
	causation   string // the event that led to what is added
	traceparent string
}

// Add has e written when the transaction commits, as number version of its
// aggregate: 1, 2, 3 without gaps. The transaction must have changed the
// aggregate's row before: that row's lock is what makes the events of an
// aggregate follow each other in the outbox.
func (tx *Tx) Add(version int64, e Event) {
	data, err := wire.Marshal(e)
	if err != nil {
		tx.errs = append(tx.errs, fmt.Errorf("add %s: %w", e.EventType(), err))
		return
	}
	headers := wire.Headers{{Key: wire.HeaderSchemaVersion, Value: []byte(strconv.Itoa(wire.SchemaVersion(e)))}}
	if tx.causation != "" {
		headers = append(headers, kgo.RecordHeader{Key: wire.HeaderCausationID, Value: []byte(tx.causation)})
	}
	if tx.traceparent != "" {
		headers = append(headers, kgo.RecordHeader{Key: wire.HeaderTraceparent, Value: []byte(tx.traceparent)})
	}
	tx.add(store.Row{
		AggregateID: e.AggregateID(), Version: sql.NullInt64{Int64: version, Valid: true}, EventType: e.EventType(),
		Data: sql.NullString{String: string(data), Valid: true}, Topic: e.Topic(), Key: []byte(e.AggregateID()), Headers: headers,
	})
}

// Cause says what led to the events that are added from here on: the id of an
// event and its traceparent, either of which may be empty. In a handler it is
// the event being handled, without being said.
func (tx *Tx) Cause(eventID, traceparent string) { tx.causation, tx.traceparent = eventID, traceparent }

// AfterCommit has fn called once the transaction is committed, to wake a
// worker for instance. What must not be lost may not depend on it: the process
// can die between the two.
func (tx *Tx) AfterCommit(fn func()) { tx.afterCommit = append(tx.afterCommit, fn) }

// A Record is written to its topic as it is, without the envelope of an event.
type Record struct {
	Topic       string
	Key         []byte // nil for none
	Headers     []kgo.RecordHeader
	Value       []byte
	AggregateID string // these are for operators
	EventType   string
}

// AddRecord has r written when the transaction commits.
func (tx *Tx) AddRecord(r Record) {
	tx.add(store.Row{AggregateID: r.AggregateID, EventType: r.EventType, Topic: r.Topic, Key: r.Key, Headers: r.Headers, Value: r.Value})
}

func (tx *Tx) add(r store.Row) {
	id, err := uuid.NewV7()
	if err != nil {
		tx.errs = append(tx.errs, fmt.Errorf("add %s: %w", r.EventType, err))
		return
	}
	r.ID = id.String()
	tx.rows = append(tx.rows, r)
}

// intoEvents takes the rows of outbox_events.
var intoEvents = sqldb.Insert{
	Into: `INSERT INTO outbox_events (id, aggregate_id, aggregate_version, event_type, event_data,
		topic, key, headers, value, created_at)`,
	Types: `UUID, TEXT, BIGINT, TEXT, JSON, TEXT, BYTEA, JSON, BYTEA, TIMESTAMPTZ`,
	Then:  `RETURNING id, seq`,
}

// flush writes the collected events at the end of the transaction, in the
// order they were added.
func (tx *Tx) flush(ctx context.Context) error {
	if err := errors.Join(tx.errs...); err != nil {
		return err
	}
	at := sqldb.Now()
	rows := make([][]any, len(tx.rows))
	for i := range tx.rows {
		r := &tx.rows[i]
		headers, err := json.Marshal(r.Headers)
		if err != nil {
			return fmt.Errorf("write outbox: %w", err)
		}
		r.CreatedAt = at
		rows[i] = []any{
			r.ID, r.AggregateID, r.Version, r.EventType, r.Data, r.Topic, store.NullBytes(r.Key), string(headers), store.NullBytes(r.Value), at,
		}
	}
	n := 0
	err := intoEvents.Query(ctx, tx.db, tx.Tx, rows, func(row *sql.Rows) error {
		n++
		return tx.number(row, n-1)
	})
	if err != nil {
		return fmt.Errorf("write outbox: %w", err)
	}
	return nil
}

// number gives an event the seq it was written with. They come back in order,
// which no engine promises.
func (tx *Tx) number(result *sql.Rows, n int) error {
	var id string
	var seq int64
	if err := result.Scan(&id, &seq); err != nil {
		return err
	}
	if n >= len(tx.rows) || tx.rows[n].ID != id {
		n = slices.IndexFunc(tx.rows, func(r store.Row) bool { return r.ID == id })
	}
	if n >= 0 {
		tx.rows[n].Seq = seq
	}
	return nil
}
