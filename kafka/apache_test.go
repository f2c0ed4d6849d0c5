package kafka_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/kafka"
	"pizzaflow/kafka/kafkatest"
)

// TestApacheKafka does on the real one what the other tests do on the embedded broker.
func TestApacheKafka(t *testing.T) {
	brokers := os.Getenv("KAFKA_BROKERS")
	if brokers == "" {
		if strings.Contains(os.Getenv("PIZZA_TEST_REQUIRE"), "kafka") {
			t.Fatal("KAFKA_BROKERS is not set, and PIZZA_TEST_REQUIRE asks for it")
		}
		t.Skip("KAFKA_BROKERS is not set")
	}
	config := kafka.Config{Brokers: strings.Split(brokers, ",")}
	topic := orders
	topic.Name = "test-" + uuid.NewString()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := kafkatest.Client(t, config)
	admin := kadm.NewClient(c)
	t.Cleanup(func() {
		if _, err := admin.DeleteTopics(context.Background(), topic.Name, topic.Name+"-dlq", topic.Name+"-plan", topic.Name+"-missing", topic.Name+"-many", topic.Name+"-many-dlq"); err != nil {
			t.Error(err)
		}
	})

	begun := time.Now()
	if err := kafka.EnsureTopics(ctx, config, nil, topic, kafka.DeadLetters(topic)); err != nil {
		t.Fatal(err)
	}
	ensured := time.Since(begun)
	if err := c.ProduceSync(ctx, &kgo.Record{Topic: topic.Name, Value: []byte("first")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	t.Logf("created in %v, first record after another %v", ensured, time.Since(begun)-ensured)
	if err := kafka.EnsureTopics(ctx, config, nil, topic, kafka.DeadLetters(topic)); err != nil {
		t.Fatalf("again: %v", err)
	}

	details, err := admin.ListTopics(ctx, topic.Name, topic.Name+"-dlq")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]map[string]string{
		topic.Name:          {"retention.ms": "604800000", "segment.ms": "86400000", "retention.bytes": "67108864", "max.message.bytes": "1048576"},
		topic.Name + "-dlq": {"retention.ms": "2592000000", "segment.ms": "86400000", "retention.bytes": "67108864", "max.message.bytes": "4259840"},
	} {
		if got := len(details[name].Partitions); got != 3 {
			t.Errorf("%s has %d partitions, want 3", name, got)
		}
		got := topicConfigs(t, admin, name)
		for key, value := range want {
			if got[key] != value {
				t.Errorf("%s: %s is %q, want %q", name, key, got[key], value)
			}
		}
	}

	planned := topic
	planned.Name += "-plan"
	testApply(t, config, planned, kafka.Topic{Name: topic.Name + "-missing", Partitions: 2, Replicas: -1})
	planned.Name = topic.Name + "-many"
	testApplyByMany(t, config, planned)
}
