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

// retryWhileUnavailable runs fn until it succeeds or fails with an error that is
// neither a conflict nor an unavailable dependency, and returns that result. It waits
// at the gate without limit. Before each further try it calls stillWanted, which may
// narrow the work down, and returns errAbandoned when that reports false, when ctx
// ends, or when the consumer stops while the gate is closed.
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
		case errors.Is(err, errBatchTooSlow): // a part of the batch, tried next, may open the gate
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
			// the error looks like one of the database but the handler may have it from elsewhere: check the database
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

// checkWritable returns an error unless the database takes writes.
func (c *Consumer) checkWritable(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := c.db.ExecContext(ctx, `UPDATE outbox_lease SET floor = floor WHERE id = 0`)
	return err
}

// A dependencyGate holds back all work of a consumer while a dependency (its
// database, or what a handler called Unavailable) is away. While it is closed, one
// caller at a time holds the probe: it tries its own work again and again, and its
// success opens the gate for all. It is no circuit breaker: work waits and does not
// fail, and one error closes it.
type dependencyGate struct {
	onClose  func(err error)          // called when it closes, with the error that closed it
	onOpen   func(took time.Duration) // called when it opens, with how long it was closed
	stopping <-chan struct{}          // closed when the consumer stops

	mu          sync.Mutex
	changed     chan struct{} // closed and replaced when the waiting callers are woken
	closedSince time.Time     // zero while the gate is open
	failures    int           // probes that failed since it closed, and the error that closed it
	probing     bool          // a caller holds the probe
}

// newDependencyGate makes an open gate that sets gauge to 1 while it is closed.
func newDependencyGate(cfg Config, gauge prometheus.Gauge) *dependencyGate {
	return &dependencyGate{
		changed: make(chan struct{}),
		onClose: func(err error) {
			gauge.Set(1)
			cfg.Log.Error("consumer paused: a dependency is unavailable", "consumer_group", cfg.Group, "err", err)
		},
		onOpen: func(took time.Duration) {
			gauge.Set(0)
			cfg.Log.Info("consumer resumed", "consumer_group", cfg.Group, "paused_seconds", took.Seconds())
		},
	}
}

// acquire returns true when work may be done. While the gate is closed it waits:
// the holder of the probe, which it becomes when there is none, until the next probe
// is due; all others until the gate changes. False asks the caller to check whether
// its work is still wanted, and to call again.
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

// close closes the gate and takes the probe; on a closed gate it counts a failed
// probe of its holder.
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

// open opens the gate when the caller holds the probe. The success of others says
// nothing: they may have begun before it closed, or need no unavailable dependency.
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

// release gives up the probe, so that another caller takes it.
func (g *dependencyGate) release(holdsProbe *bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if *holdsProbe {
		g.probing, *holdsProbe = false, false
		g.wakeAllLocked()
	}
}

// wakeAll has all waiting callers check whether their work is still wanted.
func (g *dependencyGate) wakeAll() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.wakeAllLocked()
}

// wakeAllLocked is wakeAll for callers that hold the mutex.
func (g *dependencyGate) wakeAllLocked() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// isStopping reports whether the consumer stops.
func (g *dependencyGate) isStopping() bool {
	select {
	case <-g.stopping:
		return true
	default:
		return false
	}
}

// conflictLimit is how long a transaction may conflict with others before that is
// logged.
const conflictLimit = 5 * time.Second

// A conflictStreak is a series of conflicts of one transaction.
type conflictStreak struct {
	since  time.Time // of the first conflict; zero without one
	logged bool
}

// recordConflict counts a conflict, and logs once when the streak is long.
func (c *Consumer) recordConflict(streak *conflictStreak, err error) {
	c.metrics.conflicts.Inc()
	if streak.since.IsZero() {
		streak.since = time.Now()
	}
	if !streak.logged && time.Since(streak.since) > conflictLimit {
		streak.logged = true
		c.metrics.conflicting.Inc()
		c.cfg.Log.Error("transaction conflicts continue: it is retried until it succeeds", "consumer_group", c.cfg.Group, "err", err)
	}
}

// endConflicts resets the streak, and logs its end when it was logged.
func (c *Consumer) endConflicts(streak *conflictStreak) {
	if streak.logged {
		c.metrics.conflicting.Dec()
		c.cfg.Log.Info("transaction conflicts ended", "consumer_group", c.cfg.Group, "conflict_seconds", time.Since(streak.since).Seconds())
	}
	*streak = conflictStreak{}
}
