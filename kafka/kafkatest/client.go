package kafkatest

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/kafka"
)

// Client returns a client of config, with more options if need be, that is closed with the test.
func Client(t testing.TB, config kafka.Config, more ...kgo.Opt) *kgo.Client {
	t.Helper()
	opts, err := config.Options()
	if err != nil {
		t.Fatal(err)
	}
	c, err := kgo.NewClient(append(opts, more...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// Produce writes one record of each value, which is its key as well, and returns when they are acknowledged.
func Produce(t testing.TB, c *kgo.Client, topic string, values ...string) {
	t.Helper()
	for _, v := range values {
		r := &kgo.Record{Topic: topic, Key: []byte(v), Value: []byte(v)}
		if err := c.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

// Ensure creates the topics that are missing.
func Ensure(t testing.TB, config kafka.Config, topics ...kafka.Topic) {
	t.Helper()
	if err := kafka.EnsureTopics(t.Context(), config, nil, topics...); err != nil {
		t.Fatal(err)
	}
}
