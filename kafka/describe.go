package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// A TopicState is a topic as it is.
type TopicState struct {
	Name              string            `json:"topic"`
	Missing           bool              `json:"missing,omitempty"` // or hidden from this user
	ReplicationFactor int               `json:"replication_factor"`
	Settings          map[string]string `json:"settings,omitempty"` // those that a Topic has, by the broker's names
	Partitions        []PartitionState  `json:"partitions,omitempty"`
	Warnings          []string          `json:"warnings,omitempty"` // what does not keep its records as safe as it could
}

// A PartitionState is a partition as it is.
type PartitionState struct {
	Partition int32   `json:"partition"`
	Leader    int32   `json:"leader"` // the broker's number, −1 for none
	Replicas  []int32 `json:"replicas"`
	ISR       []int32 `json:"isr"`   // the replicas that have every record
	Start     int64   `json:"start"` // the offset of the oldest record
	End       int64   `json:"end"`   // the offset that the next record gets
}

// shown are the settings that tell how a topic keeps its records.
var shown = []string{"cleanup.policy", "min.insync.replicas", "retention.ms", "segment.ms", "retention.bytes", "max.message.bytes"}

// DescribeTopics tells how the topics are, with offsets and warnings.
func DescribeTopics(ctx context.Context, c Config, names ...string) ([]TopicState, error) {
	var out []TopicState
	err := administer(ctx, c, func(ctx context.Context, admin *kadm.Client) error {
		var err error
		if out, err = states(ctx, admin, names); err != nil {
			return err
		}
		brokers, err := admin.ListBrokers(ctx)
		if err != nil {
			return err
		}
		for i := range out {
			out[i].warn(len(brokers))
		}
		return offsets(ctx, admin, out)
	})
	if err != nil {
		return nil, fmt.Errorf("describe topics: %w", err)
	}
	return out, nil
}

// states looks at the topics, in their order, but for offsets and warnings.
func states(ctx context.Context, admin *kadm.Client, names []string) ([]TopicState, error) {
	details, err := admin.ListTopics(ctx, names...)
	if err != nil {
		return nil, fmt.Errorf("list topics: %w", err)
	}
	var out []TopicState
	for _, name := range names {
		state, detail := TopicState{Name: name}, details[name]
		switch {
		case errors.Is(detail.Err, kerr.UnknownTopicOrPartition):
			state.Missing = true
		case detail.Err != nil:
			return nil, fmt.Errorf("topic %s: %w", name, notAllowed(detail.Err, "describe it"))
		default:
			for _, p := range detail.Partitions.Sorted() {
				state.ReplicationFactor = max(state.ReplicationFactor, len(p.Replicas))
				state.Partitions = append(state.Partitions, PartitionState{Partition: p.Partition, Leader: p.Leader, Replicas: p.Replicas, ISR: p.ISR})
			}
			if state.Settings, err = settingsOf(ctx, admin, name); err != nil {
				return nil, fmt.Errorf("topic %s: %w", name, err)
			}
		}
		out = append(out, state)
	}
	return out, nil
}

func settingsOf(ctx context.Context, admin *kadm.Client, topic string) (map[string]string, error) {
	described, err := admin.DescribeTopicConfigs(ctx, topic)
	if err != nil {
		return nil, fmt.Errorf("ask for its settings: %w", notAllowed(err, "describe its configuration"))
	}
	resource, err := described.On(topic, nil)
	if err == nil {
		err = resource.Err
	}
	if err != nil {
		return nil, fmt.Errorf("ask for its settings: %w", notAllowed(err, "describe its configuration"))
	}
	settings := map[string]string{}
	for _, c := range resource.Configs {
		if slices.Contains(shown, c.Key) {
			settings[c.Key] = c.MaybeValue()
		}
	}
	return settings, nil
}

// offsets fills in where each partition starts and ends; one without a leader is left at zero.
func offsets(ctx context.Context, admin *kadm.Client, topics []TopicState) error {
	var names []string
	for _, t := range topics {
		if !t.Missing {
			names = append(names, t.Name)
		}
	}
	if len(names) == 0 {
		return nil // no name would ask for all topics
	}
	starts, err := admin.ListStartOffsets(ctx, names...)
	if err != nil {
		return fmt.Errorf("list offsets: %w", err)
	}
	ends, err := admin.ListEndOffsets(ctx, names...)
	if err != nil {
		return fmt.Errorf("list offsets: %w", err)
	}
	for _, t := range topics {
		for i := range t.Partitions {
			p := &t.Partitions[i]
			if start, ok := starts.Lookup(t.Name, p.Partition); ok && start.Err == nil {
				p.Start = start.Offset
			}
			if end, ok := ends.Lookup(t.Name, p.Partition); ok && end.Err == nil {
				p.End = end.Offset
			}
		}
	}
	return nil
}

// warn notes what endangers records or their writing, given the number of brokers.
func (t *TopicState) warn(brokers int) {
	say := func(format string, args ...any) { t.Warnings = append(t.Warnings, fmt.Sprintf(format, args...)) }
	if t.Missing {
		say("is missing, or hidden from this user: pizza topics apply creates it")
		return
	}
	least, _ := strconv.Atoi(t.Settings["min.insync.replicas"]) // a broker that does not say: 0
	switch {
	case t.ReplicationFactor == 1 && brokers > 1:
		say("replication factor 1 with %d brokers: the loss of one broker loses records", brokers)
	case t.ReplicationFactor > 1 && least == 1:
		say("min.insync.replicas 1: a record may be acknowledged that one broker alone has")
	case t.ReplicationFactor > 1 && least >= t.ReplicationFactor:
		say("min.insync.replicas %d of %d replicas: while one broker is away nothing can be written", least, t.ReplicationFactor)
	}
	if policy := t.Settings["cleanup.policy"]; policy != "" && policy != "delete" {
		say("cleanup.policy %s: of the events of a key only the last would stay", policy)
	}
	for _, p := range t.Partitions {
		switch {
		case p.Leader < 0:
			say("partition %d has no leader", p.Partition)
		case len(p.ISR) < min(least, len(p.Replicas)): // Kafka asks for no more than there are
			say("partition %d has %d replicas in sync and takes no records: %d are needed", p.Partition, len(p.ISR), min(least, len(p.Replicas)))
		case len(p.ISR) < len(p.Replicas):
			say("partition %d is under-replicated: %d of %d replicas are in sync", p.Partition, len(p.ISR), len(p.Replicas))
		}
	}
}
