package inbox

import (
	"errors"

	"pizzaflow/sqldb"
)

// An errorClass says what the consumer does about an error.
type errorClass string

const (
	classPermanent   errorClass = "permanent"   // no retry cures it: the record is dead at once
	classPanic       errorClass = "panic"       // of a handler: treated as transient
	classTransient   errorClass = "transient"   // any other error: the record is parked and retried up to Config.Attempts
	classConflict    errorClass = "conflict"    // the database ended the transaction in favour of another: it runs again
	classUnavailable errorClass = "unavailable" // a dependency is away, locked or broken: the gate closes and no attempt is spent
)

// A classified error carries its class.
type classified struct {
	error
	class errorClass
}

func (c classified) Unwrap() error { return c.error }

// Permanent marks an error that no retry cures: a handler that returns it has its
// record dead-lettered at once. errors.Is and errors.As see err.
func Permanent(err error) error { return classified{err, classPermanent} }

// Unavailable marks an error as saying that a dependency of the handler is
// unavailable, which is no fault of the record: no attempt is spent and nothing is
// parked. The whole consumer pauses and retries after 100 ms, then ever less often,
// up to every 5 s, and resumes with the first success. errors.Is and errors.As see
// err.
func Unavailable(err error) error { return classified{err, classUnavailable} }

// classify returns the class of an error, "" for nil. A mark of the handler, the
// outermost first, wins over what the error says itself.
func classify(err error) errorClass {
	c, ok := errors.AsType[classified](err)
	switch {
	case err == nil:
		return ""
	case ok:
		return c.class
	case sqldb.IsConflict(err):
		return classConflict
	case sqldb.SaysUnavailable(err):
		return classUnavailable
	}
	return classTransient
}

// errAbandoned says that messages were not processed because the consumer stops or
// their partitions were revoked; they will be read again.
var errAbandoned = errors.New("abandoned")

// errBatchTooSlow says that a batch exceeded a time limit again and again; it may
// fit in smaller parts.
var errBatchTooSlow = errors.New("batch too slow for one transaction")
