package job

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// clockedJobs makes a table of jobs that are due in so long, some of them leased.
func clockedJobs(t *testing.T, db *sqldb.DB, dueIn map[string]time.Duration, leased ...string) {
	t.Helper()
	kind := map[sqldb.Engine]string{sqldb.SQLite: "TIMESTAMP", sqldb.Postgres: "TIMESTAMPTZ"}[db.Engine]
	exec := func(statement string, args ...any) {
		t.Helper()
		if _, err := db.Exec(statement, args...); err != nil {
			t.Fatal(err)
		}
	}
	exec(`CREATE TABLE clocked_jobs (id TEXT PRIMARY KEY, due_at ` + kind + `, lease_token TEXT, attempts INTEGER NOT NULL DEFAULT 1)`)
	for id, in := range dueIn {
		exec(`INSERT INTO clocked_jobs (id, due_at) VALUES ($1, `+db.Later("$2")+`)`, id, in.Microseconds())
	}
	for _, id := range leased {
		exec(`UPDATE clocked_jobs SET lease_token = 'another' WHERE id = $1`, id)
	}
}

// clocked is a Worker on that table which the database has answered for an hour.
func clocked(t *testing.T, db *sqldb.DB, lease time.Duration, longest string) *Worker {
	w := New(Config{
		DB: db, Table: "clocked_jobs", Lease: lease, LongestPause: longest, Log: slog.New(slog.DiscardHandler),
		Do: func(context.Context, Job) error { return nil },
	})
	w.open, w.ctx, w.answeringSince = true, t.Context(), time.Now().Add(-time.Hour)
	t.Cleanup(w.running.Wait)
	return w
}

// A process that sees the clock set forward, by hand or because the database is
// on another host now, takes over nothing for the length of a lease: every lease
// looks as if it had run out.
func TestClockSetForwardTakesNothing(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		clockedJobs(t, db, map[string]time.Duration{"theirs": -20 * time.Minute}, "theirs")
		takenOver := func(ago time.Duration) int {
			t.Helper()
			w := clocked(t, db, time.Minute, "")
			asked := time.Now()
			w.clock.Observe(sqldb.Now().Add(-ago), asked, time.Minute)
			if _, err := w.look(t.Context()); err != nil {
				t.Fatal(err)
			}
			n, err := w.takeOver(t.Context(), 10)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		if n := takenOver(20 * time.Minute); n != 0 {
			t.Errorf("took %d rows of others when the clock was set forward", n)
		}
		if n := takenOver(0); n != 1 {
			t.Errorf("took %d rows of the dead, want 1", n)
		}
	})
}

// After the clock was set back, rows that are due later than the longest pause
// come soon, and so do rows that a dead process holds; others stay as they are.
func TestClockSetBackHoldsNothingUp(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		const lease = time.Second
		clockedJobs(t, db, map[string]time.Duration{"frozen": 25 * time.Hour, "held": 20 * time.Minute, "resting": 40 * time.Second, "planned": 4 * time.Minute}, "held")
		if _, err := db.Exec(`UPDATE clocked_jobs SET attempts = 3 WHERE id = 'planned'`); err != nil {
			t.Fatal(err)
		}
		soon := func(w *Worker) (ids string) {
			t.Helper()
			if _, err := w.look(t.Context()); err != nil {
				t.Fatal(err)
			}
			rows, err := db.Query(`SELECT id FROM clocked_jobs WHERE due_at <= `+db.Later("$1")+` ORDER BY id`, lease.Microseconds())
			found, err := sqldb.ReadAll(rows, err, func(rows *sql.Rows) (id string, err error) { return id, rows.Scan(&id) }, "read jobs")
			if err != nil {
				t.Fatal(err)
			}
			return fmt.Sprint(found)
		}
		if got := soon(clocked(t, db, lease, "")); got != "[held]" {
			t.Errorf("where rows may be due at any time %s come soon, want what is held", got)
		}
		w := clocked(t, db, lease, LongestBackoff(time.Minute, time.Hour))
		if got := soon(w); got != "[frozen held]" {
			t.Errorf("%s come soon, want what is frozen and what is held", got)
		}
	})
}

// LongestBackoff says in SQL what Backoff does at most.
func TestLongestBackoff(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		const base, limit = 200 * time.Millisecond, time.Minute
		for attempts := range 40 {
			var most int64
			err := db.QueryRow(`SELECT ` + LongestBackoff(base, limit) + fmt.Sprintf(` FROM (SELECT %d AS attempts) r`, attempts)).Scan(&most)
			if err != nil {
				t.Fatal(err)
			}
			want := base
			for n := 1; n < attempts && want < limit; n++ {
				want *= 2
			}
			if got := time.Duration(most) * time.Microsecond; got != min(want, limit) {
				t.Errorf("after %d attempts at most %v, want %v", attempts, got, min(want, limit))
			}
			for range 50 {
				if pause := Backoff(attempts, base, limit).Microseconds(); pause > most {
					t.Fatalf("after %d attempts a pause of %d, at most it is %d", attempts, pause, most)
				}
			}
		}
	})
}
