package sqldb_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sync/errgroup"

	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

var schema = sqltest.Schema{Name: "things", FS: fstest.MapFS{
	"schema/sqlite/0001_things.sql":   {Data: []byte("-- +goose Up\nCREATE TABLE things (id TEXT PRIMARY KEY, n BIGINT NOT NULL, at TIMESTAMP, note TEXT UNIQUE);")},
	"schema/postgres/0001_things.sql": {Data: []byte("-- +goose Up\nCREATE TABLE things (id TEXT PRIMARY KEY, n BIGINT NOT NULL, at TIMESTAMPTZ, note TEXT UNIQUE);")},
}}

func mustExec(t *testing.T, db *sqldb.DB, query string, args ...any) {
	t.Helper()
	if _, err := db.Exec(query, args...); err != nil {
		t.Fatal(err)
	}
}

func TestTimesComeBackAsTheyWent(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		moscow := time.FixedZone("MSK", 3*60*60)
		now := sqldb.Now()
		for i, at := range []time.Time{now, now.Truncate(time.Second), now.Add(time.Microsecond), now.In(moscow), {}} {
			mustExec(t, db, `INSERT INTO things (id, n, at) VALUES ($1, $2, $3)`, fmt.Sprint(i), i, sqldb.NullTime(at))
			var column, expression time.Time
			if err := db.QueryRow(`SELECT at, MIN(at) FROM things WHERE id = $1 GROUP BY at`, fmt.Sprint(i)).Scan(sqldb.Time(&column), sqldb.Time(&expression)); err != nil {
				t.Fatal(err)
			}
			if !column.Equal(at) || !expression.Equal(at) || (!at.IsZero() && column.Location() != time.UTC) {
				t.Errorf("%v came back as %v, and from MIN as %v", at, column, expression)
			}
		}
		var n int
		if err := db.QueryRow(`SELECT COUNT(*) FROM things WHERE at <= $1`, now).Scan(&n); err != nil || n != 3 {
			t.Errorf("%d times up to now, want 3: the same instant in any zone, and the second before (%v)", n, err)
		}
		if now.Nanosecond()%1000 != 0 {
			t.Errorf("Now has parts of a microsecond: %v", now)
		}
	}, schema)
}

func TestTimesSortAsText(t *testing.T) {
	db := sqltest.Open(t, sqldb.SQLite, schema)
	base := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i, d := range []time.Duration{0, 1, 10, 100_000, 100_001, 500_000, 999_999, 1_000_000} {
		mustExec(t, db, `INSERT INTO things (id, n, at) VALUES ($1, $2, $3)`, fmt.Sprint(i), i, base.Add(d*time.Microsecond))
	}
	rows, err := db.Query(`SELECT n FROM things ORDER BY at`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for want := 0; rows.Next(); want++ {
		var n int
		if err := rows.Scan(&n); err != nil || n != want {
			t.Errorf("row %d is at place %d (%v)", n, want, err)
		}
	}
}

func TestErrorsAreRecognised(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		mustExec(t, db, `INSERT INTO things (id, n, note) VALUES ('a', 1, 'Пицца')`)
		for what, query := range map[string]string{
			"a primary key": `INSERT INTO things (id, n) VALUES ('a', 2)`,
			"a unique":      `INSERT INTO things (id, n, note) VALUES ('b', 2, 'Пицца')`,
		} {
			_, err := db.Exec(query)
			if !sqldb.IsUnique(err) || sqldb.IsUnavailable(err) {
				t.Errorf("violation of %s is not recognised: %v", what, err)
			}
		}
		_, err := db.Exec(`INSERT INTO things (id) VALUES ('c')`)
		if err == nil || sqldb.IsUnique(err) || sqldb.IsUnavailable(err) {
			t.Errorf("a missing value is taken for something else: %v", err)
		}
		if sqldb.IsUnavailable(nil) || sqldb.IsUnavailable(context.Canceled) || sqldb.IsUnavailable(errors.New("bad")) {
			t.Error("any error passes for an unavailable database")
		}
	}, schema)
}

func TestUnavailable(t *testing.T) {
	_, err := sqldb.Open(t.Context(), "postgres://nobody@127.0.0.1:1/none?sslmode=disable")
	if !sqldb.IsUnavailable(err) {
		t.Errorf("a server that is not there: %v", err)
	}
	if strings.Contains(fmt.Sprint(err), "secret") {
		t.Error("the password is shown")
	}
	db := sqltest.Open(t, sqldb.SQLite, schema)
	if _, err := db.Exec(`PRAGMA max_page_count = 1`); err != nil {
		t.Fatal(err)
	}
	_, err = db.Exec(`INSERT INTO things (id, n, note) VALUES ('big', 1, $1)`, strings.Repeat("x", 1<<20))
	if !sqldb.IsUnavailable(err) {
		t.Errorf("a full disk: %v", err)
	}
	if _, err := sqldb.Open(t.Context(), "mysql://x"); !errors.Is(err, sqldb.ErrURL) {
		t.Errorf("a URL of no engine: %v", err)
	}
}

func TestTxCommitsOrUndoes(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		undo := errors.New("undo")
		err := db.Tx(t.Context(), func(tx *sql.Tx) error {
			if _, err := tx.Exec(`INSERT INTO things (id, n) VALUES ('undone', 1)`); err != nil {
				return err
			}
			return undo
		})
		if !errors.Is(err, undo) {
			t.Errorf("got %v", err)
		}
		func() {
			defer func() {
				if recover() == nil {
					t.Error("a panic was swallowed")
				}
			}()
			_ = db.Tx(t.Context(), func(*sql.Tx) error { panic("oops") })
		}()
		if err := db.Tx(t.Context(), func(tx *sql.Tx) error {
			_, err := tx.Exec(`INSERT INTO things (id, n) VALUES ('done', 1)`)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		var ids string
		if err := db.Read().QueryRow(`SELECT MIN(id) || MAX(id) FROM things`).Scan(&ids); err != nil || ids != "donedone" {
			t.Errorf("there is %q (%v), want only what was committed", ids, err)
		}
	}, schema)
}

// Two transactions that lock the same rows in opposite orders both commit, one of
// them at the second try.
func TestDeadlocksAreRunAgain(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		mustExec(t, db, `INSERT INTO things (id, n) VALUES ('a', 0), ('b', 0)`)
		var runs atomic.Int64
		var wg sync.WaitGroup
		var locked atomic.Int64
		both := make(chan struct{}) // closed when both transactions have their first lock
		for _, order := range [][2]string{{"a", "b"}, {"b", "a"}} {
			wg.Go(func() {
				err := db.Tx(context.Background(), func(tx *sql.Tx) error {
					runs.Add(1)
					for i, id := range order {
						if _, err := tx.Exec(`UPDATE things SET n = n + 1 WHERE id = $1`, id); err != nil {
							return err
						}
						if i > 0 || db.Engine != sqldb.Postgres || runs.Load() > 2 {
							continue
						}
						if locked.Add(1) == 2 {
							close(both)
						}
						select {
						case <-both:
						case <-time.After(30 * time.Second):
							return errors.New("the other transaction did not get its first lock in 30 s")
						}
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		var n, m int
		if err := db.QueryRow(`SELECT MIN(n), MAX(n) FROM things`).Scan(&n, &m); err != nil || n != 2 || m != 2 {
			t.Errorf("counts are %d and %d (%v), want 2 and 2", n, m, err)
		}
		if db.Engine == sqldb.Postgres && runs.Load() < 3 {
			t.Errorf("%d runs: there was no deadlock", runs.Load())
		}
	}, schema)
}

// Of many conditional updates of one row exactly one finds it unchanged.
func TestConditionalUpdateHasOneWinner(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		mustExec(t, db, `INSERT INTO things (id, n) VALUES ('a', 0)`)
		var wins atomic.Int64
		var wg sync.WaitGroup
		for range 32 {
			wg.Go(func() {
				res, err := db.Exec(`UPDATE things SET n = 1 WHERE id = 'a' AND n = 0`)
				if err != nil {
					t.Error(err)
					return
				}
				if n, err := res.RowsAffected(); err == nil {
					wins.Add(n)
				}
			})
		}
		wg.Wait()
		if wins.Load() != 1 {
			t.Errorf("%d winners", wins.Load())
		}
	}, schema)
}

func TestMigrateManyAtOnceAndAgain(t *testing.T) {
	for _, engine := range []sqldb.Engine{sqldb.SQLite, sqldb.Postgres} {
		t.Run(string(engine), func(t *testing.T) {
			url := sqltest.URL(t, engine)
			replicas := 4
			if engine == sqldb.SQLite {
				replicas = 1 // one process owns the file
			}
			var wg sync.WaitGroup
			for range replicas {
				db := sqltest.Connect(t, url)
				wg.Go(func() {
					for range 2 {
						if err := db.Migrate(context.Background(), schema.Name, schema.FS); err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			db := sqltest.Connect(t, url)
			var version int
			if err := db.QueryRow(`SELECT MAX(version_id) FROM things_migrations`).Scan(&version); err != nil || version != 1 {
				t.Errorf("version %d (%v), want 1", version, err)
			}
		})
	}
}

// Of many processes that start at once one creates the schema, and the session of
// each is in it.
func TestSchemaIsMadeByOneOfMany(t *testing.T) {
	server := sqltest.Database(t, "")
	for round := range 6 {
		var all sync.WaitGroup
		for range 6 {
			all.Go(func() {
				db, err := sqldb.Open(context.Background(), fmt.Sprintf("%s&search_path=s%d", server, round))
				if err == nil {
					err = errors.Join(db.Migrate(context.Background(), schema.Name, schema.FS), db.Close())
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	}
}

func TestSQLiteIsDurableAndPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new folder?")
	db := sqltest.Connect(t, "sqlite:"+filepath.Join(dir, "a b.db"), schema)
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1"} {
		var got string
		if err := db.QueryRow(`PRAGMA ` + pragma).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %q (%v), want %q", pragma, got, err, want)
		}
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder has mode %v (%v), want 0700", info.Mode(), err)
	}
	if info, err := os.Stat(filepath.Join(dir, "a b.db")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file has mode %v (%v), want 0600", info.Mode(), err)
	}
	var version string
	if err := db.QueryRow(`SELECT sqlite_version()`).Scan(&version); err != nil || version < "3.51.3" {
		t.Errorf("SQLite %s (%v): before 3.51.3 a reset of the write-ahead log can corrupt the file", version, err)
	}
	// a reader does not wait for the writer
	err = db.Tx(t.Context(), func(tx *sql.Tx) error {
		if _, err := tx.Exec(`INSERT INTO things (id, n) VALUES ('a', 1)`); err != nil {
			return err
		}
		var n int
		if err := db.Read().QueryRow(`SELECT COUNT(*) FROM things`).Scan(&n); err != nil || n != 0 {
			t.Errorf("a reader sees %d rows (%v), want none before the commit", n, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Read().Exec(`INSERT INTO things (id, n) VALUES ('b', 1)`); err == nil {
		t.Error("the read pool writes")
	}
}

func TestLists(t *testing.T) {
	if got := sqldb.Values(2, 3); got != "($1,$2),($3,$4),($5,$6)" {
		t.Errorf("Values: %s", got)
	}
	if got := sqldb.List(2, 3); got != "$2,$3,$4" {
		t.Errorf("List: %s", got)
	}
	var sizes []int
	if err := sqldb.Chunks(103, 32, func(from, to int) error { sizes = append(sizes, to-from); return nil }); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(sizes); got != "[32 32 32 4 2 1]" {
		t.Errorf("Chunks: %s", got)
	}
}

func TestInsert(t *testing.T) {
	insert := sqldb.Insert{
		Into: `INSERT INTO things (id, n, at, note)`, Types: "TEXT, BIGINT, TIMESTAMPTZ, TEXT",
		Then: `ON CONFLICT (id) DO UPDATE SET note = excluded.note WHERE things.n = 2`,
	}
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		now := sqldb.Now()
		put := func(wanted int64, rows ...[]any) {
			t.Helper()
			err := db.Tx(t.Context(), func(tx *sql.Tx) error {
				n, err := insert.Exec(t.Context(), db, tx, rows)
				if err == nil && n != wanted {
					t.Errorf("%d rows went in, want %d", n, wanted)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		}
		put(0)
		put(1, []any{"a", 1, now, "α"})
		put(0, []any{"a", 1, now, "other"})
		put(2, []any{"a", 1, now, "other"}, []any{"b", 2, nil, sql.NullString{}}, []any{"c", 3, now, "γ"})
		put(1, []any{"b", 0, now, "β"}, []any{"c", 0, now, "other"})
		var got string
		rows, err := db.Query(`SELECT id, n, at, COALESCE(note, 'none') FROM things ORDER BY id`)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var id, note string
			var n int
			var at time.Time
			if err := rows.Scan(&id, &n, sqldb.Time(&at), &note); err != nil {
				t.Fatal(err)
			}
			got += fmt.Sprint(id, n, note, at.Equal(now), " ")
		}
		if want := "a1αtrue b2βfalse c3γtrue "; got != want || rows.Err() != nil {
			t.Errorf("stored %q, want %q (%v)", got, want, rows.Err())
		}
		ended, cancel := context.WithCancel(t.Context())
		err = db.Tx(t.Context(), func(tx *sql.Tx) error {
			cancel()
			_, err := insert.Exec(ended, db, tx, [][]any{{"d", 4, nil, nil}, {"e", 5, nil, nil}})
			return err
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("inserted although the context has ended: %v", err)
		}
	}, schema)
}

// After a restart of the server the broken connections of the pool fail no
// transaction.
func TestTxOnStaleConnections(t *testing.T) {
	db := sqltest.Open(t, sqldb.Postgres)
	const n = 6
	var begun sync.WaitGroup // so that each has a connection of its own
	begun.Add(n)
	var g errgroup.Group
	pids := make([]int, n)
	for i := range n {
		g.Go(func() error {
			return db.Tx(t.Context(), func(tx *sql.Tx) error {
				begun.Done()
				begun.Wait()
				return tx.QueryRow(`SELECT pg_backend_pid()`).Scan(&pids[i])
			})
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	other := sqltest.Open(t, sqldb.Postgres)
	for _, pid := range pids {
		if _, err := other.Exec(`SELECT pg_terminate_backend($1, 10000)`, pid); err != nil {
			t.Fatal(err)
		}
	}
	for range n {
		if err := db.Tx(t.Context(), func(tx *sql.Tx) error { _, err := tx.Exec(`SELECT 1`); return err }); err != nil {
			t.Error(err)
		}
	}
}

// TestAnOlderProgramStartsOnNewerTables is for an upgrade with processes of both
// versions: one of the old version may start again after one of the new version has
// migrated.
func TestAnOlderProgramStartsOnNewerTables(t *testing.T) {
	newer := fstest.MapFS{
		"schema/sqlite/0002_more.sql":   {Data: []byte("-- +goose Up\nALTER TABLE things ADD COLUMN more TEXT;")},
		"schema/postgres/0002_more.sql": {Data: []byte("-- +goose Up\nALTER TABLE things ADD COLUMN more TEXT;")},
	}
	maps.Copy(newer, schema.FS.(fstest.MapFS))
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		for _, fsys := range []fs.FS{newer, schema.FS, newer} {
			if err := db.Migrate(t.Context(), schema.Name, fsys); err != nil {
				t.Fatal(err)
			}
			mustExec(t, db, `INSERT INTO things (id, n, more) VALUES ('margherita', 1, 'basil') ON CONFLICT DO NOTHING`)
		}
	}, schema)
}

// TestClock compares stored times with the clock of the database, for which
// PostgreSQL uses an index.
func TestClock(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		mustExec(t, db, `INSERT INTO things (id, n, at) VALUES ('x', 1, `+db.Later("$1")+`)`, (90 * time.Minute).Microseconds())
		for after, want := range map[time.Duration]int{89 * time.Minute: 0, 91 * time.Minute: 1, -time.Hour: 0} {
			var n int
			if err := db.QueryRow(`SELECT COUNT(*) FROM things WHERE id = $1 AND at <= `+db.Later("$2"), "x", after.Microseconds()).Scan(&n); err != nil || n != want {
				t.Errorf("%v from now, of what is 90 minutes off: %d, %v; want %d", after, n, err, want)
			}
		}
		if db.Engine == sqldb.SQLite {
			return
		}
		mustExec(t, db, `CREATE INDEX things_at ON things (at)`)
		mustExec(t, db, `INSERT INTO things (id, n, at) SELECT 'x' || i, i, now() FROM generate_series(1, 10000) i`)
		mustExec(t, db, `ANALYZE things`)
		var plan string
		if err := db.QueryRow(`EXPLAIN (FORMAT JSON) SELECT id FROM things WHERE at <= `+db.Later("$1")+` ORDER BY at LIMIT 10`, -time.Hour.Microseconds()).Scan(&plan); err != nil || !strings.Contains(plan, `"Index Cond": "(at <=`) {
			t.Errorf("the time is not looked for in the index: %s, %v", plan, err)
		}
	}, schema)
}
