package kafkatest

import (
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
)

// Bubble is synctest.Test for tests with a broker and many goroutines. With the
// race detector it leaves them a single processor: if two goroutines of a bubble
// start a timer that is already due at the same moment, they corrupt the detector,
// and the process ends (go.dev/issue/78156).
func Bubble(t *testing.T, fn func(t *testing.T)) {
	t.Helper()
	if raceDetector {
		defer oneProcessor.enter()()
	}
	synctest.Test(t, fn)
}

var oneProcessor processorLimit

// A processorLimit leaves the process one processor while there are bubbles.
type processorLimit struct {
	mu         sync.Mutex
	bubbles    int
	processors int // before the first bubble
}

func (l *processorLimit) enter() (leave func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bubbles++; l.bubbles == 1 {
		l.processors = runtime.GOMAXPROCS(1)
	}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.bubbles--; l.bubbles == 0 {
			runtime.GOMAXPROCS(l.processors)
		}
	}
}
