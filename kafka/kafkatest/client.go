package kafkatest

import (
	"context"
	"log/slog"
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

// Produce writes one record of each value, which is its key as well. It ends the test unless each is acknowledged
// within half a minute.
func Produce(t testing.TB, c *kgo.Client, topic string, values ...string) {
	t.Helper()
	for _, v := range values {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		err := c.ProduceSync(ctx, &kgo.Record{Topic: topic, Key: []byte(v), Value: []byte(v)}).FirstErr()
		cancel()
		if err != nil {
			t.Fatalf("produce %q to %s: %v", v, topic, err)
		}
	}
}

// Ensure creates the topics that are missing. It ends the test unless all have their leaders within half a minute.
func Ensure(t testing.TB, config kafka.Config, topics ...kafka.Topic) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if err := kafka.EnsureTopics(ctx, config, testLog(t), topics...); err != nil {
		t.Fatal(err)
	}
}

// testLog is the log of a test, for warnings and errors.
func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
}
