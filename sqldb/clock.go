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
// Now. Two processes' clocks may differ and each may be set, so whatever one of
// them writes and another compares (leases, due times, lifetimes) is this. It
// is one value for the whole statement, which an index can be searched for.
const Clock = `(SELECT clock_timestamp())`

// Later is SQL for the time that is later than Clock, or earlier, by as many
// microseconds as the SQL expression says: db.Later("$1") with the argument
// pause.Microseconds(). Where the expression is NULL, so is the time.
func (db *DB) Later(microseconds string) string { return later(db.Engine, microseconds) }

func later(engine Engine, microseconds string) string {
	if engine == SQLite {
		return `(SELECT clock_timestamp(` + microseconds + `))`
	}
	return `(SELECT clock_timestamp() + (` + microseconds + `) * INTERVAL '1 microsecond')`
}

// sqliteTime is how the driver writes times, so that they compare as text.
const sqliteTime = "2006-01-02 15:04:05.999999999-07:00"

// registerClock gives SQLite the function that PostgreSQL has, with an optional
// argument: how many microseconds later.
var registerClock = sync.OnceValue(func() error {
	return sqlite.RegisterScalarFunction("clock_timestamp", -1, func(_ *sqlite.FunctionContext, args []driver.Value) (driver.Value, error) {
		at := Now()
		if len(args) > 0 {
			switch later := args[0].(type) {
			case nil:
				return nil, nil
			case int64:
				at = at.Add(time.Duration(later) * time.Microsecond)
			default:
				return nil, fmt.Errorf("clock_timestamp: %T is no number of microseconds", later)
			}
		}
		return at.Format(sqliteTime), nil
	})
})

// ClockColumn is the type, in Insert.Types and Rows.Columns, of a column that
// is a time by the Clock. Its value is how much later than now it is, in
// microseconds, or nil for NULL.
const ClockColumn = "CLOCK"

// cell is the value of a column of the kind, given what stands for it.
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

// A ClockWatch notices that a clock that may be set, such as the database's,
// was. The zero value has seen nothing yet.
type ClockWatch struct {
	said         time.Time // the last reading
	asked, heard time.Time // when, with the monotonic clock
}

// Steady notes that the clock was read between asked and now, times of this
// process, and said what it said. It reports whether the clock has gone on since
// the last reading as time has, give or take slack; false for the first one.
func (w *ClockWatch) Steady(said, asked time.Time, slack time.Duration) bool {
	heard := time.Now()
	last := *w
	*w = ClockWatch{said: said, asked: asked, heard: heard}
	went := said.Sub(last.said)
	return !last.asked.IsZero() && went >= asked.Sub(last.heard)-slack && went <= heard.Sub(last.asked)+slack
}
