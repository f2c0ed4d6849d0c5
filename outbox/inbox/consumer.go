// Package inbox consumes the events of topics and gives each its effect once: the
// mark in the inbox and what the handler writes are one transaction.
//
// The broker has records. A message is a record on its way to its handler. A parked
// record is a row of parked_records: it is retrying, waiting for an earlier record
// of its key, or dead until an operator replays or discards it.
//
// Read the files in the order in which a record meets them:
//
//   - consumer.go: Config, New, Run; handlers.go: On, OnBatch, how handlers are
//     called; message.go: what is decoded
//   - dispatcher.go: records of many keys spread over workers (batchsize.go: how
//     many at once); transaction.go: a batch handled in one transaction;
//     duplicates.go: records whose events are in the inbox already
//   - errors.go: what an error means; dependency.go: the gate that holds all work
//     while a dependency is unavailable
//   - park.go: a record whose handler failed; keyorder.go: the order of its key;
//     retry.go, deadletter.go, repair.go: what follows
//   - offsets.go: where partitions begin and what is committed; topics.go: topics
//     that are recreated; fetcherrors.go, errorlog.go: errors of the broker
//   - prune.go: what is forgotten; metrics.go
package inbox

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"

	"pizzaflow/internal/retry"
	"pizzaflow/measure"
	"pizzaflow/outbox"
	"pizzaflow/outbox/internal/store"
	"pizzaflow/sqldb"
)

// Config is what a Consumer needs. Outbox, Group, Kafka and Log are required;
// every other field that is zero gets the default named beside it.
type Config struct {
	Outbox   *outbox.Outbox // of the database that handlers write to
	Group    string         // the consumer group: an event has its effect once for each group
	Kafka    []kgo.Opt      // how to reach the brokers
	Attempts int            // how many fail before a record is dead-lettered; default 3
	Delay    time.Duration  // attempt n+1 follows attempt n after n times this, plus up to 20 %; default 5 s
	// OutboxRetention is how long an outbox may publish an event again; default 7
	// days. TopicRetention is how long the topic may keep a record, until the whole
	// segment of the record is deleted; default 8 days.
	OutboxRetention, TopicRetention time.Duration
	// Retention is how long the inbox remembers an event after its last record, and
	// how long parked records stay after they are handled or discarded. The default
	// is the sum of the two retentions above and 12 hours; Run refuses less.
	Retention time.Duration
	Replay    string                // how an operator replays dead records, for the log; default "Operator.Replay"
	Metrics   prometheus.Registerer // nil for none
	Log       *slog.Logger
}

// A Consumer reads the events of its topics and calls the handlers given to On and
// OnBatch. Each event has its effect once: the mark in the inbox, what the handler
// writes and the events it adds are one transaction. Events of one key are handled
// one after the other, in order. An event whose handler fails is parked together
// with the later events of its key, while all other keys go on.
type Consumer struct {
	cfg           Config
	db            *sqldb.DB
	subscriptions map[route]*subscription
	registered    []*subscription // in the order of the calls of On and OnBatch
	onDead        func(context.Context, *outbox.Tx, Dead) error
	metrics       consumerMetrics
	deadLetters   *measure.Measure[map[string]int64]
	gate          *dependencyGate
	errorLog      *errorLog
	wakeRetries   chan struct{} // wakes retryLoop
	clusterID     string        // of the brokers, a part of positionID
}

// New makes a Consumer from cfg, with defaults for what is zero, and registers its
// metrics. On and OnBatch give it handlers, Run starts it.
func New(cfg Config) *Consumer {
	if cfg.Attempts == 0 {
		cfg.Attempts = 3
	}
	cfg.OutboxRetention = cmp.Or(cfg.OutboxRetention, store.OutboxRetention)
	cfg.TopicRetention = cmp.Or(cfg.TopicRetention, store.TopicRetention)
	cfg.Retention = cmp.Or(cfg.Retention, cfg.minRetention())
	cfg.Replay = cmp.Or(cfg.Replay, "Operator.Replay")
	if cfg.Delay == 0 {
		cfg.Delay = 5 * time.Second
	}
	c := &Consumer{cfg: cfg, db: cfg.Outbox.DB(), subscriptions: map[route]*subscription{}, wakeRetries: make(chan struct{}, 1)}
	c.metrics, c.deadLetters = newConsumerMetrics(cfg), newDeadLetterCount(c)
	measure.Register(cfg.Metrics, c.deadLetterCollector())
	c.gate = newDependencyGate(cfg, c.metrics.paused)
	c.errorLog = &errorLog{cfg: cfg, incidents: map[incidentKey]*incident{}}
	return c
}

// Run consumes until ctx ends; then it finishes the transactions at work (for at
// most 10 s), commits the offsets, leaves the group and returns nil. It returns an
// error at once when the retention is too short or the client options are
// invalid; an unavailable database or broker is waited for. Without handlers it
// only waits for ctx.
func (c *Consumer) Run(ctx context.Context) error {
	if least := c.cfg.minRetention(); c.cfg.Retention < least {
		return fmt.Errorf("consume: the inbox retention %s is too short: outbox and topic may deliver an event again for %s", c.cfg.Retention, least)
	}
	if len(c.subscriptions) == 0 {
		<-ctx.Done()
		return nil
	}
	defer c.deadLetters.Start(ctx)()
	topics := map[string]bool{}
	for r := range c.subscriptions {
		topics[r.topic] = true
	}
	c.gate.stopping = ctx.Done()
	d := newDispatcher(c, slices.Sorted(maps.Keys(topics)))
	client, err := kgo.NewClient(append(slices.Clip(c.cfg.Kafka),
		kgo.ConsumerGroup(c.cfg.Group),
		kgo.ConsumeTopics(d.topics...),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), // skip no record, at the price of rereading
		kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(), // so that no partition is revoked before its fetched records are enqueued
		kgo.SessionTimeout(10*time.Second),
		kgo.HeartbeatInterval(2*time.Second),
		// Shorter than the session: while a group waits for a dead leader, the embedded broker expires the sessions
		// of waiting members and then counts the group wrong. A member that joins late rereads its records.
		kgo.RebalanceTimeout(9*time.Second),
		kgo.FetchMaxWait(500*time.Millisecond),
		kgo.FetchMaxBytes(8<<20),
		kgo.FetchMaxPartitionBytes(2<<20),
		kgo.MaxDecompressBatchBytes(maxBatchBytes), // see there
		kgo.OnPartitionsAssigned(d.onAssigned),
		kgo.AdjustFetchOffsetsFn(d.adjustOffsets),
		kgo.OnPartitionsRevoked(d.onRevoked),
		kgo.OnPartitionsLost(d.onLost),
	)...)
	if err != nil {
		return fmt.Errorf("consume: %w", err)
	}
	defer client.CloseAllowingRebalance()
	if c.clusterID, err = fetchClusterID(ctx, client, c.cfg.Log); err != nil {
		return nil //nolint:nilerr // ctx has ended
	}

	// transactions at work go on for a while after ctx has ended
	workCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(10*time.Second, cancel) })
	defer stop()
	var work errgroup.Group
	for range d.workers {
		work.Go(func() error { d.workLoop(workCtx, client); return nil })
	}
	work.Go(func() error { d.commitLoop(ctx, client); return nil })
	work.Go(func() error { c.pruneLoop(ctx); return nil })
	work.Go(func() error { c.repairLoop(ctx); return nil })
	work.Go(func() error { d.watchTopics(ctx, client); return nil })
	work.Go(func() error { c.retryLoop(ctx, workCtx, d.workers); return nil })
	c.poll(ctx, client, d)
	d.stop()
	err = work.Wait()
	d.commitAll(workCtx, client)
	return err
}

// poll gives fetched records to the dispatcher until ctx ends. It never waits for
// the workers: rebalances are blocked between two polls.
func (c *Consumer) poll(ctx context.Context, client *kgo.Client, d *dispatcher) {
	for ctx.Err() == nil {
		fetches := client.PollFetches(ctx)
		for _, f := range fetches {
			for _, t := range f.Topics {
				for _, p := range t.Partitions {
					if p.Err != nil && ctx.Err() == nil {
						d.handleFetchError(client, t.Topic, t.TopicID, p.Partition, p.Err)
					}
					d.enqueueFetched(client, t.Topic, t.TopicID, p)
				}
			}
		}
		client.AllowRebalance()
	}
}

// fetchClusterID asks the broker for the id of its cluster until it answers or ctx
// ends. The id is "" when the broker has none.
func fetchClusterID(ctx context.Context, client *kgo.Client, log *slog.Logger) (string, error) {
	for attempt := 1; ; attempt++ {
		resp, err := kmsg.NewPtrMetadataRequest().RequestWith(ctx, client)
		if err == nil {
			if resp.ClusterID == nil {
				return "", nil
			}
			return *resp.ClusterID, nil
		}
		if ctx.Err() == nil {
			log.Warn("the broker does not answer", "err", err)
		}
		if !retry.Sleep(ctx, retry.Backoff(attempt, 100*time.Millisecond, 5*time.Second)) {
			return "", ctx.Err()
		}
	}
}
