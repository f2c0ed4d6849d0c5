package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"pizzaflow/kafka"
	"pizzaflow/outbox"
	"pizzaflow/outbox/relay"
	"pizzaflow/sqldb"
)

// created is the event as our library writes it.
type created struct{ item }

// EventType is the event's name on the wire.
func (created) EventType() string { return "OrderCreated" }

// Topic is where the event travels.
func (created) Topic() string { return orderTopic }

// AggregateID is the record's key.
func (c created) AggregateID() string { return c.id() }

// MarshalJSON gives the payload that all contenders relay.
func (c created) MarshalJSON() ([]byte, error) { return []byte(c.payload()), nil }

// UnmarshalJSON takes the mark out of it.
func (c *created) UnmarshalJSON(b []byte) (err error) {
	c.item, err = markOf(b)
	return err
}

type relayOrder struct {
	URL      string
	Brokers  []string
	Embedded string      // the folder of an embedded broker in the same process; empty for none
	Log      bool        // write the log that the system writes, a line for each event
	Write    *writeOrder // also write events, in this process
	Poll     bool        // baselines: look every 5 s, as the literal design says, not on and on
	Defaults bool        // peers: as they come, not tuned
}

// playOurs is our relay, as the system runs it.
func playOurs(ctx context.Context, text json.RawMessage, ready func(any) error) (_ any, err error) {
	var order relayOrder
	if err := json.Unmarshal(text, &order); err != nil {
		return nil, err
	}
	if order.Embedded != "" {
		broker, err := startEmbedded(ctx, order.Embedded)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, broker.Close()) }()
		order.Brokers = broker.Addrs()
	}
	db, err := sqldb.Open(ctx, order.URL)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := db.Migrate(ctx, "outbox", outbox.Schema); err != nil {
		return nil, err
	}
	out := outbox.New(db, "/bench")
	relay, err := newRelay(out, order.Brokers, order.Log)
	if err != nil {
		return nil, err
	}
	if err := ready(order.Brokers); err != nil {
		return nil, err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return relay.Run(ctx) })
	if order.Write != nil {
		g.Go(func() error {
			commits, err := order.Write.run(ctx, oursWriter(out))
			return errors.Join(err, ready(commits))
		})
	}
	return nil, g.Wait()
}

// newRelay makes a relay like the system's own. Its log, when wanted, is the
// JSON that the system writes, and goes nowhere.
func newRelay(out *outbox.Outbox, brokers []string, logged bool) (*relay.Relay, error) {
	opts, err := kafka.Config{Brokers: brokers}.Options()
	if err != nil {
		return nil, err
	}
	log := slog.New(slog.DiscardHandler)
	if logged {
		null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		if err != nil {
			return nil, err
		}
		log = slog.New(slog.NewJSONHandler(null, nil)) // closed with the process
	}
	return relay.New(relay.Config{Outbox: out, Service: "bench", Kafka: opts, Metrics: prometheus.NewRegistry(), Log: log}), nil
}

// oursWriter changes a row and writes an event, in one transaction.
func oursWriter(out *outbox.Outbox) func(context.Context, item) error {
	return func(ctx context.Context, i item) error {
		return out.Tx(ctx, func(tx *outbox.Tx) error {
			if _, err := tx.ExecContext(ctx, businessInsert, i.id()); err != nil {
				return err
			}
			tx.Add(int64(i.version), created{i})
			return nil
		})
	}
}

// fillOurs makes the backlog of our library. The first event is written by
// the library itself; the others are copies of its row with their own ids.
func fillOurs(ctx context.Context, url string, items []item) (err error) {
	db, err := sqldb.Open(ctx, url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := db.Migrate(ctx, "outbox", outbox.Schema); err != nil {
		return err
	}
	err = outbox.New(db, "/bench").Tx(ctx, func(tx *outbox.Tx) error {
		tx.Add(int64(items[0].version), created{items[0]})
		return nil
	})
	if err != nil {
		return fmt.Errorf("write the first event: %w", err)
	}
	var headers string
	if err := db.QueryRowContext(ctx, `SELECT headers FROM outbox_events`).Scan(&headers); err != nil {
		return fmt.Errorf("read the first event: %w", err)
	}
	columns := []string{"id", "aggregate_id", "aggregate_version", "event_type", "event_data", "topic", "key", "headers", "created_at"}
	return fill(ctx, db, "outbox_events", columns, len(items)-1, func(n int) []any {
		i := items[n+1]
		return []any{newID(), i.id(), i.version, "OrderCreated", i.payload(), orderTopic, []byte(i.id()), headers, createdAt(n)}
	})
}
