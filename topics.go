package pizzaflow

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"time"

	"pizzaflow/event"
	"pizzaflow/kafka"
)

type (
	// A TopicDifference is one way in which a topic is not as it is configured.
	TopicDifference = kafka.Difference
	// A TopicState is a topic as it is.
	TopicState = kafka.TopicState
)

// maxPartitions is the most that a topic may be asked to have: more than a thousand times what we need is a slip.
const maxPartitions = 10_000

// topics are all topics, as they are created.
func (c Config) topics() []kafka.Topic {
	apache := len(c.KafkaBrokers) > 0
	t := kafka.Topic{Partitions: c.KafkaPartitions, Replicas: -1, Retention: c.KafkaRetention, MaxMessageBytes: 1<<20 + 12}
	if t.Retention == 0 {
		t.Retention = topicRetention
	}
	switch {
	case t.Partitions == 0 && apache:
		t.Partitions = 12
	case t.Partitions == 0:
		t.Partitions = 3
	}
	if apache {
		t.MinInsync = c.KafkaMinInsyncReplicas
		if c.KafkaReplication > 0 {
			t.Replicas = c.KafkaReplication
		}
	} else { // it has no replicas
		t.RetentionBytes = 32 << 20 // of a partition: the embedded broker reads all of it when it starts
	}
	var out []kafka.Topic
	for _, t.Name = range event.Topics() {
		out = append(out, t, kafka.DeadLetters(t))
	}
	return out
}

// topicsHold is how long a topic may hold a record, with the segment in which it stands.
func (c Config) topicsHold() (longest time.Duration) {
	for _, t := range c.topics() {
		if !strings.HasSuffix(t.Name, kafka.DeadLetters(kafka.Topic{}).Name) { // nobody consumes those
			longest = max(longest, t.Retention+t.SegmentTime())
		}
	}
	return longest
}

// topicsHere are the topics that the services of this process read or write: more need not be there, nor visible
// to their user.
func (c Config) topicsHere() []kafka.Topic {
	used := map[string]bool{}
	for _, s := range domain {
		if c.runs(s.name) {
			for _, topic := range s.emits {
				used[topic] = true
			}
			for _, topic := range s.consumes {
				used[topic], used[kafka.DeadLetters(kafka.Topic{Name: topic}).Name] = true, true
			}
		}
	}
	if c.runs("frontend") { // reads them without a group, and buries nothing
		for _, topic := range event.Topics() {
			used[topic] = true
		}
	}
	return slices.DeleteFunc(c.topics(), func(t kafka.Topic) bool { return !used[t.Name] })
}

// kafkaFault names the option behind an error that no waiting cures.
func kafkaFault(err error) error {
	switch kafka.Field(err) {
	case "TLS":
		return bad("KAFKA_TLS", "%w", err)
	case "TLS.CAFile":
		return bad("KAFKA_TLS_CA", "%w", err)
	case "TLS.CertFile":
		return bad("KAFKA_TLS_CERT", "%w", err)
	case "TLS.ServerName":
		return bad("KAFKA_TLS_SERVER_NAME", "%w", err)
	case "SASL.Mechanism":
		return bad("KAFKA_SASL_MECHANISM", "%w", err)
	case "SASL.Password":
		return bad("KAFKA_SASL_PASSWORD", "%w", err)
	}
	return err
}

// atBrokers is how to reach the brokers of the configuration for a command.
func (c Config) atBrokers() (kafka.Config, error) {
	if len(c.KafkaBrokers) == 0 {
		return kafka.Config{}, bad("KAFKA_BROKERS", "is empty: the embedded broker's topics are made when it starts")
	}
	if err := errors.Join(c.validateKafka(), c.validateNumbers()); err != nil {
		return kafka.Config{}, err
	}
	return c.kafka(nil), nil
}

// EnsureTopics creates the topics that are missing at the brokers of the
// configuration, and leaves the others as they are.
func EnsureTopics(ctx context.Context, cfg Config, log *slog.Logger) ([]kafka.Topic, error) {
	brokers, err := cfg.atBrokers()
	if err != nil {
		return nil, err
	}
	topics := cfg.topics()
	return topics, kafkaFault(kafka.EnsureTopics(ctx, brokers, log, topics...))
}

// PlanTopics tells in what the topics at the brokers differ from those of the
// configuration, and what ApplyTopics would do about it. Only repartition lets
// partitions be added.
func PlanTopics(ctx context.Context, cfg Config, repartition bool) ([]TopicDifference, error) {
	brokers, err := cfg.atBrokers()
	if err != nil {
		return nil, err
	}
	plan, err := kafka.PlanTopics(ctx, brokers, repartition, cfg.topics()...)
	return plan, kafkaFault(err)
}

// ApplyTopics does what PlanTopics tells, and returns the plan with what is
// done by now, also beside an error.
func ApplyTopics(ctx context.Context, cfg Config, log *slog.Logger, repartition bool) ([]TopicDifference, error) {
	brokers, err := cfg.atBrokers()
	if err != nil {
		return nil, err
	}
	plan, err := kafka.ApplyTopics(ctx, brokers, log, repartition, cfg.topics()...)
	return plan, kafkaFault(err)
}

// DescribeTopics tells how the topics at the brokers are.
func DescribeTopics(ctx context.Context, cfg Config) ([]TopicState, error) {
	brokers, err := cfg.atBrokers()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, t := range cfg.topics() {
		names = append(names, t.Name)
	}
	states, err := kafka.DescribeTopics(ctx, brokers, names...)
	return states, kafkaFault(err)
}
