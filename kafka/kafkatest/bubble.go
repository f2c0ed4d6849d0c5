package kafkatest

import (
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
)

// Bubble is synctest.Test for tests with a broker and many goroutines. With the
// race detector it leaves them a single processor: two goroutines of a bubble
// that start a timer which is already due, at the same moment, corrupt the
// detector, and the process ends (go.dev/issue/78156).
func Bubble(t *testing.T, fn func(t *testing.T)) {
	t.Helper()
	if raceDetector {
		defer alone.enter()()
	}
	synctest.Test(t, fn)
}

var alone crowd

// A crowd of bubbles has one processor as long as one of them is left.
type crowd struct {
	mu         sync.Mutex
	bubbles    int
	processors int // before the first
}

func (c *crowd) enter() (leave func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bubbles++; c.bubbles == 1 {
		c.processors = runtime.GOMAXPROCS(1)
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.bubbles--; c.bubbles == 0 {
			runtime.GOMAXPROCS(c.processors)
		}
	}
}
