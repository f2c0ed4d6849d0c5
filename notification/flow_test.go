package notification

import (
	"context"
	"encoding/json"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/event"
	"pizzaflow/kafka"
	"pizzaflow/kafka/kafkatest"
	"pizzaflow/outbox"
	"pizzaflow/outbox/inbox"
	"pizzaflow/sqldb"
)

// From the topics to the customer, every event arriving twice.
func TestFromTopicsToCustomer(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		broker := kafkatest.Start(t,
			kafka.Topic{Name: event.OrderTopic, Partitions: 3, Replicas: 1}, kafka.Topic{Name: event.PaymentTopic, Partitions: 3, Replicas: 1})
		opts, err := broker.Options()
		if err != nil {
			t.Fatal(err)
		}
		w := newWorld(t, db)
		s := w.service()
		w.run(s)
		consumer := inbox.New(inbox.Config{
			Outbox: w.ob, Group: "notification-service", Kafka: opts, Metrics: prometheus.NewRegistry(),
			Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
		})
		s.Subscribe(consumer)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- consumer.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		producer, err := kgo.NewClient(opts...)
		if err != nil {
			t.Fatal(err)
		}
		defer producer.Close()
		all := make([]anOrder, 10)
		for i := range all {
			all[i] = newOrder("")
			fate := record(t, all[i].paid())
			if i%2 == 0 {
				fate = record(t, all[i].unpaid())
			}
			order := record(t, all[i].created())
			if err := producer.ProduceSync(t.Context(), again(fate), order, fate, again(order)).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		w.eventually("all is handled and sent", func() bool { return w.count(Sent) == 4*len(all) && w.inbox() == 2*len(all) })
		for _, o := range all {
			w.wantMessages(o, 2, 2)
		}
	})
}

// inbox counts the events handled.
func (w *world) inbox() (n int) {
	w.t.Helper()
	if err := w.db.Read().QueryRowContext(w.t.Context(), `SELECT COUNT(*) FROM inbox_events`).Scan(&n); err != nil {
		w.t.Fatal(err)
	}
	return n
}

func record(t *testing.T, e outbox.Event) *kgo.Record {
	t.Helper()
	data, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	value, err := json.Marshal(event.Envelope{
		EventID: uuid.Must(uuid.NewV7()).String(), EventType: e.EventType(), AggregateID: e.AggregateID(), EventData: data, Timestamp: time.Now().UTC(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return &kgo.Record{Topic: e.Topic(), Key: []byte(e.AggregateID()), Value: value}
}

// again is the same record once more.
func again(r *kgo.Record) *kgo.Record {
	return &kgo.Record{Topic: r.Topic, Key: r.Key, Value: r.Value}
}
