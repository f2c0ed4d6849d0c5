package frontend

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/event"
	"pizzaflow/kafka"
	"pizzaflow/kafka/embedded"
	"pizzaflow/kafka/kafkatest"
	"pizzaflow/sqldb"
)

var (
	kgoMeta   kgo.BrokerMetadata
	kgoAnswer kgo.BrokerE2E
)

var topics = []kafka.Topic{{Name: event.OrderTopic, Partitions: 3, Replicas: 1}, {Name: event.PaymentTopic, Partitions: 3, Replicas: 1}}

// startTailing reads the topics until the test ends.
func startTailing(t testing.TB, s *Service) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func options(t testing.TB, c kafka.Config) []kgo.Opt {
	t.Helper()
	opts, err := c.Options()
	if err != nil {
		t.Fatal(err)
	}
	return opts
}

// produceEvent produces an event as a service does.
func produceEvent(t testing.TB, opts []kgo.Opt, topic, eventType, aggregate string, data any) {
	t.Helper()
	client, err := kgo.NewClient(opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	d, err := json.Marshal(data)
	if err != nil {
		t.Fatal(err)
	}
	value, err := json.Marshal(event.Envelope{EventID: uuid.NewString(), EventType: eventType, AggregateID: aggregate, EventData: d, Timestamp: sqldb.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Key: []byte(aggregate), Value: value}).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

func TestChangesArePushed(t *testing.T) {
	api := newOrderAPI(t)
	config := kafkatest.Start(t, topics...)
	opts := options(t, config)
	produceEvent(t, opts, event.OrderTopic, "OrderCreated", "an order of long ago", map[string]string{})
	s := newService(t, api, opts)
	startTailing(t, s)
	server := site(t, s)
	eventually(t, "the topics are followed", s.pulse.isAlive)

	paid, failed := api.place(t), api.place(t)
	_, first := openStream(t, server, paid, "")
	_, second := openStream(t, server, failed, "1")
	nextEvent(t, first)
	// Records that name no order are skipped.
	for _, junk := range []string{`{`, `null`, `{"event_data":7}`, `{"event_data":{"order_id":null}}`} {
		client, err := kgo.NewClient(opts...)
		if err != nil {
			t.Fatal(err)
		}
		if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: event.PaymentTopic, Value: []byte(junk)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		client.Close()
	}
	began := time.Now()
	api.advance(paid, statusPaid, "")
	produceEvent(t, opts, event.OrderTopic, "OrderPaid", paid, event.OrderPaid{OrderID: paid})
	if e := nextEvent(t, first); e.ID != 2 || e.Data.Status != statusPaid {
		t.Errorf("pushed %+v", e)
	}
	api.advance(failed, statusFailed, "declined")
	produceEvent(t, opts, event.PaymentTopic, "PaymentFailed", uuid.NewString(), event.PaymentFailed{OrderID: failed})
	if e := nextEvent(t, second); e.ID != 2 || e.Data.Status != statusFailed {
		t.Errorf("pushed %+v", e)
	}
	if took := time.Since(began); took > heartbeat-tick {
		t.Errorf("pushed after %s: not by the topics", took)
	}
}

// TestKafkaGoesAndComesBack: while the broker is away, changes are found by polling;
// when it is back, its topics are read again, also if it has lost all its data.
func TestKafkaGoesAndComesBack(t *testing.T) {
	dir := t.TempDir()
	start := func(name, listen string) *embedded.Broker {
		t.Helper()
		b, err := embedded.Start(embedded.Config{Dir: filepath.Join(dir, name), Listen: listen})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = b.Close() })
		if err := kafka.EnsureTopics(t.Context(), kafka.Config{Brokers: b.Addrs()}, discard, topics...); err != nil {
			t.Fatal(err)
		}
		return b
	}
	broker := start("one", "127.0.0.1:0")
	address := broker.Addrs()[0]
	opts := options(t, kafka.Config{Brokers: []string{address}})
	api := newOrderAPI(t)
	s := newService(t, api, opts)
	startTailing(t, s)
	server := site(t, s)
	eventually(t, "the topics are followed", s.pulse.isAlive)
	id := api.place(t)
	_, events := openStream(t, server, id, "")
	nextEvent(t, events)

	if err := broker.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the silence is noticed", func() bool { return !s.pulse.isAlive() })
	api.advance(id, "baking", "")
	if e := nextEvent(t, events); e.ID != 2 {
		t.Errorf("without Kafka: %+v", e)
	}

	start("two", address) // another broker: other topics of the same names
	eventually(t, "the topics are followed again", s.pulse.isAlive)
	hints := func() int64 {
		s.hub.mu.Lock()
		defer s.hub.mu.Unlock()
		return s.hub.orders[id].hints
	}
	before := hints()
	eventually(t, "records wake the stream again", func() bool {
		produceEvent(t, opts, event.OrderTopic, "OrderPaid", id, event.OrderPaid{OrderID: id})
		return s.pulse.isAlive() && hints() > before+5 // more hints than polling gives meanwhile
	})
	api.advance(id, statusPaid, "")
	produceEvent(t, opts, event.OrderTopic, "OrderPaid", id, event.OrderPaid{OrderID: id})
	if e := nextEvent(t, events); e.ID != 3 || e.Data.Status != statusPaid {
		t.Errorf("with Kafka again: %+v", e)
	}
}

// TestStreamsOutliveTheirServersTimeouts: the time-outs of the server, which limit
// ordinary answers, do not end a stream.
func TestStreamsOutliveTheirServersTimeouts(t *testing.T) {
	api := newOrderAPI(t)
	s := newService(t, api, noBroker)
	server := httptest.NewUnstartedServer(s.Handler())
	server.Config.ReadTimeout, server.Config.WriteTimeout = 200*time.Millisecond, 200*time.Millisecond
	server.Start()
	t.Cleanup(server.Close)
	id := api.place(t)
	_, events := openStream(t, server, id, "")
	nextEvent(t, events)
	select {
	case e, open := <-events:
		t.Fatalf("after the time-outs: %+v, open %v", e, open)
	case <-time.After(600 * time.Millisecond):
	}
	api.advance(id, statusPaid, "")
	s.hub.hint(id)
	if e := nextEvent(t, events); e.ID != 2 {
		t.Errorf("%+v", e)
	}
}
