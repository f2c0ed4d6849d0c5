package inbox

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"pizzaflow/outbox"
	"pizzaflow/outbox/internal/store"
	"pizzaflow/sqldb"
)

// isFirstOfKey is the SQL condition that a parked record p is the oldest open one of
// its key.
//
// Here and below a hash is looked up as a range of one, in the order of the index.
// A planner that has statistics of a hot key takes every hash to be as frequent, and
// would otherwise read the whole table in the order of seq, or for NOT EXISTS.
const isFirstOfKey = `(p.key IS NULL OR p.seq = (
	SELECT q.seq FROM parked_records q
	WHERE q.consumer = p.consumer AND q.topic = p.topic AND q.key_hash BETWEEN p.key_hash AND p.key_hash AND q.key = p.key
		AND q.state IN ` + store.OpenStates + ` ORDER BY q.key_hash, q.seq LIMIT 1))`

// findParkedKeys returns the keys of the batch that have an open parked record. All
// messages are of one topic.
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
	// Mostly the table has no open row: one EXISTS answers for all keys. Otherwise each key is looked up in the index, whatever the
	// planner's statistics say, and backwards: PostgreSQL would step over all finished rows of a hot key first.
	result, err := tx.QueryContext(ctx, `
		SELECT v.nr FROM `+list+`
		WHERE (SELECT EXISTS (SELECT 1 FROM parked_records WHERE consumer = $1 AND topic = $2 AND state IN `+store.OpenStates+`))
			AND (SELECT true FROM parked_records p WHERE p.consumer = $1 AND p.topic = $2 AND p.key_hash BETWEEN v.hash AND v.hash AND p.key = v.key
				AND p.state IN `+store.OpenStates+` ORDER BY p.key_hash DESC, p.seq DESC LIMIT 1)`, append([]any{c.cfg.Group, keyed[0].rec.Topic}, args...)...)
	if err != nil {
		return nil, fmt.Errorf("find parked keys: %w", err)
	}
	defer result.Close()
	for result.Next() {
		var nr int
		if err := result.Scan(&nr); err != nil {
			return nil, fmt.Errorf("find parked keys: %w", err)
		}
		keys[keyed[nr].key] = true
	}
	return keys, result.Err()
}

// keyTable is an SQL table v(nr, hash, key) of the keys of msgs, numbered from 0, and
// its arguments, from number 3.
func (c *Consumer) keyTable(msgs []*message) (table string, args []any) {
	if c.db.Engine == sqldb.Postgres {
		hashes, keys := make([]int64, len(msgs)), make([][]byte, len(msgs))
		for i, msg := range msgs {
			hashes[i], keys[i] = store.Hash(msg.rec.Key), msg.rec.Key
		}
		return `(SELECT nr - 1 AS nr, hash, key FROM unnest($3::BIGINT[], $4::BYTEA[]) WITH ORDINALITY AS u(hash, key, nr) LIMIT $5) AS v`,
			[]any{hashes, keys, len(msgs)} // the LIMIT is there for the reason given at sqldb.Batch: without it PostgreSQL plans for each record anew
	}
	list := make([][2]any, len(msgs))
	for i, msg := range msgs {
		list[i] = [2]any{store.Hash(msg.rec.Key), hex.EncodeToString(msg.rec.Key)}
	}
	text, _ := json.Marshal(list) //nolint:errchkjson // numbers and texts
	return `(SELECT key AS nr, value ->> 0 AS hash, unhex(value ->> 1) AS key FROM json_each($3)) AS v`, []any{string(text)}
}

// errKeyOrder says that the first parked record of a key was inserted or finished
// after findParkedKeys looked, so the transaction must run again.
var errKeyOrder = classified{errors.New("another record of the key was parked or finished at the same time"), classConflict}

// parkInKeyOrder inserts messages into parked_records in state s. It locks their
// keys and returns errKeyOrder unless each message that is to wait has an open parked
// record before it, and each other one has none. Under the locks the transaction that
// finishes the earlier record sees the new ones.
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

// parkedKey is the key of a message as the store locks and releases it.
func (c *Consumer) parkedKey(msg *message) store.ParkedKey {
	return store.ParkedKey{Group: c.cfg.Group, Topic: msg.rec.Topic, Key: msg.rec.Key}
}
