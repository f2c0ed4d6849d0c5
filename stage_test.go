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

// stopping is a process with nothing in it but what a test puts there.
func stopping(t *testing.T) (p *process, stop context.CancelFunc, log *bytes.Buffer) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	log = new(bytes.Buffer)
	return newProcess(ctx, usable(), Host{Log: slog.New(slog.NewTextHandler(log, nil))}), stop, log
}

// recorder notes when things come to their end.
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

// obedient ends when it is told.
func (r *recorder) obedient(name string) (string, func(context.Context) error) {
	return name, func(ctx context.Context) error {
		<-ctx.Done()
		r.note(name)
		return nil
	}
}

func TestStopGoesFromTheDoorsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, stop, _ := stopping(t)
		var ends recorder
		p.ground.Go(ends.obedient("broker"))
		p.engine.Go(ends.obedient("relay"))
		p.doors.Go(ends.obedient("HTTP_ADDR"))
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

// Whatever hangs is named and left behind, and the others still get their turn.
func TestNothingHoldsTheStopUp(t *testing.T) {
	for _, c := range []struct {
		hangs string
		after time.Duration
		ended []string
	}{
		{"HTTP_ADDR", doorsStopped, []string{"lease", "broker", "closed"}},
		{"worker", engineStopped, []string{"lease", "broker"}},
		{"broker", groundStopped, []string{"lease", "closed"}},
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
				add(p.ground, "broker")
				add(p.engine, "lease")
				if c.hangs == "worker" {
					add(p.engine, "worker")
				}
				if c.hangs == "HTTP_ADDR" {
					add(p.doors, "HTTP_ADDR")
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

// A start that does not come back when it is told to stop holds nothing up either.
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

// Every end has its reason in the log.
func TestWhatFailedIsLoggedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _, log := stopping(t)
		p.readiness.started.Store(true)
		p.engine.Go("relay", func(context.Context) error { return nil })
		p.engine.Go("worker", func(ctx context.Context) error { <-ctx.Done(); return errors.New("and so did this") })
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

// Only where somebody looks at /readyz is there a reason to wait until he has.
func TestGraceIsForWhoeverLooks(t *testing.T) {
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
				p.listeners["HTTP_ADDR"] = new(net.TCPListener)
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
				p.readiness.asked.Store(c.looked)
				began := time.Now()
				if err := p.stop(); err != nil || time.Since(began) != c.grace {
					t.Errorf("%v after %v, want %v", err, time.Since(began), c.grace)
				}
			})
		})
	}
}

// Many who ask are one question, and one a second.
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
					if err := c.verdict(t.Context()); err != nil {
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

// A try that does not come back keeps nobody waiting, and is not made a second time meanwhile.
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
			if err := c.verdict(ctx); !errors.Is(err, sqldb.ErrNoAnswer) || !strings.Contains(err.Error(), "order database") {
				t.Error(err)
			}
			cancel()
		}
		time.Sleep(time.Minute)
		if n := tries.Load(); n != 1 {
			t.Errorf("%d tries", n)
		}
		if err := c.verdict(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// What is being waited for is told with its reason.
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

// The last answers of a process that stops send their clients elsewhere.
func TestLastCallsCloseTheirConnections(t *testing.T) {
	p, stop, _ := stopping(t)
	h := p.lastCalls(http.NotFoundHandler())
	for _, want := range []string{"", "close"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		if got := w.Header().Get("Connection"); got != want {
			t.Errorf("Connection %q, want %q", got, want)
		}
		stop()
	}
}
