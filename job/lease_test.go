package job_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"pizzaflow/internal/testkit"
	"pizzaflow/job"
	"pizzaflow/job/jobtest"
	"pizzaflow/outbox"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// Do may settle a row so that it is due again before Do returns. The second
// lease keeps the row, although the end of the first call comes later.
func TestRowTakenAgainBeforeTheCallEnded(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		jobtest.Table(t, db, 1)
		var calls atomic.Int64
		again, finish := make(chan struct{}), make(chan struct{})
		testkit.Run(t, job.New(job.Config{DB: db, Table: "jobs", Limit: 3, Lease: 200 * time.Millisecond, Log: slog.New(slog.DiscardHandler), Do: func(ctx context.Context, j job.Job) error {
			switch calls.Add(1) {
			case 1:
				if _, err := db.ExecContext(ctx, `UPDATE jobs SET due_at = $1, lease_token = NULL WHERE id = $2 AND lease_token = $3`, sqldb.Now(), j.ID, j.Token); err != nil {
					t.Error(err)
				}
				<-again
				return nil
			case 2:
				close(again)
				<-finish
			default:
				t.Error("a third call while the second is under way")
			}
			_, err := jobtest.Settle(ctx, db, j)
			return err
		}}).Run)
		<-again
		renewals(t, db, "job-0", 5)
		close(finish)
		testkit.Eventually(t, "it is done", func() bool { return sqltest.Count(t, db, `SELECT COUNT(*) FROM jobs WHERE done = 1`) == 1 })
	})
}

// A lease that ran out before its transaction was committed is void, but the row
// that was taken meanwhile is held.
func TestLeaseThatRanOutBeforeItsCommit(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		jobtest.Table(t, db, 0)
		var calls atomic.Int64
		taken, finish := make(chan struct{}, 10), make(chan struct{})
		w := job.New(job.Config{DB: db, Table: "jobs", Limit: 3, Lease: 200 * time.Millisecond, Log: slog.New(slog.DiscardHandler), Do: func(ctx context.Context, j job.Job) error {
			calls.Add(1)
			taken <- struct{}{}
			<-finish
			_, err := jobtest.Settle(ctx, db, j)
			return err
		}})
		testkit.Run(t, w.Run)
		handOver(t, db, w, "first")
		<-taken // it runs
		err := outbox.New(db, "/test").Tx(t.Context(), func(tx *outbox.Tx) error {
			l := w.Lease(1)
			tx.AfterCommit(func() { <-taken }) // another function that takes its time
			l.Begin(tx, "late", nil)
			_, err := tx.Exec(`INSERT INTO jobs (id, due_at, lease_token, attempts) VALUES ('late', `+db.Later("$1")+`, $2, $3)`, l.DueIn.Microseconds(), l.Token, l.Attempts)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		renewals(t, db, "late", 8)
		if n := calls.Load(); n != 2 {
			t.Errorf("%d calls for two rows", n)
		}
		close(finish)
		testkit.Eventually(t, "both are done", func() bool { return sqltest.Count(t, db, `SELECT COUNT(*) FROM jobs WHERE done = 1`) == 2 })
	})
}

// Rows that are handed over leave capacity for rows that are due in the table.
func TestRowsHandedOverStarveNoOthers(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		jobtest.Table(t, db, 0)
		w := job.New(job.Config{DB: db, Table: "jobs", Limit: 1, Log: slog.New(slog.DiscardHandler), Do: func(ctx context.Context, j job.Job) error {
			<-time.After(5 * time.Millisecond) // the call
			_, err := jobtest.Settle(ctx, db, j)
			return err
		}})
		testkit.Run(t, w.Run)
		for i := range 4 {
			handOver(t, db, w, fmt.Sprint("ahead-", i))
		}
		if _, err := db.Exec(`INSERT INTO jobs (id, due_at) VALUES ('old', $1)`, sqldb.Now().Add(-time.Second)); err != nil {
			t.Fatal(err)
		}
		n := 0
		for ; n < 600 && sqltest.Count(t, db, `SELECT done FROM jobs WHERE id = 'old'`) == 0; n++ {
			testkit.Eventually(t, "as many are done as come", func() bool { return sqltest.Count(t, db, `SELECT COUNT(*) FROM jobs WHERE done = 0`) <= 6 })
			handOver(t, db, w, fmt.Sprint("new-", n))
		}
		if sqltest.Count(t, db, `SELECT done FROM jobs WHERE id = 'old'`) == 0 {
			t.Errorf("%d new rows went before one that was due", n)
		}
	})
}

// One row that somebody has locked keeps neither the leases of others from
// being renewed, nor other rows from being taken over. (SQLite's one writer locks
// everything.)
func TestLockedRowHoldsUpNoOthers(t *testing.T) {
	db := sqltest.Open(t, sqldb.Postgres)
	jobtest.Table(t, db, 3)
	begun, finish := make(chan struct{}, 10), make(chan struct{})
	w := job.New(job.Config{DB: db, Table: "jobs", Lease: time.Second, Log: slog.New(slog.DiscardHandler), Do: func(ctx context.Context, j job.Job) error {
		begun <- struct{}{}
		<-finish
		_, err := jobtest.Settle(ctx, db, j)
		return err
	}})
	testkit.Run(t, w.Run)
	for range 3 {
		<-begun
	}
	tx, err := db.Begin()
	if err == nil {
		_, err = tx.Exec(`UPDATE jobs SET done = done WHERE id = 'job-1'`)
	}
	if err != nil {
		t.Fatal(err)
	}
	renewals(t, db, "job-2", 3)
	var due time.Time
	if err := db.QueryRow(`SELECT due_at FROM jobs WHERE id = 'job-2'`).Scan(sqldb.Time(&due)); err != nil {
		t.Fatal(err)
	}
	if !due.After(sqldb.Now()) {
		t.Errorf("the lease of a row that is worked on ran out %s ago", sqldb.Now().Sub(due))
	}
	close(finish)
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "all is done", func() bool { return sqltest.Count(t, db, `SELECT COUNT(*) FROM jobs WHERE done = 1`) == 3 })
}

// A worker whose row another process took, failed at and let go, cannot settle
// it any more, although the next to take it is of the same process.
func TestStaleLeaseSettlesNothing(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		jobtest.Table(t, db, 1)
		began := [2]chan job.Job{make(chan job.Job, 1), make(chan job.Job, 1)}
		resume := [2]chan struct{}{make(chan struct{}), make(chan struct{})}
		settled := make(chan int64, 2)
		var calls atomic.Int64
		testkit.Run(t, job.New(job.Config{DB: db, Table: "jobs", Lease: time.Minute, Log: slog.New(slog.DiscardHandler), Do: func(ctx context.Context, j job.Job) error {
			n := calls.Add(1) - 1
			began[n] <- j
			<-resume[n]
			done, err := jobtest.Settle(ctx, db, j)
			settled <- done
			return err
		}}).Run)
		first := <-began[0]
		if _, err := db.Exec(`UPDATE jobs SET lease_token = NULL, due_at = ` + sqldb.Clock + `, attempts = attempts + 1`); err != nil {
			t.Fatal(err)
		}
		second := <-began[1]
		if first.Token == second.Token || second.Attempt != 3 {
			t.Errorf("leases %+v and %+v", first, second)
		}
		for i, want := range []int64{0, 1} {
			close(resume[i])
			if n := <-settled; n != want {
				t.Errorf("lease %d settled %d rows, want %d", i+1, n, want)
			}
		}
	})
}
