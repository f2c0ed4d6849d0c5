package relay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"pizzaflow/internal/retry"
	"pizzaflow/outbox/internal/store"
	"pizzaflow/sqldb"
)

// A pausedPartition is a partition that takes no records now, because it has no
// leader for instance. It also stands for two sets of rows that may go to several
// partitions: those of a whole topic that is gone or may not be written to, and
// those of a topic that have no key. Its rows wait in order and are retried while
// batches go on for everything else (paused_retry.go). The partition is resumed
// when none waits any more.
//
// The table outbox_lanes shows the paused partitions to operators.
type pausedPartition struct {
	name     string // "topic/3"; "topic" for the whole topic, "topic#" for its rows without a key
	topic    string
	single   bool // it is one partition of the topic
	since    time.Time
	cause    error     // of the last refusal
	seqs     []int64   // of the rows that wait, in order; never empty
	oldest   time.Time // when the first of them was written, as far as that was read
	failures int       // of tries, in a row
	due      time.Time // when the next try may begin
	limit    int       // rows of the next try: few to probe the partition, more each time all are taken
	oneByOne bool      // the next try sends row by row, to find the record that spoils its record batch
	resuming bool      // all rows of the last try were taken
	trying   bool
}

const (
	probeRows     = 100
	maxRetryPause = 10 * time.Second
)

func (p *pausedPartition) first() int64 { return p.seqs[0] }

// add has a row wait.
func (p *pausedPartition) add(row *store.Row) {
	if len(p.seqs) == 0 || row.Seq < p.first() {
		p.oldest = row.CreatedAt
	}
	p.insert(row.Seq)
}

// insert puts a seq in its place. Nearly all come in order.
func (p *pausedPartition) insert(seq int64) {
	if n := len(p.seqs); n == 0 || p.seqs[n-1] < seq {
		p.seqs = append(p.seqs, seq)
		return
	}
	if i, found := slices.BinarySearch(p.seqs, seq); !found {
		p.seqs = slices.Insert(p.seqs, i, seq)
	}
}

// remove takes out the seqs that were tried, but for those to keep. Only the seqs
// up to the last tried one are looked at: millions may wait behind it.
func (p *pausedPartition) remove(tried []int64, keep map[int64]bool) {
	var left []int64
	n, found := slices.BinarySearch(p.seqs, tried[len(tried)-1])
	if found {
		n++
	}
	for _, seq := range p.seqs[:n] {
		if _, was := slices.BinarySearch(tried, seq); !was || keep[seq] {
			left = append(left, seq)
		}
	}
	n -= copy(p.seqs[n-len(left):n], left)
	p.seqs = p.seqs[n:]
}

// schedule decides when and how rows are tried next. The cause is why the last try
// failed, nil if all its rows were taken.
func (p *pausedPartition) schedule(cause error) {
	switch {
	case cause == nil:
		p.failures, p.limit, p.oneByOne, p.due = 0, min(10*p.limit, batchRows), false, time.Now()
	case permanentlyRefused(cause): // one record spoils its record batch
		p.oneByOne, p.limit, p.due = true, probeRows, time.Now()
	default:
		p.failures++
		p.cause = cause
		p.limit, p.due = probeRows, time.Now().Add(retry.Backoff(p.failures, time.Second, maxRetryPause))
	}
}

// refusesTopic reports whether err concerns the topic as a whole.
func refusesTopic(err error) bool {
	for _, e := range []error{
		kerr.TopicAuthorizationFailed, kerr.ClusterAuthorizationFailed, kerr.UnknownTopicOrPartition, kerr.UnknownTopicID, kerr.InvalidTopicException,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func partitionName(row *store.Row) string { return fmt.Sprintf("%s/%d", row.Topic, row.Partition) }

// nameToPause is the name of the paused partition for a row that was refused. No
// record must stay behind one without a key: such rows of a topic wait together,
// and later ones are sent.
func nameToPause(row *store.Row, err error) string {
	switch {
	case refusesTopic(err), row.Key != nil && row.Partition < 0: // where the later rows of the key are looked for
		return row.Topic
	case row.Key == nil:
		return row.Topic + "#"
	}
	return partitionName(row)
}

// pausedFor is the paused partition that the row must wait in, nil without one.
func (t *term) pausedFor(row *store.Row) *pausedPartition {
	if len(t.paused) == 0 {
		return nil
	}
	if p := t.paused[partitionName(row)]; p != nil {
		return p
	}
	return t.paused[row.Topic]
}

// pause pauses the partition of a refused row, if it is not paused yet, and has
// the row wait there.
func (t *term) pause(row *store.Row, err error) {
	name := nameToPause(row, err)
	p := t.paused[name]
	if p == nil {
		p = &pausedPartition{
			name: name, topic: row.Topic, single: name == partitionName(row),
			since: sqldb.Now(), cause: err, limit: probeRows, due: time.Now().Add(500 * time.Millisecond),
		}
		t.paused[name] = p
		t.metrics.errors.Inc()
		t.cfg.Log.Error("partition paused", "service", t.cfg.Service, "partition", name, "topic", row.Topic,
			"event_id", row.ID, "event_type", row.EventType, "aggregate_id", row.AggregateID, "err", err)
	}
	if permanentlyRefused(err) { // the client fails a whole record batch for one record: find out which
		p.oneByOne, p.due = true, time.Now()
	}
	p.add(row)
	t.suspectTopics(err)
	t.wakeRetryLoop()
}

// releaseTried takes the rows that were tried out of a paused partition, except those
// to keep, and resumes the partition if no row is left.
func (t *term) releaseTried(p *pausedPartition, tried []int64, keep map[int64]bool, cause error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p.trying, p.resuming = false, cause == nil
	if p.remove(tried, keep); len(p.seqs) == 0 {
		delete(t.paused, p.name)
		t.cfg.Log.Info("partition resumed", "service", t.cfg.Service, "partition", p.name)
		return
	}
	p.schedule(cause)
	if cause != nil && !permanentlyRefused(cause) {
		t.metrics.errors.Inc()
		t.cfg.Log.Warn("partition still paused", "service", t.cfg.Service, "partition", p.name, "waiting", len(p.seqs), "err", cause)
		t.suspectTopics(cause)
	}
}

// setOldest notes how old the first row of a paused partition is, if rows, which
// have just been read, begin with it.
func (t *term) setOldest(p *pausedPartition, rows []store.Row) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(rows) > 0 && rows[0].Seq == p.first() {
		p.oldest = rows[0].CreatedAt
	}
}

// storePaused stores the state of a paused partition for operators to see.
func (t *term) storePaused(ctx context.Context, p *pausedPartition) {
	t.mu.Lock()
	waiting, cause := len(p.seqs), p.cause
	t.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	var err error
	if waiting == 0 {
		_, err = t.db.ExecContext(ctx, `DELETE FROM outbox_lanes WHERE lane = $1`, store.Text(p.name, 500))
	} else {
		_, err = t.db.ExecContext(ctx, `
			INSERT INTO outbox_lanes (lane, topic, waiting, reason, since, tried_at) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (lane) DO UPDATE SET waiting = excluded.waiting, reason = excluded.reason, since = excluded.since, tried_at = excluded.tried_at`,
			store.Text(p.name, 500), p.topic, waiting, store.Reason(cause), p.since, sqldb.Now())
	}
	if err != nil && !errors.Is(ctx.Err(), context.Canceled) {
		t.cfg.Log.Warn("storing a paused partition failed", "service", t.cfg.Service, "partition", p.name, "err", err)
	}
}

// clearPaused deletes the paused partitions that an earlier term stored.
func (t *term) clearPaused(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	unlock, err := t.lease.lockConn(ctx)
	if err != nil {
		return fmt.Errorf("clear paused partitions: %w", err)
	}
	defer unlock()
	if _, err := t.lease.conn.ExecContext(ctx, `DELETE FROM outbox_lanes`); err != nil {
		return fmt.Errorf("clear paused partitions: %w", err)
	}
	return nil
}
