package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/sqldb"
)

// The baselines are what is written when nobody has thought about it, and what
// is written when somebody has, a little. Both mark each row as published.

// literalTables are those of the literal loop.
var literalTables = []string{
	`CREATE TABLE literal_outbox (
		id UUID PRIMARY KEY, aggregate_id TEXT NOT NULL, event_type TEXT NOT NULL, event_data JSONB NOT NULL,
		created_at TIMESTAMPTZ NOT NULL, published_at TIMESTAMPTZ)`,
	`CREATE INDEX literal_outbox_unpublished ON literal_outbox (created_at) WHERE published_at IS NULL`,
}

const literalInsert = `INSERT INTO literal_outbox (id, aggregate_id, event_type, event_data, created_at) VALUES ($1, $2, 'OrderCreated', $3, $4)`

func fillLiteral(ctx context.Context, url string, items []item) error {
	return fillTable(ctx, url, "literal_outbox", literalTables, items)
}

// skipLockedTables are those of the claim loop, whose order is a number.
var skipLockedTables = []string{
	`CREATE TABLE claimed_outbox (
		seq BIGINT GENERATED ALWAYS AS IDENTITY UNIQUE,
		id UUID PRIMARY KEY, aggregate_id TEXT NOT NULL, event_type TEXT NOT NULL, event_data JSONB NOT NULL,
		created_at TIMESTAMPTZ NOT NULL, published_at TIMESTAMPTZ)`,
	`CREATE INDEX claimed_outbox_unpublished ON claimed_outbox (seq) WHERE published_at IS NULL`,
}

func fillSkipLocked(ctx context.Context, url string, items []item) error {
	return fillTable(ctx, url, "claimed_outbox", skipLockedTables, items)
}

func fillTable(ctx context.Context, url, table string, tables []string, items []item) (err error) {
	db, err := sqldb.Open(ctx, url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := createTables(ctx, db, tables...); err != nil {
		return err
	}
	columns := []string{"id", "aggregate_id", "event_type", "event_data", "created_at"}
	return fill(ctx, db, table, columns, len(items), func(n int) []any {
		return []any{newID(), items[n].id(), "OrderCreated", items[n].payload(), createdAt(n)}
	})
}

// playLiteral is the literal loop: select what is unpublished, and for each
// event produce, await the acknowledgement, update.
func playLiteral(ctx context.Context, text json.RawMessage, ready func(any) error) (_ any, err error) {
	var order relayOrder
	if err := json.Unmarshal(text, &order); err != nil {
		return nil, err
	}
	db, err := sqldb.Open(ctx, order.URL)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := ready(nil); err != nil {
		return nil, err
	}
	return nil, relayLiterally(ctx, db, order.Brokers, order.Poll)
}

// relayLiterally runs the loop until ctx ends. With poll it looks every 5 s
// and then goes on until nothing is left, otherwise all the time.
func relayLiterally(ctx context.Context, db *sqldb.DB, brokers []string, poll bool) error {
	producer, err := client(brokers, kgo.RequiredAcks(kgo.AllISRAcks()), kgo.ProducerLinger(0))
	if err != nil {
		return err
	}
	defer producer.Close()
	pause := time.Millisecond
	if poll {
		pause = 5 * time.Second
	}
	for {
		n, err := literalRound(ctx, db, producer)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // told to stop
		}
		if err != nil {
			return err
		}
		if n > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

func literalRound(ctx context.Context, db *sqldb.DB, producer *kgo.Client) (int, error) {
	type event struct{ id, aggregate, data string }
	rows, err := db.QueryContext(ctx, `SELECT id, aggregate_id, event_data FROM literal_outbox
		WHERE published_at IS NULL ORDER BY created_at LIMIT 100`)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	var events []event
	for rows.Next() {
		var e event
		if err := rows.Scan(&e.id, &e.aggregate, &e.data); err != nil {
			return 0, err
		}
		events = append(events, e)
	}
	if err := rows.Err(); err != nil {
		return 0, err
	}
	for _, e := range events {
		r := &kgo.Record{Topic: orderTopic, Key: []byte(e.aggregate), Value: []byte(e.data)}
		if err := producer.ProduceSync(ctx, r).FirstErr(); err != nil {
			return 0, fmt.Errorf("produce: %w", err)
		}
		if _, err := db.ExecContext(ctx, `UPDATE literal_outbox SET published_at = $1 WHERE id = $2`, sqldb.Now(), e.id); err != nil {
			return 0, err
		}
	}
	return len(events), nil
}

// playSkipLocked is the claim loop: a thousand rows are locked, produced as
// one batch, updated in one statement and released by the commit.
func playSkipLocked(ctx context.Context, text json.RawMessage, ready func(any) error) (_ any, err error) {
	var order relayOrder
	if err := json.Unmarshal(text, &order); err != nil {
		return nil, err
	}
	conn, err := pgx.Connect(ctx, order.URL)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	producer, err := client(order.Brokers, kgo.RequiredAcks(kgo.AllISRAcks()), kgo.ProducerLinger(0))
	if err != nil {
		return nil, err
	}
	defer producer.Close()
	if err := ready(nil); err != nil {
		return nil, err
	}
	for ctx.Err() == nil {
		n, err := skipLockedRound(ctx, conn, producer)
		if err != nil && ctx.Err() == nil {
			return nil, err
		}
		if n == 0 {
			select {
			case <-ctx.Done():
			case <-time.After(time.Millisecond):
			}
		}
	}
	return nil, nil
}

func skipLockedRound(ctx context.Context, conn *pgx.Conn, producer *kgo.Client) (int, error) {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // after the commit it does nothing
	rows, err := tx.Query(ctx, `SELECT id::text, aggregate_id, event_data::text FROM claimed_outbox
		WHERE published_at IS NULL ORDER BY seq LIMIT 1000 FOR UPDATE SKIP LOCKED`)
	if err != nil {
		return 0, err
	}
	var ids []string
	var records []*kgo.Record
	var id, aggregate string
	var data []byte
	_, err = pgx.ForEachRow(rows, []any{&id, &aggregate, &data}, func() error {
		ids = append(ids, id)
		records = append(records, &kgo.Record{Topic: orderTopic, Key: []byte(aggregate), Value: append([]byte(nil), data...)})
		return nil
	})
	if err != nil || len(ids) == 0 {
		return 0, err
	}
	if err := producer.ProduceSync(ctx, records...).FirstErr(); err != nil {
		return 0, fmt.Errorf("produce: %w", err)
	}
	if _, err := tx.Exec(ctx, `UPDATE claimed_outbox SET published_at = now() WHERE id = ANY($1::uuid[])`, ids); err != nil {
		return 0, err
	}
	return len(ids), tx.Commit(ctx)
}
