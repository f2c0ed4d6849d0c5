// Package inbox consumes the events of topics and gives each its effect once: the
// mark in the inbox and what the handler writes are one transaction.
//
// Start reading at Consumer. What is fetched goes through dispatch.go to
// settle.go, where a batch is handled in one transaction. A record that fails is
// parked, tried again and dead-lettered (parked.go, heads.go, again.go). fault.go
// says what an error means, and waits while a dependency is away; watch.go looks
// at the topics.
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

// Config is what a Consumer needs.
type Config struct {
	Outbox   *outbox.Outbox // where effects and their events are written
	Group    string         // the consumer group: an event has its effect once for each group
	Kafka    []kgo.Opt      // how to reach the brokers
	Attempts int            // before a record is dead-lettered: 3 when zero
	Delay    time.Duration  // before attempt n+1 it is n times this, plus up to 20 %: 5 s when zero
	// OutboxRetention is how long an outbox may publish an event again, and
	// TopicRetention how long its topic may hold it then, with the whole segment
	// in which it stands: 7 and 8 days when zero.
	OutboxRetention, TopicRetention time.Duration
	// Retention is how long the inbox remembers an event, counted from when it
	// last came, and how long parked records stay once they are done: when zero,
	// as long as both of the above and 12 hours for what is late. Run refuses less.
	Retention time.Duration
	Replay    string // how an operator replays dead records, for the log: Operator.Replay when empty
	Metrics   prometheus.Registerer
	Log       *slog.Logger
}

// A Consumer hands the events of its topics to the handlers given to On. Each
// event has its effect once: the mark in the inbox, what the handler writes
// and the events it adds are one transaction. Events of one key are handled
// one after the other, in order; one that fails is parked, with what follows
// under its key, while all other keys go on.
type Consumer struct {
	cfg           Config
	db            *sqldb.DB
	subscriptions map[route]*subscription
	registered    []*subscription // as they were asked for
	onDead        func(context.Context, *outbox.Tx, Dead) error
	metrics       consumerMetrics
	deadLetters   *measure.Measure[map[string]int64]
	gate          *dependencyGate
	errorLog      *errorLog
	wakeRetries   chan struct{} // wakes the retries
	clusterID     string        // the broker's id, for naming what has no id of its own
}

// New makes a Consumer; On gives it handlers and Run starts it.
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

// Run consumes until ctx ends; then it finishes what it has begun, commits and
// leaves the group.
func (c *Consumer) Run(ctx context.Context) error {
	if least := c.cfg.minRetention(); c.cfg.Retention < least {
		return fmt.Errorf("consume: a retention of %s is too short: what was handled must be remembered for %s, while outbox and topic keep it", c.cfg.Retention, least)
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
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), // never skip, at the price of reading again
		kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(), // so that no partition is taken away between poll and dispatch
		kgo.SessionTimeout(10*time.Second),
		kgo.HeartbeatInterval(2*time.Second),
		// Shorter than the session: the embedded broker lets sessions of members run out that wait for a leader
		// which has died, and then counts the group wrong. Whoever comes late, reads again what he had.
		kgo.RebalanceTimeout(9*time.Second),
		kgo.FetchMaxWait(500*time.Millisecond),
		kgo.FetchMaxBytes(8<<20),
		kgo.FetchMaxPartitionBytes(2<<20),
		kgo.MaxDecompressBatchBytes(maxBatchBytes), // a small record must not unpack into all of the memory
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

	// what has begun is finished, for a while, although ctx has ended
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

// poll hands what is fetched to the dispatcher and never waits for its work.
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

// clusterID asks the broker for its name, for as long as it takes.
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
