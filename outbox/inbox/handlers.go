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

// A Delivery is one event as a handler gets it, with the position of its record.
type Delivery[E outbox.Event] struct {
	Event            E
	EventID          string // a UUID
	EventType        string
	AggregateID      string
	AggregateVersion int64     // 0 when the record has none
	Time             time.Time // of the envelope
	Topic            string
	Partition        int32
	Offset           int64
	Attempt          int    // 1, 2, …
	Traceparent      string // the trace context of the record, "" when it has none
}

// On has c call h for every event of type E. It must be called before Run and
// panics when E has a handler already.
//
// The transaction may be shared with other events and may be run again, so h must
// have no effect outside of tx. It makes no network call: PostgreSQL ends a
// transaction that is idle for ten seconds, and it is then retried as if the
// database were unavailable.
//
// When h returns an error its work is undone and the event is parked and retried;
// after Config.Attempts failed attempts it is dead-lettered. An error marked
// Permanent dead-letters the event at once; one marked Unavailable, or one that says
// that the database is unavailable, pauses the consumer and spends no attempt.
func On[E outbox.Event](c *Consumer, h func(ctx context.Context, tx *outbox.Tx, d Delivery[E]) error) {
	subscribe(c, false, func(ctx context.Context, tx *outbox.Tx, ds []Delivery[E]) error { return h(ctx, tx, ds[0]) })
}

// OnBatch is On for a handler that can do the work of many events with few
// statements. ds are the events of type E in the current batch: at least one, each
// of another key, sorted by key. An error undoes the work of all of them; the
// handler is then called with ever smaller parts until the failing event is alone
// and is parked. Before it adds an event the handler names the delivery that
// caused it:
//
//	tx.Cause(d.EventID, d.Traceparent)
func OnBatch[E outbox.Event](c *Consumer, h func(ctx context.Context, tx *outbox.Tx, ds []Delivery[E]) error) {
	subscribe(c, true, h)
}

// A route is what a handler subscribes to: an event type on a topic.
type route struct{ topic, eventType string }

// A subscription is a handler with the metrics of its route.
type subscription struct {
	version    int64 // the schema version of the handler's event
	takesBatch bool  // OnBatch: one call for all messages of the route
	// invoke decodes the messages and calls the handler. On an error culprit is the
	// index of the message that caused it, -1 when it may be any of them.
	invoke   func(context.Context, *outbox.Tx, []*message) (culprit int, err error)
	outcomes map[outcome]prometheus.Counter
	duration prometheus.Observer
}

// subscribe registers a handler for events of type E. It gets one event at a time,
// or with takesBatch all of them that are in the batch.
func subscribe[E outbox.Event](c *Consumer, takesBatch bool, h func(ctx context.Context, tx *outbox.Tx, ds []Delivery[E]) error) {
	var zero E
	r := route{zero.Topic(), zero.EventType()}
	if _, ok := c.subscriptions[r]; ok {
		panic(fmt.Sprintf("inbox: two handlers for %s on %s in group %s", r.eventType, r.topic, c.cfg.Group))
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

// decodeDelivery decodes and validates the event of a message into d. No retry
// cures its errors.
func decodeDelivery[E outbox.Event](msg *message, d *Delivery[E]) error {
	*d = Delivery[E]{
		EventID: msg.id, EventType: msg.envelope.EventType, AggregateID: msg.envelope.AggregateID,
		AggregateVersion: wire.Int64Header(msg.rec, wire.HeaderAggregateVersion, 0), Time: msg.envelope.Timestamp,
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

// runHandlers calls the handlers for a batch inside tx: those that take one event
// in the order of msgs, then those that take a batch in the order they were
// registered. On an error culprit is the message that caused it, nil when it may be
// any of several.
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

// callHandler calls the handler of messages of one type and turns a panic into an
// error. It sets culprit as runHandlers returns it.
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
