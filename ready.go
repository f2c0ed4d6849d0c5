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
	checkTimeout = 1500 * time.Millisecond // of one attempt to write, so that its outcome comes within the 2 s of /readyz
	checkEvery   = time.Second             // the least time between two attempts
)

// readiness is whether the process can do its work.
type readiness struct {
	started atomic.Bool
	probed  atomic.Bool // /readyz was asked
	logged  atomic.Bool // the last line of the log about it says ready

	mu      sync.Mutex
	waiting map[string]error // by what the process waits for: the sentence of /readyz
	checks  []*writeCheck
}

// wait notes that the process waits for what, and the sentence that /readyz gives as the reason; with nil, that it no longer
// waits for it.
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

// add has the service's database checked for taking writes.
func (r *readiness) add(service string, db *sqldb.DB) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.checks = append(r.checks, &writeCheck{service: service, try: db.CheckWrites})
}

// ready returns why the process cannot do its work now; nil if it can. It attempts a write to each database.
func (p *process) ready(ctx context.Context) error {
	r := &p.readiness
	r.probed.Store(true)
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

	results := make([]error, len(checks))
	var all sync.WaitGroup
	for i, c := range checks {
		all.Go(func() { results[i] = c.result(ctx) })
	}
	all.Wait()
	err := errors.Join(append(errs, results...)...)
	p.logChange(err)
	return err
}

// logChange logs that the process became ready, or is no longer.
func (p *process) logChange(err error) {
	if is := err == nil; p.readiness.logged.Swap(is) != is {
		if is {
			p.host.Log.Info("ready")
		} else {
			p.host.Log.Warn("not ready", "err", err)
		}
	}
}

// A writeCheck finds out whether a service's database takes writes. Requests at about the same time share an attempt.
type writeCheck struct {
	service string
	try     func(context.Context) error

	mu      sync.Mutex
	running chan struct{} // closed when the running attempt has ended; nil while there is none
	ended   time.Time     // when the last attempt ended
	err     error         // its outcome
}

// result is the outcome of an attempt that ended within the last second, or of the next attempt.
func (c *writeCheck) result(ctx context.Context) error {
	c.mu.Lock()
	if c.running == nil && time.Since(c.ended) >= checkEvery {
		c.running = make(chan struct{})
		go c.run(c.running) //nolint:gosec // G118: the attempt is for several requests, and goes on when the first of them has ended
	}
	running := c.running
	c.mu.Unlock()
	if running != nil {
		select {
		case <-running:
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

// run makes one attempt. It is apart from the requests, because a driver may not return from a locked file when its time is
// up.
func (c *writeCheck) run(done chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	err := c.try(ctx)
	c.mu.Lock()
	c.running, c.ended, c.err = nil, time.Now(), err
	c.mu.Unlock()
	close(done)
}
