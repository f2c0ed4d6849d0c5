package job_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
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

func TestJobsAreSharedAndDoneOnce(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		jobtest.Table(t, db, 200)
		var calls, atOnce, most atomic.Int64
		for range 3 {
			testkit.Run(t, job.New(job.Config{DB: db, Table: "jobs", Limit: 5, Lease: time.Minute, Log: slog.New(slog.DiscardHandler), Do: func(ctx context.Context, j job.Job) error {
				calls.Add(1)
				if n := atOnce.Add(1); n > most.Load() {
					most.Store(n)
				}
				defer atOnce.Add(-1)
				_, err := jobtest.Settle(ctx, db, j)
				return err
			}}).Run)
		}
		testkit.Eventually(t, "all is done", func() bool { return sqltest.Count(t, db, `SELECT COUNT(*) FROM jobs WHERE done = 1`) == 200 })
		if calls.Load() != 200 {
			t.Errorf("%d calls for 200 jobs", calls.Load())
		}
		if most.Load() > 15 {
			t.Errorf("%d calls at once, three workers may make 15", most.Load())
		}
	})
}

// While results are stored, other calls are made: as many again as the limit, and
// never more calls at once than that.
func TestStoringHoldsUpNoCalls(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		const limit, all = 3, 20
		jobtest.Table(t, db, all)
		var calls, calling, inHand, most atomic.Int64
		store := make(chan struct{})
		testkit.Run(t, job.New(job.Config{DB: db, Table: "jobs", Limit: limit, Lease: time.Minute, Log: slog.New(slog.DiscardHandler), Do: func(ctx context.Context, j job.Job) error {
			calls.Add(1)
			most.Store(max(most.Load(), inHand.Add(1)))
			if n := calling.Add(1); n > limit {
				t.Errorf("%d calls at once, want %d", n, limit)
			}
			for range 10_000 { // every call that may begin does
				runtime.Gosched()
			}
			calling.Add(-1)
			j.CallDone()
			j.CallDone() // once is enough
			select {
			case <-store:
			case <-t.Context().Done():
			}
			_, err := jobtest.Settle(ctx, db, j)
			inHand.Add(-1)
			return err
		}}).Run)
		for n := range int64(all - 2*limit + 1) {
			testkit.Eventually(t, "the next is called", func() bool { return calls.Load() == 2*limit+n })
			store <- struct{}{}
		}
		close(store)
		testkit.Eventually(t, "all is done", func() bool { return sqltest.Count(t, db, `SELECT COUNT(*) FROM jobs WHERE done = 1`) == all })
		if most.Load() != 2*limit || calls.Load() != all {
			t.Errorf("%d calls, %d in hand, want %d and %d", calls.Load(), most.Load(), all, 2*limit)
		}
	})
}

func TestJobThatFailsOrPanicsComesBack(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		jobtest.Table(t, db, 1)
		testkit.Run(t, job.New(job.Config{DB: db, Table: "jobs", Log: slog.New(slog.DiscardHandler), Do: func(ctx context.Context, j job.Job) error {
			switch j.Attempt {
			case 1:
				return errors.New("no answer")
			case 2:
				panic("oops")
			}
			_, err := jobtest.Settle(ctx, db, j)
			return err
		}}).Run)
		testkit.Eventually(t, "the third attempt settles it", func() bool {
			return sqltest.Count(t, db, `SELECT COUNT(*) FROM jobs WHERE done = 1 AND attempts = 3`) == 1
		})
	})
}

// dies takes a row and stands still for good, as a process does that was killed.
func dies(ctx context.Context, t *testing.T, db *sqldb.DB, lease time.Duration) (token string) {
	t.Helper()
	token = "the dead one's"
	if _, err := db.ExecContext(ctx, `UPDATE jobs SET lease_token = $1, due_at = $2, attempts = attempts + 1`, token, sqldb.Now().Add(lease)); err != nil {
		t.Fatal(err)
	}
	return token
}

// A row that a dead process left undone is taken when its lease has run out, and
// its late settlement changes nothing.
func TestLeaseRunsOut(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		const lease = time.Second // a statement that takes longer is void, and one attempt more
		jobtest.Table(t, db, 1)
		dead := job.Job{ID: "job-0", Token: dies(t.Context(), t, db, lease)}
		began := time.Now()
		testkit.Run(t, job.New(job.Config{DB: db, Table: "jobs", Lease: lease, Log: slog.New(slog.DiscardHandler), Do: func(ctx context.Context, j job.Job) error {
			if took := time.Since(began); took < lease {
				t.Errorf("the row was taken after %s, while its lease ran", took)
			}
			if n, err := jobtest.Settle(ctx, db, dead); n != 0 || err != nil {
				t.Errorf("the first lease settled %d rows after the second had taken them, %v", n, err)
			}
			n, err := jobtest.Settle(ctx, db, j)
			if n != 1 || j.Attempt != 2 {
				t.Errorf("the second lease settled %d rows at attempt %d", n, j.Attempt)
			}
			return err
		}}).Run)
		testkit.Eventually(t, "the row is taken again", func() bool { return sqltest.Count(t, db, `SELECT done FROM jobs`) == 1 })
	})
}

// A process that has only just reached the database takes over no expired lease:
// the holder may have been kept from the database as well, and renew now.
func TestWorkerWaitsBeforeItTakesOver(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		jobtest.Table(t, db, 2)
		dies(t.Context(), t, db, -time.Hour)
		if _, err := db.Exec(`UPDATE jobs SET lease_token = NULL WHERE id = 'job-1'`); err != nil {
			t.Fatal(err)
		}
		start := func(lease time.Duration) (stop func()) {
			began := time.Now()
			return testkit.Run(t, job.New(job.Config{DB: db, Table: "jobs", Lease: lease, Log: slog.New(slog.DiscardHandler), Do: func(ctx context.Context, j job.Job) error {
				if took := time.Since(began); j.ID == "job-0" && took < lease {
					t.Errorf("another's row was taken after %s, want %s at least", took, lease)
				}
				_, err := jobtest.Settle(ctx, db, j)
				return err
			}}).Run)
		}
		stop := start(time.Hour)
		testkit.Eventually(t, "the row that nobody holds is taken at once", func() bool { return sqltest.Count(t, db, `SELECT done FROM jobs WHERE id = 'job-1'`) == 1 })
		stop()
		start(700 * time.Millisecond)
		testkit.Eventually(t, "all is done", func() bool { return sqltest.Count(t, db, `SELECT COUNT(*) FROM jobs WHERE done = 1`) == 2 })
	})
}

// An exclusive worker does not wait for the leases of dead processes.
func TestExclusiveWorkerTakesOverAtOnce(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		jobtest.Table(t, db, 3)
		dies(t.Context(), t, db, time.Hour)
		testkit.Run(t, job.New(job.Config{DB: db, Table: "jobs", Lease: time.Hour, Exclusive: true, Log: slog.New(slog.DiscardHandler), Do: func(ctx context.Context, j job.Job) error {
			_, err := jobtest.Settle(ctx, db, j)
			return err
		}}).Run)
		testkit.Eventually(t, "all is done", func() bool { return sqltest.Count(t, db, `SELECT COUNT(*) FROM jobs WHERE done = 1`) == 3 })
	})
}

// A call that takes many times its lease keeps the row, and what waits for it
// as well; two other workers do not get them.
func TestLeaseIsRenewed(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		jobtest.Table(t, db, 1)
		var calls atomic.Int64
		begun, finish := make(chan struct{}), make(chan struct{})
		cfg := job.Config{DB: db, Table: "jobs", Limit: 1, Lease: 2 * time.Second, Log: slog.New(slog.DiscardHandler), Do: func(ctx context.Context, j job.Job) error {
			if calls.Add(1) == 1 {
				close(begun)
				<-finish
			}
			if n, err := jobtest.Settle(ctx, db, j); n != 1 || err != nil {
				t.Errorf("settled %d rows of %s, %v", n, j.ID, err)
			}
			return ctx.Err()
		}}
		first := job.New(cfg)
		testkit.Run(t, first.Run)
		<-begun
		handOver(t, db, first, "handed over")
		for range 2 {
			testkit.Run(t, job.New(cfg).Run)
		}
		renewals(t, db, "job-0", 2) // that is longer than the lease
		renewals(t, db, "handed over", 1)
		if n := calls.Load(); n != 1 {
			t.Errorf("%d calls while the first is under way", n)
		}
		close(finish)
		testkit.Eventually(t, "both are done once", func() bool {
			return sqltest.Count(t, db, `SELECT COUNT(*) FROM jobs WHERE done = 1 AND attempts = 1`) == 2
		})
	})
}

// renewals waits until the row's lease was moved on so many times.
func renewals(t *testing.T, db *sqldb.DB, id string, n int) {
	t.Helper()
	seen := map[time.Time]bool{}
	testkit.Eventually(t, "the lease of "+id+" is renewed", func() bool {
		var due time.Time
		if err := db.Read().QueryRow(`SELECT due_at FROM jobs WHERE id = $1`, id).Scan(sqldb.Time(&due)); err != nil {
			t.Fatal(err)
		}
		seen[due] = true
		return len(seen) > n
	})
}

// handOver inserts a row with a lease of w, as an adopter does.
func handOver(t *testing.T, db *sqldb.DB, w *job.Worker, id string) job.Lease {
	t.Helper()
	var l job.Lease
	err := outbox.New(db, "/test").Tx(t.Context(), func(tx *outbox.Tx) error {
		l = w.Lease(1)
		l.Begin(tx, id, id+"'s data")
		_, err := tx.Exec(`INSERT INTO jobs (id, due_at, lease_token, attempts) VALUES ($1, `+db.Later("$2")+`, $3, $4)`, id, l.DueIn.Microseconds(), l.Token, l.Attempts)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// A row that is inserted with a lease is worked on with the data it was begun
// with, without being taken from the table; one that is rolled back is not.
// What was not begun at the end is due at once, as if it had never been taken.
func TestRowsAreHandedOver(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		jobtest.Table(t, db, 0)
		begun, finish := make(chan job.Job, 10), make(chan struct{})
		w := job.New(job.Config{DB: db, Table: "jobs", Limit: 1, Lease: time.Minute, Log: slog.New(slog.DiscardHandler), Do: func(ctx context.Context, j job.Job) error {
			begun <- j
			<-finish
			_, err := jobtest.Settle(ctx, db, j)
			return err
		}})
		if l := handOver(t, db, w, "before the start"); l.Token.Valid {
			t.Error("a lease from a Worker that does not run")
		}
		stop := testkit.Run(t, w.Run)
		if j := <-begun; j.ID != "before the start" || j.Data != nil {
			t.Errorf("first came %+v", j)
		}
		broken := errors.New("rolled back")
		err := outbox.New(db, "/test").Tx(t.Context(), func(tx *outbox.Tx) error {
			w.Lease(1).Begin(tx, "never", nil)
			return broken
		})
		if !errors.Is(err, broken) {
			t.Fatal(err)
		}
		for i := range 31 { // with the one at work, as many as are held
			if l := handOver(t, db, w, fmt.Sprint("next-", i)); !l.Token.Valid || l.Attempts != 1 {
				t.Errorf("no lease for row %d: %+v", i, l)
			}
		}
		if l := handOver(t, db, w, "too many"); l.Token.Valid {
			t.Error("a lease although there was no room")
		}
		finish <- struct{}{}
		if j := <-begun; j.ID != "next-0" || j.Data != "next-0's data" || j.Attempt != 1 {
			t.Errorf("then came %+v", j)
		}
		stopped := make(chan struct{})
		go func() { stop(); close(stopped) }()
		testkit.Eventually(t, "what waits is given back", func() bool {
			return sqltest.Count(t, db, `SELECT COUNT(*) FROM jobs WHERE lease_token IS NULL AND attempts = 0 AND due_at IS NOT NULL`) == 31
		})
		close(finish)
		<-stopped
		if n := sqltest.Count(t, db, `SELECT COUNT(*) FROM jobs WHERE done = 1`); n != 2 || len(begun) != 0 {
			t.Errorf("%d rows are done and %d begun, want 2 and none", n, len(begun))
		}
		if l := handOver(t, db, w, "after the end"); l.Token.Valid {
			t.Error("a lease from a Worker that has ended")
		}
	})
}

// A row whose lease ran out while it waited is not worked on: another process may
// have it.
func TestLeaseThatRanOutWhileWaiting(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		jobtest.Table(t, db, 1)
		begun, finish := make(chan struct{}, 10), make(chan struct{})
		w := job.New(job.Config{DB: db, Table: "jobs", Limit: 1, Lease: 200 * time.Millisecond, Timeout: time.Minute, Log: slog.New(slog.DiscardHandler), Do: func(ctx context.Context, j job.Job) error {
			begun <- struct{}{}
			<-finish
			if j.ID == "waits" {
				t.Error("worked on a row that is another's")
			}
			_, err := jobtest.Settle(ctx, db, j)
			return err
		}})
		testkit.Run(t, w.Run)
		<-begun
		handOver(t, db, w, "waits")
		if _, err := db.Exec(`UPDATE jobs SET lease_token = 'another', due_at = $1 WHERE id = 'waits'`, sqldb.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		renewals(t, db, "job-0", 4)
		close(finish)
		testkit.Eventually(t, "the first is done", func() bool { return sqltest.Count(t, db, `SELECT COUNT(*) FROM jobs WHERE done = 1`) == 1 })
	})
}

// A call that has begun is finished although the process is told to stop.
func TestWorkerFinishesRunningCalls(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		jobtest.Table(t, db, 1)
		begun, finish := make(chan struct{}), make(chan struct{})
		stop := testkit.Run(t, job.New(job.Config{DB: db, Table: "jobs", Log: slog.New(slog.DiscardHandler), Do: func(ctx context.Context, j job.Job) error {
			close(begun)
			<-finish
			_, err := jobtest.Settle(ctx, db, j)
			return err
		}}).Run)
		<-begun
		stopped := make(chan struct{})
		go func() { stop(); close(stopped) }()
		close(finish)
		<-stopped
		if sqltest.Count(t, db, `SELECT done FROM jobs`) != 1 {
			t.Error("the call was broken off")
		}
	})
}
