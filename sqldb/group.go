package sqldb

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"time"
)

const (
	groupSize    = 256              // items in one flush at most
	groupQueue   = 16 * groupSize   // callers that wait at most: under half a second of work
	groupTimeout = 10 * time.Second // for one flush
	groupSilence = time.Second      // after a flush that fails and took so long, the database is silent or locked
)

// ErrFull is returned by Group.Do while too many callers wait already: the
// database does not keep up. Its class is Unavailable.
var ErrFull = errors.New("too many wait for the database")

// A Group stores the items of many callers in few transactions (group commit),
// because a commit costs about the same for one item as for a hundred. It adds no
// delay: a caller starts a flush of its item at once if a flusher is free, and the
// items that are queued during a flush go into the next one. On PostgreSQL two
// flushes run at a time, the second one as soon as the queue has no fewer items
// than the first; on SQLite, which has one writer, one.
// An idle Group has no goroutine, so nothing needs to be stopped.
//
// The flush function opens one transaction, stores all items in it and returns
// one result for each, in their order. An item that is refused by itself (its
// key is taken) says so in its result. An error fails the whole flush: it is
// run again with each half of the items, down to the single item that causes the
// error, so flush must be repeatable. When the error says that the database is
// away (IsUnavailable), nothing is tried again and all items of the flush get the
// error at once; if the flush took long to fail, the queued items get it, too,
// because they would wait as long again. A panic counts as an error.
//
// The outcome of a commit may remain unknown: then Tx returns ErrOutcomeUnknown,
// and neither giving up nor running it again is right. So items have ids that were
// fixed before, and flush looks them up: the items are stored, or flush stores them
// again under the same ids, which no two commits can both do.
type Group[T, R any] struct {
	flush       func(ctx context.Context, items []T) ([]R, error)
	maxFlushers int
	last        lastFlush

	mu       sync.Mutex
	queue    []*call[T, R]
	flushers int // that run now
	inFlight int // items that they have taken
}

// A call is one caller that waits. The goroutine that takes it out of the queue
// owns it until done is closed.
type call[T, R any] struct {
	item   T
	result R
	err    error
	done   chan struct{}
}

// NewGroup makes a group whose flush function writes to db. The context of a flush
// ends after ten seconds, and not with the context of a caller.
func NewGroup[T, R any](db *DB, flush func(ctx context.Context, items []T) ([]R, error)) *Group[T, R] {
	g := &Group[T, R]{flush: flush, maxFlushers: 2}
	if db.Engine == SQLite {
		g.maxFlushers = 1
	}
	db.flushes.add(&g.last)
	return g
}

// Do stores the item and returns its result when it is committed. The error is
// that of flush, ErrFull, or the context's when that ends while the item is queued;
// the item is then removed from the queue and never stored. Once a flush has the
// item Do waits for its end whatever becomes of the context, so that the caller
// knows the outcome; the deadline of the flush bounds the wait.
func (g *Group[T, R]) Do(ctx context.Context, item T) (R, error) {
	var none R
	if err := ctx.Err(); err != nil {
		return none, err
	}
	c := &call[T, R]{item: item, done: make(chan struct{})}
	if !g.enqueue(c) {
		return none, ErrFull
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		if g.dequeue(c) {
			return none, ctx.Err()
		}
		<-c.done
	}
	return c.result, c.err
}

// enqueue adds the call to the queue, starts a flusher if one is free, and reports
// whether there was room.
func (g *Group[T, R]) enqueue(c *call[T, R]) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.queue) >= groupQueue {
		return false
	}
	g.queue = append(g.queue, c)
	if g.flushers < g.maxFlushers && g.isFlushDue() {
		g.flushers++
		go g.run()
	}
	return true
}

// isFlushDue reports whether the queue is long enough for one more flush: it has no
// fewer items than the flushes under way, and at least one.
func (g *Group[T, R]) isFlushDue() bool {
	return len(g.queue) > 0 && len(g.queue) >= g.inFlight
}

// dequeue removes the call from the queue, and reports whether it was there.
func (g *Group[T, R]) dequeue(c *call[T, R]) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.Index(g.queue, c)
	if i < 0 {
		return false
	}
	g.queue = slices.Delete(g.queue, i, i+1)
	return true
}

// run is a flusher: it flushes until no flush is due.
func (g *Group[T, R]) run() {
	for {
		runtime.Gosched() // callers that are about to enqueue get into this flush
		calls := g.takeOrEnd()
		if len(calls) == 0 {
			return
		}
		began := time.Now()
		if err := g.flushCalls(calls); err != nil && time.Since(began) >= groupSilence {
			g.failQueued(err)
		}
		g.mu.Lock()
		g.inFlight -= len(calls)
		g.mu.Unlock()
	}
}

// takeOrEnd takes the oldest calls from the queue. When no flush is due it returns
// none, and the flusher counts as ended: a call that is queued from now on starts
// another one.
func (g *Group[T, R]) takeOrEnd() []*call[T, R] {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.isFlushDue() {
		g.flushers--
		return nil
	}
	n := min(len(g.queue), groupSize)
	g.inFlight += n
	calls := g.queue[:n:n]
	g.queue = slices.Clone(g.queue[n:])
	return calls
}

// failQueued answers all calls in the queue with the error.
func (g *Group[T, R]) failQueued(err error) {
	g.mu.Lock()
	queued := g.queue
	g.queue = nil
	g.mu.Unlock()
	fail(queued, err)
}

// flushCalls flushes the calls, in halves if they fail together, and answers each of
// them. It returns an error only when the database is away.
func (g *Group[T, R]) flushCalls(calls []*call[T, R]) error {
	results, err := g.flushOnce(calls)
	g.last.record(err)
	switch {
	case err == nil && len(results) != len(calls): // the items seem to be stored: do not run it again
		fail(calls, fmt.Errorf("flush: %d results for %d items", len(results), len(calls)))
		return nil
	case err == nil:
		for i, c := range calls {
			c.result = results[i]
			close(c.done)
		}
		return nil
	case IsUnavailable(err):
		fail(calls, err)
		return err
	case len(calls) == 1:
		fail(calls, err)
		return nil
	}
	half := len(calls) / 2
	if err := g.flushCalls(calls[:half]); err != nil {
		fail(calls[half:], err)
		return err
	}
	return g.flushCalls(calls[half:])
}

// fail answers the calls with the error.
func fail[T, R any](calls []*call[T, R], err error) {
	for _, c := range calls {
		c.err = err
		close(c.done)
	}
}

// flushOnce runs flush and returns a panic as an error.
func (g *Group[T, R]) flushOnce(calls []*call[T, R]) (results []R, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("flush: panic: %v\n%s", v, debug.Stack())
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), groupTimeout)
	defer cancel()
	items := make([]T, len(calls))
	for i, c := range calls {
		items[i] = c.item
	}
	return g.flush(ctx, items)
}
