package outbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A fate is what became of the rows of a round.
type fate struct {
	acked   []int64
	failed  []int64      // to be read and tried again
	blocked []blockedRow // refused for ever, or behind one that was
}

type blockedRow struct {
	*row
	reason string
}

// Why a row is not sent because of another of its key.
var (
	errWaits   = errors.New("waits behind a refused record of its key")
	errBlocked = errors.New("its key is blocked")
)

// send produces the rows in order and waits for the outcome of each. After a
// row that cannot be sent none of its key follows.
func (r *Relay) send(ctx context.Context, producer *kgo.Client, rows []row) (fate, error) {
	errs := make([]error, len(rows))
	var outcome sync.WaitGroup
	refused := map[string]bool{} // by what was sent one by one
	now := time.Now()
	for i := range rows {
		key := rows[i].queue()
		if errs[i] = r.sendable(&rows[i], refused[key], now); errs[i] == nil {
			outcome.Add(1)
			producer.Produce(context.Background(), rows[i].record(r.cfg.Outbox.source), func(_ *kgo.Record, err error) {
				errs[i] = err
				outcome.Done()
			})
		}
		if r.single || i == len(rows)-1 {
			if err := r.await(ctx, producer, &outcome); err != nil {
				return fate{}, err
			}
		}
		if r.single && errs[i] != nil {
			refused[key] = true
		}
	}
	return r.sort(rows, errs), nil
}

// await waits for the acknowledgements. When it must not wait any longer, what
// was sent is in the dark: this producer is done for, and whoever reads the
// table next sends it again.
func (r *Relay) await(ctx context.Context, producer *kgo.Client, outcome *sync.WaitGroup) error {
	slow := time.AfterFunc(5*time.Second, func() {
		r.metrics.errors.Inc()
		r.cfg.Log.Warn("the broker has not acknowledged for 5 s", "service", r.cfg.Service)
	})
	defer slow.Stop()
	err := producer.Flush(ctx)
	if err != nil {
		producer.Close()
		err = fmt.Errorf("await acknowledgements: %w", errors.Join(errLeaseLost, err))
	}
	outcome.Wait()
	return err
}

// sendable says why a row may not be sent now.
func (r *Relay) sendable(row *row, refused bool, now time.Time) error {
	switch n, key := row.size(), row.queue(); {
	case r.blocked[key]:
		return errBlocked
	case n > maxBytes(row.topic):
		r.blocked[key] = true
		return fmt.Errorf("%w: %d bytes, %d are allowed", kerr.MessageTooLarge, n, maxBytes(row.topic))
	case refused || now.Before(r.held[key]):
		return errWaits
	}
	return nil
}

// sort decides the fate of each row. A refusal for ever blocks the key, once
// it is certain which record is meant: the client fails a whole batch for one
// record, so a refused batch is sent again record by record first.
func (r *Relay) sort(rows []row, errs []error) (f fate) {
	wasSingle := r.single || len(rows) == 1
	r.single = false
	for i := range rows {
		row, err := &rows[i], errs[i]
		key := row.queue()
		forEver := errors.Is(err, kerr.MessageTooLarge) || errors.Is(err, kerr.RecordListTooLarge) || errors.Is(err, kerr.InvalidRecord)
		switch {
		case err == nil:
			f.acked = append(f.acked, row.seq)
			continue
		case forEver && (wasSingle || r.blocked[key]):
			r.blocked[key] = true
			f.blocked = append(f.blocked, blockedRow{row, reason(err)})
		case r.blocked[key]:
			f.blocked = append(f.blocked, blockedRow{row, reason(errBlocked)})
			continue
		default:
			f.failed = append(f.failed, row.seq)
			if errors.Is(err, errWaits) {
				continue
			}
			if forEver {
				r.single = true
				continue
			}
			r.held[key] = time.Now().Add(retryPause)
		}
		r.metrics.errors.Inc()
		r.cfg.Log.Error("event refused", "service", r.cfg.Service, "event_id", row.id, "event_type", row.eventType,
			"aggregate_id", row.aggregateID, "topic", row.topic, "blocked", r.blocked[key], "err", err)
	}
	return f
}

// queue is what must stay in order: the records of one key on one topic.
func (r *row) queue() string { return r.topic + "\x00" + string(r.key) }

// size is about what the row takes as a record: the envelope and the headers
// come to less than 700 bytes beside what is counted.
func (r *row) size() int {
	n := 700 + 2*len(r.key) + len(r.data.String) + len(r.value)
	for _, h := range r.headers {
		n += len(h.Key) + len(h.Value) + 4
	}
	return n
}

func maxBytes(topic string) int {
	if strings.HasSuffix(topic, deadLetterSuffix) {
		return maxDeadLetterBytes
	}
	return maxRecordBytes
}
