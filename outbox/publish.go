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
	refused []aside      // to be tried again
	blocked []blockedRow // refused for ever, or behind one that was
}

type blockedRow struct {
	*row
	reason string
}

// Why a row is not sent.
var (
	errWaits     = errors.New("waits behind a refused record of its key")
	errBlocked   = errors.New("its key is blocked")
	errOversized = errors.New("larger than its topic takes")
)

// send produces the rows in order and waits for the outcome of each. After a
// row that cannot be sent none of its key follows.
func (r *Relay) send(ctx context.Context, producer *kgo.Client, rows []row) (fate, error) {
	errs := make([]error, len(rows))
	var outcome sync.WaitGroup
	stopped := map[string]bool{} // queues of which nothing more is sent
	first := r.cursor.firstAside()
	for i := range rows {
		queue := rows[i].queue()
		if errs[i] = r.sendable(&rows[i], stopped[queue], first); errs[i] == nil {
			outcome.Add(1)
			producer.Produce(context.Background(), rows[i].record(r.cfg.Outbox.source), func(_ *kgo.Record, err error) {
				errs[i] = err
				outcome.Done()
			})
		} else {
			stopped[queue] = true
		}
		if r.single || i == len(rows)-1 {
			if err := r.await(ctx, producer, &outcome); err != nil {
				return fate{}, err
			}
			stopped[queue] = stopped[queue] || errs[i] != nil
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
func (r *Relay) sendable(row *row, stopped bool, firstAside map[string]int64) error {
	queue := row.queue()
	before, waits := firstAside[queue]
	switch n := row.size(); {
	case stopped || waits && before < row.seq:
		return errWaits
	case r.blocked[queue]:
		return errBlocked
	case n > maxBytes(row.topic):
		return fmt.Errorf("%w: %d bytes, %d are allowed", errOversized, n, maxBytes(row.topic))
	}
	return nil
}

// sort decides the fate of each row, in order. A refusal for ever blocks the
// key, once it is certain which record is meant: the client fails a whole batch
// for one record, so a refused batch is sent again record by record first.
func (r *Relay) sort(rows []row, errs []error) (f fate) {
	certain := r.single || len(rows) == 1
	r.single, r.retryAt = false, time.Now().Add(retryPause)
	waits := map[string]bool{} // an earlier row of the queue is to be tried again
	for i := range rows {
		row, err, queue := &rows[i], errs[i], rows[i].queue()
		forEver := errors.Is(err, kerr.MessageTooLarge) || errors.Is(err, kerr.RecordListTooLarge) || errors.Is(err, kerr.InvalidRecord)
		switch {
		case err == nil:
			f.acked = append(f.acked, row.seq)
		case waits[queue]:
			f.refused = append(f.refused, aside{row.seq, queue})
		case errors.Is(err, errOversized) || forEver && certain:
			r.blocked[queue] = true
			f.blocked = append(f.blocked, blockedRow{row, reason(err)})
			r.tellRefused(row, err)
		case r.blocked[queue]:
			f.blocked = append(f.blocked, blockedRow{row, reason(errBlocked)})
		default:
			waits[queue] = true
			f.refused = append(f.refused, aside{row.seq, queue})
			switch {
			case errors.Is(err, errWaits):
			case forEver:
				r.single, r.retryAt = true, time.Time{}
			default:
				r.tellRefused(row, err)
			}
		}
	}
	return f
}

func (r *Relay) tellRefused(row *row, err error) {
	r.metrics.errors.Inc()
	r.cfg.Log.Error("event refused", "service", r.cfg.Service, "event_id", row.id, "event_type", row.eventType,
		"aggregate_id", row.aggregateID, "topic", row.topic, "blocked", r.blocked[row.queue()], "err", err)
}

// queue is what must stay in order: the records of one key on one topic. A
// record without a key is a queue of its own.
func (r *row) queue() string {
	if r.key == nil {
		return fmt.Sprintf("%s\x00\x00%d", r.topic, r.seq)
	}
	return r.topic + "\x00" + string(r.key)
}

// size is about what the row takes as a record: the envelope and the headers
// come to less than 700 bytes beside what is counted.
func (r *row) size() int {
	n := 700 + 3*len(r.key) + len(r.data.String) + len(r.value)
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
