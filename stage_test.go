package pizzaflow

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pizzaflow/sqldb"
)

// stopping is a process whose stages are empty.
func stopping(t *testing.T) (p *process, stop context.CancelFunc, log *bytes.Buffer) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	log = new(bytes.Buffer)
	return newProcess(ctx, usable(), Host{Log: slog.New(slog.NewTextHandler(log, nil))}), stop, log
}

// recorder notes in which order things end.
type recorder struct {
	mu   sync.Mutex
	what []string
}

func (r *recorder) note(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.what = append(r.what, what)
}

func (r *recorder) Close() error { r.note("closed"); return nil }

// obedient is a goroutine that ends when it is told to.
func (r *recorder) obedient(name string) (string, func(context.Context) error) {
	return name, func(ctx context.Context) error {
		<-ctx.Done()
		r.note(name)
		return nil
	}
}

func TestStopGoesFromTheListenersDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, stop, _ := stopping(t)
		var ends recorder
		p.infrastructure.Go(ends.obedient("broker"))
		p.workers.Go(ends.obedient("relay"))
		p.listeners.Go(ends.obedient("HTTP_ADDR"))
		p.closers = append(p.closers, &ends)
		began := time.Now()
		stop()
		if err := p.stop(); err != nil || time.Since(began) != 0 {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		if want := []string{"HTTP_ADDR", "relay", "broker", "closed"}; !slices.Equal(ends.what, want) {
			t.Errorf("ended %v, want %v", ends.what, want)
		}
	})
}

// A goroutine that hangs is named and left behind, and the stages after it are still stopped.
func TestNothingHoldsTheStopUp(t *testing.T) {
	for _, c := range []struct {
		hangs string
		after time.Duration
		ended []string
	}{
		{"HTTP_ADDR", listenersStopped, []string{"lease", "broker", "closed"}},
		{"worker", workersStopped, []string{"lease", "broker"}},
		{"broker", infrastructureStopped, []string{"lease", "closed"}},
		{"closing", allStopped, []string{"lease", "broker"}},
	} {
		t.Run(c.hangs, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, stop, log := stopping(t)
				var ends recorder
				over := make(chan struct{})
				defer close(over)
				add := func(s *stage, name string) {
					if name == c.hangs {
						s.Go(name, func(context.Context) error { <-over; return nil })
						return
					}
					s.Go(ends.obedient(name))
				}
				add(p.infrastructure, "broker")
				add(p.workers, "lease")
				if c.hangs == "worker" {
					add(p.workers, "worker")
				}
				if c.hangs == "HTTP_ADDR" {
					add(p.listeners, "HTTP_ADDR")
				}
				p.closers = append(p.closers, &ends)
				if c.hangs == "closing" {
					p.closers = []io.Closer{closeFunc(func() error { <-over; return nil })}
				}
				began := time.Now()
				stop()
				ended := make(chan error, 1)
				go func() { ended <- p.stop() }()
				err := p.awaitEnd(ended)
				if took := time.Since(began); took != c.after || took >= time.Minute {
					t.Errorf("it took %v, want %v", took, c.after)
				}
				if !errors.Is(err, errLeft) || !strings.Contains(err.Error(), c.hangs) || !strings.Contains(log.String(), "what="+c.hangs) {
					t.Errorf("%v is not named: %v; logged %s", c.hangs, err, log)
				}
				if !slices.Equal(ends.what, c.ended) {
					t.Errorf("ended %v, want %v", ends.what, c.ended)
				}
			})
		})
	}
}

type closeFunc func() error

func (f closeFunc) Close() error { return f() }

// A start that does not return when the process is told to stop is left behind as well.
func TestAStartThatHangsIsLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, stop, log := stopping(t)
		began := time.Now()
		stop()
		err := p.awaitEnd(make(chan error))
		if took := time.Since(began); !errors.Is(err, errLeft) || took >= time.Minute || !strings.Contains(log.String(), "the start") {
			t.Errorf("%v after %v: %s", err, took, log)
		}
	})
}

// The reason of every stop is in the log at once.
func TestWhatFailedIsLoggedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _, log := stopping(t)
		p.readiness.started.Store(true)
		p.workers.Go("relay", func(context.Context) error { return nil })
		p.workers.Go("worker", func(ctx context.Context) error { <-ctx.Done(); return errors.New("and so did this") })
		<-p.ctx.Done()
		ended := make(chan error, 1)
		go func() { ended <- p.stop() }()
		err := p.awaitEnd(ended)
		if err == nil || !strings.Contains(err.Error(), "relay: ended by itself") || !strings.Contains(err.Error(), "worker: and so did this") {
			t.Errorf("ended with %v", err)
		}
		if !strings.Contains(log.String(), `level=ERROR msg=stopping err="relay: ended by itself"`) {
			t.Errorf("logged %s", log)
		}
	})
}

// The grace is for load balancers that look at /readyz: where nothing looks, the process stops at once.
func TestGraceIsForLoadBalancers(t *testing.T) {
	for name, c := range map[string]struct {
		looked, started, told bool
		grace                 time.Duration
	}{
		"somebody looks": {true, true, true, 5 * time.Second},
		"nobody looks":   {false, true, true, 0},
		"not started":    {true, false, true, 0},
		"a failure":      {true, true, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, stop, _ := stopping(t)
				defer stop()
				p.cfg.StopGrace = 5 * time.Second
				p.ports["HTTP_ADDR"] = new(net.TCPListener)
				p.readiness.started.Store(c.started)
				if c.looked {
					_ = p.ready(t.Context())
				}
				if c.told {
					stop()
				} else {
					p.fail(errors.New("failed"))
				}
				<-p.ctx.Done()
				if err := p.ready(t.Context()); err == nil || err.Error() != "stopping" {
					t.Errorf("ready: %v", err)
				}
				p.readiness.probed.Store(c.looked)
				began := time.Now()
				if err := p.stop(); err != nil || time.Since(began) != c.grace {
					t.Errorf("%v after %v, want %v", err, time.Since(began), c.grace)
				}
			})
		})
	}
}

// Many requests share an attempt, and there is one attempt a second.
func TestWritesAreTriedOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tries atomic.Int32
		c := &writeCheck{service: "order", try: func(ctx context.Context) error {
			tries.Add(1)
			time.Sleep(100 * time.Millisecond)
			return ctx.Err()
		}}
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() {
				for range 25 { // 5 s
					if err := c.result(t.Context()); err != nil {
						t.Error(err)
					}
					time.Sleep(200 * time.Millisecond)
				}
			})
		}
		all.Wait()
		if n := tries.Load(); n < 4 || n > 5 {
			t.Errorf("%d tries in 5 s", n)
		}
	})
}

// An attempt that does not return holds no request up, and no second one is made meanwhile.
func TestATryThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tries atomic.Int32
		c := &writeCheck{service: "order", try: func(context.Context) error {
			tries.Add(1)
			time.Sleep(time.Minute)
			return nil
		}}
		for range 5 {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			if err := c.result(ctx); !errors.Is(err, sqldb.ErrNoAnswer) || !strings.Contains(err.Error(), "order database") {
				t.Error(err)
			}
			cancel()
		}
		time.Sleep(time.Minute)
		if n := tries.Load(); n != 1 {
			t.Errorf("%d tries", n)
		}
		if err := c.result(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// /readyz says for what the process waits, and why.
func TestReadyTellsWhatIsWaitedFor(t *testing.T) {
	p, stop, _ := stopping(t)
	defer stop()
	p.readiness.wait("the order database", errors.New("waiting for the order database: connection refused"))
	p.readiness.wait("the topics", errors.New("the topics are not there yet: no brokers"))
	want := "still starting\nwaiting for the order database: connection refused\nthe topics are not there yet: no brokers"
	if err := p.ready(t.Context()); err == nil || err.Error() != want {
		t.Errorf("ready: %v", err)
	}
	p.readiness.wait("the order database", nil)
	p.readiness.wait("the topics", nil)
	p.readiness.started.Store(true)
	if err := p.ready(t.Context()); err != nil {
		t.Errorf("ready: %v", err)
	}
}

// The answers of a process that stops close their connections.
func TestConnectionsAreClosedWhenStopping(t *testing.T) {
	p, stop, _ := stopping(t)
	h := p.closeWhenStopping(http.NotFoundHandler())
	for _, want := range []string{"", "close"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		if got := w.Header().Get("Connection"); got != want {
			t.Errorf("Connection %q, want %q", got, want)
		}
		stop()
	}
}
