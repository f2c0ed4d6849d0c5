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

// Schema is the migrations of the library's tables, for both engines: each database
// that has an outbox or an inbox gets them by db.Migrate(ctx, "outbox", Schema).
//
//go:embed schema
var Schema embed.FS

// An Event is a fact that one service publishes for others, encoded as JSON. Its
// EventType and Topic work on the zero value, so that a type is enough to subscribe
// to it. An event may also have Validate() error, which refuses a decoded event
// that no handler can act on, and SchemaVersion() int, which is 1 without it.
type Event interface {
	EventType() string   // its name in the record
	Topic() string       // the topic it travels on
	AggregateID() string // the record's key: events of one aggregate keep their order
}

// An Outbox writes events into its database, in the transaction that changes what
// they tell of. It may be used by any number of goroutines.
type Outbox struct {
	db     *sqldb.DB
	source string
	local  *handoff.Queue // to the relay of this process
}

// New makes the outbox of a database that has the tables of Schema. The source is
// the header ce_source of its events, such as /order-service.
func New(db *sqldb.DB, source string) *Outbox {
	return &Outbox{db: db, source: source, local: handoff.New()}
}

// DB is the database the outbox writes to.
func (o *Outbox) DB() *sqldb.DB { return o.db }

// Source is the header ce_source of the outbox's events.
func (o *Outbox) Source() string { return o.source }

// Local is the hand-off of committed events to the relay of the same process. It is
// for the package relay.
func (o *Outbox) Local() *handoff.Queue { return o.local }

// Tx runs fn in a transaction that also collects events, and commits both or
// neither. It returns the error of fn, with everything rolled back; of an event
// that cannot be encoded; or of the database, which is sqldb.ErrOutcomeUnknown when
// the answer to the commit was lost. Like sqldb.DB.Tx it runs fn again after a
// conflict, so that fn must have no effect outside its transaction.
func (o *Outbox) Tx(ctx context.Context, fn func(*Tx) error) error {
	err := o.tx(ctx, fn)
	if !isNumberTaken(err) {
		return err
	}
	if _, e := RepairNumbering(ctx, o.db); e != nil {
		return fmt.Errorf("%w, after %v", e, err) //nolint:errorlint // callers decide by the error of the repair
	}
	return o.tx(ctx, fn)
}

func (o *Outbox) tx(ctx context.Context, fn func(*Tx) error) error {
	var tx *Tx
	relay := o.local.Open()
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
	if len(tx.rows) > 0 && !o.local.Offer(relay, tx.rows) {
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
	causation   string // the id of the event that led to the events added next
	traceparent string
}

// Add has e written when the transaction commits, as number version of its
// aggregate on its topic: 1, 2, 3 without gaps. The transaction must have changed
// the aggregate's row before: that row's lock makes the events of an aggregate
// follow each other in the outbox. A version that is there already fails the
// transaction; so does an event that cannot be encoded, when Tx's function has
// returned.
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

// Cause sets the headers causation_id and traceparent of the events that are added
// after it: the event that led to them, and its trace. Either may be empty. An
// inbox sets them for a handler to those of the event that it handles.
func (tx *Tx) Cause(eventID, traceparent string) { tx.causation, tx.traceparent = eventID, traceparent }

// AfterCommit has fn called once the transaction is committed, to wake a worker for
// instance. Work that must not be lost may not depend on fn: the process can die
// after the commit and before the call.
func (tx *Tx) AfterCommit(fn func()) { tx.afterCommit = append(tx.afterCommit, fn) }

// A Record is published as it is, without the envelope of an event: a dead letter
// for instance.
type Record struct {
	Topic       string
	Key         []byte // nil for none
	Headers     []kgo.RecordHeader
	Value       []byte
	AggregateID string // for operators
	EventType   string // for operators
}

// AddRecord has r written when the transaction commits. A record has no version.
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

// insertEvents inserts rows of outbox_events.
var insertEvents = sqldb.Insert{
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
	err := insertEvents.Query(ctx, tx.db, tx.Tx, rows, func(row *sql.Rows) error {
		n++
		return tx.setSeq(row, n-1)
	})
	if err != nil {
		return fmt.Errorf("write outbox: %w", err)
	}
	return nil
}

// setSeq gives an event the seq that it was inserted with. Result number n mostly
// is event number n, but no engine promises the order.
func (tx *Tx) setSeq(result *sql.Rows, n int) error {
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
