package relay

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"pizzaflow/internal/crash"
	"pizzaflow/internal/retry"
	"pizzaflow/outbox/internal/store"
)

// Why a row is not published.
var (
	errPaused    = errors.New("its partition is paused")
	errBlocked   = errors.New("its key is blocked")
	errOversized = errors.New("larger than its topic takes")
	errStalled   = errors.New("not taken by the broker in time")
)

// errAbandoned says that the term ended before records were acknowledged.
var errAbandoned = errors.New("stopped with records on their way: they will be sent again")

// publishLoop publishes batch after batch. When stopCtx has ended, the end of
// termCtx is a clean stop, and the batch in flight may take a few seconds more.
func (t *term) publishLoop(termCtx, stopCtx context.Context) error {
	sendCtx, cancel := context.WithCancel(context.WithoutCancel(termCtx))
	defer cancel()
	stop := context.AfterFunc(termCtx, func() {
		if stopCtx.Err() == nil {
			cancel() // the lease is lost, or another part of the term has failed
			return
		}
		time.AfterFunc(5*time.Second, cancel)
	})
	defer stop()
	for b := range t.batches {
		if termCtx.Err() != nil {
			break
		}
		if !t.lease.fresh() { // the process may have been suspended for longer than the TTL: ask before anything is sent
			if err := t.lease.renew(termCtx, t.lowWatermark()); err != nil {
				return err
			}
		}
		if err := t.publish(sendCtx, b); err != nil {
			t.metrics.errors.Inc()
			return err
		}
	}
	if stopCtx.Err() == nil {
		return context.Cause(termCtx) // the error of the part of the term that failed
	}
	return nil
}

// publish sends a batch, waits for the outcome of each row and passes the outcome
// on to the marker. Rows that were refused for now pause their partitions.
func (t *term) publish(ctx context.Context, b *batch) error {
	if err := t.resolveTopics(ctx, b.rows); err != nil {
		return err
	}
	b.errs = make([]error, len(b.rows))
	t.mu.Lock()
	for i := range b.rows {
		if err := t.refusal(&b.rows[i]); err != nil {
			b.errs[i] = err
			t.withhold(&b.rows[i], err)
		}
	}
	t.mu.Unlock()
	if err := t.send(ctx, t.producer, b.rows, b.errs); err != nil {
		return err
	}
	crash.Point("relay: acked")
	a := ack{batch: b}
	t.mu.Lock()
	for i := range b.rows {
		row := &b.rows[i]
		switch err := b.errs[i]; {
		case err == nil:
			a.published = append(a.published, row)
		case errors.Is(err, errBlocked), errors.Is(err, errOversized):
			a.blocked = append(a.blocked, blockedRow{row, store.Reason(err)})
		case errors.Is(err, errPaused):
		default:
			t.pause(row, err)
		}
	}
	b.unpublished = len(a.published)
	t.mu.Unlock()
	t.acks <- a
	return nil
}

// refusal is why a row must not be sent now; nil when it may be sent.
func (t *term) refusal(row *store.Row) error {
	switch n := row.Size(); {
	case t.isBlocked(row):
		return errBlocked
	case t.pausedFor(row) != nil:
		return errPaused
	case n > store.MaxBytes(row.Topic):
		return fmt.Errorf("%w: %d bytes, %d are allowed", errOversized, n, store.MaxBytes(row.Topic))
	}
	return nil
}

// withhold does what a refusal asks for, so that the later rows of the key are
// refused, too: the row of a paused partition waits there, and a row that is too
// large blocks its key.
func (t *term) withhold(row *store.Row, refusal error) {
	switch {
	case errors.Is(refusal, errPaused):
		t.pausedFor(row).add(row)
	case errors.Is(refusal, errOversized):
		t.block(row)
		t.reportBlocked(row, refusal)
	}
}

// block blocks the key from the row on, until an operator decides.
func (t *term) block(row *store.Row) {
	if !t.isBlocked(row) {
		t.blocked[row.OrderingKey()] = row.Seq
	}
}

// isBlocked reports whether the row's key is blocked by the row itself or by one
// before it. Rows before the blocking one may be sent, when an operator has them
// republished for instance.
func (t *term) isBlocked(row *store.Row) bool {
	from, ok := t.blocked[row.OrderingKey()]
	return ok && row.Seq >= from
}

// permanentlyRefused reports whether the broker will never take the record, or
// one of its record batch.
func permanentlyRefused(err error) bool {
	return errors.Is(err, kerr.MessageTooLarge) || errors.Is(err, kerr.RecordListTooLarge) || errors.Is(err, kerr.InvalidRecord)
}

// reportBlocked counts and logs a row that blocks its key.
func (t *term) reportBlocked(row *store.Row, err error) {
	t.metrics.errors.Inc()
	t.cfg.Log.Error("event blocked", "service", t.cfg.Service, "event_id", row.ID, "event_type", row.EventType,
		"aggregate_id", row.AggregateID, "topic", row.Topic, "err", err)
}

// send produces the rows that have no error yet, all at once, and waits for the
// outcome of each.
func (t *term) send(ctx context.Context, producer *kgo.Client, rows []store.Row, errs []error) error {
	recordCtx, giveUp := context.WithCancel(context.Background())
	defer giveUp()
	var outcome sync.WaitGroup
	buf := newRecords(t.cfg.Outbox.Source(), rows)
	for i := range rows {
		if errs[i] != nil {
			continue
		}
		outcome.Add(1)
		producer.Produce(recordCtx, buf.record(&rows[i]), func(_ *kgo.Record, err error) {
			if errors.Is(err, context.Canceled) {
				err = errStalled
			}
			errs[i] = err
			outcome.Done()
		})
	}
	crash.Point("relay: produced")
	return t.await(ctx, producer, &outcome, giveUp)
}

// stallAfter is how long acknowledgements are awaited before the brokers are
// asked whether they answer at all.
const stallAfter = 3 * time.Second

// await waits for the acknowledgements. When ctx ends before they are there,
// nobody knows what the brokers have taken: the producer is closed, and the next
// reader of the table sends the rows again.
func (t *term) await(ctx context.Context, producer *kgo.Client, outcome *sync.WaitGroup, giveUp func()) error {
	probeCtx, acknowledged := context.WithCancel(ctx)
	defer acknowledged()
	slow := time.AfterFunc(stallAfter, func() { t.probe(probeCtx, producer, giveUp) })
	defer slow.Stop()
	err := producer.Flush(ctx)
	if err != nil {
		producer.Close()
		err = fmt.Errorf("%w: %w", errAbandoned, err)
	}
	outcome.Wait()
	return err
}

// probe asks the brokers until they answer. Records that are not acknowledged then
// wait for a reason of their own, a partition without a leader for instance, and
// must not hold up others: the client gives up those that it has not sent. While
// no broker answers, the relay waits.
func (t *term) probe(ctx context.Context, producer *kgo.Client, giveUp func()) {
	t.metrics.errors.Inc()
	t.cfg.Log.Warn("the broker has not acknowledged for 3 s", "service", t.cfg.Service)
	for ctx.Err() == nil {
		ping, cancel := context.WithTimeout(ctx, time.Second)
		ask := kmsg.NewPtrMetadataRequest() // of no topic; a fresh one each time, which Ping does not make
		ask.Topics = []kmsg.MetadataRequestTopic{}
		_, err := ask.RequestWith(ping, producer)
		cancel()
		if err == nil {
			giveUp()
			return
		}
		retry.Sleep(ctx, 200*time.Millisecond)
	}
}
