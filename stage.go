package pizzaflow

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// The deadline of each part of the stop, counted from its beginning. A stage that ends early leaves its time to the next. One
// that is late is left behind, so that requests which hang do not keep offsets from being committed and leases from being
// released. All deadlines are before the 60 s that are promised.
const (
	listenersStopped      = 40 * time.Second // a grace of 30 s, and the ten of web.Serve
	workersStopped        = 47 * time.Second
	infrastructureStopped = 52 * time.Second
	allStopped            = 55 * time.Second
	maxStopGrace          = 30 * time.Second
)

// A stage owns goroutines that are stopped together. One that ends before that stops the process.
type stage struct {
	ctx    context.Context
	cancel context.CancelFunc
	fail   context.CancelCauseFunc

	mu      sync.Mutex
	running []string // the names of the goroutines that have not ended
	errs    []error
	ended   chan struct{} // closed when one ends, and replaced
}

func newStage(ctx context.Context, fail context.CancelCauseFunc) *stage {
	s := &stage{fail: fail, ended: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return s
}

// Go runs fn, which must return when its context ends.
func (s *stage) Go(name string, fn func(context.Context) error) {
	s.mu.Lock()
	s.running = append(s.running, name)
	s.mu.Unlock()
	go func() {
		err := fn(s.ctx)
		if err == nil && s.ctx.Err() == nil {
			err = errors.New("ended by itself")
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if err != nil {
			err = fmt.Errorf("%s: %w", name, err)
			s.errs = append(s.errs, err)
			s.fail(err)
		}
		i := slices.Index(s.running, name)
		s.running = slices.Delete(s.running, i, i+1)
		close(s.ended)
		s.ended = make(chan struct{})
	}()
}

// stop cancels the stage and waits for its goroutines until the time. It returns their errors, and the names of the goroutines
// that have not ended.
func (s *stage) stop(by time.Time) (left []string, err error) {
	s.cancel()
	late := time.NewTimer(time.Until(by))
	defer late.Stop()
	for timeIsUp := false; ; {
		s.mu.Lock()
		running, ended, err := slices.Clone(s.running), s.ended, errors.Join(s.errs...)
		s.mu.Unlock()
		if len(running) == 0 || timeIsUp {
			return running, err
		}
		select {
		case <-ended:
		case <-late.C:
			timeIsUp = true
		}
	}
}

// errLeft is wrapped by the error of a stop that left goroutines behind.
var errLeft = errors.New("not ended in time, and left behind")

// stop stops the stages one after the other, each by its deadline.
func (p *process) stop() error {
	began := p.stopBegan()
	p.awaitGrace()
	var errs []error
	wait := func(s *stage, within time.Duration) (all bool) {
		left, err := s.stop(began.Add(within))
		errs = append(errs, err)
		if len(left) == 0 {
			return true
		}
		names := strings.Join(left, ", ")
		p.host.Log.Error("not ended in time, and left behind", "what", names, "seconds", time.Since(began).Seconds())
		errs = append(errs, fmt.Errorf("stop: %w: %s", errLeft, names))
		return false
	}
	wait(p.listeners, listenersStopped)
	quiet := wait(p.workers, workersStopped)
	wait(p.infrastructure, infrastructureStopped)
	if quiet { // else workers use the databases, and the end of the process closes them as well
		wait(p.closing(), allStopped)
	}
	return errors.Join(errs...)
}

// closing is a stage that closes databases, ports and locks, last opened first.
func (p *process) closing() *stage {
	s := newStage(p.ctx, func(error) {})
	s.cancel()
	s.Go("closing", func(context.Context) error {
		var errs []error
		for _, c := range slices.Backward(p.closers) {
			if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
	return s
}

// awaitGrace takes requests for STOP_GRACE after /readyz has begun to say stopping, so that load balancers notice first. If
// /readyz was never asked, there is none, and it returns at once.
func (p *process) awaitGrace() {
	if p.parent.Err() == nil || !p.readiness.started.Load() || !p.readiness.probed.Load() || p.ports["HTTP_ADDR"] == nil {
		return
	}
	<-time.After(time.Until(p.stopBegan().Add(p.cfg.StopGrace)))
}

// closeWhenStopping makes each answer the last of its connection once the stop has begun, so that clients of a load balancer
// go to other processes.
func (p *process) closeWhenStopping(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.ctx.Err() != nil {
			w.Header().Set("Connection", "close")
		}
		h.ServeHTTP(w, r)
	})
}

// awaitEnd logs why the process stops and waits until it has stopped.
func (p *process) awaitEnd(ended <-chan error) error {
	began, log := p.stopBegan(), p.host.Log
	switch why := context.Cause(p.ctx); {
	case p.parent.Err() != nil:
		log.Info("stopping", "because", why.Error())
	case p.readiness.started.Load(): // the error is logged at once, because it is returned only when all has ended
		log.Error("stopping", "err", why)
	}
	late := time.NewTimer(time.Until(began.Add(allStopped + time.Second)))
	defer late.Stop()
	select {
	case err := <-ended:
		if err == nil {
			log.Info("stopped", "seconds", time.Since(began).Seconds())
		}
		return err
	case <-late.C: // run hangs in the middle of the start
		err := fmt.Errorf("stop: %w: the start", errLeft)
		log.Error("not stopped", "err", err)
		return err
	}
}
