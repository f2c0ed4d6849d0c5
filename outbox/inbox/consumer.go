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
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"

	"pizzaflow/internal/retry"
	"pizzaflow/measure"
	"pizzaflow/outbox"
	"pizzaflow/outbox/internal/store"
	"pizzaflow/outbox/internal/wire"
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

// A subject is what a handler subscribes to.
type route struct{ topic, eventType string }

// A subscription is what one handler asked for.
type subscription struct {
	version    int64 // the schema version it understands
	takesBatch bool  // given all there are of its type at once
	// handle decodes the records and calls the handler. It names the record that
	// is to blame for an error, -1 when it could be any of them.
	invoke   func(context.Context, *outbox.Tx, []*message) (culprit int, err error)
	outcomes map[outcome]prometheus.Counter
	duration prometheus.Observer
}

// A Delivery is one event on its way into a service.
type Delivery[E outbox.Event] struct {
	Event            E
	EventID          string
	EventType        string
	AggregateID      string
	AggregateVersion int64 // 0 when the record does not tell
	Time             time.Time
	Topic            string
	Partition        int32
	Offset           int64
	Attempt          int    // 1, 2, …
	Traceparent      string // of the record, "" without one
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

// On has c hand every event of type E to h. The transaction may be shared with
// other events and may be run again, and the handler makes no network call: a
// transaction that is idle for ten seconds is ended by PostgreSQL, and tried
// again as if the database were away.
// An error undoes the handler's work: the event is tried again later, unless
// it is Permanent or Unavailable. On must be called before Run.
func On[E outbox.Event](c *Consumer, h func(ctx context.Context, tx *outbox.Tx, d Delivery[E]) error) {
	subscribe(c, false, func(ctx context.Context, tx *outbox.Tx, ds []Delivery[E]) error { return h(ctx, tx, ds[0]) })
}

// OnBatch is On for a handler that can do the work of many events with few
// statements. It gets those of type E that are at hand, at least one, each of
// another key, sorted by key. An error undoes the work of all of them; they are
// then handed over again in ever smaller parts, until the one to blame stands
// alone. Before it adds an event the handler says which delivery led to it:
//
//	tx.Cause(d.EventID, d.Traceparent)
func OnBatch[E outbox.Event](c *Consumer, h func(ctx context.Context, tx *outbox.Tx, ds []Delivery[E]) error) {
	subscribe(c, true, h)
}

func subscribe[E outbox.Event](c *Consumer, takesBatch bool, h func(ctx context.Context, tx *outbox.Tx, ds []Delivery[E]) error) {
	var zero E
	r := route{zero.Topic(), zero.EventType()}
	if _, ok := c.subscriptions[r]; ok {
		panic(fmt.Sprintf("outbox: two handlers for %s on %s in group %s", r.eventType, r.topic, c.cfg.Group))
	}
	sub := &subscription{version: int64(wire.SchemaVersion(zero)), takesBatch: takesBatch}
	sub.outcomes, sub.duration = c.metrics.forRoute(r)
	sub.invoke = func(ctx context.Context, tx *outbox.Tx, msgs []*message) (culprit int, err error) {
		ds := make([]Delivery[E], len(msgs))
		for i, msg := range msgs {
			if err := deliver(msg, &ds[i]); err != nil {
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

// deliver makes a delivery of a record. What it refuses, no retry will cure.
func deliver[E outbox.Event](msg *message, d *Delivery[E]) error {
	*d = Delivery[E]{
		EventID: msg.id, EventType: msg.envelope.EventType, AggregateID: msg.envelope.AggregateID,
		AggregateVersion: wire.NumberHeader(msg.rec, wire.HeaderAggregateVersion, 0), Time: msg.envelope.Timestamp,
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

// OnDead has fn called in the transaction that dead-letters a record, so that
// the service can note what will not happen.
func (c *Consumer) OnDead(fn func(ctx context.Context, tx *outbox.Tx, d Dead) error) { c.onDead = fn }

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

// An inbound is a record on its way to its handler.
type message struct {
	rec        *kgo.Record
	id         string // the event's, or one made from where the record stands
	envelope   wire.Envelope
	err        error         // why it cannot be handled, whatever the handler says
	sub        *subscription // nil when nobody asked for it
	attempt    int
	key        string // of its queue
	nextOffset int64  // the offset behind it
	part       *partition
	processed  bool // handled or parked, by whoever works on it
	acked      bool // the same, as its partition knows it
	startedAt  time.Time
}

// open makes an inbound of a record. It is done already when nobody asked for
// its type.
func (c *Consumer) decode(rec *kgo.Record, topicID [16]byte) *message {
	msg := &message{rec: rec, attempt: 1, nextOffset: rec.Offset + 1}
	if msg.key = rec.Topic + "\x00" + string(rec.Key); rec.Key == nil { // no key, no order to keep
		msg.key = fmt.Sprintf("%s\x00\x00%d\x00%d", rec.Topic, rec.Partition, rec.Offset)
	}
	if msg.envelope, msg.err = wire.Open(rec.Value); msg.err != nil {
		msg.id, msg.err = c.positionID(rec, topicID), Permanent(msg.err)
		return msg
	}
	msg.id = msg.envelope.EventID
	sub, ok := c.subscriptions[route{rec.Topic, msg.envelope.EventType}]
	if !ok {
		return msg
	}
	msg.sub = sub
	v := wire.Header(rec, wire.HeaderSchemaVersion)
	if n, err := strconv.ParseInt(v, 10, 64); v != "" && (err != nil || n != sub.version) {
		msg.err = Permanent(fmt.Errorf("%s has schema version %.20q, this program knows %d", msg.envelope.EventType, v, sub.version))
	}
	return msg
}

// ignored reports whether nobody subscribed to the message's type.
func (msg *message) ignored() bool { return msg.sub == nil && msg.err == nil }

// positionID is the id of what has none of its own: the same wherever and
// whenever it is read.
func (c *Consumer) positionID(rec *kgo.Record, topicID [16]byte) string {
	place := fmt.Sprintf("%s/%x/%d/%d", c.clusterID, topicID, rec.Partition, rec.Offset)
	return uuid.NewSHA1(uuid.NameSpaceOID, []byte(place)).String()
}

// handle runs the handlers inside tx: first those that take one record each, in
// the order given, then those that take many. It names the record that is to
// blame for an error, nil when it could be any of several.
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

// call calls a handler for records of one type.
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
