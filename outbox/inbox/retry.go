package inbox

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"pizzaflow/internal/crash"
	"pizzaflow/internal/retry"
	"pizzaflow/outbox"
	"pizzaflow/outbox/internal/store"
	"pizzaflow/outbox/internal/wire"
	"pizzaflow/sqldb"
)

// retryPause lets parked records gather, so that a bad batch does not cause a query
// for each of its records.
const retryPause = 20 * time.Millisecond

// maxDue is how many due records one query returns at most.
const maxDue = 100

// A dueRecord is a parked record whose retry is due.
type dueRecord struct {
	*message       // nil until loadRecord
	seq      int64 // of its row
	attempts int   // that failed
}

// retryLoop retries parked records when they are due, several at a time, until ctx
// ends. Handlers run under workCtx, which ends later.
func (c *Consumer) retryLoop(ctx, workCtx context.Context, workers int) {
	stillWanted := func() bool { return ctx.Err() == nil }
	for ctx.Err() == nil {
		var records []dueRecord
		var next time.Duration
		err := c.retryWhileUnavailable(ctx, stillWanted, func() (err error) { records, next, err = c.findDue(ctx); return err })
		if err != nil && ctx.Err() == nil {
			c.cfg.Log.Error("find due records", "consumer_group", c.cfg.Group, "err", err)
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
			c.cfg.Log.Error("retry parked records", "consumer_group", c.cfg.Group, "err", err)
			next = time.Second
		}
		if moved.Load() && next == 0 {
			continue // the next records of their keys may be due
		}
		next = max(next, 50*time.Millisecond) // when nothing moved, another process has the due records
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

// findDue returns the parked records that are due. When there are none, next is how
// long to wait at most: until the next one is due, or until another process may have
// parked one.
func (c *Consumer) findDue(ctx context.Context) (records []dueRecord, next time.Duration, err error) {
	const poll = 2 * time.Second
	statement, args := c.dueStatement()
	rows, err := c.db.Read().QueryContext(ctx, statement, args...)
	records, err = sqldb.ReadAll(rows, err, func(rows *sql.Rows) (due dueRecord, err error) { return due, rows.Scan(&due.seq) }, "read parked records")
	if err != nil || len(records) > 0 {
		return records[:min(len(records), maxDue)], 0, err
	}
	var due, now time.Time
	err = c.db.Read().QueryRowContext(ctx, `
		SELECT (SELECT MIN(due_at) FROM parked_records WHERE consumer = $1 AND state = 'retrying' AND due_at > `+sqldb.Clock+`), `+sqldb.Clock, c.cfg.Group).
		Scan(sqldb.Time(&due), sqldb.Time(&now))
	if err != nil || due.IsZero() {
		return nil, poll, err
	}
	return nil, min(poll, max(due.Sub(now), 50*time.Millisecond)), nil
}

// dueStatement selects due records by route, and those that could not be decoded;
// another program of the group may handle the rest. Its arguments begin with the
// group and the longest delay.
func (c *Consumer) dueStatement() (statement string, args []any) {
	const ofRoute = `SELECT seq FROM (SELECT seq FROM parked_records p
		WHERE consumer = $1 AND state = 'retrying' AND %s AND %s AND ` + isFirstOfKey + ` ORDER BY due_at LIMIT %d) AS d%d`
	routes := []string{`event_type = ''`}
	args = []any{c.cfg.Group, c.maxRetryDelay().Microseconds()}
	for r := range c.subscriptions {
		args = append(args, r.topic, r.eventType)
		routes = append(routes, fmt.Sprintf(`event_type = $%d AND topic = $%d`, len(args), len(args)-1))
	}
	var parts []string
	for i, condition := range routes {
		parts = append(parts, fmt.Sprintf(ofRoute, condition, `due_at <= `+sqldb.Clock, maxDue, i))
	}
	// a record due later than any delay was parked before the clock was set back
	parts = append(parts, fmt.Sprintf(ofRoute, `((`+strings.Join(routes, `) OR (`)+`))`, `due_at > `+c.db.Later("$2"), maxDue, len(routes)))
	return strings.Join(parts, ` UNION ALL `), args
}

// maxRetryDelay is how long after a failure a record is due at most.
func (c *Consumer) maxRetryDelay() time.Duration {
	return c.cfg.Delay*time.Duration(c.cfg.Attempts)*6/5 + time.Second
}

// retryRecord runs the handler for a parked record. Claiming the row and handling
// the event are one transaction: of two processes that retry it, one finds it
// claimed. claimed reports whether this one moved the record. An error leaves the
// record as it was, due and with no attempt spent.
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
	claimed, err = c.handleDue(ctx, due, stillWanted)
	if err == nil || errors.Is(err, errAbandoned) {
		return claimed, nil
	}
	return c.parkAgain(ctx, due, err, stillWanted)
}

// handleDue handles a due record and releases the next record of its key.
func (c *Consumer) handleDue(ctx context.Context, due dueRecord, stillWanted func() bool) (claimed bool, err error) {
	s := parkedState{state: store.Handled, attempts: due.attempt}
	claimed, err = c.move(ctx, due, s, stillWanted, func(ctx context.Context, tx *outbox.Tx) error {
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
		crash.Point("retry: released")
		return err
	})
	if err == nil && claimed {
		crash.Point("retry: committed")
		c.conclude(due.message, handled)
	}
	return claimed, err
}

// parkAgain records that a retry failed: the record is retrying again, or dead.
func (c *Consumer) parkAgain(ctx context.Context, due dueRecord, cause error, stillWanted func() bool) (claimed bool, err error) {
	s := c.afterFailure(due.attempt, cause)
	claimed, err = c.move(ctx, due, s, stillWanted, func(ctx context.Context, tx *outbox.Tx) error {
		if s.state != store.Dead {
			return nil
		}
		return c.writeDeadLetter(ctx, tx, due.message, s)
	})
	if hook, ok := errors.AsType[*onDeadError](err); ok {
		s = c.retryLastAttempt(s, hook)
		claimed, err = c.move(ctx, due, s, stillWanted, func(context.Context, *outbox.Tx) error { return nil })
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

// move claims a due record, moves it to state s and runs then, in one transaction.
func (c *Consumer) move(ctx context.Context, due dueRecord, s parkedState, stillWanted func() bool, then func(context.Context, *outbox.Tx) error) (claimed bool, err error) {
	err = c.retryWhileUnavailable(ctx, stillWanted, func() error {
		ctx, cancel := context.WithTimeout(ctx, transactionTimeout)
		defer cancel()
		return c.cfg.Outbox.Tx(ctx, func(tx *outbox.Tx) (err error) {
			if claimed, err = c.claim(ctx, tx, due, s); err != nil || !claimed {
				return err
			}
			return then(ctx, tx)
		})
	})
	return claimed, err
}

// loadRecord reads the record of a due row; found is false when it is no longer to
// be retried.
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
	due.message = c.decode(rec, [16]byte{}) // findDue returns no record without a handler
	due.id, due.attempt = id, due.attempts+1
	return true, nil
}

// claim moves a parked record from the state and attempt that due has to another. It
// returns false when another process moved it, or is about to.
func (c *Consumer) claim(ctx context.Context, tx *outbox.Tx, due dueRecord, to parkedState) (bool, error) {
	if c.db.Engine == sqldb.Postgres { // do not wait for a process that retries it right now
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
