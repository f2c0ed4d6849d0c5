package kafka

import (
	"strings"
	"testing"
)

func TestWarnings(t *testing.T) {
	three := []PartitionState{{Leader: 1, Replicas: []int32{1, 2, 3}, ISR: []int32{1, 2, 3}}}
	lagging := []PartitionState{{Leader: 1, Replicas: []int32{1, 2, 3}, ISR: []int32{1, 2}}}
	stuck := []PartitionState{{Leader: 1, Replicas: []int32{1, 2, 3}, ISR: []int32{1}}}
	dead := []PartitionState{{Leader: -1, Replicas: []int32{1, 2, 3}}}
	for _, c := range []struct {
		brokers, replicas int
		least             string
		partitions        []PartitionState
		want              string // "" for no warning
	}{
		{1, 1, "1", nil, ""},
		{3, 3, "2", three, ""},
		{3, 1, "1", nil, "replication factor 1 with 3 brokers"},
		{3, 3, "1", three, "min.insync.replicas 1"},
		{3, 3, "3", three, "while one broker is away nothing can be written"},
		{2, 3, "2", lagging, "under-replicated: 2 of 3"},
		{1, 3, "2", stuck, "takes no records: 2 are needed"},
		{1, 3, "2", dead, "no leader"},
		{1, 1, "2", []PartitionState{{Replicas: []int32{1}, ISR: []int32{1}}}, ""},
	} {
		state := TopicState{ReplicationFactor: c.replicas, Settings: map[string]string{"min.insync.replicas": c.least, "cleanup.policy": "delete"}, Partitions: c.partitions}
		state.warn(c.brokers)
		if got := strings.Join(state.Warnings, "; "); c.want == "" && got != "" || !strings.Contains(got, c.want) || len(state.Warnings) > 1 {
			t.Errorf("%+v: %q, want %q", c, got, c.want)
		}
	}
}

func TestPlanSaysWhenOneBrokerWillStopTheWriting(t *testing.T) {
	for replicas, want := range map[int]struct {
		action Action
		why    string
	}{1: {Leave, "add replicas first"}, 2: {Change, "nothing can be written"}, 3: {Change, ""}} {
		if action, why := planMinInsync("2", replicas); action != want.action || !strings.Contains(why, want.why) || want.why == "" && why != "" {
			t.Errorf("2 of %d replicas: %s, %q", replicas, action, why)
		}
	}
}
