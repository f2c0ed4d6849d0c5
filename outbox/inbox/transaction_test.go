//go:build synctests

package inbox

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"pizzaflow/internal/retry"
	"pizzaflow/kafka/kafkatest"
	"pizzaflow/outbox"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// Four messages of twelve seconds each exceed the time of one transaction together:
// they are handled in smaller batches, and no attempt is spent.
func TestBatchTooSlow(t *testing.T) {
	kafkatest.Bubble(t, func(t *testing.T) {
		db := sqltest.Open(t, sqldb.SQLite, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
		c := New(Config{Outbox: outbox.New(db, "/t"), Group: "g", Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
		On(c, func(ctx context.Context, _ *outbox.Tx, _ Delivery[relocated]) error {
			if !retry.Sleep(ctx, 12*time.Second) {
				return ctx.Err()
			}
			return nil
		})
		batch := []*message{c.testMessage("a", 1), c.testMessage("b", 2), c.testMessage("c", 3), c.testMessage("d", 4)}
		c.processBatch(t.Context(), batch)
		var handled, parked int
		err := db.QueryRowContext(t.Context(), `SELECT (SELECT COUNT(*) FROM inbox_events), (SELECT COUNT(*) FROM parked_records)`).Scan(&handled, &parked)
		if err != nil || handled != len(batch) || parked > 0 {
			t.Errorf("%d were handled and %d parked (%v)", handled, parked, err)
		}
	})
}
