package kafkatest_test

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/kafka"
	"pizzaflow/kafka/kafkatest"
)

var topic = kafka.Topic{Name: "order-events", Partitions: 1, Replicas: -1}

// roundTrip produces one record and reads it in a group.
func roundTrip(t *testing.T, config kafka.Config) {
	t.Helper()
	opts, err := config.Options()
	if err != nil {
		t.Fatal(err)
	}
	c, err := kgo.NewClient(append(opts, kgo.ConsumerGroup("group"), kgo.ConsumeTopics(topic.Name),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.ProduceSync(t.Context(), &kgo.Record{Topic: topic.Name, Value: []byte("hello")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	fetches := c.PollRecords(t.Context(), 1)
	if err := fetches.Err(); err != nil {
		t.Fatal(err)
	}
	if got := string(fetches.Records()[0].Value); got != "hello" {
		t.Fatalf("read %q", got)
	}
}

func TestStart(t *testing.T) { roundTrip(t, kafkatest.Start(t, topic)) }

func TestVirtual(t *testing.T) { roundTrip(t, kafkatest.Virtual(t, topic)) }
