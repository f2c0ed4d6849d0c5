package sqldb_test

import (
	"context"
	"database/sql"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

var (
	intoTasks   = sqldb.Insert{Into: `INSERT INTO tasks (id, due_at)`, Types: `TEXT, CLOCK`}
	updateTasks = sqldb.Batch{Columns: `tid TEXT, due CLOCK`, SQL: `UPDATE tasks SET due_at = v.due FROM {rows} WHERE id = v.tid RETURNING id`}
)

// tasks is a table with due times; its type is each engine's own.
func tasks(t *testing.T, db *sqldb.DB) {
	t.Helper()
	kind := map[sqldb.Engine]string{sqldb.SQLite: "TIMESTAMP", sqldb.Postgres: "TIMESTAMPTZ"}[db.Engine]
	if _, err := db.Exec(`CREATE TABLE tasks (id TEXT PRIMARY KEY, due_at ` + kind + `)`); err != nil {
		t.Fatal(err)
	}
}

// dueIn is the time from now, by the clock, until a task is due; minus a day when
// it never is.
func dueIn(t *testing.T, db *sqldb.DB, id string) time.Duration {
	t.Helper()
	var due, now time.Time
	err := db.QueryRow(`SELECT due_at, `+sqldb.Clock+` FROM tasks WHERE id = $1`, id).Scan(sqldb.Time(&due), sqldb.Time(&now))
	if err != nil {
		t.Fatal(err)
	}
	if due.IsZero() {
		return -24 * time.Hour
	}
	return due.Sub(now)
}

// Times by the clock can be written, for one row or many, and compared, and NULL
// stays NULL.
func TestTimesByTheClock(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		tasks(t, db)
		between := func(id string, least, most time.Duration) {
			t.Helper()
			if in := dueIn(t, db, id); in < least || in > most {
				t.Errorf("%s is due in %v, want between %v and %v", id, in, least, most)
			}
		}
		hour := time.Hour.Microseconds()
		err := db.Tx(t.Context(), func(tx *sql.Tx) error {
			if _, err := intoTasks.Exec(t.Context(), db, tx, [][]any{{"one", hour}}); err != nil {
				return err
			}
			_, err := intoTasks.Exec(t.Context(), db, tx, [][]any{{"soon", int64(0)}, {"late", 2 * hour}, {"never", nil}})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		between("one", 59*time.Minute, time.Hour)
		between("soon", -time.Minute, 0)
		between("late", 119*time.Minute, 2*time.Hour)
		between("never", -24*time.Hour, -24*time.Hour)

		err = db.Tx(t.Context(), func(tx *sql.Tx) error {
			return updateTasks.Query(t.Context(), db, tx, [][]any{{"one", nil}, {"late", -hour}}, func(*sql.Rows) error { return nil })
		})
		if err != nil {
			t.Fatal(err)
		}
		between("one", -24*time.Hour, -24*time.Hour)
		between("late", -61*time.Minute, -time.Hour)
		if _, err := db.Exec(`UPDATE tasks SET due_at = `+db.Later("$1")+` WHERE id = 'soon'`, hour); err != nil {
			t.Fatal(err)
		}
		between("soon", 59*time.Minute, time.Hour)

		var due, later int
		if err := db.QueryRow(`SELECT COUNT(*) FROM tasks WHERE due_at <= ` + sqldb.Clock).Scan(&due); err != nil {
			t.Fatal(err)
		}
		if err := db.QueryRow(`SELECT COUNT(*) FROM tasks WHERE due_at <= `+db.Later("$1"), 2*hour).Scan(&later); err != nil {
			t.Fatal(err)
		}
		if due != 1 || later != 2 {
			t.Errorf("%d tasks are due and %d in two hours, want 1 and 2", due, later)
		}
	})
}

// On SQLite the clock is the process's, whose time a test may move; the times that it
// writes compare with times that are written as arguments.
func TestClockIsVirtualOnSQLite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db, err := sqldb.Open(context.Background(), "sqlite:"+filepath.Join(t.TempDir(), "test.db"))
		if err != nil {
			t.Fatal(err)
		}
		tasks(t, db)
		if _, err := db.Exec(`INSERT INTO tasks (id, due_at) VALUES ('a', $1)`, sqldb.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		due := func() (n int) {
			if err := db.Read().QueryRow(`SELECT COUNT(*) FROM tasks WHERE due_at <= ` + sqldb.Clock).Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		early := due()
		time.Sleep(time.Hour) // virtual
		if late := due(); early != 0 || late != 1 {
			t.Errorf("due before and after: %d and %d, want 0 and 1", early, late)
		}
		if in := dueIn(t, db, "a"); in != 0 {
			t.Errorf("due in %v", in)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// PostgreSQL uses the index to compare due times with the clock.
func TestClockLeavesTheIndexInUse(t *testing.T) {
	db := sqltest.Open(t, sqldb.Postgres)
	tasks(t, db)
	_, err := db.Exec(`INSERT INTO tasks SELECT n::TEXT, now() + INTERVAL '1 hour' FROM generate_series(1, 10000) n`)
	if err == nil {
		_, err = db.Exec(`CREATE INDEX tasks_due ON tasks (due_at)`)
	}
	if err == nil {
		_, err = db.Exec(`ANALYZE tasks`)
	}
	if err != nil {
		t.Fatal(err)
	}
	rows, err := db.Query(`EXPLAIN (ANALYZE, FORMAT TEXT) SELECT id FROM tasks WHERE due_at <= ` + sqldb.Clock + ` ORDER BY due_at LIMIT 10`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	plan, searched := "", false
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			t.Fatal(err)
		}
		plan += line + "\n"
		searched = searched || strings.Contains(line, "Index Cond: (due_at <=")
	}
	if err := rows.Err(); err != nil || !searched {
		t.Errorf("the index is not searched, %v:\n%s", err, plan)
	}
}

// A clock that advances as time does is steady; one that is set forward or back is
// not.
func TestClockWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const slack = 100 * time.Millisecond
		var w sqldb.ClockWatch
		shift := time.Duration(0)
		read := func(pass, takes time.Duration) time.Duration {
			time.Sleep(pass) // virtual
			asked := time.Now()
			time.Sleep(takes / 2)
			said := sqldb.Now().Add(shift)
			time.Sleep(takes - takes/2)
			return w.Observe(said, asked, slack)
		}
		if read(0, 0) != 0 {
			t.Error("steady at the first reading")
		}
		for _, step := range []struct {
			set, pass, takes time.Duration
			steady           time.Duration
		}{
			{0, time.Second, 0, time.Second},
			{0, time.Hour, 30 * time.Second, time.Hour + 31*time.Second},
			{0, time.Second, 0, time.Hour + 32*time.Second},
			{50 * time.Millisecond, time.Second, 0, time.Hour + 33*time.Second},
			{20 * time.Minute, time.Second, time.Second, 0},
			{0, time.Second, 0, time.Second},
			{-25 * time.Hour, time.Second, time.Second, 0},
			{0, time.Minute, 0, time.Minute},
		} {
			before := sqldb.Now().Add(shift)
			shift += step.set
			if got := read(step.pass, step.takes); got != step.steady {
				t.Errorf("%+v: steady for %v", step, got)
			}
			if ahead := w.SetForwardSince(before); step.steady != 0 && ahead != 0 || step.set > time.Minute && (ahead < step.set-2*time.Second || ahead > step.set) {
				t.Errorf("%+v: ahead by %v", step, ahead)
			}
		}
	})
}
