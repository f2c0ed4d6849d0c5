package pizzaflow

import (
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/event"
	"pizzaflow/kafka"
	"pizzaflow/kafka/kafkatest"
	"pizzaflow/ops"
	"pizzaflow/verify"
)

// Messages that go to real customers are not looked for in the sandbox.
func TestSandboxChannels(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		want []string
	}{
		{Config{SandboxAddr: "127.0.0.1:8082"}, []string{"email", "sms"}},
		{Config{PaymentProviderURL: "sandbox://box:8082", SMTPURL: "smtp://box:2525", SMSURL: "http://box:8082/sms/messages"}, []string{"email", "sms"}},
		{Config{PaymentProviderURL: "sandbox://box:8082", SMTPURL: "smtp://user:secret@mail.example:587", SMSURL: "http://box:8082/sms/messages"}, []string{"sms"}},
		{Config{PaymentProviderURL: "sandbox://box:8082", SMTPURL: "smtp://mail.example:587", SMSURL: "https://sms.example/send"}, nil},
		{Config{PaymentProviderURL: "https://bank.example"}, nil},
	} {
		if got := c.cfg.sandboxChannels(c.cfg.sandboxURL()); !slices.Equal(got, c.want) {
			t.Errorf("%+v: %q, want %q", c.cfg, got, c.want)
		}
	}
}

// Invariants about topics that the user may not read are not checked, and all others are. Every user sees that each topic
// has a record.
func TestVerifyWithoutTheRightToRead(t *testing.T) {
	const topics, letters = "the topics", "the dead-letter topics"
	as := kafkatest.Guarded(t, map[string][]string{"blind": nil, "half": event.Topics()})
	options, err := as("root").Options()
	if err != nil {
		t.Fatal(err)
	}
	client, err := kgo.NewClient(options...)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for _, name := range event.Topics() {
		for _, name := range []string{name, name + event.DeadLetterSuffix} {
			if err := kafka.EnsureTopics(t.Context(), as("root"), nil, kafka.Topic{Name: name, Partitions: 1, Replicas: -1}); err != nil {
				t.Fatal(err)
			}
			if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: name, Value: []byte("{}")}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
	cfg := usable()
	cfg.Services, cfg.DataDir, cfg.KafkaBrokers = "order,payment,notification", t.TempDir(), as("root").Brokers
	cfg.PaymentProviderURL, cfg.SMTPURL, cfg.SMSURL = "sandbox://127.0.0.1:1", "smtp://127.0.0.1:1", "http://127.0.0.1:1"
	if err := Migrate(t.Context(), cfg, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	for user, unread := range map[string][]string{"root": nil, "half": {letters}, "blind": {topics, letters}} {
		k := as(user).SASL
		cfg.KafkaSASLMechanism, cfg.KafkaSASLUser, cfg.KafkaSASLPassword = k.Mechanism, k.User, k.Password
		evidence, err := cfg.Evidence([]string{"sandbox"})
		if err != nil {
			t.Fatal(err)
		}
		r, err := ops.Verify(t.Context(), cfg.Databases(), evidence, 0)
		if err != nil {
			t.Errorf("%s: %v", user, err)
		}
		for _, f := range r.Findings {
			missing := slices.Contains(unread, f.Needs)
			if (f.Needs == topics || f.Needs == letters) && (f.State == verify.NotChecked) != missing {
				t.Errorf("%s: %q is %s: %s", user, f.Name, f.State, f.Why)
			}
			if missing && !strings.Contains(f.Why, "TOPIC_AUTHORIZATION_FAILED") {
				t.Errorf("%s: %q is not checked because: %s", user, f.Name, f.Why)
			}
		}
	}
}
