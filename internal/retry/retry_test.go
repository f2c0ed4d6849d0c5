package retry

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestBackoffDoublesUpToItsLimit(t *testing.T) {
	const base, limit = 200 * time.Millisecond, time.Minute
	for attempt := range 40 {
		most := base
		for n := 1; n < attempt && most < limit; n++ {
			most *= 2
		}
		most = min(most, limit)
		shortest, longest := most, time.Duration(0)
		for range 1000 {
			d := Backoff(attempt, base, limit)
			shortest, longest = min(shortest, d), max(longest, d)
		}
		if shortest < most/2 || longest > most {
			t.Errorf("after attempt %d between %v and %v, want between %v and %v", attempt, shortest, longest, most/2, most)
		}
		if longest-shortest < most/4 {
			t.Errorf("after attempt %d between %v and %v: not spread", attempt, shortest, longest)
		}
	}
}

func TestSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended, end := context.WithCancel(t.Context())
		end()
		limited, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for _, test := range []struct {
			name  string
			ctx   context.Context
			d     time.Duration
			alive bool
			takes time.Duration
		}{
			{"nothing to wait for", t.Context(), 0, true, 0},
			{"a time in the past", t.Context(), -time.Second, true, 0},
			{"a second", t.Context(), time.Second, true, time.Second},
			{"ended before", ended, time.Second, false, 0},
			{"ended before, nothing to wait for", ended, 0, false, 0},
			{"ends meanwhile", limited, time.Hour, false, 59 * time.Second},
		} {
			start := time.Now()
			if alive := Sleep(test.ctx, test.d); alive != test.alive || time.Since(start) != test.takes {
				t.Errorf("%s: %v after %v, want %v after %v", test.name, alive, time.Since(start), test.alive, test.takes)
			}
		}
	})
}
