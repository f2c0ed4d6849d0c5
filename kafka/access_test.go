package kafka_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"pizzaflow/kafka"
	"pizzaflow/kafka/kafkatest"
)

// guarded starts a broker with passwords and ACLs: "root" may do all, "pizza" may only describe topics.
func guarded(t *testing.T) (c *kfake.Cluster, root, pizza kafka.Config) {
	t.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(), kfake.EnableACLs(),
		kfake.Superuser("SCRAM-SHA-256", "root", "secret"),
		kfake.User("SCRAM-SHA-512", "pizza", "secret", kfake.ACL{
			Resource: kmsg.ACLResourceTypeTopic, Name: "*", Pattern: kmsg.ACLResourcePatternTypeLiteral,
			Operation: kmsg.ACLOperationDescribe, Allow: true,
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	root = kafka.Config{Brokers: c.ListenAddrs(), SASL: kafka.SASL{Mechanism: "SCRAM-SHA-256", User: "root", Password: "secret"}}
	pizza = kafka.Config{Brokers: c.ListenAddrs(), SASL: kafka.SASL{Mechanism: "SCRAM-SHA-512", User: "pizza", Password: "secret"}}
	return c, root, pizza
}

func TestWithoutTheRightToCreateItWaits(t *testing.T) {
	_, root, pizza := guarded(t)
	logged := make(chan string, 100)
	done := make(chan error, 1)
	go func() { done <- kafka.EnsureTopics(t.Context(), pizza, slog.New(lines(logged)), orders) }()

	select {
	case line := <-logged:
		if !strings.Contains(line, "let an administrator create it") {
			t.Errorf("logged %q, want what to do", line)
		}
	case err := <-done:
		t.Fatalf("returned %v before the topic was there", err)
	case <-time.After(10 * time.Second):
		t.Fatal("10 s without a line of the log about the missing topic")
	}
	kafkatest.Ensure(t, root, orders)
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("EnsureTopics does not return within 10 s after the topic was created")
	}
}

func TestWithoutTheRightToCreateTheErrorSaysWhatToDo(t *testing.T) {
	_, _, pizza := guarded(t)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	err := kafka.EnsureTopics(ctx, pizza, nil, orders)
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, kerr.TopicAuthorizationFailed) ||
		!strings.Contains(err.Error(), "order-events") || !strings.Contains(err.Error(), "let an administrator create it") {
		t.Fatalf("%v, want the topic and what to do", err)
	}
}

func TestARefusedPasswordIsNotWaitedFor(t *testing.T) {
	c, _, pizza := guarded(t)
	c.ControlKey(int16(kmsg.SASLAuthenticate), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		resp := req.ResponseKind().(*kmsg.SASLAuthenticateResponse) // as Apache Kafka answers
		resp.ErrorCode = kerr.SaslAuthenticationFailed.Code
		return resp, nil, true
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := kafka.EnsureTopics(ctx, pizza, nil, orders)
	if !errors.Is(err, kerr.SaslAuthenticationFailed) || ctx.Err() != nil {
		t.Fatalf("%v, want at once that the password is refused", err)
	}
}

func TestABrokerThatClosesTheConnectionIsExplained(t *testing.T) {
	_, _, pizza := guarded(t)
	pizza.SASL = kafka.SASL{}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	err := kafka.EnsureTopics(ctx, pizza, nil, orders)
	if err == nil || !strings.Contains(err.Error(), "are TLS and SASL set as they expect") {
		t.Fatalf("%v, want advice about TLS and SASL", err)
	}
}

// A lines is a log handler that sends each record as text.
type lines chan<- string

func (l lines) Enabled(context.Context, slog.Level) bool { return true }
func (l lines) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l lines) WithGroup(string) slog.Handler            { return l }
func (l lines) Handle(_ context.Context, r slog.Record) error {
	text := r.Message
	r.Attrs(func(a slog.Attr) bool { text += " " + a.String(); return true })
	l <- text
	return nil
}
