package store

import (
	"context"
	"database/sql"
	"fmt"
	"slices"

	"pizzaflow/sqldb"
)

// The states of a parked record. The head of a key is its oldest record that
// is neither handled nor discarded: it is retrying or dead, and what is behind
// it waits. It is due when it is retrying and its time has come.
const (
	Retrying  = "retrying"
	Waiting   = "waiting"
	Dead      = "dead"
	Handled   = "handled"
	Discarded = "discarded"
)

// Of the records parked under one key one is tried, retrying or dead, and all
// behind it wait. Whoever finishes it has the next retry in the same
// transaction, so that who looks for what is due reads no row that waits, be it
// one or a hundred thousand. No order hangs on that: a record is handled, tried
// or not, only while no older one of its key is open.

// openStates are those of a parked record that is not done.
const OpenStates = `('retrying', 'waiting', 'dead')`

// A ParkedKey is a key of a topic, as a group's records are parked under it.
type ParkedKey struct {
	Group, Topic string
	Key          []byte
	After        int64 // the record that was finished, where one was
}

// keyLocks is how many locks all keys share: a batch of many keys must not use
// up the locks of a server.
const (
	keyLocks     = 64
	KeyLockClass = 0x6f757462 // sets our locks apart from others'
)

// LockKeys has those who park behind records of the keys (shared) and those
// who finish these records take turns until the transaction ends: who finishes
// one sees what was parked behind it, or who parks sees that it is finished.
// It comes after all other locks of a transaction, so that none is waited for
// by somebody who is waited for here. SQLite has one writer, who needs no lock.
func LockKeys(ctx context.Context, db *sqldb.DB, tx sqldb.Querier, shared bool, keys []ParkedKey) error {
	if db.Engine == sqldb.SQLite || len(keys) == 0 {
		return nil
	}
	var locks []int32
	for _, k := range keys {
		locks = append(locks, int32(uint64(Hash([]byte(k.Group+"\x00"+k.Topic+"\x00"), k.Key))%keyLocks))
	}
	slices.Sort(locks) // taken in one order by all
	fn := "pg_advisory_xact_lock"
	if shared {
		fn = "pg_advisory_xact_lock_shared"
	}
	rows, err := tx.QueryContext(ctx, `SELECT `+fn+`($1, lock) FROM unnest($2::INTEGER[]) AS lock`, KeyLockClass, slices.Compact(locks))
	if err != nil {
		return fmt.Errorf("wait for the turn of a key: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
	}
	return rows.Err()
}

// ReleaseNext has the oldest open record of each key retry at once, if it waits,
// in the transaction that has finished the one before it.
func ReleaseNext(ctx context.Context, db *sqldb.DB, tx sqldb.Querier, keys []ParkedKey) error {
	if err := LockKeys(ctx, db, tx, false, keys); err != nil {
		return err
	}
	args := make([][]any, len(keys))
	for i, k := range keys {
		args[i] = []any{k.Group, k.Topic, Hash(k.Key), k.Key, k.After}
	}
	var next [][]any
	err := sqldb.Batch{
		Columns: `in_group TEXT, on_topic TEXT, hash BIGINT, of_key BYTEA, after BIGINT`, SQL: `
		SELECT (SELECT p.seq FROM parked_records p WHERE p.consumer = v.in_group AND p.topic = v.on_topic AND p.key = v.of_key
			AND (p.key_hash, p.seq) > (v.hash, v.after) AND p.key_hash <= v.hash AND p.state IN ` + OpenStates + ` ORDER BY p.key_hash, p.seq LIMIT 1) FROM {rows}`,
	}.Query(ctx, db, tx, args, func(rows *sql.Rows) error {
		var seq sql.NullInt64
		err := rows.Scan(&seq)
		if seq.Valid {
			next = append(next, []any{seq.Int64})
		}
		return err
	})
	if err == nil {
		err = RetryNow(ctx, db, tx, next)
	}
	if err != nil {
		return fmt.Errorf("let the next of a key go on: %w", err)
	}
	return nil
}

// RetryNow has the records retry at once, if they wait or nobody said when.
func RetryNow(ctx context.Context, db *sqldb.DB, q sqldb.Querier, seqs [][]any) error {
	return sqldb.Batch{
		Columns: `nr BIGINT`, SQL: `
		UPDATE parked_records SET state = 'retrying', due_at = ` + sqldb.Clock + ` FROM {rows}
		WHERE seq = v.nr AND (state = 'waiting' OR state = 'retrying' AND due_at IS NULL) RETURNING seq`,
	}.Query(ctx, db, q, seqs, func(*sql.Rows) error { return nil })
}
