package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pizzaflow/outbox"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// jobs is a table of durable work with n rows due now.
func jobs(t *testing.T, db *sqldb.DB, n int) {
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

func settleJob(ctx context.Context, db *sqldb.DB, c outbox.Claim) (int64, error) {
	res, err := db.ExecContext(ctx, `UPDATE jobs SET done = done + 1, due_at = NULL, lease_token = NULL WHERE id = $1 AND lease_token = $2`, c.ID, c.Token)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

func count(t *testing.T, db *sqldb.DB, query string) (n int) {
	t.Helper()
	if err := db.Read().QueryRow(query).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestWorkIsSharedAndDoneOnce(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		jobs(t, db, 200)
		var calls, atOnce, most atomic.Int64
		for range 3 {
			run(t, outbox.NewWork(outbox.WorkConfig{DB: db, Table: "jobs", Limit: 5, Log: slog.New(slog.DiscardHandler), Do: func(ctx context.Context, c outbox.Claim) error {
				calls.Add(1)
				if n := atOnce.Add(1); n > most.Load() {
					most.Store(n)
				}
				defer atOnce.Add(-1)
				_, err := settleJob(ctx, db, c)
				return err
			}}).Run)
		}
		eventually(t, "all is done", func() bool { return count(t, db, `SELECT COUNT(*) FROM jobs WHERE done = 1`) == 200 })
		if calls.Load() != 200 {
			t.Errorf("%d calls for 200 jobs", calls.Load())
		}
		if most.Load() > 15 {
			t.Errorf("%d calls at once, three workers may make 15", most.Load())
		}
	})
}

func TestWorkThatFailsOrPanicsComesBack(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		jobs(t, db, 1)
		run(t, outbox.NewWork(outbox.WorkConfig{DB: db, Table: "jobs", Log: slog.New(slog.DiscardHandler), Do: func(ctx context.Context, c outbox.Claim) error {
			switch c.Attempt {
			case 1:
				return errors.New("no answer")
			case 2:
				panic("oops")
			}
			_, err := settleJob(ctx, db, c)
			return err
		}}).Run)
		eventually(t, "the third attempt settles it", func() bool {
			return count(t, db, `SELECT COUNT(*) FROM jobs WHERE done = 1 AND attempts = 3`) == 1
		})
	})
}

// What a dead process left undone is taken when its lease has passed, and its
// late settlement changes nothing.
func TestLeaseOfWorkRunsOut(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		jobs(t, db, 1)
		var first outbox.Claim
		taken, late := make(chan struct{}), make(chan struct{})
		var once sync.Once
		run(t, outbox.NewWork(outbox.WorkConfig{DB: db, Table: "jobs", Lease: 300 * time.Millisecond, Log: slog.New(slog.DiscardHandler), Do: func(_ context.Context, c outbox.Claim) error {
			if c.Attempt == 1 {
				first = c
				once.Do(func() { close(taken) })
				<-late
				n, err := settleJob(context.Background(), db, c)
				if n != 0 {
					t.Error("the first claim settled the row after the second had")
				}
				return err
			}
			n, err := settleJob(context.Background(), db, c)
			if n != 1 {
				t.Error("the second claim did not settle the row")
			}
			return err
		}}).Run)
		<-taken
		eventually(t, "the row is taken again", func() bool { return count(t, db, `SELECT done FROM jobs`) == 1 })
		close(late)
		if first.Token == "" {
			t.Error("a claim without a token")
		}
	})
}

// A call that has begun is finished although the process is told to stop.
func TestWorkFinishesWhatItBegan(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		jobs(t, db, 1)
		begun, finish := make(chan struct{}), make(chan struct{})
		stop := run(t, outbox.NewWork(outbox.WorkConfig{DB: db, Table: "jobs", Log: slog.New(slog.DiscardHandler), Do: func(ctx context.Context, c outbox.Claim) error {
			close(begun)
			<-finish
			_, err := settleJob(ctx, db, c)
			return err
		}}).Run)
		<-begun
		stopped := make(chan struct{})
		go func() { stop(); close(stopped) }()
		close(finish)
		<-stopped
		if count(t, db, `SELECT done FROM jobs`) != 1 {
			t.Error("the call was broken off")
		}
	})
}
