// Package retry has what loops that try again need: the pause between two tries,
// and the wait for it.
package retry

import (
	"context"
	"math/rand/v2"
	"time"
)

// Sleep waits for d and reports whether ctx is still alive. It returns false as
// soon as ctx has ended.
func Sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return ctx.Err() == nil
	}
}

// Backoff is the pause after attempt 1, 2, …: base doubled each time, up to
// limit. Its upper half is drawn at random, so that clients that failed together
// do not return together.
func Backoff(attempt int, base, limit time.Duration) time.Duration {
	d := base
	for i := 1; i < attempt && d < limit; i++ {
		d *= 2
	}
	d = min(d, limit)
	return d/2 + rand.N(d/2+1) //nolint:gosec // jitter
}
