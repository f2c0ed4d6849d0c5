package outbox

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"pizzaflow/sqldb"
)

const (
	roundRows  = 1000
	roundBytes = 900_000 // so that what one round has for a partition is one batch

	// maxRecordBytes is the broker's default for max.message.bytes (1,048,588)
	// with room for the batch around the record. Dead letters carry a whole
	// record in JSON or base64, so their topics must take four times as much.
	maxRecordBytes     = 1_000_000
	maxDeadLetterBytes = 4_000_000

	retryPause = time.Second // before a refused record is tried again
	recallFew  = 100         // how many of them at first
)

// RelayConfig is what a Relay needs.
type RelayConfig struct {
	Outbox  *Outbox
	Service string        // the label "service" of its metrics
	Kafka   []kgo.Opt     // how to reach the brokers
	Poll    time.Duration // the safety net behind the wake-up: 5 s when zero
	TTL     time.Duration // how long a silent holder keeps the lease: 2 s when zero
	Metrics prometheus.Registerer
	Log     *slog.Logger
}

// A Relay publishes what is committed to an outbox: at least once, and each
// aggregate's events in the order of their versions. Of all the relays of one
// database only the holder of the lease publishes.
type Relay struct {
	cfg     RelayConfig
	db      *sqldb.DB
	holder  string
	metrics relayMetrics

	mu     sync.Mutex
	cursor *cursor // nil while another relay leads

	// of the term
	conn       connection
	reads      connection      // the same, but on SQLite a reader that does not wait for the writer
	blocked    map[string]bool // queues that stand in outbox_blocked
	single     bool            // record by record, to find out which one spoils a batch
	retryAt    time.Time       // when rows set aside are tried again
	recallNext int             // how many of them
}

// NewRelay makes a Relay; Run starts it.
func NewRelay(cfg RelayConfig) *Relay {
	if cfg.Poll == 0 {
		cfg.Poll = 5 * time.Second
	}
	if cfg.TTL == 0 {
		cfg.TTL = 2 * time.Second
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	r := &Relay{cfg: cfg, db: cfg.Outbox.db, holder: fmt.Sprintf("%s/%d/%s", host, os.Getpid(), rand.Text()[:8])}
	r.metrics = newRelayMetrics(cfg, r)
	return r
}

// Run publishes until ctx ends; then it finishes the round it is in and gives
// the lease back.
func (r *Relay) Run(ctx context.Context) error {
	for {
		l, floor, err := acquireLease(ctx, r.db, r.holder, r.cfg.TTL, func(err error) {
			if ctx.Err() == nil {
				r.cfg.Log.Warn("relay stands by", "service", r.cfg.Service, "err", err)
			}
		})
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
		r.cfg.Log.Warn("relay no longer leads", "service", r.cfg.Service, "epoch", l.epoch, "err", err)
		pause := time.NewTimer(r.cfg.TTL / 8)
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		pause.Stop()
	}
}

// lead publishes for as long as the lease is held. Each term of office has a
// producer of its own: to close it is the only safe way to abandon records
// whose fate is unknown.
func (r *Relay) lead(ctx context.Context, l *lease, floor int64) (err error) {
	defer func() { // whatever ended it, the next one need not wait for the TTL
		if !errors.Is(err, errLeaseLost) {
			err = errors.Join(err, l.release(ctx))
		}
	}()
	producer, err := kgo.NewClient(append(slices.Clip(r.cfg.Kafka),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ManualFlushing(), // one batch a partition in a round, so that nothing overtakes a refused batch
		kgo.MaxBufferedRecords(2*roundRows),
		kgo.ProducerBatchMaxBytesFn(func(topic string) int32 { return int32(maxBytes(topic)) }),
		kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)),
	)...)
	if err != nil {
		return fmt.Errorf("make producer: %w", err)
	}
	defer producer.Close()
	var done func()
	if r.conn, done, err = pin(ctx, r.db); err != nil {
		return err
	}
	defer done()
	if r.reads = r.conn; r.db.Engine == sqldb.SQLite {
		r.reads = r.db.Read()
	}
	if err := r.load(ctx, floor); err != nil {
		return err
	}
	defer r.forget()

	keepCtx, stopKeeping := context.WithCancel(context.WithoutCancel(ctx))
	defer stopKeeping()
	g, leadCtx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.keep(keepCtx, r.floor) })
	g.Go(func() error {
		defer stopKeeping()
		return r.publishRounds(leadCtx, ctx, producer, l)
	})
	return g.Wait()
}

// publishRounds publishes until ctx ends. The end of ctx is a clean stop when
// run has ended too: then the round in flight may take a few seconds more.
func (r *Relay) publishRounds(ctx, run context.Context, producer *kgo.Client, l *lease) error {
	poll := time.NewTicker(r.cfg.Poll)
	defer poll.Stop()
	for ctx.Err() == nil {
		again, err := r.round(ctx, run, producer, l)
		switch {
		case errors.Is(err, errLeaseLost):
			return err
		case err != nil && ctx.Err() == nil:
			r.metrics.errors.Inc()
			return err // the next term starts over from what the database says
		case again:
			continue
		}
		retry := time.NewTimer(r.untilRetry())
		select {
		case <-ctx.Done():
		case <-r.cfg.Outbox.wake:
		case <-poll.C:
		case <-retry.C:
		}
		retry.Stop()
	}
	if run.Err() == nil { // ended by keep
		return errLeaseLost
	}
	return nil
}

// round reads what is unpublished, sends it, awaits every acknowledgement and
// records those that came. It says whether there is more to do at once.
func (r *Relay) round(ctx, run context.Context, producer *kgo.Client, l *lease) (again bool, err error) {
	r.recall()
	rows, cut, err := r.read(ctx)
	if err != nil || len(rows) == 0 {
		return false, err
	}
	if !l.fresh() { // this process may have slept through its own end: ask before anything is sent
		if err := l.renew(ctx, r.conn, r.floor()); err != nil {
			return false, err
		}
	}
	flushCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		if run.Err() == nil {
			cancel() // the lease is gone
			return
		}
		time.AfterFunc(5*time.Second, cancel)
	})
	defer stop()
	fate, err := r.send(flushCtx, producer, rows)
	if err != nil {
		return false, err
	}
	if len(fate.refused) == 0 && len(fate.acked) > 0 {
		r.recallNext = len(rows) * 10 // what was refused before may be taken now
	} else {
		r.recallNext = recallFew
	}
	return cut || r.single, r.mark(flushCtx, l, rows, fate)
}

// recall has rows that were refused read again when their time has come: a few,
// to see, and many while they are taken.
func (r *Relay) recall() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.cursor.aside) > 0 && time.Now().After(r.retryAt) {
		r.cursor.recall(r.recallNext)
	}
}

// mark records what was acknowledged and what is blocked. Only when that is
// committed are the rows out of flight: a floor stored meanwhile must not pass
// them.
func (r *Relay) mark(ctx context.Context, l *lease, rows []row, f fate) error {
	r.mu.Lock()
	after := r.cursor.landed(f.refused)
	r.mu.Unlock()
	if len(f.acked)+len(f.blocked) > 0 {
		if err := l.mark(ctx, r.conn, after.floor(), spans(f.acked), f.blocked); err != nil {
			return err
		}
	}
	r.mu.Lock()
	r.cursor = after
	r.mu.Unlock()
	at, acked := sqldb.Now(), f.acked
	for i := range rows {
		if len(acked) == 0 || rows[i].seq != acked[0] {
			continue
		}
		acked = acked[1:]
		r.metrics.published.Inc()
		r.metrics.delay.Observe(at.Sub(rows[i].createdAt).Seconds())
		r.cfg.Log.Info("Event published", "event_id", rows[i].id, "event_type", rows[i].eventType,
			"aggregate_id", rows[i].aggregateID, "topic", rows[i].topic, "timestamp", at)
	}
	return nil
}

// untilRetry is how long until rows that were refused are tried again.
func (r *Relay) untilRetry() time.Duration {
	if len(r.cursor.aside) == 0 {
		return r.cfg.Poll
	}
	return min(r.cfg.Poll, max(time.Until(r.retryAt), time.Millisecond))
}
