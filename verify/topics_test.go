package verify

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/event"
	"pizzaflow/kafka"
	"pizzaflow/kafka/kafkatest"
)

// A transaction of somebody else ends a partition with a record that no reader
// is given.
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
	early, err := events.ends(t.Context(), client)
	if err == nil {
		err = e.copyTopics(t.Context(), options, events, early)
	}
	if err != nil {
		t.Fatal(err)
	}
	var n int
	var id string
	if err := e.db.QueryRow(`SELECT COUNT(*), MIN(event_id) FROM records WHERE early = 1`).Scan(&n, &id); err != nil || n != 1 || id != "0190f5c4-0000-7000-8000-000000000001" {
		t.Errorf("%d records, of event %q (%v), want one, of the id in small letters", n, id, err)
	}
}
