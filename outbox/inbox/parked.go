package inbox

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"pizzaflow/internal/crash"
	"pizzaflow/internal/retry"
	"pizzaflow/outbox"
	"pizzaflow/outbox/internal/store"
	"pizzaflow/outbox/internal/wire"
	"pizzaflow/sqldb"
)

// A parkedState is what is known of a parked record beside the record itself.
type parkedState struct {
	state    string
	attempts int
	wait     time.Duration // until a retry is due
	err      error
	failedAt time.Time
}

// afterFailure decides what becomes of a record after attempt number n.
func (c *Consumer) afterFailure(n int, cause error) parkedState {
	s := parkedState{state: store.Retrying, attempts: n, err: cause, failedAt: sqldb.Now()}
	if classify(cause) == classPermanent || n >= c.cfg.Attempts {
		s.state = store.Dead
		return s
	}
	s.wait = c.retryDelay(n)
	return s
}

// waitAfter is how long a record waits after attempt number n.
func (c *Consumer) retryDelay(n int) time.Duration {
	delay := c.cfg.Delay * time.Duration(n)
	return delay + rand.N(delay/5+1) //nolint:gosec // jitter
}

// undecided is what becomes of a record that should die while the hook cannot
// note it: its last attempt will be made again.
func (c *Consumer) retryLastAttempt(s parkedState, hook error) parkedState {
	s.state, s.err, s.wait = store.Retrying, errors.Join(s.err, hook), c.retryDelay(s.attempts)
	s.attempts--
	return s
}

// A hookError comes from OnDead's function.
type onDeadError struct{ error }

func (e *onDeadError) Unwrap() error { return e.error }

func (c *Consumer) insertParked(ctx context.Context, tx *outbox.Tx, msg *message, s parkedState) error {
	headers, err := json.Marshal(wire.Headers(msg.rec.Headers))
	if err != nil {
		return fmt.Errorf("park record: %w", err)
	}
	// one that was done so long ago that the inbox has forgotten it makes way
	_, err = tx.ExecContext(ctx, `DELETE FROM parked_records WHERE consumer = $1 AND event_id = $2 AND state NOT IN `+store.OpenStates, c.cfg.Group, msg.id)
	if err != nil {
		return fmt.Errorf("park record: %w", err)
	}
	_, err = tx.ExecContext(ctx, `
		INSERT INTO parked_records (consumer, state, topic, partition, record_offset, key, key_hash, value, headers, event_id, event_type,
			attempts, due_at, error_class, error, first_failed_at, last_failed_at)
		VALUES ($1, $2, $3, $4, $5, $6, $16, $7, $8, $9, $10, $11, CASE WHEN $2 = 'retrying' THEN `+c.db.Later("$12")+` END, $13, $14, $15, $15)`,
		c.cfg.Group, s.state, msg.rec.Topic, msg.rec.Partition, msg.rec.Offset, store.NullBytes(msg.rec.Key), store.NullBytes(msg.rec.Value), string(headers),
		msg.id, store.Text(msg.envelope.EventType, 200), s.attempts, s.wait.Microseconds(), string(classify(s.err)), store.Reason(s.err), sqldb.NullTime(s.failedAt), store.KeyHash(msg.rec.Key))
	if err != nil {
		return fmt.Errorf("park record: %w", err)
	}
	return nil
}

// retryPause lets what is parked gather, so that the heads are not looked for
// once for each record of a bad batch.
const retryPause = 20 * time.Millisecond

// mendEvery is how often heads that wait are looked for, at most.
const repairEvery = time.Minute

// mendLoop looks for heads that wait, now and then until ctx ends. That reads
// something of each parked key, so with very many it does so more seldom.
func (c *Consumer) repairLoop(ctx context.Context) {
	for ctx.Err() == nil {
		var began time.Time
		err := c.retryWhileUnavailable(ctx, func() bool { return ctx.Err() == nil }, func() error {
			began = time.Now()
			return c.repair(ctx)
		})
		if err != nil && ctx.Err() == nil {
			c.cfg.Log.Error("look for heads that wait", "consumer_group", c.cfg.Group, "err", err)
		}
		retry.Sleep(ctx, max(repairEvery, 20*time.Since(began)))
	}
}

// retryLoop tries parked records again when they are due, until ctx ends.
func (c *Consumer) retryLoop(ctx, workCtx context.Context, workers int) {
	stillWanted := func() bool { return ctx.Err() == nil }
	for ctx.Err() == nil {
		var records []dueRecord
		var next time.Duration
		err := c.retryWhileUnavailable(ctx, stillWanted, func() (err error) { records, next, err = c.findDue(ctx); return err })
		if err != nil && ctx.Err() == nil {
			c.cfg.Log.Error("look for due records", "consumer_group", c.cfg.Group, "err", err)
		}
		var work errgroup.Group
		var moved atomic.Bool
		work.SetLimit(workers)
		for _, due := range records {
			work.Go(func() error {
				if !stillWanted() {
					return nil
				}
				claimed, err := c.retryRecord(workCtx, due, stillWanted)
				if claimed {
					moved.Store(true)
				}
				return err
			})
		}
		if err := work.Wait(); err != nil {
			c.cfg.Log.Error("retry records", "consumer_group", c.cfg.Group, "err", err)
			next = time.Second
		}
		if moved.Load() && next == 0 {
			continue // each may have made way for another
		}
		next = max(next, 50*time.Millisecond) // another process has what is due
		wait := time.NewTimer(next)
		select {
		case <-ctx.Done():
		case <-c.wakeRetries:
			retry.Sleep(ctx, retryPause)
		case <-wait.C:
		}
		wait.Stop()
	}
}

// A head is a parked record whose turn it is.
type dueRecord struct {
	*message // once it is loaded
	seq      int64
	attempts int
}

// load reads the record of a head; false says that it need not be tried any more.
func (c *Consumer) loadRecord(ctx context.Context, due *dueRecord) (found bool, err error) {
	var headers, id string
	rec := &kgo.Record{}
	err = c.db.Read().QueryRowContext(ctx, `
		SELECT attempts, topic, partition, record_offset, key, value, headers, event_id FROM parked_records WHERE seq = $1 AND state = 'retrying'`, due.seq).
		Scan(&due.attempts, &rec.Topic, &rec.Partition, &rec.Offset, &rec.Key, &rec.Value, &headers, &id)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	var list wire.Headers
	if err == nil {
		err = json.Unmarshal([]byte(headers), &list)
	}
	if err != nil {
		return false, fmt.Errorf("read parked record %d: %w", due.seq, err)
	}
	rec.Headers = list
	due.message = c.decode(rec, [16]byte{}) // only what is handled here was asked for
	due.id, due.attempt = id, due.attempts+1
	return true, nil
}

// retry runs the handler for a parked record. To claim the row and to handle
// the event are one transaction, so that of two takers one finds nothing left.
// An error leaves the record as it was: due, with no attempt spent.
func (c *Consumer) retryRecord(ctx context.Context, due dueRecord, stillWanted func() bool) (claimed bool, err error) {
	found := false
	err = c.retryWhileUnavailable(ctx, stillWanted, func() (err error) { found, err = c.loadRecord(ctx, &due); return err })
	if errors.Is(err, errAbandoned) || err == nil && !found {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	due.startedAt = time.Now()
	move := func(s parkedState, then func(context.Context, *outbox.Tx) error) error {
		return c.retryWhileUnavailable(ctx, stillWanted, func() error {
			ctx, cancel := context.WithTimeout(ctx, transactionTimeout)
			defer cancel()
			return c.cfg.Outbox.Tx(ctx, func(tx *outbox.Tx) (err error) {
				if claimed, err = c.claim(ctx, tx, due, s); err != nil || !claimed {
					return err
				}
				return then(ctx, tx)
			})
		})
	}
	err = move(parkedState{state: store.Handled, attempts: due.attempt}, func(ctx context.Context, tx *outbox.Tx) error {
		if _, err := c.runHandlers(ctx, tx, []*message{due.message}); err != nil {
			return err
		}
		crash.Point("retry: handled")
		if due.rec.Key == nil {
			return nil
		}
		key := c.parkedKey(due.message)
		key.After = due.seq
		err := store.ReleaseNext(ctx, c.db, tx, []store.ParkedKey{key})
		crash.Point("retry: promoted")
		return err
	})
	if err == nil && claimed {
		crash.Point("retry: committed")
		c.conclude(due.message, handled)
	}
	if err == nil || errors.Is(err, errAbandoned) {
		return claimed, nil
	}
	s := c.afterFailure(due.attempt, err)
	err = move(s, func(ctx context.Context, tx *outbox.Tx) error { return c.writeDeadLetter(ctx, tx, due.message, s) })
	if hook, ok := errors.AsType[*onDeadError](err); ok {
		s = c.retryLastAttempt(s, hook)
		err = move(s, func(context.Context, *outbox.Tx) error { return nil })
	}
	switch {
	case errors.Is(err, errAbandoned):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("park event %s again: %w", due.id, err)
	case claimed:
		c.metrics.count(due.message, outcome(s.state))
		c.logFailure(due.message, s)
	}
	return claimed, nil
}

// claim moves a parked record from the state it was read in to another; false
// says that somebody else has moved it meanwhile.
func (c *Consumer) claim(ctx context.Context, tx *outbox.Tx, due dueRecord, to parkedState) (bool, error) {
	if c.db.Engine == sqldb.Postgres { // who is being worked on by another is not waited for
		var seq int64
		err := tx.QueryRowContext(ctx, `SELECT seq FROM parked_records WHERE seq = $1 FOR UPDATE SKIP LOCKED`, due.seq).Scan(&seq)
		if errors.Is(err, sql.ErrNoRows) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("claim parked record: %w", err)
		}
	}
	res, err := tx.ExecContext(ctx, `
		UPDATE parked_records SET state = $1, attempts = $2,
			due_at = CASE WHEN $1 = 'retrying' THEN `+c.db.Later("$3")+` END, finished_at = CASE WHEN $1 = 'handled' THEN `+sqldb.Clock+` END,
			error_class = CASE WHEN $4 = '' THEN error_class ELSE $4 END, error = CASE WHEN $4 = '' THEN error ELSE $5 END,
			first_failed_at = COALESCE(first_failed_at, $6), last_failed_at = COALESCE($6, last_failed_at)
		WHERE seq = $7 AND state = 'retrying' AND attempts = $8`,
		to.state, to.attempts, to.wait.Microseconds(), string(classify(to.err)), store.Reason(to.err), sqldb.NullTime(to.failedAt), due.seq, due.attempts)
	if err != nil {
		return false, fmt.Errorf("claim parked record: %w", err)
	}
	n, err := res.RowsAffected()
	return n == 1, err
}

// A Dead is a record that will not be handled, as OnDead is told of it.
type Dead struct {
	EventID     string
	EventType   string // "" when the record could not be opened
	AggregateID string
	Topic       string
	Partition   int32
	Offset      int64
	Attempts    int
	Err         error
	Value       []byte // the record's value as it came
}

// A deadLetter is the value of a record on a dead-letter topic.
type deadLetter struct {
	OriginalTopic       string          `json:"original_topic"`
	OriginalPartition   int32           `json:"original_partition"`
	OriginalOffset      int64           `json:"original_offset"`
	OriginalMessage     json.RawMessage `json:"original_message"` // null when it is not JSON
	ErrorReason         string          `json:"error_reason"`
	FailedAt            time.Time       `json:"failed_at"`
	RetryCount          int             `json:"retry_count"`
	ConsumerGroup       string          `json:"consumer_group"`
	OriginalValueBase64 []byte          `json:"original_value_base64,omitempty"`
}

// bury writes the dead letter of a record that has died, and lets the service
// note it. For any other state it does nothing.
func (c *Consumer) writeDeadLetter(ctx context.Context, tx *outbox.Tx, msg *message, s parkedState) error {
	if s.state != store.Dead {
		return nil
	}
	body := deadLetter{
		OriginalTopic: msg.rec.Topic, OriginalPartition: msg.rec.Partition, OriginalOffset: msg.rec.Offset,
		OriginalMessage: msg.rec.Value, ErrorReason: store.Reason(s.err), FailedAt: s.failedAt, RetryCount: s.attempts, ConsumerGroup: c.cfg.Group,
	}
	if !json.Valid(msg.rec.Value) || !utf8.Valid(msg.rec.Value) {
		body.OriginalMessage, body.OriginalValueBase64 = nil, msg.rec.Value
	}
	value, err := wire.Marshal(body)
	if err == nil && len(value) > store.MaxDeadLetterBytes-store.MaxRecordBytes/2 { // room for key and headers
		body.OriginalMessage, body.OriginalValueBase64 = nil, nil
		body.ErrorReason = store.Text(body.ErrorReason, 900) + " (the message is too large for this topic: it stands in parked_records)"
		value, err = wire.Marshal(body)
	}
	if err != nil {
		return fmt.Errorf("write dead letter: %w", err)
	}
	aggregate := msg.envelope.AggregateID
	if aggregate == "" {
		aggregate = string(msg.rec.Key)
	}
	tx.AddRecord(outbox.Record{
		AggregateID: store.Text(aggregate, 200), EventType: store.Text(msg.envelope.EventType, 200), Topic: msg.rec.Topic + store.DeadLetterSuffix,
		Key: msg.rec.Key, Headers: msg.rec.Headers, Value: value,
	})
	crash.Point("dead letter: written")
	if c.onDead == nil {
		return nil
	}
	return c.callOnDead(ctx, tx, Dead{
		EventID: msg.id, EventType: msg.envelope.EventType, AggregateID: msg.envelope.AggregateID, Topic: msg.rec.Topic, Partition: msg.rec.Partition,
		Offset: msg.rec.Offset, Attempts: s.attempts, Err: s.err, Value: msg.rec.Value,
	})
}

// noteDeath calls OnDead's function. What is its own fault is a hookError.
func (c *Consumer) callOnDead(ctx context.Context, tx *outbox.Tx, d Dead) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &onDeadError{fmt.Errorf("note the death: panic: %v\n%s", p, debug.Stack())}
		}
	}()
	err = c.onDead(ctx, tx, d)
	if class := classify(err); err != nil && class != classUnavailable && class != classConflict {
		return &onDeadError{fmt.Errorf("note the death: %w", err)}
	}
	return err
}
