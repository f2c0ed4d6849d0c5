package pizzaflow

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"pizzaflow/internal/filelock"
	"pizzaflow/internal/retry"
	"pizzaflow/kafka"
	"pizzaflow/ops"
	"pizzaflow/outbox"
	"pizzaflow/outbox/inbox"
	"pizzaflow/outbox/relay"
	"pizzaflow/sqldb"
	"pizzaflow/web"
)

// startServices starts the services one after the other, each when its database is open.
func (p *process) startServices(ctx context.Context) error {
	if p.cfg.needsKafka() {
		if _, err := p.kafka.Options(); err != nil { // the files of TLS: Validate has checked the rest
			return KafkaError(err)
		}
		missing := func(reason error) {
			p.readiness.wait("the topics", fmt.Errorf("the topics are not there yet: %w", reason))
		}
		missing(fmt.Errorf("not seen since %s", time.Now().Format(time.TimeOnly)))
		p.workers.Go("topics", func(ctx context.Context) error {
			err := kafka.AwaitTopics(ctx, p.kafka, p.host.Log, missing, p.cfg.topicsHere()...)
			if ctx.Err() != nil {
				return nil // told to stop while waiting for the broker
			}
			if err != nil {
				return KafkaError(err)
			}
			p.readiness.wait("the topics", nil)
			close(p.topicsReady)
			<-ctx.Done()
			return nil
		})
	}
	for _, s := range serviceTable {
		if !p.cfg.runs(s.name) {
			continue
		}
		if err := p.startService(ctx, p.cfg.database(s.name, s.schema), s.build); err != nil {
			return err
		}
	}
	p.openOrderGate()
	return nil
}

// startService opens the database of a service and starts its worker, consumer and relay.
func (p *process) startService(ctx context.Context, d ops.Database, build builder) error {
	if err := p.lock(d); err != nil {
		return err
	}
	db, err := p.awaitDatabase(ctx, d)
	if err != nil {
		return err
	}
	name := d.Service
	p.readiness.add(name, db)
	for use, pool := range db.Pools() {
		p.metrics.MustRegister(collectors.NewDBStatsCollector(pool, strings.TrimSpace(name+" "+use)))
	}
	p.operators.Add(name, db)
	p.closers = append(p.closers, db)
	out := outbox.New(db, "/"+name+"-service")
	svc, err := build(p, out, p.host.Log.With("service", name), p.metrics)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	opts, err := p.kafka.Options()
	if err != nil {
		return KafkaError(err)
	}
	reg := web.Guard(prometheus.WrapRegistererWithPrefix("pizza_", p.registry), p.host.Log)
	consumer := inbox.New(inbox.Config{
		Outbox: out, Group: consumerGroup(name), Kafka: opts, Attempts: p.cfg.RetryAttempts, Delay: p.cfg.RetryDelay,
		TopicRetention: p.cfg.longestRetention(), Replay: "pizza dlq replay", Metrics: reg, Log: p.host.Log,
	})
	svc.Subscribe(consumer)
	relay := relay.New(relay.Config{Outbox: out, Service: name, Kafka: opts, Poll: p.cfg.OutboxPollInterval, RepublishSince: p.uncleanSince, Rewound: p.republished, Exclusive: exclusive(out), Metrics: reg, Log: p.host.Log})
	p.workers.Go(name+" worker", svc.Run)
	p.workers.Go(name+" consumer", p.withTopics(consumer.Run))
	p.workers.Go(name+" relay", p.withTopics(relay.Run))
	if name == "order" {
		mux := http.NewServeMux()
		svc.Routes(mux)
		p.openOrderGate = func() { p.orderGate.Open(mux) }
	}
	return nil
}

// awaitDatabase opens a service's database, and tries again while it is away, locked or full: processes and servers may be
// started in any order.
func (p *process) awaitDatabase(ctx context.Context, d ops.Database) (*sqldb.DB, error) {
	name := d.Service
	what := "the " + name + " database"
	p.readiness.wait(what, fmt.Errorf("waiting for "+what+": it has not answered since %s", time.Now().Format(time.TimeOnly)))
	for attempt := 1; ; attempt++ {
		db, err := p.openDatabase(ctx, d)
		if err != nil && ctx.Err() != nil { // then the error is not about the URL
			return nil, fmt.Errorf("%s: told to stop while opening the database: %w", name, ctx.Err())
		}
		if err == nil || !sqldb.IsUnavailable(err) || sqldb.IsFatal(err) {
			p.readiness.wait(what, nil)
			return db, err
		}
		p.openOrderGate() // orders need not wait for the services after this one
		p.publicGate.StopWaiting()
		p.orderGate.StopWaiting()
		p.readiness.wait(what, fmt.Errorf("waiting for %s: %w", what, err))
		p.host.Log.Warn("database unavailable", "service", name, "err", err)
		if !retry.Sleep(ctx, retry.Backoff(attempt, 200*time.Millisecond, 5*time.Second)) {
			return nil, fmt.Errorf("%s: told to stop while waiting for the database: %w", name, err)
		}
	}
}

// openDatabase opens and migrates a service's database, and repairs sequences that would give a number a second time.
func (p *process) openDatabase(ctx context.Context, d ops.Database) (*sqldb.DB, error) {
	db, err := openDatabase(ctx, p.cfg, d)
	if err != nil {
		return nil, err
	}
	moved, err := outbox.RepairNumbering(ctx, db)
	if err != nil {
		return nil, errors.Join(bad(d.Option, "%w", err), db.Close())
	}
	for _, table := range moved {
		p.host.Log.Warn("the sequence of a table stood below its rows and was moved: was the database restored?", "service", d.Service, "table", table)
	}
	return db, nil
}

// withTopics has run wait for the topics: orders are accepted while Kafka is away, and published when it is back.
func (p *process) withTopics(run func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-ctx.Done():
			return nil
		case <-p.topicsReady:
			return run(ctx)
		}
	}
}

// lock keeps a second process away from a SQLite file. SQLite would let it write, and the two would wait for each other at
// every write.
func (p *process) lock(d ops.Database) error {
	path, lite := strings.CutPrefix(d.URL, "sqlite:")
	if !lite {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return bad("DATA_DIR", "%s.db: %w", d.Service, err)
	}
	l, err := filelock.Acquire(path + ".lock")
	if err != nil {
		return bad("DATA_DIR", "%s.db: %w", d.Service, err)
	}
	p.closers = append(p.closers, l)
	if err := ops.CheckNotMoved(path); err != nil {
		return bad("DATA_DIR", "%s.db: %w", d.Service, err)
	}
	return nil
}
