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

// retryPause lets what is parked gather, so that the heads are not looked for
// once for each record of a bad batch.
const retryPause = 20 * time.Millisecond

// mostHeads is how many records are tried at once, at most.
const maxDue = 100

// A head is a parked record whose turn it is.
type dueRecord struct {
	*message // once it is loaded
	seq      int64
	attempts int
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

// dueHeads returns the heads that are due. When there are none it says how
// long to wait at most: until the next is due, or until another process may
// have parked one.
func (c *Consumer) findDue(ctx context.Context) (records []dueRecord, next time.Duration, err error) {
	const poll = 2 * time.Second
	statement, args := c.dueStatement()
	rows, err := c.db.Read().QueryContext(ctx, statement, args...)
	records, err = sqldb.ReadAll(rows, err, func(rows *sql.Rows) (h dueRecord, err error) { return h, rows.Scan(&h.seq) }, "read parked records")
	if err != nil || len(records) > 0 {
		return records[:min(len(records), maxDue)], 0, err
	}
	var due, at time.Time
	err = c.db.Read().QueryRowContext(ctx, `
		SELECT (SELECT MIN(due_at) FROM parked_records WHERE consumer = $1 AND state = 'retrying' AND due_at > `+sqldb.Clock+`), `+sqldb.Clock, c.cfg.Group).
		Scan(sqldb.Time(&due), sqldb.Time(&at))
	if err != nil || due.IsZero() {
		return nil, poll, err
	}
	return nil, min(poll, max(due.Sub(at), 50*time.Millisecond)), nil
}

// dueStatement selects what is due: of each type that this program handles, and
// of what could not be opened; another program of the group may know the rest.
// Its arguments begin with the group and the longest pause.
func (c *Consumer) dueStatement() (statement string, args []any) {
	const one = `SELECT seq FROM (SELECT seq FROM parked_records p
		WHERE consumer = $1 AND state = 'retrying' AND %s AND %s AND ` + isFirstOfKey + ` ORDER BY due_at LIMIT %d) AS d%d`
	known := []string{`event_type = ''`}
	args = []any{c.cfg.Group, c.maxRetryDelay().Microseconds()}
	for r := range c.subscriptions {
		args = append(args, r.topic, r.eventType)
		known = append(known, fmt.Sprintf(`event_type = $%d AND topic = $%d`, len(args), len(args)-1))
	}
	var parts []string
	for i, route := range known {
		parts = append(parts, fmt.Sprintf(one, route, `due_at <= `+sqldb.Clock, maxDue, i))
	}
	// a clock that jumped back must not freeze them
	parts = append(parts, fmt.Sprintf(one, `((`+strings.Join(known, `) OR (`)+`))`, `due_at > `+c.db.Later("$2"), maxDue, len(known)))
	return strings.Join(parts, ` UNION ALL `), args
}

// longestPause is how long after a failure a record is due at most.
func (c *Consumer) maxRetryDelay() time.Duration {
	return c.cfg.Delay*time.Duration(c.cfg.Attempts)*6/5 + time.Second
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
	err = move(s, func(ctx context.Context, tx *outbox.Tx) error {
		if s.state != store.Dead {
			return nil
		}
		return c.writeDeadLetter(ctx, tx, due.message, s)
	})
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
