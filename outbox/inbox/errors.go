package inbox

import (
	"errors"

	"pizzaflow/sqldb"
)

// An errorClass says what is to be done about an error.
type errorClass string

const (
	classPermanent   errorClass = "permanent"   // no retry will cure it: dead at once
	classPanic       errorClass = "panic"       // as transient
	classTransient   errorClass = "transient"   // whatever is not listed: tried again, some times
	classConflict    errorClass = "conflict"    // the engine chose this transaction to make way for another: run again
	classUnavailable errorClass = "unavailable" // what it takes is away, locked or not as it should be: nothing is spent, all wait
)

// A marked error has been given its class.
type classified struct {
	error
	class errorClass
}

func (m classified) Unwrap() error { return m.error }

// Permanent marks err as one that no retry will cure: the record goes to the
// dead letters at once.
func Permanent(err error) error { return classified{err, classPermanent} }

// Unavailable marks err as saying that what the handler depends on is away.
// That is no fault of the record: no attempt is spent and nothing is parked.
// The whole consumer pauses, tries again after 100 ms and then ever more
// seldom, up to 5 s, and goes on with the first success.
func Unavailable(err error) error { return classified{err, classUnavailable} }

// classify gives an error its class; "" is none. What the handler says comes
// first, the outermost mark before others.
func classify(err error) errorClass {
	m, ok := errors.AsType[classified](err)
	switch {
	case err == nil:
		return ""
	case ok:
		return m.class
	case sqldb.IsConflict(err):
		return classConflict
	case sqldb.SaysUnavailable(err):
		return classUnavailable
	}
	return classTransient
}

// errGivenUp says that nothing was done about records, because the end came or
// their partitions were taken away: they will be read again.
var errAbandoned = errors.New("given up")

// errTooMuch stands in the error of a batch that ran into a limit on time again
// and again, and may fit into it in smaller parts.
var errBatchTooSlow = errors.New("too much for one transaction")
