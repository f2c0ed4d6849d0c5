// Package testkit has what the tests of several packages need: to run what
// runs until it is stopped, and to wait for what comes by itself.
package testkit

import (
	"context"
	"sync"
	"testing"
	"time"
)

// patience is how long Eventually waits: much longer than anything takes, for
// a machine that is busy with other tests.
const patience = 45 * time.Second

// Run runs fn until stop is called or the test ends, and fails the test with
// its error. Stop returns when fn has.
func Run(t testing.TB, fn func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- fn(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// Eventually waits until ok reports true, and ends the test if that is not
// within 45 seconds. What says what is waited for.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("not after %s: %s", patience, what)
		case <-tick.C:
		}
	}
}
