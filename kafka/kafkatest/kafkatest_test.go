package kafkatest_test

import (
	"context"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/kafka"
	"pizzaflow/kafka/kafkatest"
)

var topic = kafka.Topic{Name: "order-events", Partitions: 1, Replicas: -1}

// roundTrip produces one record and reads it in a group.
func roundTrip(t *testing.T, config kafka.Config) {
	t.Helper()
	c := kafkatest.Client(t, config, kgo.ConsumerGroup("group"), kgo.ConsumeTopics(topic.Name),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	defer c.Close()
	kafkatest.Produce(t, c, topic.Name, "hello")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	fetches := c.PollRecords(ctx, 1)
	if err := fetches.Err(); err != nil {
		t.Fatalf("read the record: %v", err)
	}
	if got := string(fetches.Records()[0].Value); got != "hello" {
		t.Fatalf("read %q", got)
	}
}

func TestStart(t *testing.T) { roundTrip(t, kafkatest.Start(t, topic)) }

func TestVirtual(t *testing.T) { roundTrip(t, kafkatest.Virtual(t, topic)) }
