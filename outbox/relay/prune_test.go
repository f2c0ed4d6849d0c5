package relay

import (
	"database/sql"
	"fmt"
	"iter"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"

	"pizzaflow/outbox"
	"pizzaflow/outbox/admin"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// Old events are deleted when they were published or skipped, with their ranges;
// young events, blocked events and those above the low watermark stay. It is the
// stored low watermark, and not that of the term, that counts.
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
		old := now.Add(-36 * time.Hour)
		for _, q := range []string{
			`UPDATE outbox_lease SET floor = 1190 WHERE $1 = $1`,
			`INSERT INTO outbox_blocked (seq, topic, reason, since, skipped_at) VALUES (7, 'moves', 'too large', $1, NULL), (9, 'moves', 'too large', $1, $1)`,
			`INSERT INTO outbox_published VALUES (1, 6, $1), (8, 8, $1), (10, 1150, $1), (1151, 1205, $1)`,
		} {
			if _, err := db.ExecContext(t.Context(), q, old); err != nil {
				t.Fatal(err)
			}
		}
		term := &term{Relay: New(Config{Outbox: outbox.New(db, "/accounts"), Log: slog.New(slog.DiscardHandler)}), cursor: newCursor(1205, nil), lease: new(lease)}
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
	}, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
}

// An event that was published late, after days without a broker for instance, stays
// for the retention after its publication: a topic that is lost then can be filled again.
func TestPrunedByPublication(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		now := sqldb.Now()
		for range 3 {
			exec(t, db, `INSERT INTO outbox_events (id, aggregate_id, event_type, topic, headers, value, created_at) VALUES ($1, 'a', 'Moved', 'moves', '[]', $2, $3)`,
				newID(t), []byte("{}"), now.Add(-8*24*time.Hour))
		}
		exec(t, db, `UPDATE outbox_lease SET floor = 3`)
		exec(t, db, `INSERT INTO outbox_published VALUES (1, 1, $1), (2, 2, $2)`, now.Add(-7*24*time.Hour-time.Minute), now)
		exec(t, db, `INSERT INTO outbox_blocked (seq, topic, reason, since, skipped_at) VALUES (3, 'moves', 'too large', $1, $2)`, now.Add(-8*24*time.Hour), now)
		term := idleTerm(db)
		for _, step := range []struct {
			after time.Duration
			want  string
		}{{0, "[2 3]"}, {7*24*time.Hour + time.Second, "[]"}} {
			if _, err := term.pruneOnce(t.Context(), now.Add(step.after-7*24*time.Hour)); err != nil {
				t.Fatal(err)
			}
			rows, err := db.Query(`SELECT seq FROM outbox_events ORDER BY seq`)
			left, err := sqldb.ReadAll(rows, err, func(rows *sql.Rows) (seq int64, err error) { return seq, rows.Scan(&seq) }, "read")
			if err != nil || fmt.Sprint(left) != step.want {
				t.Errorf("after %v: %v are left, %v; want %s", step.after, left, err, step.want)
			}
		}
	}, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
}

// A term that has not noticed yet that it is over does not delete an event that an
// operator has just released.
func TestPruneOfAnEarlierTerm(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		old := sqldb.Now().Add(-48 * time.Hour)
		_, err := db.ExecContext(t.Context(), `
			INSERT INTO outbox_events (id, aggregate_id, event_type, topic, key, headers, value, created_at)
			VALUES ($1, 'a', 'Moved', 'moves', $2, '[]', $2, $3)`, newID(t), []byte("a"), old)
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range []string{
			`INSERT INTO outbox_blocked (seq, topic, key, reason, since) VALUES (1, 'moves', NULL, 'too large', CURRENT_TIMESTAMP)`,
			`UPDATE outbox_lease SET holder = 'me', epoch = 1, floor = 1`,
		} {
			if _, err := db.ExecContext(t.Context(), q); err != nil {
				t.Fatal(err)
			}
		}
		term := &term{Relay: New(Config{Outbox: outbox.New(db, "/accounts"), Log: slog.New(slog.DiscardHandler)}), cursor: newCursor(1, nil), lease: &lease{epoch: 1}}
		if _, err := admin.New(db).Retry(t.Context(), admin.BlockedFilter{}, admin.Action{By: "test"}); err != nil {
			t.Fatal(err)
		}
		if n, err := term.pruneOnce(t.Context(), old.Add(time.Hour)); err != nil || n != 0 {
			t.Errorf("%d deleted that were never published, %v", n, err)
		}
		if n, err := term.deleteEvents(t.Context(), []int64{1}, []int64{1}); err != nil || n != 0 {
			t.Errorf("%d deleted by what was read before the term was over, %v", n, err)
		}
	}, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
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
