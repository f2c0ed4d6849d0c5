package job

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"pizzaflow/internal/retry"
	"pizzaflow/sqldb"
)

// Config says which rows a Worker takes and what is done for each. The table
// has the columns id (primary key), due_at (null: nothing to do), lease_token
// (text, null) and attempts (integer), and an index on due_at.
type Config struct {
	DB    *sqldb.DB
	Table string
	Where string // which rows of the table, as an SQL condition; all when empty
	Limit int    // how many calls at once; 64 when zero

	// Lease is how long a row stays leased to a process that died; 5 s when
	// zero. A living process renews the lease for as long as it holds the row.
	Lease time.Duration
	// Timeout is how long Do may take; 2 minutes when zero. Then its context
	// ends and the lease is not renewed any more.
	Timeout time.Duration
	// LongestPause is the longest pause that Do makes before a row is due again,
	// in microseconds, as an SQL expression over the row; see LongestBackoff. A
	// row that is due later got its time before the clock was set back, and
	// comes soon instead. Empty, a row may be due at any time.
	LongestPause string
	// Exclusive says that no other process works on these rows: a lease that
	// stands in the table when Run begins is a dead process's, and its row is
	// due at once.
	Exclusive bool

	// Do makes the call and settles the row in a transaction of its own, with
	// lease_token = Job.Token among the conditions: no row changed means that
	// the lease was lost and another worker has the row: ErrLeaseLost. Any other
	// error says that nothing was settled; the row is due again after a pause.
	Do  func(ctx context.Context, j Job) error
	Log *slog.Logger
}

func (cfg Config) withDefaults() Config {
	if cfg.Limit == 0 {
		cfg.Limit = 64
	}
	if cfg.Lease == 0 {
		cfg.Lease = 5 * time.Second
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 2 * time.Minute
	}
	if cfg.Where != "" {
		cfg.Where = " AND " + cfg.Where
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return cfg
}

// ErrLeaseLost is for Do to return when the row is leased to another worker by
// now: the job is over, and did not fail.
var ErrLeaseLost = errors.New("the lease was lost")

// A Job is one row that this process has leased, once.
type Job struct {
	ID      string
	Token   string // stands in the row's lease_token while this lease holds; no other lease has the same
	Attempt int    // how often the row was taken: 1, 2, …
	Data    any    // what Lease.Begin was given; nil for a row that was found in the table

	callDone func()
}

// CallDone says that the call to the outside is over and its result remains to
// be stored. Meanwhile another row may be begun: up to twice Config.Limit are
// under way then. It may be called more than once; only the first counts.
func (j Job) CallDone() {
	if j.callDone != nil {
		j.callDone()
	}
}

// Backoff is the pause before a row is due again after attempt 1, 2, …: base
// doubled each time, up to limit. Its upper half is drawn at random, so that
// rows that failed together do not come back together.
func Backoff(attempt int, base, limit time.Duration) time.Duration {
	return retry.Backoff(attempt, base, limit)
}

// LongestBackoff is the longest pause that Backoff makes after a row's attempts,
// as an SQL expression over the row, for Config.LongestPause.
func LongestBackoff(base, limit time.Duration) string {
	var b strings.Builder
	b.WriteString("CASE")
	for attempt := 1; base < limit; attempt++ {
		fmt.Fprintf(&b, " WHEN attempts <= %d THEN %d", attempt, base.Microseconds())
		base *= 2
	}
	fmt.Fprintf(&b, " WHEN true THEN %d END", limit.Microseconds())
	return b.String()
}
