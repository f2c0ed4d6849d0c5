package sqldb_test

import (
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

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
// still empty: the plan of a prepared statement is kept while the table grows.
func TestBatchUsesTheIndex(t *testing.T) {
	db := sqltest.Open(t, sqldb.Postgres)
	if _, err := db.Exec(`CREATE TABLE stock (id TEXT PRIMARY KEY, n BIGINT NOT NULL)`); err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{readStock.Many(), takeStock.Many()} {
		plan := genericPlan(t, db, statement)
		if !strings.Contains(plan, "Index Scan using stock_pkey") || strings.Contains(plan, "Seq Scan") {
			t.Errorf("%s\nis planned as\n%s", statement, plan)
		}
	}
}

// genericPlan is how a statement is planned without its arguments.
func genericPlan(t *testing.T, db *sqldb.DB, statement string) string {
	t.Helper()
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var plan []byte
	err = conn.Raw(func(driver any) error {
		results, err := driver.(interface{ Conn() *pgx.Conn }).Conn().PgConn().Exec(t.Context(), `EXPLAIN (GENERIC_PLAN) `+statement).ReadAll()
		for _, r := range results {
			for _, row := range r.Rows {
				plan = append(append(plan, row[0]...), '\n')
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(plan)
}
