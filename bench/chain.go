package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"pizzaflow/sqldb"
)

type chainOrder struct {
	URL     string
	Brokers []string
	Literal bool
	Clients int
	Length  time.Duration
	CatchUp time.Duration
	Profile string // the file for one; none when empty
}

// A chainResult is what came out of the chain's end.
type chainResult struct {
	Placed    intakeResult
	Received  int           // events, of all orders placed
	Behind    time.Duration // from the last order to the last event; the whole patience when some never came
	PerSecond float64       // events, from the first order to the last event

	effort effort // for all that were placed, the clients' and the reader's in ours
}

// chainPart runs orders, relay, broker and a consumer in one process.
func chainPart(ctx context.Context, b *bench) error {
	var errs []error
	for _, on := range []struct {
		engine, broker string
		rounds         int
	}{{"PostgreSQL", "Kafka", min(2, b.size.rounds)}, {"SQLite", "embedded", 1}} {
		results := map[string][]chainResult{}
		for range on.rounds {
			for _, literal := range []bool{true, false} {
				if ctx.Err() != nil {
					return errors.Join(append(errs, ctx.Err())...)
				}
				name := map[bool]string{true: "literal", false: "ours"}[literal]
				got, err := b.chain(ctx, on.engine, on.broker, literal, "")
				if err != nil {
					errs = append(errs, fmt.Errorf("%s on %s: %w", name, on.engine, err))
					b.say("  FAILED %v", err)
					continue
				}
				b.say("  %s, %s: %s orders/s placed, %s events/s received, %s behind", on.engine, name,
					group(got.Placed.PerSecond), group(got.PerSecond), got.Behind.Round(time.Millisecond))
				results[name] = append(results[name], got)
			}
		}
		b.chainTable(on.engine+" → "+on.broker, results)
		if err := b.profileChain(ctx, on.engine, on.broker); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (b *bench) chain(ctx context.Context, engine, broker string, literal bool, profile string) (got chainResult, err error) {
	where, err := b.on(ctx, engine, broker)
	if err != nil {
		return got, err
	}
	defer func() { err = errors.Join(err, where.close()) }()
	s, err := mark(ctx, where.Brokers, orderTopic)
	if err != nil {
		return got, err
	}
	defer func() { err = errors.Join(err, s.forget(context.WithoutCancel(ctx))) }()
	url, err := b.emptyDatabase(ctx, engine, "chain")
	if err != nil {
		return got, err
	}
	c, err := b.role(ctx, "chain", chainOrder{
		URL: url, Brokers: where.Brokers, Literal: literal, Clients: 32, Length: b.size.chain, CatchUp: b.size.catchUp, Profile: profile,
	})
	if err != nil {
		return got, err
	}
	spent, err := b.spend(c.cmd.Process.Pid, where.pid)
	if err == nil {
		err = c.read(&got)
	}
	if err == nil {
		got.effort, err = spent()
	}
	_, e := c.stop()
	return got, errors.Join(err, e)
}

// profileChain tells where the processor time of ours goes, in a run of its own.
func (b *bench) profileChain(ctx context.Context, engine, broker string) error {
	file := b.path("chain.pprof")
	got, err := b.chain(ctx, engine, broker, false, file)
	if err != nil {
		return fmt.Errorf("profile the chain on %s: %w", engine, err)
	}
	profiled, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("profile the chain on %s: %w", engine, err)
	}
	return b.report.fieldTable("ours, "+engine+" → "+broker, profiled, got.Placed.Stored)
}

// playChain is the order service with its relay, its customers and a reader
// of the topic.
func playChain(ctx context.Context, text json.RawMessage, _ func(any) error) (_ any, err error) {
	var o chainOrder
	if err := json.Unmarshal(text, &o); err != nil {
		return nil, err
	}
	db, out, err := openOrders(ctx, o.URL)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	handler, err := intakeHandler(db, out, o.Literal)
	if err != nil {
		return nil, err
	}
	run := func(ctx context.Context) error { return relayLiterally(ctx, db, o.Brokers, true) }
	if o.Literal {
		if err := createTables(ctx, db, literalTables...); err != nil {
			return nil, err
		}
		handler = literalIntake(db, handler)
	} else {
		relay, err := newRelay(out, o.Brokers, false)
		if err != nil {
			return nil, err
		}
		run = relay.Run
	}
	reader, err := countEvents(ctx, o.Brokers)
	if err != nil {
		return nil, err
	}
	defer reader.close()
	g, gCtx := errgroup.WithContext(ctx)
	relayCtx, stop := context.WithCancel(gCtx)
	defer stop()
	g.Go(func() error { return run(relayCtx) })
	var got chainResult
	g.Go(func() (err error) {
		defer stop()
		finish, err := profileTo(o.Profile)
		if err != nil {
			return err
		}
		got, err = runChain(gCtx, db, o, direct(handler), reader)
		return errors.Join(err, finish())
	})
	return got, g.Wait()
}

// runChain places orders for the time, then waits for the events of all.
func runChain(ctx context.Context, db *sqldb.DB, o chainOrder, place placer, reader *counter) (got chainResult, err error) {
	began := time.Now()
	if got.Placed, err = customers(ctx, place, o.Clients, o.Length); err != nil {
		return got, err
	}
	ended := time.Now()
	if err := db.QueryRowContext(ctx, `SELECT count(*) FROM orders`).Scan(&got.Placed.Stored); err != nil {
		return got, err
	}
	placed := int64(got.Placed.Stored)
	for deadline := ended.Add(o.CatchUp); reader.count.Load() < placed && time.Now().Before(deadline) && ctx.Err() == nil; {
		time.Sleep(time.Millisecond)
	}
	n, last := reader.count.Load(), time.Unix(0, reader.last.Load())
	got.Received, got.Behind = int(n), max(0, last.Sub(ended))
	got.PerSecond = float64(n) / last.Sub(began).Seconds()
	if n < placed {
		got.Behind = o.CatchUp
	}
	return got, ctx.Err()
}

// A counter reads a topic from its end and counts what comes.
type counter struct {
	count, last atomic.Int64
	client      *kgo.Client
	cancel      context.CancelFunc
	done        sync.WaitGroup
}

func countEvents(ctx context.Context, brokers []string) (*counter, error) {
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
	r := &counter{client: c, cancel: cancel}
	r.done.Go(func() {
		for ctx.Err() == nil {
			if n := c.PollFetches(ctx).NumRecords(); n > 0 {
				r.count.Add(int64(n))
				r.last.Store(time.Now().UnixNano())
			}
		}
	})
	return r, nil
}

func (c *counter) close() {
	c.cancel()
	c.done.Wait()
	c.client.Close()
}
