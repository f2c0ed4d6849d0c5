package sqldb

import (
	"database/sql/driver"
	"fmt"
	"strings"
	"sync"
	"time"

	"modernc.org/sqlite"
)

// Clock is SQL for the time by the one clock that all processes on a database
// share: PostgreSQL's own, and on SQLite, which has one host, the process's,
// Now. Two processes' clocks may differ and each may be set, so times that one
// process writes and another compares (leases, due times, lifetimes) are by this
// clock. It is the time when the server received the statement: unlike for
// clock_timestamp(), PostgreSQL uses an index for a comparison with it and knows
// how many rows to expect, and unlike now() it is not the beginning of the
// transaction.
const Clock = `statement_timestamp()`

// Later is SQL for Clock plus a number of microseconds, which may be negative and
// is given as an SQL expression: db.Later("$1") with the argument
// pause.Microseconds(). Where the expression is NULL, so is the time.
func (db *DB) Later(microseconds string) string { return later(db.Engine, microseconds) }

func later(engine Engine, microseconds string) string {
	if engine == SQLite {
		return `statement_timestamp(` + microseconds + `)`
	}
	return `(` + Clock + ` + (` + microseconds + `) * INTERVAL '1 microsecond')`
}

// sqliteTime is the layout in which the driver writes times: they compare as text.
const sqliteTime = "2006-01-02 15:04:05.999999999-07:00"

// registerClock gives SQLite the function statement_timestamp of PostgreSQL, with an
// optional argument: the microseconds to add.
var registerClock = sync.OnceValue(func() error {
	return sqlite.RegisterScalarFunction("statement_timestamp", -1, func(_ *sqlite.FunctionContext, args []driver.Value) (driver.Value, error) {
		at := Now()
		if len(args) > 0 {
			switch microseconds := args[0].(type) {
			case nil:
				return nil, nil
			case int64:
				at = at.Add(time.Duration(microseconds) * time.Microsecond)
			default:
				return nil, fmt.Errorf("statement_timestamp: %T is no number of microseconds", microseconds)
			}
		}
		return at.Format(sqliteTime), nil
	})
})

// ClockColumn is the type, in Insert.Types and Batch.Columns, of a column that
// is a time by the Clock. Its argument is the microseconds from now until then, or
// nil for NULL.
const ClockColumn = "CLOCK"

// NullPause is the argument of a ClockColumn for the time after a pause: nil, and
// so NULL, for a negative one.
func NullPause(pause time.Duration) any {
	if pause < 0 {
		return nil
	}
	return pause.Microseconds()
}

// cell is SQL for the value of a column of that type, given SQL for its argument.
func cell(engine Engine, kind, value string) string {
	if strings.TrimSpace(kind) == ClockColumn {
		return later(engine, value)
	}
	return value
}

// array is the n-th argument as PostgreSQL's array of values of a column.
func array(n int, kind string) string {
	if kind = strings.TrimSpace(kind); kind == ClockColumn {
		kind = "BIGINT"
	}
	return fmt.Sprintf("$%d::%s[]", n, kind)
}

// A Reading is a time that was read from the Clock, and when it was, by this
// process's monotonic clock.
type Reading struct{ clock, readAt time.Time }

// NewReading is for a time that was read from the Clock just now.
func NewReading(clock time.Time) Reading { return Reading{clock: clock, readAt: time.Now()} }

// Now is the time by the Clock, provided that it was not set since the reading.
func (r Reading) Now() time.Time {
	return r.clock.Add(time.Since(r.readAt)).Truncate(time.Microsecond)
}

// A ClockWatch detects that a clock, such as the database's, was set. The zero
// value has no reading yet. It is not safe for concurrent use.
type ClockWatch struct {
	clock         time.Time // the last reading
	asked, readAt time.Time // the statement's begin and end, by this process's monotonic clock
	steadySince   time.Time // the first reading since the clock was set, by the same
	jumps         []jump    // the last times that the clock was set forward
}

// A jump is a clock that was set forward, by so much to a time.
type jump struct {
	to time.Time
	by time.Duration
}

// keptJumps is how many jumps a ClockWatch remembers.
const keptJumps = 16

// Observe records a reading that was taken between asked, a time of this process,
// and now. It returns for how long the clock has advanced as time has, give or
// take slack between two readings: zero if it was set since the last reading, and
// for the first one.
func (w *ClockWatch) Observe(clock, asked time.Time, slack time.Duration) (steadyFor time.Duration) {
	readAt := time.Now()
	advanced, least, most := clock.Sub(w.clock), asked.Sub(w.readAt), readAt.Sub(w.asked)
	switch {
	case w.asked.IsZero():
		w.steadySince = readAt
	case advanced < least-slack:
		w.steadySince = readAt
		w.jumps = setBack(w.jumps, clock)
	case advanced > most+slack:
		w.steadySince = readAt
		w.jumps = append(w.jumps[max(0, len(w.jumps)-keptJumps+1):], jump{clock, advanced - most})
	}
	w.clock, w.asked, w.readAt = clock, asked, readAt
	return readAt.Sub(w.steadySince)
}

// setBack is what is left of jumps when the clock was set back to a time.
func setBack(jumps []jump, to time.Time) (left []jump) {
	for _, j := range jumps {
		if back := j.to.Sub(to); back > 0 {
			j.to, j.by = to, j.by-back
		}
		if j.by > 0 {
			left = append(left, j)
		}
	}
	return left
}

// SetForwardSince is by how much the clock was set forward since it showed a time:
// so much less has really passed since.
func (w *ClockWatch) SetForwardSince(then time.Time) (by time.Duration) {
	for _, j := range w.jumps {
		if then.Before(j.to) {
			by += j.by
		}
	}
	return by
}
