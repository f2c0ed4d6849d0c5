package inbox

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"

	"pizzaflow/outbox"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// Old inbox rows and old finished parked records are deleted; young ones, those of
// another group, and those of open parked records stay.
func TestPrune(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		now := sqldb.Now()
		old, young := now.Add(-16*24*time.Hour), now.Add(-14*24*time.Hour)
		mark := func(n int, group string, at time.Time) (last string) {
			for range n {
				last = uuid.Must(uuid.NewV7()).String()
				if _, err := db.ExecContext(t.Context(), `INSERT INTO inbox_events (consumer, event_id, handled_at) VALUES ($1, $2, $3)`, group, last, at); err != nil {
					t.Fatal(err)
				}
			}
			return last
		}
		park := func(id, state string, finished time.Time) {
			_, err := db.ExecContext(t.Context(), `
				INSERT INTO parked_records (consumer, state, topic, partition, record_offset, headers, event_id, event_type, attempts, error_class, error, finished_at)
				VALUES ('readers', $1, 'moves', 0, 0, '[]', $2, 'Moved', 1, '', '', $3)`, state, id, sqldb.NullTime(finished))
			if err != nil {
				t.Fatal(err)
			}
		}
		park(mark(1, "readers", old), "dead", time.Time{})
		park(mark(1, "readers", old), "waiting", time.Time{})
		park(mark(1, "readers", old), "retrying", time.Time{})
		park(mark(1, "readers", old), "handled", old)
		park(mark(1, "readers", old), "discarded", old)
		park(mark(1, "readers", old), "handled", young)
		mark(1, "others", old)
		mark(2*pruneRows+10, "readers", old)
		mark(7, "readers", young)
		c := New(Config{Outbox: outbox.New(db, "/accounts"), Group: "readers", Log: slog.New(slog.DiscardHandler)})
		n, err := c.prune(t.Context(), now.Add(-c.cfg.Retention))
		if want := int64(2 + 2 + 1 + 2*pruneRows + 10); err != nil || n != want {
			t.Errorf("%d rows deleted, %v; want %d", n, err, want)
		}
		for query, want := range map[string]int{
			`SELECT COUNT(*) FROM parked_records`: 4,
			`SELECT COUNT(*) FROM inbox_events`:   3 + 1 + 7,
			`SELECT COUNT(*) FROM inbox_events i JOIN parked_records p ON p.event_id = i.event_id WHERE p.state <> 'handled'`: 3,
		} {
			var n int
			if err := db.QueryRow(query).Scan(&n); err != nil || n != want {
				t.Errorf("%s: %d, %v; want %d", query, n, err, want)
			}
		}
	}, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
}

// A row that was written while the clock was a year ahead does not keep the rows
// behind it for a year.
func TestPruneBehindTheFuture(t *testing.T) {
	db := sqltest.Open(t, sqldb.SQLite, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
	c, _ := newTestConsumer(t, db)
	now := sqldb.Now()
	_, err := db.Exec(`
		WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n <= $1)
		INSERT INTO inbox_events (consumer, event_id, handled_at) SELECT 'g', 'event ' || n, CASE n WHEN 1 THEN $2 ELSE $3 END FROM numbers`,
		2*pruneRows, now.Add(365*24*time.Hour), now.Add(-24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := c.prune(t.Context(), now.Add(-time.Hour)); err != nil || n != 2*pruneRows {
		t.Errorf("%d rows deleted, %v; want %d", n, err, 2*pruneRows)
	}
}

// Run refuses a retention that ends before outbox and topic forget an event.
func TestRetentionTooShort(t *testing.T) {
	db := sqltest.Open(t, sqldb.SQLite, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
	const day = 24 * time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, e := range []struct {
		outbox, topic, inbox time.Duration
		ok                   bool
	}{
		{0, 0, 0, true},
		{0, 0, 15 * day, false},
		{30 * day, 0, 0, true},
		{30 * day, 0, 37 * day, false},
		{0, 0, 16 * day, true},
		{day, 0, 10 * day, true},
		{day, 9 * day, 10 * day, false},
	} {
		c := New(Config{
			Outbox: outbox.New(db, "/t"), Group: "g", Log: slog.New(slog.DiscardHandler),
			OutboxRetention: e.outbox, TopicRetention: e.topic, Retention: e.inbox,
		})
		if err := c.Run(ctx); (err == nil) != e.ok {
			t.Errorf("an inbox of %v for an outbox of %v and a topic of %v: %v", e.inbox, e.outbox, e.topic, err)
		}
	}
}
