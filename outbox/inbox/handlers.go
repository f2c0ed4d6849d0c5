package inbox

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pizzaflow/outbox"
	"pizzaflow/outbox/internal/wire"
	"pizzaflow/sqldb"
)

// A Delivery is one event on its way into a service.
type Delivery[E outbox.Event] struct {
	Event            E
	EventID          string
	EventType        string
	AggregateID      string
	AggregateVersion int64 // 0 when the record does not tell
	Time             time.Time
	Topic            string
	Partition        int32
	Offset           int64
	Attempt          int    // 1, 2, …
	Traceparent      string // of the record, "" without one
}

// On has c hand every event of type E to h. The transaction may be shared with
// other events and may be run again, and the handler makes no network call: a
// transaction that is idle for ten seconds is ended by PostgreSQL, and tried
// again as if the database were away.
// An error undoes the handler's work: the event is tried again later, unless
// it is Permanent or Unavailable. On must be called before Run.
func On[E outbox.Event](c *Consumer, h func(ctx context.Context, tx *outbox.Tx, d Delivery[E]) error) {
	subscribe(c, false, func(ctx context.Context, tx *outbox.Tx, ds []Delivery[E]) error { return h(ctx, tx, ds[0]) })
}

// OnBatch is On for a handler that can do the work of many events with few
// statements. It gets those of type E that are at hand, at least one, each of
// another key, sorted by key. An error undoes the work of all of them; they are
// then handed over again in ever smaller parts, until the one to blame stands
// alone. Before it adds an event the handler says which delivery led to it:
//
//	tx.Cause(d.EventID, d.Traceparent)
func OnBatch[E outbox.Event](c *Consumer, h func(ctx context.Context, tx *outbox.Tx, ds []Delivery[E]) error) {
	subscribe(c, true, h)
}

// A subject is what a handler subscribes to.
type route struct{ topic, eventType string }

// A subscription is what one handler asked for.
type subscription struct {
	version    int64 // the schema version it understands
	takesBatch bool  // given all there are of its type at once
	// handle decodes the records and calls the handler. It names the record that
	// is to blame for an error, -1 when it could be any of them.
	invoke   func(context.Context, *outbox.Tx, []*message) (culprit int, err error)
	outcomes map[outcome]prometheus.Counter
	duration prometheus.Observer
}

func subscribe[E outbox.Event](c *Consumer, takesBatch bool, h func(ctx context.Context, tx *outbox.Tx, ds []Delivery[E]) error) {
	var zero E
	r := route{zero.Topic(), zero.EventType()}
	if _, ok := c.subscriptions[r]; ok {
		panic(fmt.Sprintf("outbox: two handlers for %s on %s in group %s", r.eventType, r.topic, c.cfg.Group))
	}
	sub := &subscription{version: int64(wire.SchemaVersion(zero)), takesBatch: takesBatch}
	sub.outcomes, sub.duration = c.metrics.forRoute(r)
	sub.invoke = func(ctx context.Context, tx *outbox.Tx, msgs []*message) (culprit int, err error) {
		ds := make([]Delivery[E], len(msgs))
		for i, msg := range msgs {
			if err := decodeDelivery(msg, &ds[i]); err != nil {
				return i, Permanent(err)
			}
		}
		if len(msgs) > 1 {
			return -1, h(ctx, tx, ds)
		}
		tx.Cause(ds[0].EventID, ds[0].Traceparent)
		return 0, h(outbox.WithTraceparent(ctx, ds[0].Traceparent), tx, ds)
	}
	c.subscriptions[r] = sub
	c.registered = append(c.registered, sub)
}

// deliver makes a delivery of a record. What it refuses, no retry will cure.
func decodeDelivery[E outbox.Event](msg *message, d *Delivery[E]) error {
	*d = Delivery[E]{
		EventID: msg.id, EventType: msg.envelope.EventType, AggregateID: msg.envelope.AggregateID,
		AggregateVersion: wire.NumberHeader(msg.rec, wire.HeaderAggregateVersion, 0), Time: msg.envelope.Timestamp,
		Topic: msg.rec.Topic, Partition: msg.rec.Partition, Offset: msg.rec.Offset, Attempt: msg.attempt,
		Traceparent: wire.Header(msg.rec, wire.HeaderTraceparent),
	}
	if err := json.Unmarshal(msg.envelope.EventData, &d.Event); err != nil {
		return fmt.Errorf("decode %s: %w", msg.envelope.EventType, err)
	}
	if v, ok := any(d.Event).(interface{ Validate() error }); ok {
		if err := v.Validate(); err != nil {
			return fmt.Errorf("invalid %s: %w", msg.envelope.EventType, err)
		}
	}
	return nil
}

// handle runs the handlers inside tx: first those that take one record each, in
// the order given, then those that take many. It names the record that is to
// blame for an error, nil when it could be any of several.
func (c *Consumer) runHandlers(ctx context.Context, tx *outbox.Tx, msgs []*message) (culprit *message, err error) {
	batches := map[*subscription][]*message{}
	for _, msg := range msgs {
		switch {
		case msg.err != nil:
			return msg, msg.err
		case msg.sub.takesBatch:
			batches[msg.sub] = append(batches[msg.sub], msg)
		default:
			if err := c.callHandler(ctx, tx, []*message{msg}, &culprit); err != nil {
				return culprit, err
			}
		}
	}
	for _, sub := range c.registered {
		if len(batches[sub]) > 0 {
			if err := c.callHandler(ctx, tx, batches[sub], &culprit); err != nil {
				return culprit, err
			}
		}
	}
	return nil, nil
}

// call calls a handler for records of one type.
func (c *Consumer) callHandler(ctx context.Context, tx *outbox.Tx, msgs []*message, culprit **message) (err error) {
	defer tx.Cause("", "")
	defer func() {
		if p := recover(); p != nil {
			c.cfg.Log.Error("handler panicked", "consumer_group", c.cfg.Group, "event_id", msgs[0].id, "event_type", msgs[0].envelope.EventType,
				"events", len(msgs), "panic", p, "stack", string(debug.Stack()))
			err = classified{fmt.Errorf("handler panicked: %v", p), classPanic}
			if len(msgs) == 1 {
				*culprit = msgs[0]
			}
		}
	}()
	n, err := msgs[0].sub.invoke(ctx, tx, msgs)
	if err != nil && n >= 0 && !sqldb.IsAborted(err) {
		*culprit = msgs[n]
	}
	return err
}
