package pizzaflow

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

// usable is a configuration without faults: the defaults, as far as they matter.
func usable() Config {
	return Config{
		Services: "order,payment,notification,frontend,broker,sandbox", Currency: "RUB", DataDir: "data",
		HTTPAddr: "127.0.0.1:0", AdminAddr: "127.0.0.1:0", KafkaListen: "127.0.0.1:0", SandboxAddr: "127.0.0.1:0", SandboxSMTPAddr: "127.0.0.1:0",
		OutboxPollInterval: time.Second, RetryAttempts: 3, RetryDelay: time.Second, OrderDeadline: time.Minute, PaymentProviderTimeout: time.Second, PaymentTTL: time.Minute,
	}
}

func TestBadConfigurationNamesItsKey(t *testing.T) {
	if err := usable().Validate(); err != nil {
		t.Fatal(err)
	}
	for key, spoil := range map[string]func(*Config){
		"SERVICES":                  func(c *Config) { c.Services = "order,kitchen" },
		"HTTP_ADDR":                 func(c *Config) { c.HTTPAddr = "8080" },
		"ADMIN_ADDR":                func(c *Config) { c.AdminAddr = "127.0.0.1:99999" },
		"CURRENCY":                  func(c *Config) { c.Currency = "rub" },
		"DATA_DIR":                  func(c *Config) { c.DataDir = "" },
		"DATABASE_URL":              func(c *Config) { c.DatabaseURL = "mysql://x" },
		"PAYMENT_DATABASE_URL":      func(c *Config) { c.PaymentDatabaseURL = "x" },
		"KAFKA_BROKERS":             func(c *Config) { c.Services = "order,sandbox" },
		"KAFKA_BROKERS:":            func(c *Config) { c.KafkaBrokers = []string{"nowhere"} },
		"KAFKA_TLS:":                func(c *Config) { c.KafkaBrokers = []string{"127.0.0.1:9092", "192.0.2.1:9092"} },
		"KAFKA_REPLICATION":         func(c *Config) { c.KafkaReplication = -1 },
		"KAFKA_MIN_INSYNC_REPLICAS": func(c *Config) { c.KafkaReplication, c.KafkaMinInsyncReplicas = 1, 2 },
		"KAFKA_RETENTION":           func(c *Config) { c.KafkaRetention = 9 * 24 * time.Hour },
		"DATABASE_URL:":             func(c *Config) { c.DatabaseURL = "postgres://u@192.0.2.1/pizza" },
		"ORDER_DATABASE_URL":        func(c *Config) { c.OrderDatabaseURL = "postgres://u@db.example/pizza?sslmode=prefer" },
		"KAFKA_TLS":                 func(c *Config) { c.KafkaBrokers, c.KafkaTLSCA = []string{"k:9092"}, "ca.pem" },
		"KAFKA_SASL_MECHANISM":      func(c *Config) { c.KafkaBrokers, c.KafkaSASLMechanism = []string{"k:9092"}, "MD5" },
		"KAFKA_PARTITIONS":          func(c *Config) { c.KafkaPartitions = -1 },
		"OUTBOX_POLL_INTERVAL":      func(c *Config) { c.OutboxPollInterval = 0 },
		"RETRY_ATTEMPTS":            func(c *Config) { c.RetryAttempts = 0 },
		"ORDER_URL":                 func(c *Config) { c.Services = "frontend,broker" },
		"PUBLIC_URL":                func(c *Config) { c.PublicURL = "pizza.example" },
		"PAYMENT_PROVIDER_URL":      func(c *Config) { c.Services = "payment,broker" },
		"SMTP_URL":                  func(c *Config) { c.Services = "notification,broker" },
		"TRUSTED_PROXIES":           func(c *Config) { c.TrustedProxies = []string{"10.0.0.0/99"} },
		"OPS_TOKEN":                 func(c *Config) { c.OpsToken = "fifteen letters" },
		"RATE_LIMIT":                func(c *Config) { c.RateLimit = -1 },
		"NOTIFICATION_TEMPLATES":    func(c *Config) { c.NotificationTemplates = "/no/such/folder" },
		"NOTIFICATION_DATABASE_URL": func(c *Config) { c.NotificationDatabaseURL = "sqlite" },
	} {
		c := usable()
		spoil(&c)
		err := c.Validate()
		if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), strings.TrimSuffix(key, ":")+":") {
			t.Errorf("%s: %v", key, err)
		}
	}
}

func TestEveryOptionIsDescribed(t *testing.T) {
	seen := map[string]bool{}
	for _, o := range (Config{}).Options() {
		if o.Env == "" || o.Flag == "--" || o.Help == "" || seen[o.Env] {
			t.Errorf("%+v", o)
		}
		seen[o.Env] = true
		if want := "--" + strings.ToLower(strings.ReplaceAll(o.Env, "_", "-")); o.Flag != want {
			t.Errorf("%s has the flag %s, want %s", o.Env, o.Flag, want)
		}
	}
	if len(seen) != reflect.TypeFor[Config]().NumField() {
		t.Errorf("%d options of %d fields", len(seen), reflect.TypeFor[Config]().NumField())
	}
}

func TestTheTableOfOptionsIsTrue(t *testing.T) {
	table, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range (Config{}).Options() {
		value := ""
		if o.Default != "" {
			value = "`" + o.Default + "`"
		}
		if line := fmt.Sprintf("| `%s` | %s | %s |\n", o.Env, value, o.Help); !strings.Contains(string(table), line) {
			t.Errorf("docs/operations.md has no line %s", line)
		}
	}
}

func TestEachServiceNeedsItsOwnTopics(t *testing.T) {
	for services, want := range map[string]string{
		"order":                "order-events payment-events payment-events-dlq",
		"payment":              "order-events order-events-dlq payment-events",
		"notification":         "order-events order-events-dlq payment-events payment-events-dlq",
		"frontend":             "order-events payment-events",
		"sandbox":              "",
		"order,payment,broker": "order-events order-events-dlq payment-events payment-events-dlq",
	} {
		c := usable()
		c.Services = services
		var got []string
		for _, topic := range c.topicsHere() {
			got = append(got, topic.Name)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s needs %v, want %s", services, got, want)
		}
	}
}

func TestTopicsAreAsConfigured(t *testing.T) {
	c := usable()
	c.KafkaReplication, c.KafkaMinInsyncReplicas, c.KafkaRetention = 3, 2, time.Hour
	if embedded := c.topics()[0]; embedded.Replicas != -1 || embedded.MinInsync != 0 {
		t.Errorf("the embedded broker has no replicas: %+v", embedded)
	}
	c.KafkaBrokers = []string{"127.0.0.1:9092"}
	for _, topic := range c.topics() {
		if topic.Replicas != 3 || topic.MinInsync != 2 || topic.Retention < time.Hour {
			t.Errorf("%+v", topic)
		}
	}
}

func TestWhatMayBeInClear(t *testing.T) {
	for what, allow := range map[string]func(*Config){
		"Kafka when told so":          func(c *Config) { c.KafkaBrokers, c.KafkaPlaintext = []string{"192.0.2.1:9092"}, true },
		"a name, until it is dialled": func(c *Config) { c.KafkaBrokers = []string{"kafka.example:9092"} },
		"loopback": func(c *Config) {
			c.KafkaBrokers, c.DatabaseURL = []string{"127.0.0.1:9092", "[::1]:9092", "localhost:9092"}, "postgres://localhost/x"
		},
		"with TLS nothing is":     func(c *Config) { c.KafkaBrokers, c.KafkaTLS = []string{"192.0.2.1:9092"}, true },
		"a database when told so": func(c *Config) { c.DatabaseURL = "postgres://192.0.2.1/x?sslmode=disable" },
		"an encrypted database":   func(c *Config) { c.DatabaseURL = "postgres://192.0.2.1/x?sslmode=verify-full" },
	} {
		c := usable()
		allow(&c)
		if err := c.Validate(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestSecretsAreRedacted(t *testing.T) {
	c := usable()
	c.DatabaseURL, c.SMTPURL, c.KafkaSASLPassword = "postgres://u:hunter2@db/x", "smtp://u:hunter2@mail:25", "hunter2"
	c.OrderDatabaseURL, c.PaymentDatabaseURL = "postgres://db/x?user=u&password=hunter2&sslpassword=hunter2", "postgres://db/x?a=%zz&password=hunter2"
	c.OpsToken = "hunter2hunter2hunter2"
	for _, o := range c.Options() {
		if strings.Contains(o.Value, "hunter2") {
			t.Errorf("%s shows a secret: %s", o.Env, o.Value)
		}
	}
}

func TestEachServiceHasItsOwnDatabase(t *testing.T) {
	c := usable()
	if got := c.databaseURL("order"); got != "sqlite:data/order.db" {
		t.Errorf("by default %s", got)
	}
	c.DatabaseURL, c.PaymentDatabaseURL = "postgres://u@db/pizza?sslmode=disable", "postgres://u@other/pay"
	if got := c.databaseURL("order"); got != "postgres://u@db/pizza?search_path=order_service&sslmode=disable" {
		t.Errorf("with a common database %s", got)
	}
	if got := c.databaseURL("payment"); got != "postgres://u@other/pay" {
		t.Errorf("with one of its own %s", got)
	}
}

func TestSandboxRunsWhereItIsPointedAt(t *testing.T) {
	c := usable()
	c.SandboxAddr, c.SandboxSMTPAddr = "127.0.0.1:8082", "127.0.0.1:2525"
	point := func(host string) Config {
		c := c
		c.PaymentProviderURL, c.SMSURL, c.SMTPURL = "sandbox://"+host+":8082", "http://"+host+":8082/sms/messages", "smtp://"+host+":2525"
		return c
	}
	alone := point("pizza-sandbox")
	alone.Services, alone.SandboxAddr, alone.SandboxSMTPAddr = "sandbox", "0.0.0.0:8082", "0.0.0.0:2525"
	for what, want := range map[string]struct {
		cfg Config
		run bool
	}{
		"nothing said": {c, true}, "by another name": {point("localhost"), true}, "elsewhere": {point("provider.example"), false}, "alone": {alone, true},
	} {
		if want.cfg.needsSandbox() != want.run {
			t.Errorf("%s: runs %v, want %v", what, !want.run, want.run)
		}
	}
	if got := dialable("[::]:8080"); got != "localhost:8080" {
		t.Errorf("a wildcard is shown as %s", got)
	}
}

func TestTopicsAreBounded(t *testing.T) {
	c := usable()
	for _, topic := range c.topics() {
		if topic.Partitions != 3 || topic.Retention == 0 || topic.RetentionBytes == 0 {
			t.Errorf("embedded: %+v", topic)
		}
	}
	c.KafkaBrokers = []string{"127.0.0.1:9092"}
	for _, topic := range c.topics() {
		if topic.Partitions != 12 || topic.Retention == 0 || topic.RetentionBytes != 0 {
			t.Errorf("Kafka: %+v", topic)
		}
	}
}

// TestMovedDataIsWhereTheServiceLooks compares where a move puts the tables
// with where the service will look for them.
func TestMovedDataIsWhereTheServiceLooks(t *testing.T) {
	const to = "postgres://127.0.0.1/orders"
	for _, c := range []Config{{DatabaseURL: to}, {OrderDatabaseURL: to}, {DatabaseURL: to, PaymentDatabaseURL: "postgres://127.0.0.1/other"}} {
		moved, err := c.MovedTo(to)
		if err != nil || moved.databaseURL("order") != c.databaseURL("order") {
			t.Errorf("moved to %s, and the service looks at %s (%v)", moved.databaseURL("order"), c.databaseURL("order"), err)
		}
	}
}
