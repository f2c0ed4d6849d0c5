package outbox

import (
	"bytes"
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

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
	local  *handoffQueue // to the relay of this process
}

// New makes the outbox of a database. The source is what ce_source says of its
// events, such as /order-service.
func New(db *sqldb.DB, source string) *Outbox {
	return &Outbox{db: db, source: source, local: newHandoffQueue()}
}

// DB is the database the outbox writes to.
func (o *Outbox) DB() *sqldb.DB { return o.db }

// Source is what ce_source says of the outbox's events.
func (o *Outbox) Source() string { return o.source }

// Local is the way to the relay of the same process, for the package relay.
func (o *Outbox) Local() *handoffQueue { return o.local }

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
	to := o.local.open()
	err := o.db.Tx(ctx, func(t *sql.Tx) error {
		tx = &Tx{Tx: t, db: o.db, traceparent: Traceparent(ctx)}
		if err := fn(tx); err != nil {
			return err
		}
		err := tx.flush(ctx)
		crash("tx: written")
		return err
	})
	if err != nil {
		if errors.Is(err, sqldb.ErrOutcomeUnknown) {
			o.local.poke()
		}
		return err
	}
	crash("tx: committed")
	if len(tx.rows) > 0 && !o.local.offer(to, tx.rows) {
		o.local.poke()
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
	rows        []row
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
	data, err := marshal(e)
	if err != nil {
		tx.errs = append(tx.errs, fmt.Errorf("add %s: %w", e.EventType(), err))
		return
	}
	headers := headerList{{Key: headerSchemaVersion, Value: []byte(strconv.Itoa(schemaVersion(e)))}}
	if tx.causation != "" {
		headers = append(headers, kgo.RecordHeader{Key: headerCausationID, Value: []byte(tx.causation)})
	}
	if tx.traceparent != "" {
		headers = append(headers, kgo.RecordHeader{Key: headerTraceparent, Value: []byte(tx.traceparent)})
	}
	tx.add(row{
		aggregateID: e.AggregateID(), version: sql.NullInt64{Int64: version, Valid: true}, eventType: e.EventType(),
		data: sql.NullString{String: string(data), Valid: true}, topic: e.Topic(), key: []byte(e.AggregateID()), headers: headers,
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
	tx.add(row{aggregateID: r.AggregateID, eventType: r.EventType, topic: r.Topic, key: r.Key, headers: r.Headers, value: r.Value})
}

func (tx *Tx) add(r row) {
	id, err := uuid.NewV7()
	if err != nil {
		tx.errs = append(tx.errs, fmt.Errorf("add %s: %w", r.eventType, err))
		return
	}
	r.id = id.String()
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
		headers, err := json.Marshal(r.headers)
		if err != nil {
			return fmt.Errorf("write outbox: %w", err)
		}
		r.createdAt = at
		rows[i] = []any{
			r.id, r.aggregateID, r.version, r.eventType, r.data, r.topic, nullBytes(r.key), string(headers), nullBytes(r.value), at,
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
	if n >= len(tx.rows) || tx.rows[n].id != id {
		n = slices.IndexFunc(tx.rows, func(r row) bool { return r.id == id })
	}
	if n >= 0 {
		tx.rows[n].seq = seq
	}
	return nil
}

// A row is an event as it stands in outbox_events.
type row struct {
	seq         int64
	id          string
	aggregateID string
	version     sql.NullInt64
	eventType   string
	data        sql.NullString
	topic       string
	key         []byte
	headers     headerList
	value       []byte
	createdAt   time.Time
	partition   int32 // where it will go, -1 when that cannot be said
}

// marshal is json.Marshal without the escapes meant for HTML.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimRight(b.Bytes(), "\n"), nil
}

func schemaVersion(e any) int {
	if v, ok := e.(interface{ SchemaVersion() int }); ok {
		return v.SchemaVersion()
	}
	return 1
}
