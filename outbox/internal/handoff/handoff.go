// Package handoff offers the events that a process commits to the relay of the same
// process, which need not read them from the table then.
package handoff

import (
	"sync/atomic"

	"pizzaflow/outbox/internal/store"
)

// offersWaiting is how many transactions may wait in Offers to be taken.
const offersWaiting = 256

// Offers are the rows of the transactions that this process has begun and committed
// during one term of its relay. None reaches a later term, which may read another
// server: one that never received these rows and gives their numbers to other events.
type Offers chan []store.Row

// A Queue is the way from the transactions of a process to its relay: it offers
// committed rows, and wakes the relay. The relay accepts offered rows only if it has
// read all earlier events of their aggregates; otherwise, and whenever there are too
// many, it reads the table.
type Queue struct {
	wake    chan struct{}
	current atomic.Pointer[Offers]
}

// New makes a queue without a relay.
func New() *Queue { return &Queue{wake: make(chan struct{}, 1)} }

// Wake wakes the relay of this process.
func (q *Queue) Wake() {
	select {
	case q.wake <- struct{}{}:
	default: // it is woken already
	}
}

// Woken is received from when the relay was woken.
func (q *Queue) Woken() <-chan struct{} { return q.wake }

// Begin opens the offers of a term; End closes them.
func (q *Queue) Begin() *Offers {
	o := new(make(Offers, offersWaiting))
	q.current.Store(o)
	return o
}

// End has no more rows offered to the term, and wakes the next one, which has to
// read the offered rows that the term did not take.
func (q *Queue) End() {
	q.current.Store(nil)
	q.Wake()
}

// Open returns the offers of the present term, nil without one.
func (q *Queue) Open() *Offers { return q.current.Load() }

// Offer offers committed rows to the term whose offers were open when their
// transaction began, and reports whether it could. If not, the relay must read them.
func (q *Queue) Offer(to *Offers, rows []store.Row) bool {
	if to == nil || q.current.Load() != to {
		return false
	}
	for i := range rows {
		if !rows[i].Version.Valid || rows[i].Seq == 0 {
			return false
		}
	}
	select {
	case *to <- rows:
		return true
	default:
		return false
	}
}
