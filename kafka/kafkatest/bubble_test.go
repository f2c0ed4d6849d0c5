//go:build synctests

package kafkatest_test

import (
	"sync"
	"testing"
	"time"

	"pizzaflow/kafka/kafkatest"
)

// TestVirtualInABubble also shows that nothing of the broker outlives the test: a bubble waits for every
// goroutine in it.
func TestVirtualInABubble(t *testing.T) {
	kafkatest.Bubble(t, func(t *testing.T) {
		config := kafkatest.Virtual(t, topic)
		roundTrip(t, config)
		time.Sleep(time.Hour) // virtual: connections are idle and dropped, retention is applied
		roundTrip(t, config)
	})
}

// Timers that are due as they start end the process under the race detector
// when a bubble's goroutines run beside each other.
func TestDueTimersInABubble(t *testing.T) {
	for range 2 {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			kafkatest.Bubble(t, func(*testing.T) {
				var all sync.WaitGroup
				for range 4 {
					all.Go(func() {
						for range 20000 {
							<-time.NewTimer(0).C
						}
					})
				}
				all.Wait()
			})
		})
	}
}
