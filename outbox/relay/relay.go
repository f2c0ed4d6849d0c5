// Package relay publishes the events of an outbox to Kafka.
//
// Start reading at Relay, then at term: what a relay does while it holds the
// lease (lease.go). It reads rows (read.go, cursor.go, offered.go), produces them
// (publish.go, record.go) and marks what was acknowledged. What the brokers do
// not take for now waits in lanes (paused.go, tries.go). Topics that were created
// anew get everything again (topics.go, rewind.go).
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

	"pizzaflow/measure"
	"pizzaflow/outbox"
	"pizzaflow/outbox/internal/store"
	"pizzaflow/sqldb"
)

// Sessions is how many connections to PostgreSQL a relay has for itself
// while it leads, beside the pool: one for the lease and for what it records,
// one to read, one to listen.
const Sessions = 3

const (
	roundRows  = 2000
	roundBytes = 4_000_000 // of memory; there are about three rounds at a time
	batchBytes = 900_000   // of one partition in a round, so that it is one batch
)

// Config is what a Relay needs.
type Config struct {
	Outbox    *outbox.Outbox
	Service   string        // the label "service" of its metrics
	Kafka     []kgo.Opt     // how to reach the brokers
	Poll      time.Duration // the safety net behind the wake-up: 5 s when zero
	TTL       time.Duration // how long a silent holder keeps the lease: 2 s when zero
	Retention time.Duration // how long published events stay, at least as long as on the topics: 7 days when zero
	Since     time.Time     // what was published since is published again at the start, when the broker may have lost it; zero for nothing
	Rewound   func()        // called when that is sure to be done, whoever dies now; may be nil
	Metrics   prometheus.Registerer
	Log       *slog.Logger

	// Alone says that no other process works on this database: who holds the
	// lease at the start is dead, and need not be waited for.
	Alone bool
}

// A Relay publishes what is committed to an outbox: at least once, and each
// aggregate's events in the order of their versions. Of all the relays of one
// database only the holder of the lease publishes.
type Relay struct {
	cfg     Config
	db      *sqldb.DB
	holder  string
	metrics relayMetrics
	backlog *backlog
	leads   atomic.Pointer[term] // nil while another relay leads
	again   time.Time            // cfg.Since, until that is done
	folded  int64                // from where on published ranges may still be folded
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
	r := &Relay{cfg: cfg, db: cfg.Outbox.DB(), again: cfg.Since, holder: fmt.Sprintf("%s/%d/%s", host, os.Getpid(), rand.Text()[:8])}
	r.metrics, r.backlog = newRelayMetrics(cfg), newBacklog(r, cfg)
	measure.Register(cfg.Metrics, prometheus.Collector(r.backlog))
	return r
}

// Run publishes until ctx ends; then it finishes the round it is in and gives
// the lease back.
func (r *Relay) Run(ctx context.Context) error {
	defer r.backlog.counted.Start(ctx)()
	for {
		l, floor, err := r.standBy(ctx)
		if err != nil {
			return nil //nolint:nilerr // ctx has ended
		}
		r.cfg.Log.Info("relay leads", "service", r.cfg.Service, "epoch", l.epoch, "floor", floor)
		err = r.lead(ctx, l, floor)
		if ctx.Err() != nil {
			if err != nil { // what is not given back is taken from the dead
				r.cfg.Log.Warn("relay stops", "service", r.cfg.Service, "err", err)
			}
			return nil
		}
		if errors.Is(err, errRewound) {
			r.cfg.Log.Warn("relay starts over", "service", r.cfg.Service, "epoch", l.epoch, "err", err)
			continue
		}
		r.cfg.Log.Warn("relay no longer leads", "service", r.cfg.Service, "epoch", l.epoch, "err", err)
		pause := time.NewTimer(r.cfg.TTL / 8)
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		pause.Stop()
	}
}

// standBy waits for the lease, and meanwhile tells whoever holds it what this
// process commits.
func (r *Relay) standBy(ctx context.Context) (*lease, int64, error) {
	notifyCtx, stop := context.WithCancel(ctx)
	var notifier sync.WaitGroup
	notifier.Go(func() { r.notify(notifyCtx) })
	defer notifier.Wait()
	defer stop()
	return acquireLease(ctx, r.db, r.holder, r.cfg.TTL, r.cfg.Alone, func(err error) {
		if ctx.Err() == nil {
			r.cfg.Log.Warn("relay stands by", "service", r.cfg.Service, "err", err)
		}
	})
}

// lead publishes for as long as the lease is held.
func (r *Relay) lead(ctx context.Context, l *lease, floor int64) (err error) {
	defer func() { // whatever ended it, the next one need not wait for the TTL
		if !errors.Is(err, errLeaseLost) && !errors.Is(err, errRewound) {
			err = errors.Join(err, l.release(ctx))
		}
	}()
	conns, done, err := connect(ctx, r.db, Sessions-1)
	if err != nil {
		return err
	}
	defer done()
	l.conn = conns[0]
	t := &term{
		Relay: r, lease: l, reads: conns[1], lanes: map[string]*lane{}, laneDue: make(chan struct{}, 1),
		rounds: make(chan *round), landings: make(chan landing, 4), partitions: map[string]int32{}, suspect: make(chan struct{}, 1),
	}
	return t.run(ctx, floor)
}

// newProducer makes the client of one term, or of one attempt at what was
// refused: to close it is the only safe way to abandon records whose fate is
// unknown.
func (r *Relay) newProducer() (*kgo.Client, error) {
	producer, err := kgo.NewClient(append(slices.Clip(r.cfg.Kafka),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ManualFlushing(),                     // one batch a partition in a round, so that nothing overtakes a refused batch
		kgo.AllowIdempotentProduceCancellation(), // see probe
		kgo.MaxBufferedRecords(2*roundRows),
		kgo.ProducerBatchMaxBytesFn(func(topic string) int32 { return int32(store.MaxBytes(topic)) }),
		kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)),
	)...)
	if err != nil {
		return nil, fmt.Errorf("make producer: %w", err)
	}
	return producer, nil
}
