package pizzaflow

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"pizzaflow/sqldb"
)

const (
	checkTimeout = 1500 * time.Millisecond // for one try to write, so that its verdict comes within the 2 s of /readyz
	checkEvery   = time.Second             // the least time between two
)

// readiness is what the process knows of whether it can do its work.
type readiness struct {
	started atomic.Bool
	asked   atomic.Bool // somebody wants to know
	said    atomic.Bool // the log says that it is ready

	mu      sync.Mutex
	waiting map[string]error // what for, and why
	checks  []*writeCheck
}

// wait notes what is waited for, as the sentence that /readyz says, or with nil
// that it is there.
func (r *readiness) wait(what string, why error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if why == nil {
		delete(r.waiting, what)
		return
	}
	if r.waiting == nil {
		r.waiting = map[string]error{}
	}
	r.waiting[what] = why
}

// add has the service's database asked whether it takes writes.
func (r *readiness) add(service string, db *sqldb.DB) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.checks = append(r.checks, &writeCheck{service: service, try: db.CheckWrites})
}

// ready says why the process cannot do its work now. It tries what it promises:
// a write to each database.
func (p *process) ready(ctx context.Context) error {
	r := &p.readiness
	r.asked.Store(true)
	if p.ctx.Err() != nil {
		return errors.New("stopping")
	}
	r.mu.Lock()
	var errs []error
	if !r.started.Load() {
		errs = append(errs, errors.New("still starting"))
	}
	for _, what := range slices.Sorted(maps.Keys(r.waiting)) {
		errs = append(errs, r.waiting[what])
	}
	checks := slices.Clone(r.checks)
	r.mu.Unlock()

	verdicts := make([]error, len(checks))
	var all sync.WaitGroup
	for i, c := range checks {
		all.Go(func() { verdicts[i] = c.verdict(ctx) })
	}
	all.Wait()
	err := errors.Join(append(errs, verdicts...)...)
	p.noteReady(err)
	return err
}

// noteReady logs each change of whether the process is ready.
func (p *process) noteReady(err error) {
	if is := err == nil; p.readiness.said.Swap(is) != is {
		if is {
			p.host.Log.Info("ready")
		} else {
			p.host.Log.Warn("not ready", "err", err)
		}
	}
}

// A writeCheck finds out whether a service's database takes writes, for all who
// ask at about the same time.
type writeCheck struct {
	service string
	try     func(context.Context) error

	mu    sync.Mutex
	under chan struct{} // closed when the try that is under way has ended; nil while none is
	ended time.Time     // of the last try
	err   error         // what it found
}

// verdict is the outcome of a try that has ended within the last second, or of
// the next one.
func (c *writeCheck) verdict(ctx context.Context) error {
	c.mu.Lock()
	if c.under == nil && time.Since(c.ended) >= checkEvery {
		c.under = make(chan struct{})
		go c.run(c.under) //nolint:gosec // G118: the try is for all who ask, and goes on when the first of them has left
	}
	under := c.under
	c.mu.Unlock()
	if under != nil {
		select {
		case <-under:
		case <-ctx.Done():
			return fmt.Errorf("the %s database does not take writes: %w", c.service, sqldb.ErrNoAnswer)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return fmt.Errorf("the %s database does not take writes: %w", c.service, c.err)
	}
	return nil
}

// run tries once. Whoever asked need not wait for it: a driver may not come back
// from a locked file when its time is up.
func (c *writeCheck) run(done chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	err := c.try(ctx)
	c.mu.Lock()
	c.under, c.ended, c.err = nil, time.Now(), err
	c.mu.Unlock()
	close(done)
}
