package kafka_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"pizzaflow/kafka"
	"pizzaflow/kafka/kafkatest"
)

var orders = kafka.Topic{
	Name: "order-events", Partitions: 3, Replicas: -1,
	Retention: 7 * 24 * time.Hour, RetentionBytes: 64 << 20, MaxMessageBytes: 1 << 20,
}

func TestEnsureTopicsSetsConfigurations(t *testing.T) {
	config := kafkatest.Start(t, orders, kafka.DeadLetters(orders))
	admin := kadm.NewClient(kafkatest.Client(t, config))

	details, err := admin.ListTopics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := len(details["order-events"].Partitions); got != 3 {
		t.Errorf("order-events has %d partitions, want 3", got)
	}
	if got := len(details["order-events-dlq"].Partitions); got != 3 {
		t.Errorf("order-events-dlq has %d partitions, want 3", got)
	}
	for topic, want := range map[string]map[string]string{
		"order-events":     {"retention.ms": "604800000", "segment.ms": "86400000", "retention.bytes": "67108864", "max.message.bytes": "1048576"},
		"order-events-dlq": {"retention.ms": "2592000000", "segment.ms": "86400000", "retention.bytes": "67108864", "max.message.bytes": "4259840"},
	} {
		got := topicConfigs(t, admin, topic)
		for key, value := range want {
			if got[key] != value {
				t.Errorf("%s: %s is %q, want %q", topic, key, got[key], value)
			}
		}
	}
}

func topicConfigs(t *testing.T, admin *kadm.Client, topic string) map[string]string {
	t.Helper()
	described, err := admin.DescribeTopicConfigs(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	resource, err := described.On(topic, nil)
	if err != nil {
		t.Fatal(err)
	}
	configs := make(map[string]string)
	for _, c := range resource.Configs {
		configs[c.Key] = c.MaybeValue()
	}
	return configs
}

func TestEnsureTopicsAltersNothing(t *testing.T) {
	config := kafkatest.Start(t, orders)
	admin := kadm.NewClient(kafkatest.Client(t, config))
	before, err := admin.ListTopics(t.Context(), "order-events")
	if err != nil {
		t.Fatal(err)
	}
	other := orders
	other.Partitions, other.MaxMessageBytes = 12, 4096
	kafkatest.Ensure(t, config, other, kafka.DeadLetters(orders))
	after, err := admin.ListTopics(t.Context(), "order-events", "order-events-dlq")
	if err != nil {
		t.Fatal(err)
	}
	if before["order-events"].ID != after["order-events"].ID || len(after["order-events"].Partitions) != 3 {
		t.Errorf("the topic was altered: before %v, after %v", before["order-events"], after["order-events"])
	}
	if got := topicConfigs(t, admin, "order-events")["max.message.bytes"]; got != "1048576" {
		t.Errorf("max.message.bytes is now %s", got)
	}
	if len(after["order-events-dlq"].Partitions) != 3 {
		t.Error("the missing topic beside it was not created")
	}
}

func TestEnsureTopicsByManyAtOnce(t *testing.T) {
	config := kafkatest.Start(t)
	var all sync.WaitGroup
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	errs := make([]error, 8)
	for i := range errs {
		all.Go(func() { errs[i] = kafka.EnsureTopics(ctx, config, nil, orders, kafka.DeadLetters(orders)) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// faulty starts a broker that has the topic and answers with the fault.
func faulty(t *testing.T, f kfake.Fault) (kafka.Config, *kfake.FaultHandle) {
	t.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(3, "order-events"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	f.Topic = "order-events"
	return kafka.Config{Brokers: c.ListenAddrs()}, c.Fault(f)
}

func TestEnsureTopicsAwaitsTheLeaders(t *testing.T) {
	config, answers := faulty(t, kfake.Fault{
		Keys: []kmsg.Key{kmsg.Metadata}, Partitions: []int32{0, 1, 2}, Err: kerr.LeaderNotAvailable, Count: 4,
	})
	kafkatest.Ensure(t, config, orders)
	if got := answers.Hits(); got != 4 {
		t.Fatalf("returned after %d of 4 answers without leaders", got)
	}
}

func TestANewLeaderIsNoticedSoon(t *testing.T) {
	config, answers := faulty(t, kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotLeaderForPartition, Count: 2})
	begun := time.Now()
	kafkatest.Produce(t, kafkatest.Client(t, config), "order-events", "first")
	if took := time.Since(begun); took > 4*time.Second || answers.Hits() != 2 {
		t.Errorf("the record took %v and %d refusals, want less than 4 s and 2", took, answers.Hits())
	}
}

func TestEnsureTopicsRefusesInvalidTopics(t *testing.T) {
	config := kafka.Config{Brokers: []string{"127.0.0.1:1"}}
	for want, topic := range map[string]kafka.Topic{
		"no name":             {Partitions: 1, Replicas: -1},
		"0 partitions":        {Name: "t", Replicas: -1},
		"0 replicas":          {Name: "t", Partitions: 1},
		"a negative limit":    {Name: "t", Partitions: 1, Replicas: 1, Retention: -1},
		"-2 replicas, want a": {Name: "t", Partitions: 1, Replicas: -2},
	} {
		err := kafka.EnsureTopics(t.Context(), config, nil, topic)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want something with %q", err, want)
		}
	}
}

func TestEnsureTopicsWaitsForTheBroker(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := kafka.EnsureTopics(ctx, kafka.Config{Brokers: []string{"127.0.0.1:1"}}, nil, orders)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no answer from the brokers 127.0.0.1:1") {
		t.Fatalf("%v, want the brokers that do not answer, and the deadline", err)
	}
}

func TestDeadLettersHasRoom(t *testing.T) {
	for _, size := range []int{0, 1 << 10, 1 << 20} {
		topic := orders
		topic.MaxMessageBytes = size
		d := kafka.DeadLetters(topic)
		if d.Name != "order-events-dlq" || d.Partitions != 3 || d.Replicas != -1 || d.Retention != 30*24*time.Hour {
			t.Errorf("DeadLetters is %+v", d)
		}
		if size == 0 {
			size = 1 << 20
		}
		if d.MaxMessageBytes < 4*size+64<<10 {
			t.Errorf("%d bytes for records of %d", d.MaxMessageBytes, size)
		}
	}
	long := orders
	long.Retention = 90 * 24 * time.Hour
	if got := kafka.DeadLetters(long).Retention; got != long.Retention {
		t.Errorf("dead letters are kept for %v, their topic for %v", got, long.Retention)
	}
}
