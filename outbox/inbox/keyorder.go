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
