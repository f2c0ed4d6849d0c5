// Package handoff hands events that a process has committed to the relay of the
// same process.
package handoff

import (
	"sync/atomic"

	"pizzaflow/outbox/internal/store"
)

// offersWaiting is how many transactions may wait in Offers to be taken.
const offersWaiting = 256

// Offers are the rows that this process has committed during one term of its
// relay, by transaction, from the beginning of the transaction on. Nothing of
// them reaches a later term, which may read another server: one that never
// received these rows and gives their numbers to other events.
type Offers chan []store.Row

// A Queue hands committed rows to the relay of the same process, which
// need not read them back, and wakes it. The relay accepts offered rows only if
// nothing of their aggregates can be missing before them; otherwise, and
// whenever there are too many, it reads the table.
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
	default: // it has a call waiting
	}
}

// Woken is received from when the relay was woken.
func (q *Queue) Woken() <-chan struct{} { return q.wake }

// Begin opens the offers of a term; end closes them.
func (q *Queue) Begin() *Offers {
	o := new(make(Offers, offersWaiting))
	q.current.Store(o)
	return o
}

// End has nothing more offered to the term, and wakes whoever leads next: it
// has to read what the term did not take.
func (q *Queue) End() {
	q.current.Store(nil)
	q.Wake()
}

// Open are the offers of the term that is under way, nil without one.
func (q *Queue) Open() *Offers { return q.current.Load() }

// Offer gives committed rows to the term whose offers were open when their
// transaction began. False says that its relay must read them.
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
