package measure

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// asking starts a Measure whose value is the number of its queries, and reads it.
func asking(t *testing.T, ask func(context.Context) error) (m *Measure[int64], asked *atomic.Int64) {
	asked = new(atomic.Int64)
	m = New(Config[int64]{Metric: "waiting", Service: "test", Ask: func(ctx context.Context) (int64, error) {
		return asked.Add(1), ask(ctx)
	}})
	t.Cleanup(m.Start(context.Background()))
	return m, asked
}

// pass lets time pass, and goroutines in the background block.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestAsksOnlyWhileSomebodyLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, asked := asking(t, func(context.Context) error { return nil })
		if pass(time.Hour); asked.Load() != 0 {
			t.Fatalf("asked %d times for nobody", asked.Load())
		}
		if n, known := m.Get(); known {
			t.Errorf("knows %d without having asked", n)
		}
		synctest.Wait()
		for second := range 600 { // as often as it is read
			n, known := m.Get()
			if want := int64(second/60 + 1); !known || n != want || asked.Load() != want {
				t.Fatalf("after %d s: %d (known: %v), asked %d times, want %d", second, n, known, asked.Load(), want)
			}
			pass(time.Second)
		}
		pass(time.Hour)
		if n := asked.Load(); n > 16 {
			t.Errorf("asked %d times, for nobody after ten minutes", n)
		}
		before := asked.Load()
		if n, known := m.Get(); known {
			t.Errorf("%d is of an hour ago", n)
		}
		synctest.Wait()
		if n, known := m.Get(); !known || n != before+1 {
			t.Errorf("%d (known: %v) after the second look, want %d", n, known, before+1)
		}
	})
}

// A reader every five minutes gets a value that is a minute old.
func TestIsYoungForWhoLooksSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, asked := asking(t, func(context.Context) error { return nil })
		m.Get()
		for range 5 {
			pass(idleAfter - time.Second)
			if n, known := m.Get(); !known || n != asked.Load() || n < 5 {
				t.Errorf("%d (known: %v), asked %d times", n, known, asked.Load())
			}
		}
	})
}

func TestWhatFailsIsLeftOutAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var away atomic.Bool
		m, _ := asking(t, func(ctx context.Context) error {
			if away.Load() {
				return errors.New("away")
			}
			return nil
		})
		m.Get()
		synctest.Wait()
		away.Store(true)
		pass(30 * time.Second)
		if _, known := m.Get(); !known {
			t.Error("lost what was known half a minute ago")
		}
		for failures := range 3 {
			if pass(time.Minute); testutil.ToFloat64(m.Errors()) != float64(failures+1) {
				t.Errorf("%v failures counted, want %d", testutil.ToFloat64(m.Errors()), failures+1)
			}
			if n, known := m.Get(); known {
				t.Errorf("shows %d although nobody answers", n)
			}
		}
		away.Store(false)
		pass(time.Minute)
		if _, known := m.Get(); !known || testutil.ToFloat64(m.Errors()) != 3 {
			t.Errorf("known: %v, %v failures", known, testutil.ToFloat64(m.Errors()))
		}
	})
}

// A query that does not return is ended by its time-out, and the next one follows.
func TestSilenceHasItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, asked := asking(t, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		m.Get()
		if pass(timeout); testutil.ToFloat64(m.Errors()) != 1 {
			t.Errorf("%v failures", testutil.ToFloat64(m.Errors()))
		}
		if pass(time.Minute + timeout); asked.Load() != 2 {
			t.Errorf("asked %d times", asked.Load())
		}
	})
}
