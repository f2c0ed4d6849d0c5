package inbox

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"pizzaflow/internal/retry"
	"pizzaflow/outbox/internal/store"
	"pizzaflow/sqldb"
)

// retentionSlack allows for clocks that differ and for deletions that run late.
const retentionSlack = 12 * time.Hour

const (
	pruneEvery = time.Hour // plus or minus a fifth
	pruneRows  = 500       // in one transaction: few, so that its locks are short
)

// minRetention is for how long the inbox must remember handled events at least.
func (cfg Config) minRetention() time.Duration {
	return cfg.OutboxRetention + cfg.TopicRetention + retentionSlack
}

// pruneLoop deletes expired rows about once an hour until ctx ends. Several processes
// of a group may do so at the same time.
func (c *Consumer) pruneLoop(ctx context.Context) {
	for retry.Sleep(ctx, pruneEvery*4/5+rand.N(pruneEvery*2/5)) { //nolint:gosec // jitter
		n, err := c.pruneExpired(ctx)
		if err != nil && ctx.Err() == nil {
			c.cfg.Log.Warn("delete old rows", "consumer_group", c.cfg.Group, "err", err)
		}
		if n > 0 {
			c.cfg.Log.Info("old rows deleted", "consumer_group", c.cfg.Group, "rows", n)
		}
	}
}

// pruneExpired deletes the rows that are older than the retention by the database's
// clock.
func (c *Consumer) pruneExpired(ctx context.Context) (deleted int64, err error) {
	var before time.Time
	if err := c.db.Read().QueryRowContext(ctx, `SELECT `+c.db.Later("$1"), -c.cfg.Retention.Microseconds()).Scan(sqldb.Time(&before)); err != nil {
		return 0, fmt.Errorf("read the database clock: %w", err)
	}
	return c.prune(ctx, before)
}

// prune deletes parked records that were finished, and inbox rows that were marked,
// before the given time. An inbox row stays while its record is parked and open.
func (c *Consumer) prune(ctx context.Context, before time.Time) (deleted int64, err error) {
	deleted, err = c.deleteInSteps(ctx, `
		DELETE FROM parked_records WHERE seq IN (
			SELECT seq FROM parked_records WHERE consumer = $1 AND finished_at < $2 AND state NOT IN `+store.OpenStates+` ORDER BY finished_at LIMIT $3)`,
		c.cfg.Group, before, pruneRows)
	if err != nil {
		return deleted, err
	}
	var n int64
	if c.db.Engine == sqldb.SQLite {
		n, err = c.pruneInboxInOrder(ctx, before)
	} else {
		n, err = c.deleteInSteps(ctx, `
			DELETE FROM inbox_events WHERE ctid IN (
				SELECT i.ctid FROM inbox_events i WHERE i.consumer = $1 AND i.handled_at < $2 AND NOT EXISTS (
					SELECT 1 FROM parked_records p WHERE p.consumer = i.consumer AND p.event_id = i.event_id AND p.state IN `+store.OpenStates+`)
				LIMIT $3 FOR UPDATE SKIP LOCKED)`,
			c.cfg.Group, before, pruneRows)
	}
	return deleted + n, err
}

// deleteInSteps runs a statement that deletes at most pruneRows rows until it deletes
// fewer.
func (c *Consumer) deleteInSteps(ctx context.Context, statement string, args ...any) (deleted int64, err error) {
	for {
		res, err := c.db.ExecContext(ctx, statement, args...)
		if err != nil {
			return deleted, fmt.Errorf("delete old rows: %w", err)
		}
		n, err := res.RowsAffected()
		deleted += n
		if err != nil || n < pruneRows {
			return deleted, err
		}
	}
}

// pruneInboxInOrder is prune for inbox rows of SQLite, which has no index by time: it
// reads the rows in the order they were written, up to the first that is not expired.
// A row from the future, written while the clock was wrong, does not end it.
func (c *Consumer) pruneInboxInOrder(ctx context.Context, before time.Time) (deleted int64, err error) {
	for last := int64(0); ; {
		var upTo, current int64
		err := c.db.Read().QueryRowContext(ctx, `
			SELECT COALESCE(MAX(rowid), 0), COUNT(CASE WHEN handled_at >= $1 AND handled_at <= $4 THEN 1 END)
			FROM (SELECT rowid, handled_at FROM inbox_events WHERE rowid > $2 ORDER BY rowid LIMIT $3)`,
			before, last, pruneRows, sqldb.Now()).Scan(&upTo, &current)
		if err != nil {
			return deleted, fmt.Errorf("find old rows: %w", err)
		}
		if upTo == 0 {
			return deleted, nil
		}
		res, err := c.db.ExecContext(ctx, `
			DELETE FROM inbox_events WHERE rowid > $1 AND rowid <= $2 AND consumer = $3 AND handled_at < $4 AND NOT EXISTS (
				SELECT 1 FROM parked_records p WHERE p.consumer = inbox_events.consumer AND p.event_id = inbox_events.event_id AND p.state IN `+store.OpenStates+`)`,
			last, upTo, c.cfg.Group, before)
		if err != nil {
			return deleted, fmt.Errorf("delete old rows: %w", err)
		}
		n, err := res.RowsAffected()
		if deleted += n; err != nil || current > 0 {
			return deleted, err
		}
		last = upTo
	}
}
