package inbox

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"time"

	"pizzaflow/internal/retry"
	"pizzaflow/outbox/internal/store"
	"pizzaflow/sqldb"
)

// repairEvery is how often parked records are repaired at most.
const repairEvery = time.Minute

// repairKeys is how many keys one query of a repair looks at: there may be a million
// dead records, each with its own key.
const repairKeys = 1000

// repairLoop repairs parked records until ctx ends. A repair reads a row of each
// parked key, so the more keys there are, the less often it runs.
func (c *Consumer) repairLoop(ctx context.Context) {
	for ctx.Err() == nil {
		var began time.Time
		err := c.retryWhileUnavailable(ctx, func() bool { return ctx.Err() == nil }, func() error {
			began = time.Now()
			return c.repair(ctx)
		})
		if err != nil && ctx.Err() == nil {
			c.cfg.Log.Error("repair parked records", "consumer_group", c.cfg.Group, "err", err)
		}
		retry.Sleep(ctx, max(repairEvery, 20*time.Since(began)))
	}
}

// repair finds records that wait although they are the first of their key, and
// makes them due: no finished record will do so. Only a program of an earlier version,
// or rows changed by hand, leave such records behind.
func (c *Consumer) repair(ctx context.Context) error {
	topics := map[string]bool{}
	for r := range c.subscriptions {
		topics[r.topic] = true
	}
	for topic := range topics {
		for last, n := int64(math.MinInt64), repairKeys; n == repairKeys; {
			var err error
			if last, n, err = c.repairAfter(ctx, topic, last); err != nil {
				return err
			}
		}
	}
	return nil
}

// repairAfter repairs the next repairKeys keys of a topic whose hash is above hash. It
// returns the last hash and how many keys there were.
func (c *Consumer) repairAfter(ctx context.Context, topic string, hash int64) (last int64, n int, err error) {
	const nextHash = `(SELECT MIN(key_hash) FROM parked_records WHERE consumer = $1 AND topic = $2 AND key_hash > %s AND state IN ` + store.OpenStates + `)`
	rows, err := c.db.Read().QueryContext(ctx, `
		WITH RECURSIVE hashes(hash, n) AS (
			SELECT `+fmt.Sprintf(nextHash, `$3`)+`, 1
			UNION ALL
			SELECT `+fmt.Sprintf(nextHash, `hash`)+`, n + 1 FROM hashes WHERE hash IS NOT NULL AND n < $4)
		SELECT hash, (SELECT CASE WHEN state = 'waiting' OR state = 'retrying' AND due_at IS NULL THEN seq END FROM parked_records
			WHERE consumer = $1 AND topic = $2 AND key_hash BETWEEN hash AND hash AND state IN `+store.OpenStates+` ORDER BY key_hash, seq LIMIT 1)
		FROM hashes WHERE hash IS NOT NULL ORDER BY hash`, c.cfg.Group, topic, hash, repairKeys)
	var waiting [][]any
	hashes, err := sqldb.ReadAll(rows, err, func(rows *sql.Rows) (hash int64, err error) {
		var seq sql.NullInt64
		if err = rows.Scan(&hash, &seq); seq.Valid {
			waiting = append(waiting, []any{seq.Int64})
		}
		return hash, err
	}, "find first records that wait")
	if err != nil || len(hashes) == 0 {
		return 0, 0, err
	}
	return hashes[len(hashes)-1], len(hashes), store.RetryNow(ctx, c.db, c.db, waiting)
}
