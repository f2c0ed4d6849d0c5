package pizzaflow

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Config has every option of the system. The tags of each, and nothing else, say its flag, its environment variable of the
// same name, its default and its meaning. The defaults run everything in one process.
type Config struct {
	Services string `name:"services" env:"SERVICES" default:"order,payment,notification,frontend,broker,sandbox" words:"order,payment,notification,frontend,broker,sandbox" help:"Which services this process runs, by commas."`

	HTTPAddr  string `name:"http-addr" env:"HTTP_ADDR" default:"127.0.0.1:8080" help:"Where the shop is served; the order API where no frontend runs. Port 0 means any free port, here and below."`
	AdminAddr string `name:"admin-addr" env:"ADMIN_ADDR" default:"127.0.0.1:8081" help:"Where metrics, health and profiles are served. Not for the public."`
	DataDir   string `name:"data-dir" env:"DATA_DIR" default:"./pizza-data" help:"The folder of the SQLite files, the embedded broker and the sandbox."`
	PublicURL string `name:"public-url" env:"PUBLIC_URL" help:"Where customers reach the shop, for links in messages: http(s)://HOST[:PORT] without a path; HTTP_ADDR when empty."`
	Currency  string `name:"currency" env:"CURRENCY" default:"RUB" case:"upper" help:"The currency of the menu, ISO 4217; one with two decimals, as the prices have."`

	DatabaseURL             string        `name:"database-url" env:"DATABASE_URL" secret:"url" help:"postgres://… for all services, a schema each. Empty: SQLite files in DATA_DIR."`
	OrderDatabaseURL        string        `name:"order-database-url" env:"ORDER_DATABASE_URL" secret:"url" help:"The order service's own database, instead of DATABASE_URL."`
	PaymentDatabaseURL      string        `name:"payment-database-url" env:"PAYMENT_DATABASE_URL" secret:"url" help:"The payment service's own database."`
	NotificationDatabaseURL string        `name:"notification-database-url" env:"NOTIFICATION_DATABASE_URL" secret:"url" help:"The notification service's own database."`
	DatabaseConnections     int           `name:"database-connections" env:"DATABASE_CONNECTIONS" default:"0" help:"Connections to PostgreSQL that each service of this process has at most, 3 of them for its relay; 0 means 3 and four for each processor, at least 11."`
	DatabaseIdleTime        time.Duration `name:"database-idle-time" env:"DATABASE_IDLE_TIME" default:"5s" help:"After how long a connection to PostgreSQL that nobody uses is closed."`
	DatabaseConnectionLife  time.Duration `name:"database-connection-life" env:"DATABASE_CONNECTION_LIFE" default:"30m" help:"After how long a connection to PostgreSQL is replaced by a new one."`

	KafkaBrokers           []string      `name:"kafka-brokers" env:"KAFKA_BROKERS" help:"host:port of Kafka brokers, by commas. Empty: the embedded broker."`
	KafkaListen            string        `name:"kafka-listen" env:"KAFKA_LISTEN" default:"127.0.0.1:9092" help:"Where the embedded broker listens."`
	KafkaPartitions        int           `name:"kafka-partitions" env:"KAFKA_PARTITIONS" default:"0" help:"Partitions of the topics that are created; 0 means 3 on the embedded broker and 12 on Kafka."`
	KafkaReplication       int           `name:"kafka-replication" env:"KAFKA_REPLICATION" default:"0" help:"Copies of each partition of the topics that are created; 0 leaves it to the broker."`
	KafkaMinInsyncReplicas int           `name:"kafka-min-insync-replicas" env:"KAFKA_MIN_INSYNC_REPLICAS" default:"0" help:"Copies that must have a record before it is acknowledged; 0 means 2 where KAFKA_REPLICATION is 3 or more, and leaves it to the broker elsewhere."`
	KafkaRetention         time.Duration `name:"kafka-retention" env:"KAFKA_RETENTION" default:"168h" help:"How long the topics keep records, from 1h to 192h; dead letters stay for 30 days."`

	KafkaPlaintext     bool   `name:"kafka-plaintext" env:"KAFKA_PLAINTEXT" help:"Allow to send everything, a PLAIN password too, in clear to brokers on other machines."`
	KafkaTLS           bool   `name:"kafka-tls" env:"KAFKA_TLS" help:"Encrypt the connections to Kafka."`
	KafkaTLSCA         string `name:"kafka-tls-ca" env:"KAFKA_TLS_CA" help:"PEM file of the authorities to trust; empty means the system's."`
	KafkaTLSCert       string `name:"kafka-tls-cert" env:"KAFKA_TLS_CERT" help:"PEM file of the client's certificate."`
	KafkaTLSKey        string `name:"kafka-tls-key" env:"KAFKA_TLS_KEY" help:"PEM file of the client's key."`
	KafkaTLSServerName string `name:"kafka-tls-server-name" env:"KAFKA_TLS_SERVER_NAME" help:"The name expected in the broker's certificate; empty means the host."`
	KafkaSASLMechanism string `name:"kafka-sasl-mechanism" env:"KAFKA_SASL_MECHANISM" words:"PLAIN,SCRAM-SHA-256,SCRAM-SHA-512" help:"PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512."`
	KafkaSASLUser      string `name:"kafka-sasl-user" env:"KAFKA_SASL_USER" help:"User at the Kafka brokers."`
	KafkaSASLPassword  string `name:"kafka-sasl-password" env:"KAFKA_SASL_PASSWORD" secret:"yes" help:"Password at the Kafka brokers."`

	OutboxPollInterval time.Duration `name:"outbox-poll-interval" env:"OUTBOX_POLL_INTERVAL" default:"5s" help:"How often a relay looks for events nobody woke it for."`
	RetryAttempts      int           `name:"retry-attempts" env:"RETRY_ATTEMPTS" default:"3" help:"Attempts at an event before it is dead-lettered."`
	RetryDelay         time.Duration `name:"retry-delay" env:"RETRY_DELAY" default:"5s" help:"Before attempt n+1 a failed event waits n times this, plus up to 20 %."`

	OrderURL      []string      `name:"order-url" env:"ORDER_URL" help:"Where a frontend without the order service in its process finds it: one address or more."`
	OrderDeadline time.Duration `name:"order-deadline" env:"ORDER_DEADLINE" default:"30m" help:"How long an order may await its payment before it is marked for the operator."`

	PaymentProviderURL     string        `name:"payment-provider-url" env:"PAYMENT_PROVIDER_URL" secret:"url" help:"sandbox://HOST:PORT. Empty: this process's sandbox."`
	PaymentProviderTimeout time.Duration `name:"payment-provider-timeout" env:"PAYMENT_PROVIDER_TIMEOUT" default:"10s" help:"How long one call to the payment provider may take."`
	PaymentTTL             time.Duration `name:"payment-ttl" env:"PAYMENT_TTL" default:"15m" help:"How long a charge the provider knows nothing of is tried again; once more after that."`

	SMTPURL               string `name:"smtp-url" env:"SMTP_URL" secret:"url" help:"smtp://[USER:PASSWORD@]HOST:PORT. Empty: this process's sandbox."`
	SMSURL                string `name:"sms-url" env:"SMS_URL" secret:"url" help:"http://HOST:PORT/sms/messages. Empty: this process's sandbox."`
	MailFrom              string `name:"mail-from" env:"MAIL_FROM" holds:"mailbox" help:"Who the e-mails are from; orders@ the host of PUBLIC_URL when empty."`
	NotificationTemplates string `name:"notification-templates" env:"NOTIFICATION_TEMPLATES" help:"A folder whose files replace the built-in texts of messages."`

	SandboxAddr     string `name:"sandbox-addr" env:"SANDBOX_ADDR" default:"127.0.0.1:8082" help:"Where the sandbox serves its page, payments and SMS gateway."`
	SandboxSMTPAddr string `name:"sandbox-smtp-addr" env:"SANDBOX_SMTP_ADDR" default:"127.0.0.1:2525" help:"Where the sandbox takes mail."`

	OpsToken string `name:"ops-token" env:"OPS_TOKEN" secret:"yes" help:"The bearer token of the operator API on ADMIN_ADDR, at least 16 characters. Empty: that API is shut."`

	StopGrace time.Duration `name:"stop-grace" env:"STOP_GRACE" default:"5s" help:"How long requests are still taken once the process is told to stop, up to 30s, where somebody asks /readyz, which says so meanwhile."`

	RateLimit      int      `name:"rate-limit" env:"RATE_LIMIT" default:"600" help:"Requests a minute from one peer; 0 is no limit. This machine is never limited."`
	TrustedProxies []string `name:"trusted-proxies" env:"TRUSTED_PROXIES" help:"Addresses or CIDR ranges whose X-Forwarded-For counts."`

	LogFormat string `name:"log-format" env:"LOG_FORMAT" default:"auto" words:"auto,text,json" help:"auto is text on a terminal and JSON elsewhere."`
	LogLevel  string `name:"log-level" env:"LOG_LEVEL" default:"info" words:"debug,info,warn,error" help:"The least level that is logged."`
}

// ErrConfig is wrapped by every error about the configuration.
var ErrConfig = errors.New("configuration")

// bad is an error about the option of that environment name.
func bad(key, format string, args ...any) error {
	return fmt.Errorf("%w: %s: %w", ErrConfig, key, fmt.Errorf(format, args...))
}

// services are the names in SERVICES.
func (c Config) services() []string { return list(c.Services) }

// runs reports whether this process runs the service.
func (c Config) runs(service string) bool { return slices.Contains(c.services(), service) }

// databaseURL is the URL of a service's database: its own URL as it is, a schema of the common PostgreSQL, or a SQLite file.
func (c Config) databaseURL(service string) string {
	if own := c.ownDatabaseURL(service); own != "" {
		return own
	}
	if c.DatabaseURL == "" {
		return "sqlite:" + filepath.Join(c.DataDir, service+".db")
	}
	u, err := url.Parse(c.DatabaseURL)
	if err != nil || !isPostgres(c.DatabaseURL) {
		return "" // Validate refuses it
	}
	q := u.Query()
	if q.Get("search_path") == "" {
		q.Set("search_path", service+"_service")
	}
	u.RawQuery = q.Encode()
	return u.String()
}

// MovedTo is the configuration with which the services find their data after a move to the PostgreSQL: each in its schema of
// it, except a service whose own URL is that PostgreSQL's.
func (c Config) MovedTo(postgres string) (Config, error) {
	if !isPostgres(postgres) {
		return Config{}, bad("--to", "want postgres://…")
	}
	c.DatabaseURL = postgres
	for _, own := range []*string{&c.OrderDatabaseURL, &c.PaymentDatabaseURL, &c.NotificationDatabaseURL} {
		if *own != postgres {
			*own = ""
		}
	}
	return c, nil
}

func (c Config) ownDatabaseURL(service string) string {
	return map[string]string{"order": c.OrderDatabaseURL, "payment": c.PaymentDatabaseURL, "notification": c.NotificationDatabaseURL}[service]
}

// databaseKey is the option that a service's database URL comes from.
func (c Config) databaseKey(service string) string {
	if c.ownDatabaseURL(service) != "" {
		return strings.ToUpper(service) + "_DATABASE_URL"
	}
	return "DATABASE_URL"
}

func isPostgres(url string) bool {
	return strings.HasPrefix(url, "postgres://") || strings.HasPrefix(url, "postgresql://")
}
