package verify

import (
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/event"
	"pizzaflow/kafka"
	"pizzaflow/kafka/kafkatest"
)

// A transaction of another producer ends a partition with a control record, which readers are not given by default.
func TestTopicsAreReadToTheirEnd(t *testing.T) {
	config := kafkatest.Start(t, kafka.Topic{Name: event.OrderTopic, Partitions: 1, Replicas: -1}, kafka.Topic{Name: event.PaymentTopic, Partitions: 2, Replicas: -1})
	options, err := config.Options()
	if err != nil {
		t.Fatal(err)
	}
	client, err := kgo.NewClient(append(options, kgo.TransactionalID("theirs"))...)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	value := []byte(`{"event_id":"0190F5C4-0000-7000-8000-000000000001","event_type":"OrderCreated","event_data":{}}`)
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: event.OrderTopic, Value: value}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if err := client.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	e, err := newEvidence(t.Context(), t.TempDir(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	defer e.db.Close()
	snapshot, err := eventTopics.ends(t.Context(), client)
	if err == nil {
		err = e.copyTopics(t.Context(), options, eventTopics, snapshot)
	}
	if err != nil {
		t.Fatal(err)
	}
	var n int
	var id string
	if err := e.db.QueryRow(`SELECT COUNT(*), MIN(event_id) FROM records WHERE before_snapshot = 1`).Scan(&n, &id); err != nil || n != 1 || id != "0190f5c4-0000-7000-8000-000000000001" {
		t.Errorf("%d records, of event %q (%v), want one, of the id in small letters", n, id, err)
	}
}

// A key may be in two partitions where producers put it before and after its topic was given more partitions, and in no
// others.
func TestKeysChangePartitionWhenPartitionsAreAdded(t *testing.T) {
	config := kafkatest.Start(t, kafka.Topic{Name: event.OrderTopic, Partitions: 2, Replicas: -1}, kafka.Topic{Name: event.PaymentTopic, Partitions: 1, Replicas: -1})
	options, err := config.Options()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	produce := func(version, from, to int, at time.Time, partitioner kgo.Partitioner) {
		t.Helper()
		client, err := kgo.NewClient(append(options, kgo.RecordPartitioner(partitioner))...)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		for i := from; i < to; i++ {
			value := fmt.Appendf(nil, `{"event_id":"0190f5c4-0000-7000-8000-00000000%02d%02d","event_type":"Any","event_data":{}}`, version, i)
			r := &kgo.Record{Topic: event.OrderTopic, Key: fmt.Append(nil, "key", i), Value: value, Timestamp: at}
			if err := client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
	byKey := kgo.StickyKeyPartitioner(nil)
	produce(1, 0, 40, now.Add(-time.Hour), byKey)
	client, err := kgo.NewClient(options...)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := kadm.NewClient(client).UpdatePartitions(t.Context(), 5, event.OrderTopic); err != nil {
		t.Fatal(err)
	}
	produce(2, 0, 20, now, byKey)
	produce(2, 20, 40, now, kgo.BasicConsistentPartitioner(func(string) func(*kgo.Record, int) int {
		return func(r *kgo.Record, n int) int { return (partitionOf(string(r.Key), n) + 1) % n }
	}))
	e, err := newEvidence(t.Context(), t.TempDir(), now)
	if err != nil {
		t.Fatal(err)
	}
	defer e.db.Close()
	if err := e.copyTopics(t.Context(), options, eventTopics, nil); err != nil {
		t.Fatal(err)
	}
	if err := e.complete(t.Context()); err != nil {
		t.Fatal(err)
	}
	var repartitioned, astray, wrong int
	err = e.db.QueryRow(`SELECT SUM(repartitioned = 1), SUM(repartitioned = 0), SUM((repartitioned = 1) <> (CAST(substr(key, 4) AS INTEGER) < 20)) FROM keys_in_two_partitions`).Scan(&repartitioned, &astray, &wrong)
	if err != nil || repartitioned < 10 || astray < 10 || wrong != 0 {
		t.Errorf("%d moved, %d are astray, %d are taken for the other (%v), want 10 at least, 10 at least and none", repartitioned, astray, wrong, err)
	}
}
