package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/sqldb"
)

// A route is one way from a commit to a consumer.
type route struct {
	name           string
	engine, broker string
	rates          []int
	relay          func(ctx context.Context, b *bench, where *place, url string, write *writeOrder) (*child, error)
	kind           string // of the writer in a process of its own; empty when the relay's process writes
	prepare        func(ctx context.Context, url string) error
	rounds         int           // one when zero
	length         time.Duration // instead of the size's
}

// warmUp is left out: connections, plans and partitions are found by then.
const warmUp = 2 * time.Second

// lags are the times from commit to receipt, sorted.
type lags []time.Duration

func (l lags) at(quantile float64) time.Duration {
	if len(l) == 0 {
		return 0
	}
	return l[min(len(l)-1, int(quantile*float64(len(l))))]
}

// latencyPart writes events at a steady rate and watches when they come.
func latencyPart(ctx context.Context, b *bench) error {
	var errs []error
	for _, r := range b.routes() {
		for n := range max(1, r.rounds) * len(r.rates) {
			rate := r.rates[n%len(r.rates)]
			if ctx.Err() != nil {
				break
			}
			if err := b.timeRoute(ctx, r, rate); err != nil {
				err = fmt.Errorf("%s at %d/s: %w", r.name, rate, err)
				b.say("  FAILED %v", err)
				errs = append(errs, err)
			}
		}
	}
	if b.debezium != nil {
		errs = append(errs, b.debezium.close(context.WithoutCancel(ctx), b))
	}
	b.latencyTable()
	return errors.Join(errs...)
}

func (b *bench) routes() []route {
	both := []int{50, 500}
	ours := func(embedded bool) func(context.Context, *bench, *place, string, *writeOrder) (*child, error) {
		return func(ctx context.Context, b *bench, where *place, url string, write *writeOrder) (*child, error) {
			order := relayOrder{URL: url, Brokers: where.Brokers, Write: write}
			if embedded {
				order.Embedded = b.path(fmt.Sprintf("embedded-%d", time.Now().UnixNano()))
			}
			return b.role(ctx, "ours", order)
		}
	}
	peer := func(name string, order relayOrder) func(context.Context, *bench, *place, string, *writeOrder) (*child, error) {
		return func(ctx context.Context, b *bench, where *place, url string, _ *writeOrder) (*child, error) {
			order.URL, order.Brokers = url, where.Brokers
			return b.role(ctx, name, order)
		}
	}
	tables := func(statements ...string) func(context.Context, string) error {
		return func(ctx context.Context, url string) (err error) {
			db, err := sqldb.Open(ctx, url)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, db.Close()) }()
			return createTables(ctx, db, append(statements, businessTable)...)
		}
	}
	routes := []route{
		{name: "ours", engine: "PostgreSQL", broker: "Kafka", rates: both, rounds: b.size.rounds, relay: ours(false), prepare: tables()},
		{name: "ours, written by another process", engine: "PostgreSQL", broker: "Kafka", rates: both, relay: ours(false), kind: "ours", prepare: tables()},
		{name: "ours", engine: "SQLite", broker: "embedded", rates: both, relay: ours(true), prepare: tables()},
		{
			name: "Watermill forwarder, tuned", engine: "PostgreSQL", broker: "Kafka", rates: both, relay: peer("watermill", relayOrder{}),
			kind: "watermill", prepare: tables(),
		},
		{
			name: "literal: one by one, every 5 s", engine: "PostgreSQL", broker: "Kafka", rates: both, relay: peer("literal", relayOrder{Poll: true}),
			kind: "literal", prepare: tables(literalTables...), length: b.size.latency * 3 / 2,
		},
	}
	if !b.size.peers {
		return routes
	}
	java := func(settings map[string]string) func(context.Context, *bench, *place, string, *writeOrder) (*child, error) {
		return func(ctx context.Context, b *bench, _ *place, _ string, _ *writeOrder) (*child, error) {
			if b.debezium == nil {
				d, err := b.newDebezium(ctx, "debezium_latency")
				if err != nil {
					return nil, err
				}
				b.debezium = d
			}
			return b.debezium.start(ctx, b, settings)
		}
	}
	return append(routes,
		route{name: "Debezium, tuned, polling every ms", engine: "PostgreSQL", broker: "Kafka", rates: both, relay: java(everyMilli()), kind: "debezium"},
		route{name: "Debezium, as it comes", engine: "PostgreSQL", broker: "Kafka", rates: []int{50}, relay: java(nil), kind: "debezium"})
}

// timeRoute measures one route at one rate.
func (b *bench) timeRoute(ctx context.Context, r route, rate int) (err error) {
	where := &place{Engine: r.engine, Broker: r.broker, Brokers: b.brokers}
	url := ""
	switch {
	case r.kind == "debezium": // has its own
	case r.engine == "SQLite":
		url = "sqlite:" + b.path(fmt.Sprintf("latency-%d.db", time.Now().UnixNano()))
	default:
		if url, err = b.createDatabase(ctx, "latency", ""); err != nil {
			return err
		}
	}
	if r.prepare != nil {
		if err := r.prepare(ctx, url); err != nil {
			return err
		}
	}
	length := warmUp + b.size.latency
	if r.length > 0 {
		length = warmUp + r.length
	}
	b.aggregates += 1_000_000 // no event of another route counts
	write := &writeOrder{First: b.aggregates, Count: int(length.Seconds() * float64(rate)), Rate: rate}
	sent, got, err := b.drive(ctx, r, where, url, write)
	if errors.Is(err, errNoDebezium) {
		return b.withoutDebezium(err)
	}
	if err != nil {
		return err
	}
	warm := int(warmUp.Seconds() * float64(rate))
	var l lags
	missing := 0
	for n := warm; n < write.Count; n++ {
		at, came := got[write.First+n]
		if !came {
			missing++
			continue
		}
		l = append(l, max(0, at.Sub(time.Unix(0, sent[n])))) // the commit's return may be later than the receipt
	}
	slices.Sort(l)
	if missing > 0 && strings.HasPrefix(r.name, "ours") || len(l) == 0 { // others may fail to keep up
		return fmt.Errorf("%d of %d events did not come", missing, write.Count-warm)
	}
	b.say("  %s, %s at %d/s: p50 %s, p99 %s, max %s; %d did not come", where, r.name, rate, ms(l.at(0.5)), ms(l.at(0.99)), ms(l.at(1)), missing)
	b.report.timed(where.String(), r.name, rate, missing, l)
	return nil
}

// drive starts the relay and the writer, and receives until everything has come.
func (b *bench) drive(ctx context.Context, r route, where *place, url string, write *writeOrder) (_ commits, _ map[int]time.Time, err error) {
	own := write
	if r.kind != "" {
		own = nil
	}
	relay, err := r.relay(ctx, b, where, url, own)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		_, e := relay.stop()
		err = errors.Join(err, e)
	}()
	if relay.name != "debezium" {
		var brokers []string
		if err := relay.read(&brokers); err != nil {
			return nil, nil, err
		}
		if brokers != nil {
			where.Brokers = brokers
		}
	}
	if err := b.await(ctx, r, relay, url); err != nil {
		return nil, nil, err
	}
	recv, err := receive(ctx, where.Brokers, write.First, write.Count)
	if err != nil {
		return nil, nil, err
	}
	defer recv.close()
	speaker := relay
	if r.kind != "" {
		write.Kind, write.URL = r.kind, url
		if r.kind == "debezium" {
			write.URL = b.debezium.url
		}
		if speaker, err = b.role(ctx, "writer", map[string]any{
			"URL": write.URL, "Kind": write.Kind, "First": write.First,
			"Count": write.Count, "Rate": write.Rate, "Brokers": where.Brokers,
		}); err != nil {
			return nil, nil, err
		}
		defer func() {
			_, e := speaker.stop()
			err = errors.Join(err, e)
		}()
		var none json.RawMessage
		if err := speaker.read(&none); err != nil {
			return nil, nil, err
		}
	}
	var sent commits
	if err := speaker.read(&sent); err != nil {
		return nil, nil, err
	}
	return sent, recv.all(ctx, b.size.catchUp), nil
}

// await returns when the relay that others write for is at work.
func (b *bench) await(ctx context.Context, r route, relay *child, url string) (err error) {
	switch r.kind {
	case "debezium":
		return b.debezium.await(ctx, relay)
	case "ours": // or the writer's own relay could be first to take the lease
		db, err := sqldb.Open(ctx, url)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, db.Close()) }()
		for holder := ""; holder == ""; time.Sleep(10 * time.Millisecond) {
			if err := db.QueryRowContext(ctx, `SELECT holder FROM outbox_lease`).Scan(&holder); err != nil {
				return err
			}
		}
	}
	return nil
}

// A receiver notes when each event of a writer came.
type receiver struct {
	client *kgo.Client
	want   int
	cancel context.CancelFunc
	done   chan struct{} // closed when all have come or it was ended
	got    map[int]time.Time
}

// receive starts to receive at the topic's end, and returns when it does.
func receive(ctx context.Context, brokers []string, first, count int) (*receiver, error) {
	s, err := mark(ctx, brokers, orderTopic)
	if err != nil {
		return nil, err
	}
	defer s.client.Close()
	from := map[int32]kgo.Offset{}
	for p, end := range s.from {
		from[p] = kgo.NewOffset().At(end)
	}
	c, err := client(brokers, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{orderTopic: from}))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &receiver{client: c, want: count, cancel: cancel, done: make(chan struct{}), got: make(map[int]time.Time, count)}
	go func() {
		defer close(r.done)
		for len(r.got) < count && ctx.Err() == nil {
			fetches := c.PollFetches(ctx)
			now := time.Now()
			fetches.EachRecord(func(rec *kgo.Record) {
				i, err := markOf(rec.Value)
				if err != nil || i.aggregate < first || i.aggregate >= first+count {
					return // another's
				}
				if _, again := r.got[i.aggregate]; !again {
					r.got[i.aggregate] = now
				}
			})
		}
	}()
	return r, nil
}

// all waits for what is still to come and returns what came.
func (r *receiver) all(ctx context.Context, patience time.Duration) map[int]time.Time {
	select {
	case <-r.done:
	case <-ctx.Done():
	case <-time.After(patience):
	}
	r.close()
	return r.got
}

func (r *receiver) close() {
	r.cancel()
	<-r.done
	r.client.Close()
}
