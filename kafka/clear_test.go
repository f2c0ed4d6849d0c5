package kafka_test

import (
	"bytes"
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"pizzaflow/kafka"
	"pizzaflow/kafka/kafkatest"
)

// A remote is a connection whose other end looks like another machine. It records what is sent.
type remote struct {
	net.Conn
	mu   sync.Mutex
	sent bytes.Buffer
}

func (r *remote) RemoteAddr() net.Addr {
	return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 9092}
}

func (r *remote) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent.Write(b)
	return r.Conn.Write(b)
}

func (r *remote) Sent() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sent.Len()
}

func TestNothingIsSentInClearToAnotherMachine(t *testing.T) {
	broker := kafkatest.Start(t)
	conn := new(remote)
	away := kafka.Config{Brokers: []string{"kafka.example:9092"}, Dial: func(context.Context, string, string) (net.Conn, error) {
		var err error
		conn.Conn, err = net.Dial("tcp", broker.Brokers[0])
		return conn, err
	}}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := kafka.EnsureTopics(ctx, away, nil, orders)
	if kafka.Field(err) != "TLS" || ctx.Err() != nil || !strings.Contains(err.Error(), "KAFKA_PLAINTEXT") {
		t.Errorf("%v, want at once that TLS is missing, and how to do without", err)
	}
	if n := conn.Sent(); n > 0 {
		t.Errorf("%d bytes were sent before the refusal", n)
	}
	away.Plaintext = true
	ctx, cancel = context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := kafka.EnsureTopics(ctx, away, nil, orders); kafka.Field(err) != "" || conn.Sent() == 0 {
		t.Errorf("%v, and %d bytes sent; want it to be tried once it is allowed", err, conn.Sent())
	}
}

func TestTheRefusalSpeaksOfThePassword(t *testing.T) {
	c := kafka.Config{Brokers: []string{"192.0.2.1:9092"}, SASL: kafka.SASL{Mechanism: "PLAIN", User: "pizza", Password: "secret"}}
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "the password too") || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v", err)
	}
	c.SASL.Mechanism = "SCRAM-SHA-512"
	if err := c.Validate(); err == nil || strings.Contains(err.Error(), "password") {
		t.Errorf("%v", err)
	}
}

// TestABrokerInTheMetadata has the metadata name a broker on another machine.
func TestABrokerInTheMetadata(t *testing.T) {
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "order-events"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	c.ControlKey(int16(kmsg.Metadata), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		resp := req.ResponseKind().(*kmsg.MetadataResponse)
		b := kmsg.NewMetadataResponseBroker()
		b.NodeID, b.Host, b.Port = 7, "192.0.2.1", 9092
		resp.Brokers = append(resp.Brokers, b)
		topic, partition := kmsg.NewMetadataResponseTopic(), kmsg.NewMetadataResponseTopicPartition()
		topic.Topic, partition.Leader = new("order-events"), 7
		topic.Partitions = append(topic.Partitions, partition)
		resp.Topics = append(resp.Topics, topic)
		return resp, nil, true
	})
	config := kafka.Config{Brokers: c.ListenAddrs()}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := kafka.EnsureTopics(ctx, config, nil, orders); kafka.Field(err) != "TLS" || ctx.Err() != nil {
		t.Errorf("%v, want that the broker in the metadata is another machine", err)
	}

	conn := new(remote)
	config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if strings.HasPrefix(address, "192.0.2.1:") {
			var err error
			conn.Conn, err = net.Dial("tcp", c.ListenAddrs()[0])
			return conn, err
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	producer := kafkatest.Client(t, config, kgo.RecordDeliveryTimeout(5*time.Second))
	err = producer.ProduceSync(ctx, &kgo.Record{Topic: "order-events", Value: []byte("x")}).FirstErr()
	if kafka.Field(err) != "TLS" || conn.Sent() > 0 {
		t.Errorf("%v and %d bytes sent to the other machine, want a refusal", err, conn.Sent())
	}
}

func TestAMechanismTheBrokerDoesNotKnow(t *testing.T) {
	for _, answer := range []*kerr.Error{kerr.UnsupportedSaslMechanism, kerr.IllegalSaslState} { // it has another mechanism, or none
		c, _, pizza := guarded(t)
		c.ControlKey(int16(kmsg.SASLHandshake), func(req kmsg.Request) (kmsg.Response, error, bool) {
			c.KeepControl()
			resp := req.ResponseKind().(*kmsg.SASLHandshakeResponse)
			resp.ErrorCode, resp.SupportedMechanisms = answer.Code, []string{"GSSAPI"}
			return resp, nil, true
		})
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		if err := kafka.EnsureTopics(ctx, pizza, nil, orders); kafka.Field(err) != "SASL.Mechanism" || ctx.Err() != nil {
			t.Errorf("%v, want at once that the mechanism is unknown", err)
		}
		cancel()
	}
}
