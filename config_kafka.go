package pizzaflow

import (
	"errors"
	"slices"
	"strings"
	"time"

	"pizzaflow/event"
	"pizzaflow/kafka"
)

// topicRetention is how long the topics retain records by default, and maxTopicRetention how long at most: the inboxes
// remember a handled event for that long, and for the 7 days in which an outbox can publish it again.
const (
	topicRetention    = 7 * 24 * time.Hour
	maxTopicRetention = 8 * 24 * time.Hour
)

// maxPartitions bounds the option: more than a thousand times the partitions that are needed is a slip.
const maxPartitions = 10_000

// needsKafka reports whether a service runs here that reads or writes topics.
func (c Config) needsKafka() bool {
	return slices.ContainsFunc(c.services(), func(s string) bool { return s != "broker" && s != "sandbox" })
}

func (c Config) validateKafka() error {
	switch {
	case len(c.KafkaBrokers) == 0 && c.needsKafka() && !c.runs("broker"):
		return bad("KAFKA_BROKERS", "is empty, and no broker runs in this process: say where Kafka is")
	case len(c.KafkaBrokers) == 0:
		return nil
	}
	var errs []error
	k := c.kafka(nil)
	reach := kafka.Config{Brokers: k.Brokers, TLS: kafka.TLS{Enabled: k.TLS.Enabled}, Plaintext: k.Plaintext}
	if err := reach.Validate(); err != nil {
		key := "KAFKA_BROKERS"
		if kafka.Field(err) == "TLS" {
			key = "KAFKA_TLS"
		}
		errs = append(errs, bad(key, "%w", err))
	}
	for _, part := range []struct {
		key string
		cfg kafka.Config
	}{
		{"KAFKA_TLS", kafka.Config{Brokers: []string{"127.0.0.1:9092"}, TLS: k.TLS}},
		{"KAFKA_SASL_MECHANISM", kafka.Config{Brokers: []string{"127.0.0.1:9092"}, SASL: k.SASL}},
	} {
		if err := part.cfg.Validate(); err != nil {
			errs = append(errs, bad(part.key, "%w", err))
		}
	}
	return errors.Join(errs...)
}

// CheckFiles reports which files of the configuration cannot be used. Validate leaves them out, because not every command reads
// them. Other faults are not told.
func (c Config) CheckFiles() error {
	if len(c.KafkaBrokers) == 0 || c.validateKafka() != nil {
		return nil
	}
	_, err := c.kafka(nil).Options()
	return KafkaError(err)
}

// kafka is how to reach the brokers; embedded is the address of our own.
func (c Config) kafka(embedded []string) kafka.Config {
	k := kafka.Config{Brokers: embedded, ClientID: "pizzaflow", Plaintext: true} // nothing leaves this machine
	if len(c.KafkaBrokers) > 0 {
		k.Brokers, k.Plaintext = c.KafkaBrokers, c.KafkaPlaintext
		k.TLS = kafka.TLS{Enabled: c.KafkaTLS, CAFile: c.KafkaTLSCA, CertFile: c.KafkaTLSCert, KeyFile: c.KafkaTLSKey, ServerName: c.KafkaTLSServerName}
		k.SASL = kafka.SASL{Mechanism: c.KafkaSASLMechanism, User: c.KafkaSASLUser, Password: c.KafkaSASLPassword}
	}
	return k
}

// topics are all topics with the settings that they are created with.
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
	} else { // the embedded broker has no replicas
		t.RetentionBytes = 32 << 20 // of a partition: the embedded broker reads all of it when it starts
	}
	var out []kafka.Topic
	for _, t.Name = range event.Topics() {
		out = append(out, t, kafka.DeadLetters(t))
	}
	return out
}

// longestRetention is how long a topic may retain a record, with the segment that the record is in.
func (c Config) longestRetention() (longest time.Duration) {
	for _, t := range c.topics() {
		if !strings.HasSuffix(t.Name, kafka.DeadLetters(kafka.Topic{}).Name) { // no service consumes dead letters
			longest = max(longest, t.Retention+t.SegmentTime())
		}
	}
	return longest
}

// topicsHere are the topics that the services of this process read or write. Others need not exist, nor be visible to the
// user at Kafka.
func (c Config) topicsHere() []kafka.Topic {
	used := map[string]bool{}
	for _, s := range serviceTable {
		if c.runs(s.name) {
			for _, topic := range s.emits {
				used[topic] = true
			}
			for _, topic := range s.consumes {
				used[topic], used[kafka.DeadLetters(kafka.Topic{Name: topic}).Name] = true, true
			}
		}
	}
	if c.runs("frontend") { // it reads without a group, and writes no dead letters
		for _, topic := range event.Topics() {
			used[topic] = true
		}
	}
	return slices.DeleteFunc(c.topics(), func(t kafka.Topic) bool { return !used[t.Name] })
}

// KafkaError names the option behind an error of the brokers that waiting does not cure, and returns other errors as they are.
func KafkaError(err error) error {
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

// Topics are the brokers of the configuration and the topics that it wants there.
func (c Config) Topics() (kafka.Config, []kafka.Topic, error) {
	if len(c.KafkaBrokers) == 0 {
		return kafka.Config{}, nil, bad("KAFKA_BROKERS", "is empty: the embedded broker's topics are made when it starts")
	}
	if err := errors.Join(c.validateKafka(), c.validateNumbers()); err != nil {
		return kafka.Config{}, nil, err
	}
	return c.kafka(nil), c.topics(), nil
}
