package sqltest

import (
	"context"
	"testing"

	"pizzaflow/sqldb"
)

// Hold keeps others from writing to a table until release is called. Whatever is
// to be written meanwhile waits, and is written together afterwards. The
// statements are run first, in the transaction that holds the table.
func Hold(t testing.TB, db *sqldb.DB, table string, statements ...string) (release func()) {
	t.Helper()
	tx, err := db.BeginTx(context.WithoutCancel(t.Context()), nil) // SQLite's only connection that writes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback() }) // does nothing after release
	if db.Engine == sqldb.Postgres {
		statements = append([]string{`LOCK TABLE ` + table + ` IN SHARE ROW EXCLUSIVE MODE`}, statements...)
	}
	for _, s := range statements {
		if _, err := tx.Exec(s); err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		t.Helper()
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
	}
}
