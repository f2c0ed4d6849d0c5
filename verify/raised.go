package verify

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"
)

// tellRaised tells apart the keys that crossed from one partition to another
// because their topic was given more: all of a key's records before that are in
// one partition, all after it in another, both are where a key belongs, by the
// number of partitions then and now, and none of the new ones had a record yet.
func (e *evidence) tellRaised(ctx context.Context) error {
	rows, err := e.db.Read().QueryContext(ctx, `
		WITH opened AS (SELECT topic, part, MIN(written) AS at FROM records GROUP BY topic, part)
		SELECT c.rowid, c.key, c.home, c.lowest, (SELECT COUNT(*) FROM partitions p WHERE p.topic = c.topic),
			(SELECT MAX(o.part) FROM opened o WHERE o.topic = c.topic AND o.at <= c.stayed)
		FROM crossed c WHERE c.lowest = c.highest AND c.stayed < c.went`)
	if err != nil {
		return fmt.Errorf("look at keys that crossed: %w", err)
	}
	defer rows.Close()
	var raised []int64
	for rows.Next() {
		var id int64
		var key string
		var home, later, count, seen int
		if err := rows.Scan(&id, &key, &home, &later, &count, &seen); err != nil {
			return fmt.Errorf("look at keys that crossed: %w", err)
		}
		if belonged(key, home, seen+1, count) && belongs(key, count) == later {
			raised = append(raised, id)
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("look at keys that crossed: %w", err)
	}
	return e.db.Tx(ctx, func(tx *sql.Tx) error {
		for _, id := range raised {
			if _, err := tx.ExecContext(ctx, `UPDATE crossed SET raised = 1 WHERE rowid = $1`, id); err != nil {
				return fmt.Errorf("keep evidence: %w", err)
			}
		}
		return nil
	})
}

// belonged reports whether a key belongs to the partition where there are at
// least so many partitions, and fewer than now.
func belonged(key string, part, least, now int) bool {
	for n := least; n < now; n++ {
		if belongs(key, n) == part {
			return true
		}
	}
	return false
}

// belongs is the partition, of n, that producers put a key in.
func belongs(key string, n int) int {
	return kgo.StickyKeyPartitioner(nil).ForTopic("").Partition(&kgo.Record{Key: []byte(key)}, n)
}
