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
	"pizzaflow/outbox/internal/store"
)

type blockedRow struct {
	*store.Row
	reason string
}

// Why a row is not sent.
var (
	errWaits     = errors.New("waits in a lane")
	errBlocked   = errors.New("its key is blocked")
	errOversized = errors.New("larger than its topic takes")
	errStalled   = errors.New("not taken by the broker in time")
)

// stallAfter is how long acknowledgements are awaited before the brokers are
// asked whether they are there at all.
const stallAfter = 3 * time.Second

// publish sends a round, waits for the outcome of each row and hands over what
// is to be recorded. What was refused for now goes to a lane.
func (t *term) publish(ctx context.Context, rd *round) error {
	if err := t.learn(ctx, rd.rows); err != nil {
		return err
	}
	rd.errs = make([]error, len(rd.rows))
	t.mu.Lock()
	for i := range rd.rows {
		rd.errs[i] = t.sendable(&rd.rows[i])
	}
	t.mu.Unlock()
	if err := t.send(ctx, t.producer, rd.rows, rd.errs); err != nil {
		return err
	}
	crash.Point("relay: acked")
	l := landing{round: rd}
	t.mu.Lock()
	for i := range rd.rows {
		row := &rd.rows[i]
		switch err := rd.errs[i]; {
		case err == nil:
			l.published = append(l.published, row)
		case errors.Is(err, errBlocked), errors.Is(err, errOversized):
			l.blocked = append(l.blocked, blockedRow{row, store.Reason(err)})
		case errors.Is(err, errWaits):
		default:
			t.openLane(row, err)
		}
	}
	rd.left = len(l.published)
	t.mu.Unlock()
	t.landings <- l
	return nil
}

// sendable says why a row may not be sent now. One that waits is put into its
// lane: whatever comes later under its key waits there too.
func (t *term) sendable(row *store.Row) error {
	switch n := row.Size(); {
	case t.isBlocked(row):
		return errBlocked
	case t.waits(row):
		return errWaits
	case n > store.MaxBytes(row.Topic):
		t.block(row)
		err := fmt.Errorf("%w: %d bytes, %d are allowed", errOversized, n, store.MaxBytes(row.Topic))
		t.tellRefused(row, err)
		return err
	}
	return nil
}

// block has the row, and whatever follows under its key, wait for an operator.
func (t *term) block(row *store.Row) {
	if !t.isBlocked(row) {
		t.blocked[row.Queue()] = row.Seq
	}
}

// isBlocked reports whether the row is one that the broker refuses for ever, or
// stands behind one. What came before may be sent, again for instance.
func (t *term) isBlocked(row *store.Row) bool {
	from, ok := t.blocked[row.Queue()]
	return ok && row.Seq >= from
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

// await waits for the acknowledgements. When it must not wait any longer, what
// was sent is in the dark: this producer is done for, and whoever reads the
// table next sends it again.
func (t *term) await(ctx context.Context, producer *kgo.Client, outcome *sync.WaitGroup, giveUp func()) error {
	watch, landed := context.WithCancel(ctx)
	defer landed()
	slow := time.AfterFunc(stallAfter, func() { t.probe(watch, producer, giveUp) })
	defer slow.Stop()
	err := producer.Flush(ctx)
	if err != nil {
		producer.Close()
		err = fmt.Errorf("%w: %w", errAbandoned, err)
	}
	outcome.Wait()
	return err
}

// probe asks the brokers until they answer. Then what still waits does so for
// reasons of its own, a partition without a leader for instance, and must not
// hold up the rest: the client is told to give up what it has not sent. While
// nobody answers there is nothing to do but to wait.
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
		pause := time.NewTimer(200 * time.Millisecond)
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		pause.Stop()
	}
}

// forEver reports whether the broker will never take the record, or one of its
// batch.
func forEver(err error) bool {
	return errors.Is(err, kerr.MessageTooLarge) || errors.Is(err, kerr.RecordListTooLarge) || errors.Is(err, kerr.InvalidRecord)
}

func (t *term) tellRefused(row *store.Row, err error) {
	t.metrics.errors.Inc()
	t.cfg.Log.Error("event refused", "service", t.cfg.Service, "event_id", row.ID, "event_type", row.EventType,
		"aggregate_id", row.AggregateID, "topic", row.Topic, "blocked", t.isBlocked(row), "err", err)
}
