package relay

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"pizzaflow/outbox"
	"pizzaflow/outbox/internal/handoff"
	"pizzaflow/outbox/internal/store"
	"pizzaflow/sqldb"
)

// A term, as in Raft, is the time for which one relay holds the lease. Its state
// is what the tables held when it began and what it did since; the state ends
// with the term.
//
// Reading, producing and marking overlap: while one batch is in flight to the
// brokers, the next is read and the one before is marked. Only one batch at a
// time is in flight to the brokers, so that a refused row is known before a later
// row of its key is sent.
type term struct {
	*Relay
	lease    *lease
	reads    connection
	producer *kgo.Client

	batches    chan *batch   // from the reader to the publisher, in order
	acks       chan ack      // from the publisher and the retries to the marker
	pausedDue  chan struct{} // wakes retryLoop: a partition was paused, or a try ended
	topicCheck chan struct{} // wakes watchTopics

	// Of the reader alone:
	offers        *handoff.Offers // of the transactions of this process
	readVersions  versions
	writersListed time.Time // when refreshGaps last asked for the open transactions

	pruned publishedRange // the last skipped event that pruneSkipped deleted, as a range

	mu           sync.Mutex
	cursor       *cursor
	inFlight     []*batch // read, and not marked yet
	paused       map[string]*pausedPartition
	runningTries int              // of paused partitions
	blocked      map[string]int64 // by ordering key: the seq from which on it is blocked
	partitions   map[string]int32 // how many each topic has, once the brokers have said so

	// For the metrics:
	blockedRows      int       // rows of outbox_blocked that were not skipped
	catchingUp       bool      // the last read was cut off by its limit, or there was none yet
	dispatchingSince time.Time // since when the reader waits for the publisher; zero while it does not
}

// A batch is the rows that are sent together. Kafka's own batches, one for each
// partition, are called record batches here.
type batch struct {
	rows        []store.Row
	errs        []error // the outcome of each row
	unpublished int     // rows to publish, without those that were moved to a paused partition
}

// run publishes until stopCtx ends, which is a clean stop, or the lease is lost.
// The lease is kept, and acknowledged rows are marked, until the last batch has
// been acknowledged.
func (t *term) run(stopCtx context.Context, lowWatermark int64) error {
	if t.db.Engine == sqldb.SQLite {
		t.reads = t.db.Read() // which does not wait for the writer
	}
	t.cursor = newCursor(lowWatermark, nil)
	drainCtx, drained := context.WithCancel(context.WithoutCancel(stopCtx))
	defer drained()
	g, termCtx := errgroup.WithContext(stopCtx)
	g.Go(func() error { return t.lease.keep(drainCtx, t.lowWatermark) })
	g.Go(func() error {
		defer drained()
		return t.publishAll(termCtx, drainCtx, stopCtx, lowWatermark)
	})
	return g.Wait()
}

// publishAll does all of the term but to keep the lease. Of its contexts, stopCtx
// ends with a clean stop, termCtx with that or with the first error of any part
// of the term, and drainCtx when everything acknowledged has been marked.
func (t *term) publishAll(termCtx, drainCtx, stopCtx context.Context, lowWatermark int64) (err error) {
	if t.producer, err = t.newProducer(); err != nil {
		return err
	}
	defer t.producer.Close()
	defer t.leads.Store(nil)
	if err := t.prepare(termCtx, lowWatermark); err != nil {
		return err
	}
	g, termCtx := errgroup.WithContext(termCtx)
	g.Go(func() error { defer close(t.batches); return t.readLoop(termCtx) })
	var senders sync.WaitGroup
	senders.Add(2)
	g.Go(func() error { defer senders.Done(); return t.publishLoop(termCtx, stopCtx) })
	g.Go(func() error { defer senders.Done(); return t.retryLoop(termCtx) })
	g.Go(func() error { senders.Wait(); close(t.acks); return nil })
	g.Go(func() error {
		err := t.markLoop(drainCtx)
		if err != nil { // no sender may be left waiting
			g.Go(func() error { t.refuseAcks(err); return nil })
		}
		return err
	})
	g.Go(func() error { t.listen(termCtx); return nil })
	g.Go(func() error { return t.watchTopics(termCtx) })
	g.Go(func() error { t.maintain(termCtx); return nil })
	return g.Wait()
}

// prepare sets the session up, loads the cursor, and makes sure that the topics
// are still those that the events were published to.
func (t *term) prepare(ctx context.Context, lowWatermark int64) error {
	if err := t.prepareReads(ctx); err != nil {
		return err
	}
	moved, err := outbox.RepairNumbering(ctx, t.db) // the database may have been exchanged under this process
	if err != nil {
		return err
	}
	if len(moved) > 0 {
		t.cfg.Log.Warn("sequences stood below their rows and were moved: was the database restored?", "service", t.cfg.Service, "tables", moved)
	}
	if err := t.load(ctx, lowWatermark); err != nil {
		return err
	}
	if err := t.clearPaused(ctx); err != nil {
		return err
	}
	t.leads.Store(t)
	if err := t.checkTopics(ctx); err != nil {
		return err
	}
	return t.rewindSince(ctx)
}

// prepareReads has PostgreSQL find rows by their numbers in this session: a plan
// made while the table was nearly empty must not be kept.
func (t *term) prepareReads(ctx context.Context) error {
	if t.db.Engine != sqldb.Postgres {
		return nil
	}
	for _, set := range []string{"enable_seqscan = off", "enable_bitmapscan = off", "enable_sort = off"} {
		if _, err := t.reads.ExecContext(ctx, `SET `+set); err != nil {
			return fmt.Errorf("prepare session: %w", err)
		}
	}
	return nil
}

// lowWatermark is the highest seq up to which every event is published or
// blocked, and every missing number was rolled back. The tables keep it in the
// column floor.
func (t *term) lowWatermark() int64 { return t.lowWatermarkAfter(nil) }

// lowWatermarkAfter is the low watermark once these batches are marked.
func (t *term) lowWatermarkAfter(marked []*batch) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	low := t.cursor.lowWatermark()
	for _, b := range t.inFlight {
		if !slices.Contains(marked, b) {
			low = min(low, b.rows[0].Seq-1)
		}
	}
	for _, p := range t.paused {
		low = min(low, p.first()-1)
	}
	return low
}
