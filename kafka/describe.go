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
	Missing           bool              `json:"missing,omitempty"` // it does not exist, or this user may not see it
	ReplicationFactor int               `json:"replication_factor"`
	Settings          map[string]string `json:"settings,omitempty"` // those of describedSettings, by the broker's names
	Partitions        []PartitionState  `json:"partitions,omitempty"`
	Warnings          []string          `json:"warnings,omitempty"` // why records may be lost or not be written
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

// describedSettings are those that decide how a topic keeps its records.
var describedSettings = []string{"cleanup.policy", "min.insync.replicas", "retention.ms", "segment.ms", "retention.bytes", "max.message.bytes"}

// DescribeTopics returns the topics as they are, in the order of names, with offsets and warnings. Its errors are those
// of PlanTopics.
func DescribeTopics(ctx context.Context, c Config, names ...string) ([]TopicState, error) {
	var out []TopicState
	err := administer(ctx, c, func(ctx context.Context, admin *kadm.Client) error {
		var err error
		if out, err = readStates(ctx, admin, names); err != nil {
			return err
		}
		brokers, err := admin.ListBrokers(ctx)
		if err != nil {
			return err
		}
		for i := range out {
			out[i].warn(len(brokers))
		}
		return addOffsets(ctx, admin, out)
	})
	if err != nil {
		return nil, fmt.Errorf("describe topics: %w", err)
	}
	return out, nil
}

// readStates returns the topics as they are, in the order of names, without offsets and warnings.
func readStates(ctx context.Context, admin *kadm.Client, names []string) ([]TopicState, error) {
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
		if slices.Contains(describedSettings, c.Key) {
			settings[c.Key] = c.MaybeValue()
		}
	}
	return settings, nil
}

// addOffsets sets Start and End of each partition; they stay 0 for a partition without a leader.
func addOffsets(ctx context.Context, admin *kadm.Client, topics []TopicState) error {
	var names []string
	for _, t := range topics {
		if !t.Missing {
			names = append(names, t.Name)
		}
	}
	if len(names) == 0 {
		return nil // an empty list would ask for all topics
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

// warn sets the warnings, given the number of brokers.
func (t *TopicState) warn(brokers int) {
	add := func(format string, args ...any) { t.Warnings = append(t.Warnings, fmt.Sprintf(format, args...)) }
	if t.Missing {
		add("is missing, or hidden from this user: pizza topics apply creates it")
		return
	}
	least, _ := strconv.Atoi(t.Settings["min.insync.replicas"]) // 0 without a value
	switch {
	case t.ReplicationFactor == 1 && brokers > 1:
		add("replication factor 1 with %d brokers: the loss of one broker loses records", brokers)
	case t.ReplicationFactor > 1 && least == 1:
		add("min.insync.replicas 1: a record may be acknowledged that one broker alone has")
	case t.ReplicationFactor > 1 && least >= t.ReplicationFactor:
		add("min.insync.replicas %d of %d replicas: while one broker is away nothing can be written", least, t.ReplicationFactor)
	}
	if policy := t.Settings["cleanup.policy"]; policy != "" && policy != "delete" {
		add("cleanup.policy %s: of the events of a key only the last would stay", policy)
	}
	for _, p := range t.Partitions {
		switch {
		case p.Leader < 0:
			add("partition %d has no leader", p.Partition)
		case len(p.ISR) < min(least, len(p.Replicas)): // Kafka asks for no more than there are replicas
			add("partition %d has %d replicas in sync and takes no records: %d are needed", p.Partition, len(p.ISR), min(least, len(p.Replicas)))
		case len(p.ISR) < len(p.Replicas):
			add("partition %d is under-replicated: %d of %d replicas are in sync", p.Partition, len(p.ISR), len(p.Replicas))
		}
	}
}
