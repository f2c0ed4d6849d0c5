package verify

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"
)

// markRepartitioned marks the keys that are in two partitions because their topic was given more partitions: before that
// all records of the key are in one partition and after it in another, the key belongs to both, by the number of partitions
// then and now, and none of the new partitions had a record yet.
func (e *evidence) markRepartitioned(ctx context.Context) error {
	keys, err := e.repartitioned(ctx)
	if err != nil {
		return fmt.Errorf("look at keys in two partitions: %w", err)
	}
	return e.db.Tx(ctx, func(tx *sql.Tx) error {
		for _, id := range keys {
			if _, err := tx.ExecContext(ctx, `UPDATE keys_in_two_partitions SET repartitioned = 1 WHERE rowid = $1`, id); err != nil {
				return fmt.Errorf("keep evidence: %w", err)
			}
		}
		return nil
	})
}

// repartitioned returns the rowids of those keys.
func (e *evidence) repartitioned(ctx context.Context) (keys []int64, err error) {
	rows, err := e.db.Read().QueryContext(ctx, `
		WITH opened AS (SELECT topic, part, MIN(written) AS at FROM records GROUP BY topic, part)
		SELECT k.rowid, k.key, k.first_part, k.lowest_other, (SELECT COUNT(*) FROM partitions p WHERE p.topic = k.topic),
			(SELECT MAX(o.part) FROM opened o WHERE o.topic = k.topic AND o.at <= k.last_in_first)
		FROM keys_in_two_partitions k WHERE k.lowest_other = k.highest_other AND k.last_in_first < k.first_in_other`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id int64
		var key string
		var first, other, now, highestUsed int
		if err := rows.Scan(&id, &key, &first, &other, &now, &highestUsed); err != nil {
			return nil, err
		}
		if belonged(key, first, highestUsed+1, now) && partitionOf(key, now) == other {
			keys = append(keys, id)
		}
	}
	return keys, rows.Err()
}

// belonged reports whether a key belongs to the partition under some number of partitions: at least that many, and fewer
// than now.
func belonged(key string, part, least, now int) bool {
	for n := least; n < now; n++ {
		if partitionOf(key, n) == part {
			return true
		}
	}
	return false
}

// partitionOf is the partition, of n, that producers choose for a key.
func partitionOf(key string, n int) int {
	return kgo.StickyKeyPartitioner(nil).ForTopic("").Partition(&kgo.Record{Key: []byte(key)}, n)
}
