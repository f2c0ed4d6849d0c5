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
	groupSize    = 256              // items that one flush takes at most
	groupQueue   = 16 * groupSize   // callers that wait at most: under half a second of work
	groupTimeout = 10 * time.Second // for one flush
	groupSilence = time.Second      // a flush that fails after so long has found a database that is silent, or locked
)

// ErrFull is returned by Group.Do while too many callers wait already: the
// database does not keep up. IsUnavailable knows it.
var ErrFull = errors.New("too many wait for the database")

// A Group folds what many callers want stored into few transactions, because
// a commit costs about the same for one item as for a hundred. There is no
// delay in it: a caller who finds a flusher free starts a flush of his own
// item at once, and whatever is queued meanwhile goes into the next. On
// PostgreSQL two flushes run at a time, the second as soon as it has no less
// to do than the first; on SQLite, which has one writer, one.
// An idle Group has no goroutine, so nothing needs to be stopped.
//
// The flush function opens one transaction, stores all items in it and returns
// one result for each, in their order. An item that is refused by itself (its
// key is taken) says so in its result. An error fails the flush as a whole:
// it is then run again with each half of the items, down to the one that is to
// blame, so flush must be repeatable. When the error says that the database is
// away (IsUnavailable) nothing is tried again, and all items of the flush get
// it at once; when it took the database long to say so, those in the queue,
// too, who would wait as long again. A panic counts as an error.
//
// A commit may fail in such a way that nobody knows its outcome: then Tx says
// ErrOutcomeUnknown, and neither giving up nor running it again is right. So
// items bring ids that were fixed before, and flush looks them up: they are
// there, or it stores them again under the same ids, which no two commits can
// both do.
type Group[T, R any] struct {
	flush    func(ctx context.Context, items []T) ([]R, error)
	flushers int // that may run at a time
	last     lastFlush

	mu      sync.Mutex
	queue   []*call[T, R]
	running int // flushers
	taken   int // items they are flushing
}

// A call is one caller who waits. Whoever takes it out of the queue owns the
// result until done is closed.
type call[T, R any] struct {
	item   T
	result R
	err    error
	done   chan struct{}
}

// NewGroup makes a group whose flush function writes to db. Its context ends
// after ten seconds and is nobody else's: a caller who leaves does not cancel
// the others.
func NewGroup[T, R any](db *DB, flush func(ctx context.Context, items []T) ([]R, error)) *Group[T, R] {
	g := &Group[T, R]{flush: flush, flushers: 2}
	if db.Engine == SQLite {
		g.flushers = 1
	}
	db.flushes.add(&g.last)
	return g
}

// Do has the item stored and returns its result, when it is committed. Errors:
// whatever flush says; ErrFull; and the context's error when it ends while the
// item is queued, which is taken back then and never stored. An item that a
// flush has taken is waited for, so that a caller who must leave is not left
// in the dark; the deadline of the flush bounds it.
func (g *Group[T, R]) Do(ctx context.Context, item T) (R, error) {
	var none R
	if err := ctx.Err(); err != nil {
		return none, err
	}
	c := &call[T, R]{item: item, done: make(chan struct{})}
	if !g.enter(c) {
		return none, ErrFull
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		if g.leave(c) {
			return none, ctx.Err()
		}
		<-c.done
	}
	return c.result, c.err
}

// enter queues the call and starts a flusher if one is free.
func (g *Group[T, R]) enter(c *call[T, R]) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.queue) >= groupQueue {
		return false
	}
	g.queue = append(g.queue, c)
	if g.running < g.flushers && g.worthwhile() {
		g.running++
		go g.run()
	}
	return true
}

// worthwhile reports whether what is queued is enough for a flush of its own:
// anything when none is under way, and else no less than those have taken.
func (g *Group[T, R]) worthwhile() bool { return len(g.queue) > 0 && len(g.queue) >= g.taken }

// leave takes the call back, if nobody has taken it yet.
func (g *Group[T, R]) leave(c *call[T, R]) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.Index(g.queue, c)
	if i < 0 {
		return false
	}
	g.queue = slices.Delete(g.queue, i, i+1)
	return true
}

// run flushes until the queue is empty.
func (g *Group[T, R]) run() {
	for {
		runtime.Gosched() // whoever is about to ask gets on this flush
		calls := g.take()
		if len(calls) == 0 {
			return
		}
		began := time.Now()
		if err := g.settle(calls); err != nil && time.Since(began) >= groupSilence {
			g.refuse(err)
		}
		g.mu.Lock()
		g.taken -= len(calls)
		g.mu.Unlock()
	}
}

// take takes the oldest calls, or ends the flusher when there are none.
func (g *Group[T, R]) take() []*call[T, R] {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.worthwhile() {
		g.running--
		return nil
	}
	n := min(len(g.queue), groupSize)
	g.taken += n
	calls := g.queue[:n:n]
	g.queue = slices.Clone(g.queue[n:])
	return calls
}

// refuse gives all who are queued the error.
func (g *Group[T, R]) refuse(err error) {
	g.mu.Lock()
	queued := g.queue
	g.queue = nil
	g.mu.Unlock()
	fail(queued, err)
}

// settle flushes the calls and answers each of them, in halves if they fail
// together. It returns an error when the database is away.
func (g *Group[T, R]) settle(calls []*call[T, R]) error {
	results, err := g.attempt(calls)
	g.last.ended(err)
	switch {
	case err == nil && len(results) != len(calls): // stored as it seems, so not to be run again
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
	if err := g.settle(calls[:half]); err != nil {
		fail(calls[half:], err)
		return err
	}
	return g.settle(calls[half:])
}

func fail[T, R any](calls []*call[T, R], err error) {
	for _, c := range calls {
		c.err = err
		close(c.done)
	}
}

// attempt runs flush once.
func (g *Group[T, R]) attempt(calls []*call[T, R]) (results []R, err error) {
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
