//go:build synctests

package embedded_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/kafka"
	"pizzaflow/kafka/embedded"
	"pizzaflow/kafka/kafkatest"
)

// openVirtual is open in a bubble, where time is virtual.
func openVirtual(t *testing.T, dir string) (config kafka.Config, stop func()) {
	t.Helper()
	network := kafkatest.NewNetwork()
	config, stop = open(t, embedded.Config{Dir: dir, ListenFn: network.Listen})
	config.Dial = network.Dial
	return config, stop
}

// startOffset is the offset of the oldest record of order-events.
func startOffset(t *testing.T, c *kgo.Client) int64 {
	t.Helper()
	starts, err := kadm.NewClient(c).ListStartOffsets(t.Context(), "order-events")
	if err != nil {
		t.Fatal(err)
	}
	o, _ := starts.Lookup("order-events", 0)
	return o.Offset
}

func TestRetentionGoesOnAfterARestart(t *testing.T) {
	kafkatest.Bubble(t, func(t *testing.T) {
		dir := t.TempDir()
		topic := single()
		topic.RetentionBytes = 1000
		config, stop := openVirtual(t, dir)
		kafkatest.Ensure(t, config, topic)
		stop()

		config, stop = openVirtual(t, dir)
		c := kafkatest.Client(t, config)
		for i := range 50 {
			kafkatest.Produce(t, c, "order-events", fmt.Sprintf("record %d of a size that adds up to more than the retention", i))
		}
		time.Sleep(2 * time.Minute) // virtual
		if start := startOffset(t, c); start < 40 {
			t.Errorf("the oldest record after two minutes is %d, want 40 or a later one", start)
		}
		c.Close()
		stop()
	})
}

func TestAPartitionThatBeginsAgainIsReadFromItsStart(t *testing.T) {
	kafkatest.Bubble(t, func(t *testing.T) {
		dir := t.TempDir()
		topic := single()
		topic.Retention = time.Millisecond
		config, stop := openVirtual(t, dir)
		kafkatest.Ensure(t, config, topic)
		c := kafkatest.Client(t, config)
		kafkatest.Produce(t, c, "order-events", "a", "b", "c")
		commitOffset(t, c, 3)
		time.Sleep(2 * time.Minute) // virtual
		if start := startOffset(t, c); start != 3 {
			t.Fatalf("the oldest record after two minutes is %d, want that all have expired", start)
		}
		c.Close()
		stop()

		// A partition without a record begins at 0 again, and the group would skip "d".
		config, stop = openVirtual(t, dir)
		if got := committed(t, config); got > 0 {
			t.Fatalf("the group would begin at %d of an empty partition", got)
		}
		c = kafkatest.Client(t, config)
		kafkatest.Produce(t, c, "order-events", "d")
		if got := read(t, config); !slices.Equal(got, []string{"d"}) {
			t.Errorf("records: %q", got)
		}
		c.Close()
		stop()
	})
}
