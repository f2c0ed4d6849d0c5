package inbox

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"pizzaflow/outbox"
	"pizzaflow/outbox/internal/store"
	"pizzaflow/sqldb"
)

// isHead holds for a parked record p that is the oldest open one of its key.
//
// Here and below a hash is looked for as a range of one, in the order of the
// index. A planner that knows of a hot key takes any hash for as frequent; it
// would read the whole table in the order of seq, or for NOT EXISTS, rather
// than look for one.
const isFirstOfKey = `(p.key IS NULL OR p.seq = (
	SELECT q.seq FROM parked_records q
	WHERE q.consumer = p.consumer AND q.topic = p.topic AND q.key_hash BETWEEN p.key_hash AND p.key_hash AND q.key = p.key
		AND q.state IN ` + store.OpenStates + ` ORDER BY q.key_hash, q.seq LIMIT 1))`

// parkedKeys finds the records of the batch that have an open record of their
// key parked before them, and reports their keys. All are of one topic.
func (c *Consumer) findParkedKeys(ctx context.Context, tx *outbox.Tx, batch []*message) (map[string]bool, error) {
	keys := map[string]bool{}
	var keyed []*message
	for _, msg := range batch {
		if msg.rec.Key != nil {
			keyed = append(keyed, msg)
		}
	}
	if len(keyed) == 0 {
		return keys, nil
	}
	list, args := c.keyTable(keyed)
	// the table is nearly empty, mostly: that is asked once; else each key is looked for in the index, whatever the planner believes,
	// from the last, before which PostgreSQL may have to step over very many that are done
	result, err := tx.QueryContext(ctx, `
		SELECT v.nr FROM `+list+`
		WHERE (SELECT EXISTS (SELECT 1 FROM parked_records WHERE consumer = $1 AND topic = $2 AND state IN `+store.OpenStates+`))
			AND (SELECT true FROM parked_records p WHERE p.consumer = $1 AND p.topic = $2 AND p.key_hash BETWEEN v.hash AND v.hash AND p.key = v.key
				AND p.state IN `+store.OpenStates+` ORDER BY p.key_hash DESC, p.seq DESC LIMIT 1)`, append([]any{c.cfg.Group, keyed[0].rec.Topic}, args...)...)
	if err != nil {
		return nil, fmt.Errorf("look for parked records: %w", err)
	}
	defer result.Close()
	for result.Next() {
		var nr int
		if err := result.Scan(&nr); err != nil {
			return nil, fmt.Errorf("look for parked records: %w", err)
		}
		keys[keyed[nr].key] = true
	}
	return keys, result.Err()
}

// keyList is the keys as a table v of nr, from 0, hash and key, and its
// arguments from number 3.
func (c *Consumer) keyTable(msgs []*message) (table string, args []any) {
	if c.db.Engine == sqldb.Postgres {
		hashes, keys := make([]int64, len(msgs)), make([][]byte, len(msgs))
		for i, msg := range msgs {
			hashes[i], keys[i] = store.Hash(msg.rec.Key), msg.rec.Key
		}
		return `(SELECT nr - 1 AS nr, hash, key FROM unnest($3::BIGINT[], $4::BYTEA[]) WITH ORDINALITY AS u(hash, key, nr) LIMIT $5) AS v`,
			[]any{hashes, keys, len(msgs)} // as in sqldb.Batch: without it a plan would be made for each single record
	}
	list := make([][2]any, len(msgs))
	for i, msg := range msgs {
		list[i] = [2]any{store.Hash(msg.rec.Key), hex.EncodeToString(msg.rec.Key)}
	}
	text, _ := json.Marshal(list) //nolint:errchkjson // numbers and texts
	return `(SELECT key AS nr, value ->> 0 AS hash, unhex(value ->> 1) AS key FROM json_each($3)) AS v`, []any{string(text)}
}

// errTurn says that a record was to wait behind another that is done meanwhile,
// or the other way round.
var errKeyOrder = classified{errors.New("another record of the key was parked or finished meanwhile"), classConflict}

// parkInTurn parks records, those that wait behind others of their keys and
// those that do not, if that still is so: whoever finishes what stands before
// them will see them.
func (c *Consumer) parkInKeyOrder(ctx context.Context, tx *outbox.Tx, msgs []*message, s parkedState) error {
	var keys []store.ParkedKey
	for _, msg := range msgs {
		if msg.rec.Key != nil {
			keys = append(keys, c.parkedKey(msg))
		}
	}
	if err := store.LockKeys(ctx, c.db, tx, true, keys); err != nil {
		return err
	}
	behind, err := c.findParkedKeys(ctx, tx, msgs)
	if err != nil {
		return err
	}
	for _, msg := range msgs {
		if behind[msg.key] != (s.state == store.Waiting) {
			return errKeyOrder
		}
		if err := c.insertParked(ctx, tx, msg, s); err != nil {
			return err
		}
	}
	return nil
}

func (c *Consumer) parkedKey(msg *message) store.ParkedKey {
	return store.ParkedKey{Group: c.cfg.Group, Topic: msg.rec.Topic, Key: msg.rec.Key}
}

// mostHeads is how many records are tried at once, at most.
const maxDue = 100

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

// mendKeys is how many keys one statement of mend skips over: there may be a
// million dead records, each with a key of its own.
const repairKeys = 1000

// mend finds heads that wait, by skipping from key to key, and has them go on.
// Nobody leaves one behind but a program of an earlier version and whoever
// changes rows by hand.
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

// mendAfter is mend for the next keys of a topic after one with that hash. It
// returns the hash of the last key, and how many keys there were.
func (c *Consumer) repairAfter(ctx context.Context, topic string, hash int64) (last int64, n int, err error) {
	const least = `(SELECT MIN(key_hash) FROM parked_records WHERE consumer = $1 AND topic = $2 AND key_hash > %s AND state IN ` + store.OpenStates + `)`
	rows, err := c.db.Read().QueryContext(ctx, `
		WITH RECURSIVE hashes(hash, n) AS (
			SELECT `+fmt.Sprintf(least, `$3`)+`, 1
			UNION ALL
			SELECT `+fmt.Sprintf(least, `hash`)+`, n + 1 FROM hashes WHERE hash IS NOT NULL AND n < $4)
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
	}, "look for heads that wait")
	if err != nil || len(hashes) == 0 {
		return 0, 0, err
	}
	return hashes[len(hashes)-1], len(hashes), store.RetryNow(ctx, c.db, c.db, waiting)
}
