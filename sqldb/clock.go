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
// is the time when the server received the statement: unlike clock_timestamp()
// PostgreSQL searches an index for it and knows how many rows to expect, and
// unlike now() it is not the beginning of the transaction.
const Clock = `statement_timestamp()`

// Later is SQL for the time that is later than Clock, or earlier, by as many
// microseconds as the SQL expression says: db.Later("$1") with the argument
// pause.Microseconds(). Where the expression is NULL, so is the time.
func (db *DB) Later(microseconds string) string { return later(db.Engine, microseconds) }

func later(engine Engine, microseconds string) string {
	if engine == SQLite {
		return `statement_timestamp(` + microseconds + `)`
	}
	return `(` + Clock + ` + (` + microseconds + `) * INTERVAL '1 microsecond')`
}

// sqliteTime is how the driver writes times, so that they compare as text.
const sqliteTime = "2006-01-02 15:04:05.999999999-07:00"

// registerClock gives SQLite the function that PostgreSQL has, with an optional
// argument: how many microseconds later.
var registerClock = sync.OnceValue(func() error {
	return sqlite.RegisterScalarFunction("statement_timestamp", -1, func(_ *sqlite.FunctionContext, args []driver.Value) (driver.Value, error) {
		at := Now()
		if len(args) > 0 {
			switch later := args[0].(type) {
			case nil:
				return nil, nil
			case int64:
				at = at.Add(time.Duration(later) * time.Microsecond)
			default:
				return nil, fmt.Errorf("statement_timestamp: %T is no number of microseconds", later)
			}
		}
		return at.Format(sqliteTime), nil
	})
})

// ClockColumn is the type, in Insert.Types and Batch.Columns, of a column that
// is a time by the Clock. Its value is how much later than now it is, in
// microseconds, or nil for NULL.
const ClockColumn = "CLOCK"

// NullPause is the value of such a column for a pause: NULL for a negative one.
func NullPause(pause time.Duration) any {
	if pause < 0 {
		return nil
	}
	return pause.Microseconds()
}

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

// A Moment is a time by the Clock that was read, from which on this process's
// monotonic clock counts.
type Moment struct{ said, heard time.Time }

// Heard is the moment at which the Clock said what it said: now.
func Heard(said time.Time) Moment { return Moment{said: said, heard: time.Now()} }

// Now is the time by the Clock, if it was not set since.
func (m Moment) Now() time.Time { return m.said.Add(time.Since(m.heard)).Truncate(time.Microsecond) }

// A ClockWatch notices that a clock that may be set, such as the database's,
// was. The zero value has seen nothing yet.
type ClockWatch struct {
	said         time.Time // the last reading
	asked, heard time.Time // when, by the monotonic clock
	since        time.Time // when it was set, as far as is known, by the same
	leaps        []leap    // forward, the last of them
}

// A leap is how far a clock was set forward, and what it said then.
type leap struct {
	to time.Time
	by time.Duration
}

// Steady notes that the clock was read between asked and now, times of this
// process, and said what it said. It returns for how long the clock has gone on
// as time has, give or take slack between two readings: zero if it was set since
// the last one, and for the first.
func (w *ClockWatch) Steady(said, asked time.Time, slack time.Duration) time.Duration {
	last, heard := *w, time.Now()
	went, most := said.Sub(last.said), heard.Sub(last.asked)
	switch {
	case last.asked.IsZero():
		last.since = heard
	case went < asked.Sub(last.heard)-slack:
		last.since = heard
		last.leaps = undone(last.leaps, said)
	case went > most+slack:
		last.since = heard
		last.leaps = append(last.leaps[max(0, len(last.leaps)-15):], leap{said, went - most})
	}
	*w = ClockWatch{said: said, asked: asked, heard: heard, since: last.since, leaps: last.leaps}
	return heard.Sub(last.since)
}

// undone is what is left of leaps when the clock was set back.
func undone(leaps []leap, to time.Time) (left []leap) {
	for _, l := range leaps {
		if back := l.to.Sub(to); back > 0 {
			l.to, l.by = to, l.by-back
		}
		if l.by > 0 {
			left = append(left, l)
		}
	}
	return left
}

// Ahead is how much of the time from then on the clock was seen to be set
// forward: so much less has really passed.
func (w *ClockWatch) Ahead(then time.Time) (by time.Duration) {
	for _, l := range w.leaps {
		if then.Before(l.to) {
			by += l.by
		}
	}
	return by
}
