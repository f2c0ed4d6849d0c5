package store

import (
	"context"
	"database/sql"
	"fmt"
	"slices"

	"pizzaflow/sqldb"
)

// The states of a parked record. Of the open records of a key the oldest one is
// retrying or dead, and all later ones wait. A retrying record is due from due_at
// on.
//
// The transaction that finishes the oldest record makes the next one due, so a
// query for due records reads no waiting one, be it one or a hundred thousand. The
// order of a key does not depend on that: a record is handled only while no older
// one of its key is open.
const (
	Retrying  = "retrying"
	Waiting   = "waiting"
	Dead      = "dead"
	Handled   = "handled"
	Discarded = "discarded"
)

// OpenStates are the states of a parked record that is neither handled nor
// discarded, as an SQL list.
const OpenStates = `('retrying', 'waiting', 'dead')`

// A ParkedKey is a record key of a topic and a consumer group.
type ParkedKey struct {
	Group, Topic string
	Key          []byte
	After        int64 // for ReleaseNext: the seq of the finished record
}

// keyLocks is how many advisory locks all keys share: a batch of many keys must
// not exhaust the lock table of the server. KeyLockClass sets them apart from the
// locks of other programs.
const (
	keyLocks     = 64
	KeyLockClass = 0x6f757462
)

// LockKeys locks the keys until the transaction ends: shared for a transaction that
// parks records, exclusive for one that finishes them. So either the finishing one
// sees the records parked behind it, or the parking one sees that the record is
// finished. A transaction calls it after it has taken all other locks; otherwise two
// could deadlock. SQLite has one writer, which needs no lock.
func LockKeys(ctx context.Context, db *sqldb.DB, tx sqldb.Querier, shared bool, keys []ParkedKey) error {
	if db.Engine == sqldb.SQLite || len(keys) == 0 {
		return nil
	}
	var locks []int32
	for _, k := range keys {
		locks = append(locks, int32(uint64(Hash([]byte(k.Group+"\x00"+k.Topic+"\x00"), k.Key))%keyLocks))
	}
	slices.Sort(locks) // all transactions lock in one order
	fn := "pg_advisory_xact_lock"
	if shared {
		fn = "pg_advisory_xact_lock_shared"
	}
	rows, err := tx.QueryContext(ctx, `SELECT `+fn+`($1, lock) FROM unnest($2::INTEGER[]) AS lock`, KeyLockClass, slices.Compact(locks))
	if err != nil {
		return fmt.Errorf("lock keys: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
	}
	return rows.Err()
}

// ReleaseNext makes the oldest open record of each key due if it waits, in the
// transaction that finished the record before it. It locks the keys.
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
		return fmt.Errorf("release the next record of a key: %w", err)
	}
	return nil
}

// RetryNow makes records due, by their seq, if they wait or retry without a due_at.
func RetryNow(ctx context.Context, db *sqldb.DB, q sqldb.Querier, seqs [][]any) error {
	return sqldb.Batch{
		Columns: `nr BIGINT`, SQL: `
		UPDATE parked_records SET state = 'retrying', due_at = ` + sqldb.Clock + ` FROM {rows}
		WHERE seq = v.nr AND (state = 'waiting' OR state = 'retrying' AND due_at IS NULL) RETURNING seq`,
	}.Query(ctx, db, q, seqs, func(*sql.Rows) error { return nil })
}
