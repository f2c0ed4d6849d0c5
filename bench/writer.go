package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"pizzaflow/outbox"
	"pizzaflow/sqldb"
)

// Each written event comes with a change of a row, in the same transaction.
const (
	businessTable  = `CREATE TABLE IF NOT EXISTS business (id TEXT PRIMARY KEY)`
	businessInsert = `INSERT INTO business (id) VALUES ($1)`
)

// A writeOrder says what to write: aggregates First, First+1, …, at a steady
// rate that does not wait for anybody.
type writeOrder struct {
	URL   string
	Kind  string // whose outbox: ours, literal, debezium, watermill
	First int
	Count int
	Rate  int // a second
}

// commits are the moments at which the writer learnt that its transactions
// were committed, in nanoseconds since 1970, in the order of the aggregates.
type commits []int64

// run writes and returns when each commit returned.
func (o *writeOrder) run(ctx context.Context, write func(context.Context, item) error) (commits, error) {
	at := make(commits, o.Count)
	var mu sync.Mutex
	var failed error
	openLoop(ctx, o.Rate, o.Count, 64, func(n int, _ time.Time) {
		err := write(ctx, item{aggregate: o.First + n, version: 1})
		now := time.Now().UnixNano()
		mu.Lock()
		defer mu.Unlock()
		at[n] = now
		if err != nil && failed == nil {
			failed = fmt.Errorf("write event %d: %w", n, err)
		}
	})
	return at, errors.Join(failed, ctx.Err())
}

// openLoop calls do at its scheduled time, n times at so many a second, and
// waits for the last. It does not wait for earlier calls unless so many are
// under way; do learns when its time was.
func openLoop(ctx context.Context, rate, n, inFlight int, do func(n int, due time.Time)) {
	var all sync.WaitGroup
	places := make(chan struct{}, inFlight)
	began := time.Now()
	for i := range n {
		due := began.Add(time.Duration(i) * time.Second / time.Duration(rate))
		timer := time.NewTimer(time.Until(due))
		select {
		case <-ctx.Done():
			timer.Stop()
			all.Wait()
			return
		case <-timer.C:
		}
		places <- struct{}{}
		all.Go(func() {
			defer func() { <-places }()
			do(i, due)
		})
	}
	all.Wait()
}

// playWriter writes in a process of its own.
func playWriter(ctx context.Context, text json.RawMessage, ready func(any) error) (_ any, err error) {
	var order struct {
		writeOrder
		Brokers []string
	}
	if err := json.Unmarshal(text, &order); err != nil {
		return nil, err
	}
	db, err := sqldb.Open(ctx, order.URL)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := createTables(ctx, db, businessTable); err != nil {
		return nil, err
	}
	if order.Kind == "watermill" { // its forwarder may not have made them yet
		if err := makeWatermill(db); err != nil {
			return nil, err
		}
	}
	if order.Kind != "ours" {
		write, err := peerWriter(db, order.Kind)
		if err != nil {
			return nil, err
		}
		if err := ready(nil); err != nil {
			return nil, err
		}
		return order.run(ctx, write)
	}
	// A replica whose relay stands by, while that of another process leads.
	out := outbox.New(db, "/bench")
	relay, err := newRelay(out, order.Brokers, false)
	if err != nil {
		return nil, err
	}
	if err := ready(nil); err != nil {
		return nil, err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return relay.Run(ctx) }) // also when all is written: the last wake-up may be on its way
	g.Go(func() error {
		at, err := order.run(ctx, oursWriter(out))
		return errors.Join(err, ready(at))
	})
	return nil, g.Wait()
}

// peerWriter writes into the outbox of one of the others.
func peerWriter(db *sqldb.DB, kind string) (func(context.Context, item) error, error) {
	insert := map[string]string{"literal": literalInsert, "debezium": debeziumInsert}[kind]
	if insert == "" && kind != "watermill" {
		return nil, fmt.Errorf("there is no writer %q", kind)
	}
	return func(ctx context.Context, i item) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }() // after the commit it does nothing
		if _, err := tx.ExecContext(ctx, businessInsert, i.id()); err != nil {
			return err
		}
		if kind == "watermill" {
			err = watermillPublish(tx, i)
		} else {
			_, err = tx.ExecContext(ctx, insert, newID(), i.id(), i.payload(), sqldb.Now())
		}
		if err != nil {
			return err
		}
		return tx.Commit()
	}, nil
}
