package sqldb_test

import (
	"database/sql"
	"fmt"
	"slices"
	"testing"

	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

var (
	readStock = sqldb.Batch{Columns: `tid TEXT`, SQL: `SELECT s.id, s.n FROM {rows} JOIN stock s ON s.id = v.tid`}
	takeStock = sqldb.Batch{
		Columns: `tid TEXT, taken BIGINT, least BIGINT`,
		SQL:     `UPDATE stock SET n = n - v.taken FROM {rows} WHERE id = v.tid AND n >= v.taken + v.least RETURNING id, n`,
	}
)

func TestBatch(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		if _, err := db.Exec(`CREATE TABLE stock (id TEXT PRIMARY KEY, n BIGINT NOT NULL)`); err != nil {
			t.Fatal(err)
		}
		var all, known [][]any
		var want []string
		for i := range 300 {
			id := fmt.Sprintf("item-%03d", i)
			all = append(all, []any{id, i})
			known = append(known, []any{id})
			if i >= 15 { // 10 are taken, 5 must stay
				want = append(want, fmt.Sprint(id, " ", i-10))
			}
		}
		taken := [][]any{{"nothing", 1, 5}}
		for _, row := range known {
			taken = append(taken, []any{row[0], 10, 5})
		}
		err := db.Tx(t.Context(), func(tx *sql.Tx) error {
			_, err := sqldb.Insert{Into: `INSERT INTO stock (id, n)`, Types: `TEXT, BIGINT`}.Exec(t.Context(), db, tx, all)
			if err != nil {
				return err
			}
			if got := results(t, takeStock, db, tx, taken); !slices.Equal(got, want) {
				t.Errorf("taken %q, want %q", got, want)
			}
			if got := results(t, readStock, db, tx, append(known, []any{"nothing"})); len(got) != 300 || got[299] != want[len(want)-1] {
				t.Errorf("read %q", got)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// results runs the batch and returns the rows of its result, in order.
func results(t *testing.T, b sqldb.Batch, db *sqldb.DB, tx *sql.Tx, rows [][]any) (all []string) {
	t.Helper()
	err := b.Query(t.Context(), db, tx, rows, func(rows *sql.Rows) error {
		var id string
		var n int
		err := rows.Scan(&id, &n)
		all = append(all, fmt.Sprint(id, " ", n))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return slices.Sorted(slices.Values(all))
}

// TestBatchUsesTheIndex has PostgreSQL plan the statements for a table that is
// still empty and without their arguments: the plan of a prepared statement is
// kept while the table grows.
func TestBatchUsesTheIndex(t *testing.T) {
	db := sqltest.Open(t, sqldb.Postgres)
	mustExec(t, db, `CREATE TABLE stock (id TEXT PRIMARY KEY, n BIGINT NOT NULL)`)
	for name, run := range map[string]func(*sql.Tx){
		"read":   func(tx *sql.Tx) { results(t, readStock, db, tx, [][]any{{"a"}, {"b"}}) },
		"change": func(tx *sql.Tx) { results(t, takeStock, db, tx, [][]any{{"a", 1, 0}, {"b", 1, 0}}) },
	} {
		err := db.Tx(t.Context(), func(tx *sql.Tx) error {
			if _, err := tx.Exec(`SET LOCAL plan_cache_mode = force_generic_plan`); err != nil {
				return err
			}
			before := countScans(t, tx, "stock")
			run(tx)
			after := countScans(t, tx, "stock")
			if after.table != before.table || after.index == before.index {
				t.Errorf("%s: scans before %+v and after %+v, want more of the index alone", name, before, after)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// scans are how often a session has read a whole table, and searched its indexes.
type scans struct{ table, index int }

func countScans(t *testing.T, tx *sql.Tx, table string) (n scans) {
	t.Helper()
	err := tx.QueryRow(`SELECT seq_scan, idx_scan FROM pg_stat_xact_user_tables WHERE schemaname = current_schema() AND relname = $1`, table).
		Scan(&n.table, &n.index)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
