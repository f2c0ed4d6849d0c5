//go:build synctests

package kafkatest_test

import (
	"testing"
	"testing/synctest"
	"time"

	"pizzaflow/kafka/kafkatest"
)

// TestVirtualInABubble also shows that nothing of the broker outlives the test: a bubble waits for every
// goroutine in it.
func TestVirtualInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config := kafkatest.Virtual(t, topic)
		roundTrip(t, config)
		time.Sleep(time.Hour) // virtual: connections are idle and dropped, retention is applied
		roundTrip(t, config)
	})
}
