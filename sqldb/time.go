package sqldb

import (
	"database/sql"
	"fmt"
	"time"
)

// Now is the time as both engines store it: UTC, in whole microseconds, so that a
// time that is read back equals the one that was written.
func Now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }

// NullTime is t as an argument of a statement: nil, and so NULL, for the zero time.
func NullTime(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UTC().Truncate(time.Microsecond)
}

// Time is the argument of Scan for a stored time: NULL gives the zero time. SQLite
// returns a column as a time, but an expression such as MIN(due_at) as text; Time
// takes both.
func Time(dst *time.Time) sql.Scanner { return (*timeScanner)(dst) }

type timeScanner time.Time

func (s *timeScanner) Scan(src any) error {
	switch v := src.(type) {
	case nil:
		*s = timeScanner{}
	case time.Time:
		*s = timeScanner(v.UTC())
	case string:
		t, err := time.Parse(sqliteTime, v)
		if err != nil {
			return fmt.Errorf("scan time: %w", err)
		}
		*s = timeScanner(t.UTC())
	default:
		return fmt.Errorf("scan time: cannot read a %T", src)
	}
	return nil
}
