package inbox

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pizzaflow/internal/retry"
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
type marked struct {
	error
	class errorClass
}

func (m marked) Unwrap() error { return m.error }

// Permanent marks err as one that no retry will cure: the record goes to the
// dead letters at once.
func Permanent(err error) error { return marked{err, classPermanent} }

// Unavailable marks err as saying that what the handler depends on is away.
// That is no fault of the record: no attempt is spent and nothing is parked.
// The whole consumer pauses, tries again after 100 ms and then ever more
// seldom, up to 5 s, and goes on with the first success.
func Unavailable(err error) error { return marked{err, classUnavailable} }

// classify gives an error its class; "" is none. What the handler says comes
// first, the outermost mark before others.
func classify(err error) errorClass {
	m, ok := errors.AsType[marked](err)
	switch {
	case err == nil:
		return ""
	case ok:
		return m.class
	case sqldb.IsConflict(err):
		return classConflict
	case sqldb.IsDown(err):
		return classUnavailable
	}
	return classTransient
}

// errGivenUp says that nothing was done about records, because the end came or
// their partitions were taken away: they will be read again.
var errGivenUp = errors.New("given up")

// errTooMuch stands in the error of a batch that ran into a limit on time again
// and again, and may fit into it in smaller parts.
var errTooMuch = errors.New("too much for one transaction")

// A breaker holds all work of a consumer back while what it depends on is
// away. One at a time probes, and its success lets all others go on.
type breaker struct {
	paused   func(err error)          // told when it opens
	resumed  func(took time.Duration) // and when it closes
	stopping <-chan struct{}

	mu       sync.Mutex
	changed  chan struct{} // closed, and replaced, when those who wait should look again
	since    time.Time     // when it opened; zero while it is closed
	failures int
	probing  bool // somebody does
}

// newBreaker makes the breaker of a consumer, closed.
func newBreaker(cfg Config, gauge prometheus.Gauge) *breaker {
	return &breaker{
		changed: make(chan struct{}),
		paused: func(err error) {
			gauge.Set(1)
			cfg.Log.Error("consumer paused: what it depends on is away", "consumer_group", cfg.Group, "err", err)
		},
		resumed: func(took time.Duration) {
			gauge.Set(0)
			cfg.Log.Info("consumer goes on", "consumer_group", cfg.Group, "paused_seconds", took.Seconds())
		},
	}
}

// insist runs fn until it has succeeded or failed for a reason of its own. What
// is away is waited for, without limit; before each further try still is asked
// whether there is anything left to do. errGivenUp is returned when there is
// not, or when the end has come.
func (c *Consumer) insist(ctx context.Context, still func() bool, fn func() error) error {
	probe := false
	defer c.breaker.leave(&probe)
	var conflicts conflicts
	defer c.conflictsOver(&conflicts)
	for odd, try := 0, 1; ; try++ {
		for !c.breaker.pass(ctx, &probe) {
			if ctx.Err() != nil || !still() || c.breaker.stopped() {
				return errGivenUp
			}
		}
		err := fn()
		if err != nil && ctx.Err() != nil {
			return errGivenUp
		}
		class := classify(err)
		if class != classConflict {
			c.conflictsOver(&conflicts)
		}
		switch {
		case errors.Is(err, errTooMuch): // the breaker stays as it is: less at once is tried next
			c.breaker.trip(err, &probe)
			return err
		case class == classUnavailable:
			c.breaker.trip(err, &probe)
		case class == classConflict:
			c.conflict(&conflicts, err)
			if !retry.Sleep(ctx, retry.Backoff(try, 5*time.Millisecond, time.Second)) {
				return errGivenUp
			}
		case class == classTransient && sqldb.IsUnavailable(err) && odd < 2:
			// it looks like the database but may come from anywhere: ask; a connection that broke is made anew
			if odd++; c.ask(ctx) != nil {
				c.breaker.trip(err, &probe)
				odd = 0
			}
		default:
			c.breaker.reset(&probe)
			return err
		}
		if !still() {
			return errGivenUp
		}
	}
}

// conflictLimit is how long a transaction may be run again and again, because
// others are in its way, before that is told.
const conflictLimit = 5 * time.Second

// conflicts are those of one transaction.
type conflicts struct {
	since  time.Time // the first; zero without one
	logged bool
}

// conflict counts a conflict, and tells once when they go on.
func (c *Consumer) conflict(of *conflicts, err error) {
	c.metrics.conflicts.Inc()
	if of.since.IsZero() {
		of.since = time.Now()
	}
	if !of.logged && time.Since(of.since) > conflictLimit {
		of.logged = true
		c.metrics.conflicting.Inc()
		c.cfg.Log.Error("conflict goes on: the transaction is run again until it succeeds", "consumer_group", c.cfg.Group, "err", err)
	}
}

// conflictsOver tells the end of conflicts that were told.
func (c *Consumer) conflictsOver(of *conflicts) {
	if of.logged {
		c.metrics.conflicting.Dec()
		c.cfg.Log.Info("conflict is over", "consumer_group", c.cfg.Group, "conflict_seconds", time.Since(of.since).Seconds())
	}
	*of = conflicts{}
}

// ask finds out whether the database takes writes.
func (c *Consumer) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := c.db.ExecContext(ctx, `UPDATE outbox_lease SET floor = floor WHERE id = 0`)
	return err
}

// pass reports whether work may be done now. While the breaker is open it waits
// first: whoever probes for the time between two probes, all others until they
// should look again. False asks the caller to look whether he still wants to.
func (b *breaker) pass(ctx context.Context, probe *bool) bool {
	b.mu.Lock()
	if b.since.IsZero() {
		b.mu.Unlock()
		return true
	}
	if !b.probing {
		b.probing, *probe = true, true
	}
	var due <-chan time.Time
	if *probe {
		timer := time.NewTimer(retry.Backoff(b.failures, 100*time.Millisecond, 5*time.Second))
		defer timer.Stop()
		due = timer.C
	}
	changed := b.changed
	b.mu.Unlock()
	select {
	case <-due:
		return true
	case <-changed:
	case <-b.stopping:
	case <-ctx.Done():
	}
	return false
}

// trip opens the breaker, or keeps it open.
func (b *breaker) trip(err error, probe *bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.since.IsZero():
		b.since, b.failures = time.Now(), 1
		b.probing, *probe = true, true
		b.paused(err)
	case *probe:
		b.failures++
	}
}

// reset closes the breaker when it was the probe that went well: others may
// have begun before, or need nothing of what is away.
func (b *breaker) reset(probe *bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !*probe {
		return
	}
	b.probing, *probe = false, false
	b.resumed(time.Since(b.since))
	b.since = time.Time{}
	b.wake()
}

// leave lets another probe.
func (b *breaker) leave(probe *bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if *probe {
		b.probing, *probe = false, false
		b.wake()
	}
}

// nudge has all who wait look whether they still want to.
func (b *breaker) nudge() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wake()
}

func (b *breaker) wake() {
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *breaker) stopped() bool {
	select {
	case <-b.stopping:
		return true
	default:
		return false
	}
}
