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

// A breaker holds all work of a consumer back while what it depends on is
// away. One at a time probes, and its success lets all others go on.
type dependencyGate struct {
	onClose  func(err error)          // told when it opens
	onOpen   func(took time.Duration) // and when it closes
	stopping <-chan struct{}

	mu          sync.Mutex
	changed     chan struct{} // closed, and replaced, when those who wait should look again
	closedSince time.Time     // when it opened; zero while it is closed
	failures    int
	probing     bool // somebody does
}

// newBreaker makes the breaker of a consumer, closed.
func newDependencyGate(cfg Config, gauge prometheus.Gauge) *dependencyGate {
	return &dependencyGate{
		changed: make(chan struct{}),
		onClose: func(err error) {
			gauge.Set(1)
			cfg.Log.Error("consumer paused: what it depends on is away", "consumer_group", cfg.Group, "err", err)
		},
		onOpen: func(took time.Duration) {
			gauge.Set(0)
			cfg.Log.Info("consumer goes on", "consumer_group", cfg.Group, "paused_seconds", took.Seconds())
		},
	}
}

// insist runs fn until it has succeeded or failed for a reason of its own. What
// is away is waited for, without limit; before each further try still is asked
// whether there is anything left to do. errGivenUp is returned when there is
// not, or when the end has come.
func (c *Consumer) retryWhileUnavailable(ctx context.Context, stillWanted func() bool, fn func() error) error {
	holdsProbe := false
	defer c.gate.release(&holdsProbe)
	var streak conflictStreak
	defer c.endConflicts(&streak)
	for writeChecks, attempt := 0, 1; ; attempt++ {
		for !c.gate.acquire(ctx, &holdsProbe) {
			if ctx.Err() != nil || !stillWanted() || c.gate.isStopping() {
				return errAbandoned
			}
		}
		err := fn()
		if err != nil && ctx.Err() != nil {
			return errAbandoned
		}
		class := classify(err)
		if class != classConflict {
			c.endConflicts(&streak)
		}
		switch {
		case errors.Is(err, errBatchTooSlow): // the breaker stays as it is: less at once is tried next
			c.gate.close(err, &holdsProbe)
			return err
		case class == classUnavailable:
			c.gate.close(err, &holdsProbe)
		case class == classConflict:
			c.recordConflict(&streak, err)
			if !retry.Sleep(ctx, retry.Backoff(attempt, 5*time.Millisecond, time.Second)) {
				return errAbandoned
			}
		case class == classTransient && sqldb.IsUnavailable(err) && writeChecks < 2:
			// it looks like the database but may come from anywhere: ask; a connection that broke is made anew
			if writeChecks++; c.checkWritable(ctx) != nil {
				c.gate.close(err, &holdsProbe)
				writeChecks = 0
			}
		default:
			c.gate.open(&holdsProbe)
			return err
		}
		if !stillWanted() {
			return errAbandoned
		}
	}
}

// ask finds out whether the database takes writes.
func (c *Consumer) checkWritable(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := c.db.ExecContext(ctx, `UPDATE outbox_lease SET floor = floor WHERE id = 0`)
	return err
}

// conflictLimit is how long a transaction may be run again and again, because
// others are in its way, before that is told.
const conflictLimit = 5 * time.Second

// conflicts are those of one transaction.
type conflictStreak struct {
	since  time.Time // the first; zero without one
	logged bool
}

// conflict counts a conflict, and tells once when they go on.
func (c *Consumer) recordConflict(of *conflictStreak, err error) {
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
func (c *Consumer) endConflicts(of *conflictStreak) {
	if of.logged {
		c.metrics.conflicting.Dec()
		c.cfg.Log.Info("conflict is over", "consumer_group", c.cfg.Group, "conflict_seconds", time.Since(of.since).Seconds())
	}
	*of = conflictStreak{}
}

// pass reports whether work may be done now. While the breaker is open it waits
// first: whoever probes for the time between two probes, all others until they
// should look again. False asks the caller to look whether he still wants to.
func (g *dependencyGate) acquire(ctx context.Context, holdsProbe *bool) bool {
	g.mu.Lock()
	if g.closedSince.IsZero() {
		g.mu.Unlock()
		return true
	}
	if !g.probing {
		g.probing, *holdsProbe = true, true
	}
	var due <-chan time.Time
	if *holdsProbe {
		timer := time.NewTimer(retry.Backoff(g.failures, 100*time.Millisecond, 5*time.Second))
		defer timer.Stop()
		due = timer.C
	}
	changed := g.changed
	g.mu.Unlock()
	select {
	case <-due:
		return true
	case <-changed:
	case <-g.stopping:
	case <-ctx.Done():
	}
	return false
}

// trip opens the breaker, or keeps it open.
func (g *dependencyGate) close(err error, holdsProbe *bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.closedSince.IsZero():
		g.closedSince, g.failures = time.Now(), 1
		g.probing, *holdsProbe = true, true
		g.onClose(err)
	case *holdsProbe:
		g.failures++
	}
}

// reset closes the breaker when it was the probe that went well: others may
// have begun before, or need nothing of what is away.
func (g *dependencyGate) open(holdsProbe *bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !*holdsProbe {
		return
	}
	g.probing, *holdsProbe = false, false
	g.onOpen(time.Since(g.closedSince))
	g.closedSince = time.Time{}
	g.wakeAllLocked()
}

// leave lets another probe.
func (g *dependencyGate) release(holdsProbe *bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if *holdsProbe {
		g.probing, *holdsProbe = false, false
		g.wakeAllLocked()
	}
}

// nudge has all who wait look whether they still want to.
func (g *dependencyGate) wakeAll() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.wakeAllLocked()
}

func (g *dependencyGate) wakeAllLocked() {
	close(g.changed)
	g.changed = make(chan struct{})
}

func (g *dependencyGate) isStopping() bool {
	select {
	case <-g.stopping:
		return true
	default:
		return false
	}
}
