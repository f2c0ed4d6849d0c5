package sqldb

import (
	"database/sql"
	"fmt"
	"time"
)

// Now is the time as both engines store it: UTC, in whole microseconds. Every
// stored time comes from here, so that what is read back equals what was
// written.
func Now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }

// NullTime is t as an argument of a statement: the zero time is NULL.
func NullTime(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UTC().Truncate(time.Microsecond)
}

// Time is where to scan a stored time into: NULL gives the zero time. SQLite
// hands a column back as a time, but an expression such as MIN(due_at) as
// text; this takes both.
func Time(dst *time.Time) sql.Scanner { return (*timeScanner)(dst) }

type timeScanner time.Time

func (s *timeScanner) Scan(src any) error {
	switch v := src.(type) {
	case nil:
		*s = timeScanner{}
	case time.Time:
		*s = timeScanner(v.UTC())
	case string:
		t, err := time.Parse("2006-01-02 15:04:05.999999999-07:00", v)
		if err != nil {
			return fmt.Errorf("scan time: %w", err)
		}
		*s = timeScanner(t.UTC())
	default:
		return fmt.Errorf("scan time: cannot read a %T", src)
	}
	return nil
}
