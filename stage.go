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

// When each part of the stop is to be over, counted from its beginning. Whoever
// ends early leaves its time to the next, whoever is late is left behind, so that
// requests which hang do not keep offsets from being committed and leases from
// being given back. All of it is over before the 60 s that are promised.
const (
	doorsStopped  = 40 * time.Second // a grace of 30 s, and the ten of web.Serve
	engineStopped = 47 * time.Second
	groundStopped = 52 * time.Second
	allStopped    = 55 * time.Second
	maxStopGrace  = 30 * time.Second
)

// A stage owns goroutines that end together. One that ends before it is told
// to brings the process down.
type stage struct {
	ctx    context.Context
	cancel context.CancelFunc
	fail   context.CancelCauseFunc

	mu      sync.Mutex
	running []string // the names of those that have not ended
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

// stop ends the stage and waits for its goroutines, no longer than until then.
// It returns their errors, and the names of those that have not ended.
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

// errLeft is wrapped by the error of a stop that something outlived.
var errLeft = errors.New("not ended in time, and left behind")

// stop ends everything in good order, each part by its time.
func (p *process) stop() error {
	began := p.stopBegan()
	p.stayOpen()
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
	wait(p.doors, doorsStopped)
	quiet := wait(p.engine, engineStopped)
	wait(p.ground, groundStopped)
	if quiet { // else somebody uses them, and the end of the process closes them as well
		wait(p.closing(), allStopped)
	}
	return errors.Join(errs...)
}

// closing closes what is left, last opened first.
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

// stayOpen waits until whoever sends requests here has had the time to notice
// that /readyz says stopping, if there is anybody who asks.
func (p *process) stayOpen() {
	if p.asked.Err() == nil || !p.readiness.started.Load() || !p.readiness.asked.Load() || p.listeners["HTTP_ADDR"] == nil {
		return
	}
	<-time.After(time.Until(p.stopBegan().Add(p.cfg.StopGrace)))
}

// lastCalls sends clients elsewhere, if there is an elsewhere, once the stop has
// begun: each further answer is the last of its connection.
func (p *process) lastCalls(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.ctx.Err() != nil {
			w.Header().Set("Connection", "close")
		}
		h.ServeHTTP(w, r)
	})
}

// awaitEnd tells why the process stops and waits until it has.
func (p *process) awaitEnd(ended <-chan error) error {
	began, log := p.stopBegan(), p.host.Log
	switch why := context.Cause(p.ctx); {
	case p.asked.Err() != nil:
		log.Info("stopping", "because", why.Error())
	case p.readiness.started.Load(): // logged, too: it is returned only when all has ended
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
	case <-late.C: // it hangs in the middle of the start
		err := fmt.Errorf("stop: %w: the start", errLeft)
		log.Error("not stopped", "err", err)
		return err
	}
}
