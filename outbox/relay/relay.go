// Package relay publishes the events of an outbox to Kafka.
//
// Read Relay first, then lease.go and term.go: a relay publishes for as long as it
// holds the lease. The events of a term pass these files in order:
//
//	read.go       rows become batches; cursor.go knows which are still to be read
//	handoff.go    rows that this process has just committed, without reading them
//	publish.go    a batch is sent; record.go makes its records
//	mark.go       acknowledged rows are recorded as published
//
// Aside from that path:
//
//	paused.go     partitions that take no records now; paused_retry.go decides when
//	              to try which again, and paused_try.go tries them
//	partitions.go which partition each row goes to
//	topic_ids.go  notices topics that were created anew; rewind.go has events published again
//	maintain.go   folds published ranges (fold.go), deletes old events (prune.go)
//	wake.go       wakes the relay when another process has committed
//	backlog.go    what the metrics tell of unpublished events; metrics.go has the rest
//
// A row is identified by its number, the seq. Rows up to the low watermark are done
// with; above the high watermark none was read yet.
package relay

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/internal/retry"
	"pizzaflow/measure"
	"pizzaflow/outbox"
	"pizzaflow/outbox/internal/store"
	"pizzaflow/sqldb"
)

// Sessions is how many connections to PostgreSQL a relay keeps while it leads,
// beside the pool: one for the lease and for marks, one to read, one to listen.
const Sessions = 3

const (
	batchRows        = 2000
	batchBytes       = 4_000_000 // in memory; there are about three batches at a time
	recordBatchBytes = 900_000   // of one partition in a batch, so that they make one record batch
)

// Config is what a Relay needs.
type Config struct {
	Outbox    *outbox.Outbox
	Service   string        // the label "service" of its metrics
	Kafka     []kgo.Opt     // how to reach the brokers
	Poll      time.Duration // the safety net behind the wake-up: 5 s when zero
	TTL       time.Duration // how long a silent holder keeps the lease: 2 s when zero
	Retention time.Duration // how long published events stay, at least as long as on the topics: 7 days when zero

	// RepublishSince has the events that were published since then published
	// again at the start, because the broker may have lost them. Zero has none.
	RepublishSince time.Time
	// Rewound is called once it is recorded that they are to be published again,
	// which a crash no longer undoes. It may be nil.
	Rewound func()

	Metrics prometheus.Registerer
	Log     *slog.Logger

	// Exclusive says that no other process works on this database: a holder of the
	// lease found at the start is dead, and its TTL need not be waited for.
	Exclusive bool
}

// A Relay publishes the committed events of an outbox: each at least once, and those
// of an aggregate in the order of their versions. Of all relays of one database only
// the holder of the lease publishes.
type Relay struct {
	cfg     Config
	db      *sqldb.DB
	holder  string
	metrics relayMetrics
	backlog *backlog
	leads   atomic.Pointer[term] // nil while another relay leads

	republishSince time.Time // cfg.RepublishSince, zero once that is done
	foldedUpTo     int64     // the number from which on published ranges may still be folded
}

// New makes a Relay; Run starts it.
func New(cfg Config) *Relay {
	if cfg.Poll == 0 {
		cfg.Poll = 5 * time.Second
	}
	if cfg.TTL == 0 {
		cfg.TTL = 2 * time.Second
	}
	if cfg.Retention == 0 {
		cfg.Retention = store.OutboxRetention
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	r := &Relay{cfg: cfg, db: cfg.Outbox.DB(), republishSince: cfg.RepublishSince, holder: fmt.Sprintf("%s/%d/%s", host, os.Getpid(), rand.Text()[:8])}
	r.metrics, r.backlog = newRelayMetrics(cfg), newBacklog(r, cfg)
	measure.Register(cfg.Metrics, prometheus.Collector(r.backlog))
	return r
}

// Run publishes until ctx ends; then it finishes the batch in flight and gives the
// lease back.
func (r *Relay) Run(ctx context.Context) error {
	defer r.backlog.counted.Start(ctx)()
	for {
		l, lowWatermark, err := r.standBy(ctx)
		if err != nil {
			return nil //nolint:nilerr // ctx has ended
		}
		r.cfg.Log.Info("relay leads", "service", r.cfg.Service, "epoch", l.epoch, "low_watermark", lowWatermark)
		err = r.lead(ctx, l, lowWatermark)
		if ctx.Err() != nil {
			if err != nil { // the lease may not be given back: another relay takes it after the TTL
				r.cfg.Log.Warn("relay stopped with an error", "service", r.cfg.Service, "err", err)
			}
			return nil
		}
		if errors.Is(err, errRewound) {
			r.cfg.Log.Warn("relay starts over", "service", r.cfg.Service, "epoch", l.epoch, "err", err)
			continue
		}
		r.cfg.Log.Warn("relay no longer leads", "service", r.cfg.Service, "epoch", l.epoch, "err", err)
		retry.Sleep(ctx, r.cfg.TTL/8)
	}
}

// standBy waits for the lease, and meanwhile notifies the relay that holds it of the
// commits of this process.
func (r *Relay) standBy(ctx context.Context) (*lease, int64, error) {
	notifyCtx, stop := context.WithCancel(ctx)
	var notifier sync.WaitGroup
	notifier.Go(func() { r.notify(notifyCtx) })
	defer notifier.Wait()
	defer stop()
	return acquireLease(ctx, r.db, r.holder, r.cfg.TTL, r.cfg.Exclusive, func(err error) {
		if ctx.Err() == nil {
			r.cfg.Log.Warn("relay stands by", "service", r.cfg.Service, "err", err)
		}
	})
}

// lead publishes for as long as the lease is held.
func (r *Relay) lead(ctx context.Context, l *lease, lowWatermark int64) (err error) {
	defer func() { // so that the next holder does not wait for the TTL
		if !errors.Is(err, errLeaseLost) && !errors.Is(err, errRewound) {
			err = errors.Join(err, l.release(ctx))
		}
	}()
	conns, closeConns, err := connect(ctx, r.db, Sessions-1)
	if err != nil {
		return err
	}
	defer closeConns()
	l.conn = conns[0]
	t := &term{
		Relay: r, lease: l, reads: conns[1],
		batches: make(chan *batch), acks: make(chan ack, 4), pausedDue: make(chan struct{}, 1), topicCheck: make(chan struct{}, 1),
		paused: map[string]*pausedPartition{}, partitions: map[string]int32{},
	}
	return t.run(ctx, lowWatermark)
}

// newProducer makes a client for one term, or for tries of paused partitions.
// Records whose outcome is unknown are abandoned by closing their client, which is
// the only safe way.
func (r *Relay) newProducer() (*kgo.Client, error) {
	producer, err := kgo.NewClient(append(slices.Clip(r.cfg.Kafka),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ManualFlushing(),                     // so that a batch has one record batch for each partition, and none overtakes a refused one
		kgo.AllowIdempotentProduceCancellation(), // see probe
		kgo.MaxBufferedRecords(2*batchRows),
		kgo.ProducerBatchMaxBytesFn(func(topic string) int32 { return int32(store.MaxBytes(topic)) }),
		kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)),
	)...)
	if err != nil {
		return nil, fmt.Errorf("make producer: %w", err)
	}
	return producer, nil
}
