package outbox

import "sync/atomic"

// offersWaiting is how many transactions may wait in Offers to be taken.
const offersWaiting = 256

// offers are the rows that this process has committed during one term of its
// relay, by transaction, from the beginning of the transaction on. Nothing of
// them reaches a later term, which may read another server: one that never
// received these rows and gives their numbers to other events.
type offers chan []row

// A handoffQueue hands committed rows to the relay of the same process, which
// need not read them back, and wakes it. The relay accepts offered rows only if
// nothing of their aggregates can be missing before them; otherwise, and
// whenever there are too many, it reads the table.
type handoffQueue struct {
	wake    chan struct{}
	current atomic.Pointer[offers]
}

// newHandoffQueue makes a queue without a relay.
func newHandoffQueue() *handoffQueue { return &handoffQueue{wake: make(chan struct{}, 1)} }

// poke wakes the relay of this process.
func (q *handoffQueue) poke() {
	select {
	case q.wake <- struct{}{}:
	default: // it has a call waiting
	}
}

// woken is received from when the relay was woken.
func (q *handoffQueue) woken() <-chan struct{} { return q.wake }

// begin opens the offers of a term; end closes them.
func (q *handoffQueue) begin() *offers {
	o := new(make(offers, offersWaiting))
	q.current.Store(o)
	return o
}

// end has nothing more offered to the term, and wakes whoever leads next: it
// has to read what the term did not take.
func (q *handoffQueue) end() {
	q.current.Store(nil)
	q.poke()
}

// open are the offers of the term that is under way, nil without one.
func (q *handoffQueue) open() *offers { return q.current.Load() }

// offer gives committed rows to the term whose offers were open when their
// transaction began. False says that its relay must read them.
func (q *handoffQueue) offer(to *offers, rows []row) bool {
	if to == nil || q.current.Load() != to {
		return false
	}
	for i := range rows {
		if !rows[i].version.Valid || rows[i].seq == 0 {
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
