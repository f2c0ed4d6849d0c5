package job

import (
	"context"
	"database/sql"
	"log/slog"
	"maps"
	"slices"
	"testing"
	"time"

	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// TestWorkerReadsWhatItTakes has PostgreSQL analyze a table of which nothing is
// due, as on a quiet evening, and then makes thousands of rows due, as when the
// provider was away: taking, renewing and taking over some of them must not read
// all, least of all again for each.
func TestWorkerReadsWhatItTakes(t *testing.T) {
	const all, due, some = 20_000, 6_000, 200
	db := sqltest.Open(t, sqldb.Postgres)
	db.SetMaxOpenConns(1) // whose counters are read
	exec := func(statement string, args ...any) {
		t.Helper()
		if _, err := db.Exec(statement, args...); err != nil {
			t.Fatal(err)
		}
	}
	exec(`CREATE TABLE calls (id TEXT PRIMARY KEY, due_at TIMESTAMPTZ, lease_token TEXT, attempts INTEGER NOT NULL DEFAULT 0) WITH (autovacuum_enabled = false)`)
	exec(`CREATE INDEX calls_due ON calls (due_at) WHERE due_at IS NOT NULL`)
	exec(`INSERT INTO calls (id) SELECT 'call-' || n FROM generate_series(1, $1::INTEGER) n`, all)
	exec(`INSERT INTO calls (id, due_at, lease_token) SELECT 'early-' || n, $1, CASE n % 2 WHEN 0 THEN 'another' END FROM generate_series(1, 10) n`, sqldb.Now().Add(time.Hour))
	exec(`VACUUM ANALYZE calls`)
	exec(`UPDATE calls SET due_at = $1::TIMESTAMPTZ + n * INTERVAL '1 microsecond' FROM generate_series(1, $2::INTEGER) n WHERE id = 'call-' || n`, sqldb.Now().Add(-time.Minute), due)

	read := func() (n int) {
		t.Helper()
		exec(`SELECT pg_stat_force_next_flush()`)
		if err := db.QueryRow(`SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'calls'`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	measure := func(what string, most int, step func(context.Context) (int, error)) {
		t.Helper()
		before := read()
		n, err := step(t.Context())
		if err != nil || n != some {
			t.Fatalf("%s: %d rows, %v; want %d", what, n, err, some)
		}
		if took := read() - before; took > most {
			t.Errorf("%s of %d rows read %d, want at most %d", what, some, took, most)
		}
	}
	over, end := context.WithCancel(t.Context())
	newWorker := func() *Worker {
		w := New(Config{
			DB: db, Table: "calls", Limit: 2 * some, Log: slog.New(slog.DiscardHandler),
			Do: func(context.Context, Job) error { <-over.Done(); return nil },
		})
		w.open, w.ctx, w.answeringSince = true, t.Context(), time.Now().Add(-time.Hour)
		t.Cleanup(w.running.Wait)
		return w
	}
	w, heir := newWorker(), newWorker()
	t.Cleanup(end)
	measure("a take", 4*some, func(ctx context.Context) (int, error) { return w.takeUnleased(ctx, some) })
	measure("a renewal", 4*some, func(context.Context) (n int, err error) {
		held := slices.Collect(maps.Values(w.held))
		err = w.renew(held)
		for _, h := range held {
			if !h.renewalMissed {
				n++
			}
		}
		return n, err
	})
	exec(`UPDATE calls SET due_at = $1 WHERE lease_token <> 'another'`, sqldb.Now().Add(-time.Second))
	// expired leases are looked for among all due rows, once, not for each row again
	measure("a take-over", 2*due+4*some, func(ctx context.Context) (int, error) { return heir.takeOver(ctx, some) })
}

// TestWorkerUnderALongReader has somebody read the database while thousands of
// rows are worked on, as a dump does: PostgreSQL keeps what stood in the index.
// Looking and taking must not step over all of it each time, and rows that
// become due must be found all the same.
func TestWorkerUnderALongReader(t *testing.T) {
	const settled = 20_000
	url := sqltest.URL(t, sqldb.Postgres)
	db, other := sqltest.Connect(t, url), sqltest.Connect(t, url)
	db.SetMaxOpenConns(1) // whose counters are read
	exec := func(statement string, args ...any) {
		t.Helper()
		if _, err := db.Exec(statement, args...); err != nil {
			t.Fatal(err)
		}
	}
	exec(`CREATE TABLE calls (id TEXT PRIMARY KEY, due_at TIMESTAMPTZ, lease_token TEXT, attempts INTEGER NOT NULL DEFAULT 0) WITH (autovacuum_enabled = false)`)
	exec(`CREATE INDEX calls_due ON calls (due_at) WHERE due_at IS NOT NULL`)
	exec(`INSERT INTO calls (id, due_at) SELECT 'call-' || n, $1 FROM generate_series(1, $2::INTEGER) n`, sqldb.Now().Add(-time.Hour), settled)
	exec(`ANALYZE calls`)
	reader, err := other.BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reader.Rollback() }() // it has changed nothing
	if _, err := reader.Exec(`SET LOCAL idle_in_transaction_session_timeout = 0; SELECT count(*) FROM calls`); err != nil {
		t.Fatal(err)
	}
	exec(`UPDATE calls SET due_at = NULL`)

	read := func() (n int) {
		t.Helper()
		exec(`SELECT pg_stat_force_next_flush()`)
		if err := db.QueryRow(`SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'calls_due'`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	over, end := context.WithCancel(t.Context())
	w := New(Config{
		DB: db, Table: "calls", Limit: 10, Log: slog.New(slog.DiscardHandler),
		Do: func(context.Context, Job) error { <-over.Done(); return nil },
	})
	w.open, w.ctx, w.answeringSince = true, t.Context(), time.Now().Add(-time.Hour)
	t.Cleanup(w.running.Wait)
	t.Cleanup(end)
	look := func() time.Duration {
		t.Helper()
		late, err := w.look(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return late
	}
	before := read()
	if late := look(); late >= 0 {
		t.Fatalf("something has been due for %s", late)
	}
	if n := read() - before; n < settled {
		t.Fatalf("the first look read %d entries: nobody holds what was due", n)
	}
	look() // at all once more: the first reading of a clock does not tell whether it was set
	before = read()
	for range 10 {
		look()
		if n, err := w.takeUnleased(t.Context(), 5); err != nil || n != 0 {
			t.Fatalf("took %d rows, %v", n, err)
		}
		if n, err := w.takeOver(t.Context(), 5); err != nil || n != 0 {
			t.Fatalf("took over %d rows, %v", n, err)
		}
	}
	if n := read() - before; n > 100 {
		t.Errorf("ten looks read %d entries", n)
	}
	exec(`UPDATE calls SET due_at = ` + sqldb.Clock + ` WHERE id = 'call-1'`)
	if late := look(); late < 0 {
		t.Error("what became due is not found")
	}
	if n, err := w.takeUnleased(t.Context(), 5); err != nil || n != 1 {
		t.Errorf("took %d rows, %v, want the one that is due", n, err)
	}
	// somebody set an old time by hand, or the clock was set back: found at the next look at all
	exec(`UPDATE calls SET due_at = $1 WHERE id = 'call-2'`, sqldb.Now().Add(-time.Hour))
	w.nextFullLook = time.Time{}
	if late := look(); late < time.Minute {
		t.Errorf("what has been due for an hour is late by %s", late)
	}
	if n, err := w.takeUnleased(t.Context(), 5); err != nil || n != 1 {
		t.Errorf("took %d rows, %v, want the one that has been due for an hour", n, err)
	}
}
