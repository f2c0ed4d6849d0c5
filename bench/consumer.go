package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/kafka"
	"pizzaflow/outbox"
	"pizzaflow/outbox/inbox"
	"pizzaflow/sqldb"
)

// The consumers do what the order service does with payments: the mark in the
// inbox, a change of one row, an event of their own, once for each record.

const billTable = `CREATE TABLE bills (id TEXT PRIMARY KEY, status TEXT NOT NULL, version BIGINT NOT NULL)`

// billPaid is what comes; its aggregate is the bill.
type billPaid struct {
	BillID string `json:"bill_id"`
	Amount int    `json:"amount"`
}

// EventType is the event's name on the wire.
func (billPaid) EventType() string { return "BillPaid" }

// Topic is where the event travels.
func (billPaid) Topic() string { return paymentTopic }

// AggregateID is the record's key.
func (e billPaid) AggregateID() string { return e.BillID }

// billClosed is what it leads to.
type billClosed struct {
	BillID string `json:"bill_id"`
	Mark   string `json:"mark"`
}

// EventType is the event's name on the wire.
func (billClosed) EventType() string { return "BillClosed" }

// Topic is where the event travels.
func (billClosed) Topic() string { return orderTopic }

// AggregateID is the record's key.
func (e billClosed) AggregateID() string { return e.BillID }

type consumerOrder struct {
	URL     string
	Brokers []string
	Kind    string // On, OnBatch, or by hand
	Group   string
}

const (
	byOn    = "ours, On"
	byBatch = "ours, OnBatch"
	byHand  = "one transaction per record"
)

// consumerPart hands the same records to each kind of consumer.
func consumerPart(ctx context.Context, b *bench) error {
	var errs []error
	for _, on := range []struct {
		engine, broker string
		rounds         int
	}{{"PostgreSQL", "Kafka", min(2, b.size.rounds)}, {"SQLite", "embedded", 1}} {
		rounds := map[string][]float64{}
		for range on.rounds {
			for _, kind := range []string{byHand, byOn, byBatch} {
				if ctx.Err() != nil {
					return errors.Join(append(errs, ctx.Err())...)
				}
				rate, err := b.consume(ctx, on.engine, on.broker, kind)
				if err != nil {
					errs = append(errs, fmt.Errorf("%s on %s: %w", kind, on.engine, err))
					b.say("  FAILED %v", err)
					continue
				}
				b.say("  %s, %s: %s records/s", on.engine, kind, group(rate))
				rounds[kind] = append(rounds[kind], rate)
			}
		}
		b.consumerTable(on.engine+" ← "+on.broker, rounds)
	}
	return errors.Join(errs...)
}

// consume measures one kind once: how fast the effects grow.
func (b *bench) consume(ctx context.Context, engine, broker, kind string) (_ float64, err error) {
	where, err := b.on(ctx, engine, broker)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, where.close()) }()
	url, err := b.emptyDatabase(ctx, engine, "consumer")
	if err != nil {
		return 0, err
	}
	db, err := sqldb.Open(ctx, url)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	s, err := mark(ctx, where.Brokers, paymentTopic)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.forget(context.WithoutCancel(ctx))) }()
	n := b.size.records
	if kind == byHand {
		n /= 4 // it does not get through more
	}
	if err := errors.Join(makeBills(ctx, db, n), payBills(ctx, where.Brokers, n)); err != nil {
		return 0, err
	}
	order := consumerOrder{URL: url, Brokers: where.Brokers, Kind: kind, Group: fmt.Sprintf("bench-%d", time.Now().UnixNano())}
	c, err := b.role(ctx, "consumer", order)
	if err != nil {
		return 0, err
	}
	p, err := b.watchEffects(ctx, db, int64(n))
	_, e := c.stop()
	if err := errors.Join(err, e); err != nil {
		return 0, c.failed(err)
	}
	return p.perSecond(), checkEffects(ctx, db)
}

func makeBills(ctx context.Context, db *sqldb.DB, n int) error {
	if err := errors.Join(db.Migrate(ctx, "outbox", outbox.Schema), createTables(ctx, db, billTable)); err != nil {
		return err
	}
	return fill(ctx, db, "bills", []string{"id", "status", "version"}, n, func(i int) []any { return []any{item{i, 1}.id(), "open", 1} })
}

// payBills produces the records that the consumers will find.
func payBills(ctx context.Context, brokers []string, n int) error {
	producer, err := client(brokers, kgo.MaxBufferedRecords(20_000))
	if err != nil {
		return err
	}
	defer producer.Close()
	var failed error
	for i := range n {
		id := item{i, 1}.id()
		value := fmt.Appendf(nil, `{"event_id":"%s","event_type":"BillPaid","aggregate_id":"%s","event_data":{"bill_id":"%s","amount":120000},"timestamp":"2026-01-01T00:00:00Z"}`,
			newID(), id, id)
		producer.Produce(ctx, &kgo.Record{Topic: paymentTopic, Key: []byte(id), Value: value}, func(_ *kgo.Record, err error) {
			if err != nil {
				failed = err // promises are called one at a time
			}
		})
	}
	if err := producer.Flush(ctx); err != nil {
		return err
	}
	return failed
}

// watchEffects looks at the newest event that the handlers have written.
func (b *bench) watchEffects(ctx context.Context, db *sqldb.DB, want int64) (pace, error) {
	var p pace
	looks := time.NewTicker(50 * time.Millisecond)
	defer looks.Stop()
	moved := time.Now()
	for {
		var n int64
		if err := db.Read().QueryRowContext(ctx, `SELECT coalesce(max(seq), 0) FROM outbox_events`).Scan(&n); err != nil {
			return p, err
		}
		now := time.Now()
		switch {
		case n > 0 && p.first.IsZero():
			p = pace{first: now, last: now, atFirst: n, atLast: n}
			moved = now
		case n > p.atLast:
			p.last, p.atLast, moved = now, n, now
		case now.Sub(moved) > 20*time.Second:
			return p, fmt.Errorf("no effect for 20 s, after %d of %d", n, want)
		}
		if n >= want || !p.first.IsZero() && now.Sub(p.first) >= b.size.consume {
			return p, nil
		}
		select {
		case <-ctx.Done():
			return p, ctx.Err()
		case <-looks.C:
		}
	}
}

// checkEffects compares what must be equal: each mark has its effect and its event.
func checkEffects(ctx context.Context, db *sqldb.DB) error {
	var marks, effects, events int
	err := db.QueryRowContext(ctx, `SELECT (SELECT count(*) FROM inbox_events), (SELECT count(*) FROM bills WHERE status = 'paid' AND version = 2),
		(SELECT count(*) FROM outbox_events)`).Scan(&marks, &effects, &events)
	if err == nil && (marks != effects || effects != events || marks == 0) {
		err = fmt.Errorf("%d records in the inbox, %d effects, %d events", marks, effects, events)
	}
	return err
}

// playConsumer consumes until it is told to stop.
func playConsumer(ctx context.Context, text json.RawMessage, _ func(any) error) (_ any, err error) {
	var order consumerOrder
	if err := json.Unmarshal(text, &order); err != nil {
		return nil, err
	}
	db, err := sqldb.Open(ctx, order.URL)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if order.Kind == byHand {
		return nil, consumeByHand(ctx, db, order)
	}
	opts, err := kafka.Config{Brokers: order.Brokers}.Options()
	if err != nil {
		return nil, err
	}
	c := inbox.New(inbox.Config{
		Outbox: outbox.New(db, "/bench"), Group: order.Group, Kafka: opts, Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
	})
	if order.Kind == byBatch {
		inbox.OnBatch(c, closeBills(db.Engine))
	} else {
		inbox.On(c, closeBill)
	}
	return nil, c.Run(ctx)
}

const billUpdate = `UPDATE bills SET status = 'paid', version = 2 WHERE id = $1 AND status = 'open'`

func closeBill(ctx context.Context, tx *outbox.Tx, d inbox.Delivery[billPaid]) error {
	res, err := tx.ExecContext(ctx, billUpdate, d.Event.BillID)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n != 1 {
		return errors.Join(err, fmt.Errorf("bill %s: %d rows", d.Event.BillID, n))
	}
	tx.Add(2, billClosed{BillID: d.Event.BillID})
	return nil
}

// closeBills does the same for many in one statement.
func closeBills(engine sqldb.Engine) func(context.Context, *outbox.Tx, []inbox.Delivery[billPaid]) error {
	return func(ctx context.Context, tx *outbox.Tx, all []inbox.Delivery[billPaid]) error {
		ids := make([]string, len(all))
		for i, d := range all {
			ids[i] = d.Event.BillID
		}
		which, list := `id = ANY($1)`, any(ids)
		if engine == sqldb.SQLite { // which is handed a list in its own way
			text, err := json.Marshal(ids)
			if err != nil {
				return err
			}
			which, list = `id IN (SELECT value FROM json_each($1))`, string(text)
		}
		res, err := tx.ExecContext(ctx, `UPDATE bills SET status = 'paid', version = 2 WHERE status = 'open' AND `+which, list)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || int(n) != len(all) {
			return errors.Join(err, fmt.Errorf("%d bills: %d rows", len(all), n))
		}
		for _, d := range all {
			tx.Cause(d.EventID, d.Traceparent)
			tx.Add(2, billClosed{BillID: d.Event.BillID})
		}
		return nil
	}
}

// consumeByHand is a loop as it is written by hand: a transaction for each
// record, the offsets committed after each poll.
func consumeByHand(ctx context.Context, db *sqldb.DB, order consumerOrder) error {
	c, err := client(order.Brokers, kgo.ConsumerGroup(order.Group), kgo.ConsumeTopics(paymentTopic), kgo.DisableAutoCommit(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return err
	}
	defer c.Close()
	for ctx.Err() == nil {
		fetches := c.PollRecords(ctx, 500)
		for _, r := range fetches.Records() {
			if err := handleByHand(ctx, db, order.Group, r); err != nil && ctx.Err() == nil {
				return err
			}
		}
		if err := c.CommitUncommittedOffsets(ctx); err != nil && ctx.Err() == nil {
			return err
		}
	}
	return nil
}

func handleByHand(ctx context.Context, db *sqldb.DB, group string, r *kgo.Record) error {
	var in struct {
		EventID   string   `json:"event_id"`
		EventData billPaid `json:"event_data"`
	}
	if err := json.Unmarshal(r.Value, &in); err != nil {
		return err
	}
	return db.Tx(ctx, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `INSERT INTO inbox_events (consumer, event_id, handled_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`,
			group, in.EventID, sqldb.Now())
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return err
		}
		if _, err := tx.ExecContext(ctx, billUpdate, in.EventData.BillID); err != nil {
			return err
		}
		data := fmt.Sprintf(`{"bill_id":"%s","mark":""}`, in.EventData.BillID)
		_, err = tx.ExecContext(ctx, strings.Replace(outboxInsert, "1, 'OrderCreated'", "2, 'BillClosed'", 1),
			newID(), in.EventData.BillID, data, []byte(in.EventData.BillID), sqldb.Now())
		return err
	})
}
