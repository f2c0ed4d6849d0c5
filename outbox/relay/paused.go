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

// A lane holds the rows of a partition, or of a whole topic, that is not taking
// records now: a topic that is gone or may not be written to, a partition
// without a leader. Everything for it waits there, in order, and is tried again
// beside the rounds, which go on for everything else. A lane is closed when its
// last row has landed.
type lane struct {
	name      string
	topic     string
	partition bool // its rows are for one partition
	since     time.Time
	cause     error
	seqs      []int64   // never empty
	oldest    time.Time // when its first row was written, as far as it was looked at
	tries     int       // that came to nothing, in a row
	due       time.Time
	limit     int  // how many rows to try next: a few, to see, and many while they are taken
	single    bool // one by one, to find the record that spoils its batch
	moving    bool // the last try was taken whole
	busy      bool // being tried
}

const (
	laneFew     = 100
	laneBackoff = 10 * time.Second // at most, between two tries
)

func (l *lane) first() int64 { return l.seqs[0] }

// add puts a row into its place. Rows come in order, nearly always.
func (l *lane) add(seq int64) {
	if n := len(l.seqs); n == 0 || l.seqs[n-1] < seq {
		l.seqs = append(l.seqs, seq)
		return
	}
	if i, found := slices.BinarySearch(l.seqs, seq); !found {
		l.seqs = slices.Insert(l.seqs, i, seq)
	}
}

// take adds a row.
func (l *lane) take(row *store.Row) {
	if len(l.seqs) == 0 || row.Seq < l.first() {
		l.oldest = row.CreatedAt
	}
	l.add(row.Seq)
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

func partitionLane(row *store.Row) string { return fmt.Sprintf("%s/%d", row.Topic, row.Partition) }

// laneOf is the lane for a row that was refused. Records without a key are in
// nobody's way: those of a topic share a lane, beside what comes later.
func laneOf(row *store.Row, err error) string {
	switch {
	case refusesTopic(err), row.Key != nil && row.Partition < 0: // what follows under the key must find it
		return row.Topic
	case row.Key == nil:
		return row.Topic + "#"
	}
	return partitionLane(row)
}

// waits puts the row into its lane, if there is one.
func (t *term) waits(row *store.Row) bool {
	if len(t.lanes) == 0 {
		return false
	}
	for _, name := range []string{partitionLane(row), row.Topic} {
		if l := t.lanes[name]; l != nil {
			l.take(row)
			return true
		}
	}
	return false
}

// openLane puts a refused row into a lane.
func (t *term) openLane(row *store.Row, err error) {
	name := laneOf(row, err)
	l := t.lanes[name]
	if l == nil {
		l = &lane{name: name, topic: row.Topic, partition: name == partitionLane(row), since: sqldb.Now(), cause: err, limit: laneFew, due: time.Now().Add(500 * time.Millisecond)}
		t.lanes[name] = l
		t.tellRefused(row, err)
	}
	if forEver(err) { // the client fails a whole batch for one record: find out which
		l.single, l.due = true, time.Now()
	}
	l.take(row)
	t.look(err)
	t.callLaneLoop()
}

// look has the topics looked at when err may mean that they are new ones.
func (t *term) look(err error) {
	if errors.Is(err, kerr.UnknownTopicID) || errors.Is(err, kerr.UnknownTopicOrPartition) {
		select {
		case t.suspect <- struct{}{}:
		default:
		}
	}
}

// dateLane notes how old a lane's first row is, which has just been read.
func (t *term) dateLane(l *lane, rows []store.Row) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(rows) > 0 && rows[0].Seq == l.first() {
		l.oldest = rows[0].CreatedAt
	}
}

// closeLane takes out of a lane what was tried and does not stay, and closes
// it if that was all.
func (t *term) closeLane(l *lane, tried []int64, stay map[int64]bool, cause error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l.busy, l.moving = false, cause == nil
	var left []int64 // of those up to the last that was tried: a lane may be long
	n, found := slices.BinarySearch(l.seqs, tried[len(tried)-1])
	if found {
		n++
	}
	for _, seq := range l.seqs[:n] {
		if _, was := slices.BinarySearch(tried, seq); !was || stay[seq] {
			left = append(left, seq)
		}
	}
	n -= copy(l.seqs[n-len(left):n], left)
	if l.seqs = l.seqs[n:]; len(l.seqs) == 0 {
		delete(t.lanes, l.name)
		t.cfg.Log.Info("what was refused is done with", "service", t.cfg.Service, "lane", l.name)
		return
	}
	switch {
	case cause == nil:
		l.tries, l.limit, l.single, l.due = 0, min(10*l.limit, roundRows), false, time.Now()
	case forEver(cause): // one of them spoils it for all
		l.single, l.limit, l.due = true, laneFew, time.Now()
	default:
		l.tries++
		l.cause = cause
		l.limit, l.due = laneFew, time.Now().Add(retry.Backoff(l.tries, time.Second, laneBackoff))
		t.metrics.errors.Inc()
		t.cfg.Log.Warn("events still refused", "service", t.cfg.Service, "lane", l.name, "waiting", len(l.seqs), "err", cause)
		t.look(cause)
	}
}

// showLane stores what there is to know of a lane, for people to see.
func (t *term) showLane(ctx context.Context, l *lane) {
	t.mu.Lock()
	waiting, cause := len(l.seqs), l.cause
	t.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	var err error
	if waiting == 0 {
		_, err = t.db.ExecContext(ctx, `DELETE FROM outbox_lanes WHERE lane = $1`, store.Text(l.name, 500))
	} else {
		_, err = t.db.ExecContext(ctx, `
			INSERT INTO outbox_lanes (lane, topic, waiting, reason, since, tried_at) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (lane) DO UPDATE SET waiting = excluded.waiting, reason = excluded.reason, since = excluded.since, tried_at = excluded.tried_at`,
			store.Text(l.name, 500), l.topic, waiting, store.Reason(cause), l.since, sqldb.Now())
	}
	if err != nil && !errors.Is(ctx.Err(), context.Canceled) {
		t.cfg.Log.Warn("show what is refused", "service", t.cfg.Service, "lane", l.name, "err", err)
	}
}
