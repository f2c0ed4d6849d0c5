package admin

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"pizzaflow/outbox/internal/store"
)

// Republish has all retained events published again, from the first event written
// at or after since, in order, but for blocked and skipped ones. It returns how
// many events these are. The records stand on the topic twice then; an inbox drops
// the second.
func (o *Operator) Republish(ctx context.Context, since time.Time, a Action) (n int64, err error) {
	ctx = store.LongStatements(ctx)
	return n, o.change(ctx, a, "republish", "since "+since.UTC().Format(time.RFC3339), func(tx *sql.Tx) (int, error) {
		var first sql.NullInt64
		if err := tx.QueryRowContext(ctx, `SELECT MIN(seq) FROM outbox_events WHERE created_at >= $1`, since.UTC()).Scan(&first); err != nil {
			return 0, fmt.Errorf("find the first event: %w", err)
		}
		if !first.Valid {
			return 0, nil
		}
		if err := store.Rewind(ctx, tx, first.Int64); err != nil {
			return 0, err
		}
		err := tx.QueryRowContext(ctx, `
			SELECT COUNT(*) FROM outbox_events e WHERE seq >= $1 AND NOT EXISTS (SELECT 1 FROM outbox_blocked b WHERE b.seq = e.seq)`, first.Int64).Scan(&n)
		if err != nil {
			return 0, fmt.Errorf("count events: %w", err)
		}
		return int(n), nil
	})
}
