package outbox

import (
	"fmt"
	"iter"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"

	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// Old events go when they are published, with the ranges that spoke of them;
// young ones, blocked ones and those above the floor stay; the floor is the
// stored one, whatever the term remembers. Skipped ones go, too.
func TestPrune(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		now := sqldb.Now()
		insert := func(n int, at time.Time) {
			for range n {
				_, err := db.ExecContext(t.Context(), `
					INSERT INTO outbox_events (id, aggregate_id, event_type, topic, headers, value, created_at)
					VALUES ($1, 'a', 'Moved', 'moves', '[]', $2, $3)`, newID(t), []byte("{}"), at)
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		insert(1200, now.Add(-48*time.Hour))
		insert(10, now)
		for _, q := range []string{
			`UPDATE outbox_lease SET floor = 1190`,
			`INSERT INTO outbox_blocked (seq, topic, reason, since, skipped_at) VALUES (7, 'moves', 'too large', CURRENT_TIMESTAMP, NULL), (9, 'moves', 'too large', CURRENT_TIMESTAMP, CURRENT_TIMESTAMP)`,
			`INSERT INTO outbox_published VALUES (1, 6, CURRENT_TIMESTAMP), (8, 1150, CURRENT_TIMESTAMP), (1151, 1205, CURRENT_TIMESTAMP)`,
		} {
			if _, err := db.ExecContext(t.Context(), q); err != nil {
				t.Fatal(err)
			}
		}
		term := &term{Relay: NewRelay(RelayConfig{Outbox: New(db, "/accounts"), Log: slog.New(slog.DiscardHandler)}), cursor: newCursor(1205, nil), lease: new(lease)}
		deleted, err := term.pruneOnce(t.Context(), now.Add(-24*time.Hour))
		if err != nil || deleted != 1189 {
			t.Fatalf("%d rows deleted, %v; want those up to 1190 but the blocked one", deleted, err)
		}
		var rows, first int64
		if err := db.QueryRow(`SELECT COUNT(*), MIN(seq) FROM outbox_events`).Scan(&rows, &first); err != nil {
			t.Fatal(err)
		}
		if rows != 21 || first != 7 {
			t.Errorf("%d rows are left, from %d on", rows, first)
		}
		var ranges string
		for r, err := range published(t, db) {
			if err != nil {
				t.Fatal(err)
			}
			ranges += fmt.Sprint(r)
		}
		if want := "{1151 1205}"; ranges != want {
			t.Errorf("ranges %s, want %s", ranges, want)
		}
		if again, err := term.pruneOnce(t.Context(), now.Add(-24*time.Hour)); err != nil || again != 0 {
			t.Errorf("once more: %d, %v", again, err)
		}
	}, sqltest.Schema{Name: "outbox", FS: Schema})
}

func newID(t *testing.T) string {
	t.Helper()
	id, err := uuid.NewV7()
	if err != nil {
		t.Fatal(err)
	}
	return id.String()
}

func published(t *testing.T, db *sqldb.DB) iter.Seq2[span, error] {
	return func(yield func(span, error) bool) {
		rows, err := db.QueryContext(t.Context(), `SELECT first_seq, last_seq FROM outbox_published ORDER BY 1`)
		if err != nil {
			yield(span{}, err)
			return
		}
		defer rows.Close()
		for rows.Next() {
			var s span
			if err := rows.Scan(&s.lo, &s.hi); !yield(s, err) {
				return
			}
		}
		if err := rows.Err(); err != nil {
			yield(span{}, err)
		}
	}
}
