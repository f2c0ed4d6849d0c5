// Package jobtest has a table of jobs for tests.
package jobtest

import (
	"context"
	"fmt"
	"testing"

	"pizzaflow/job"
	"pizzaflow/sqldb"
)

// Table makes the table jobs with n rows that are due, job-0 to job-(n-1).
func Table(t testing.TB, db *sqldb.DB, n int) {
	t.Helper()
	_, err := db.Exec(`CREATE TABLE jobs (id TEXT PRIMARY KEY, due_at TIMESTAMP, lease_token TEXT, attempts INTEGER NOT NULL DEFAULT 0, done INTEGER NOT NULL DEFAULT 0)`)
	if db.Engine == sqldb.Postgres {
		if err == nil {
			_, err = db.Exec(`ALTER TABLE jobs ALTER COLUMN due_at TYPE TIMESTAMPTZ`)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if _, err := db.Exec(`INSERT INTO jobs (id, due_at) VALUES ($1, $2)`, fmt.Sprint("job-", i), sqldb.Now()); err != nil {
			t.Fatal(err)
		}
	}
}

// Settle counts in the table that a job is done, once more, and returns how many
// rows that changed: 0 where the lease was lost.
func Settle(ctx context.Context, db *sqldb.DB, j job.Job) (int64, error) {
	res, err := db.ExecContext(ctx, `UPDATE jobs SET done = done + 1, due_at = NULL, lease_token = NULL WHERE id = $1 AND lease_token = $2`, j.ID, j.Token)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}
