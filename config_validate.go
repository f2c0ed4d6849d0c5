package pizzaflow

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"pizzaflow/event"
	"pizzaflow/frontend"
	"pizzaflow/internal/redact"
	"pizzaflow/kafka/embedded"
	"pizzaflow/notification"
	"pizzaflow/ops"
	"pizzaflow/outbox/relay"
	"pizzaflow/payment"
	"pizzaflow/sqldb"
)

// Validate reports every fault of the configuration with the name of its option, and none of its secrets. It opens no
// connection and no port.
func (c Config) Validate() error {
	var errs []error
	for _, name := range c.services() {
		if !slices.Contains(allServices, name) {
			errs = append(errs, bad("SERVICES", "%q is not one of %s", redact.Value(name), strings.Join(allServices, ", ")))
		}
	}
	if len(c.services()) == 0 {
		errs = append(errs, bad("SERVICES", "names no service"))
	}
	_, proxies := c.trustedProxies()
	errs = append(errs, c.validateAddresses(), c.validateNumbers(), c.validateURLs(), c.validateMessages(), c.validateKafka(), proxies, c.validateCurrency())
	if c.OpsToken != "" {
		if err := ops.CheckToken(c.OpsToken); err != nil {
			errs = append(errs, bad("OPS_TOKEN", "%w", err))
		}
	}
	if info, err := os.Stat(c.DataDir); c.DataDir == "" {
		errs = append(errs, bad("DATA_DIR", "is empty"))
	} else if err == nil && !info.IsDir() {
		errs = append(errs, bad("DATA_DIR", "%q is not a folder", redact.Value(c.DataDir)))
	}
	return errors.Join(errs...)
}

// validateCurrency refuses a currency whose amounts have not the two decimals of event.Money: a provider counts in minor
// units, and would take a hundred times the price in one without any.
func (c Config) validateCurrency() error {
	switch decimals, known := event.Decimals(c.Currency); {
	case !known:
		return bad("CURRENCY", "%q is no currency of ISO 4217, such as RUB or EUR", redact.Value(c.Currency))
	case decimals != 2:
		return bad("CURRENCY", "%s has amounts with %d decimals, and the prices of the menu have 2", c.Currency, decimals)
	}
	return nil
}

func (c Config) validateAddresses() error {
	var errs []error
	for _, a := range []struct{ key, addr string }{
		{"HTTP_ADDR", c.HTTPAddr}, {"ADMIN_ADDR", c.AdminAddr}, {"KAFKA_LISTEN", c.KafkaListen}, {"SANDBOX_ADDR", c.SandboxAddr}, {"SANDBOX_SMTP_ADDR", c.SandboxSMTPAddr},
	} {
		host, port, err := net.SplitHostPort(a.addr)
		if n, e := strconv.ParseUint(port, 10, 16); err != nil || e != nil || n > math.MaxUint16 || host != "" && !isHost(host) {
			errs = append(errs, bad(a.key, "%q is not HOST:PORT", redact.Value(a.addr)))
		}
	}
	return errors.Join(errs...)
}

// Bounds of durations: what is longer is a slip, such as a unit taken for another.
const (
	longPause   = time.Hour
	longTimeout = 5 * time.Minute
	longDay     = 24 * time.Hour
	longMonth   = 31 * longDay
)

func (c Config) validateNumbers() error {
	var errs []error
	for _, d := range []struct {
		key                string
		value, least, most time.Duration
	}{
		{"OUTBOX_POLL_INTERVAL", c.OutboxPollInterval, time.Millisecond, longPause},
		{"RETRY_DELAY", c.RetryDelay, time.Millisecond, longPause},
		{"ORDER_DEADLINE", c.OrderDeadline, time.Millisecond, longMonth},
		{"PAYMENT_PROVIDER_TIMEOUT", c.PaymentProviderTimeout, time.Millisecond, longTimeout},
		{"PAYMENT_TTL", c.PaymentTTL, time.Millisecond, longDay},
		{"STOP_GRACE", c.StopGrace, 0, maxStopGrace},
		{"DATABASE_IDLE_TIME", c.DatabaseIdleTime, 0, longDay},
		{"DATABASE_CONNECTION_LIFE", c.DatabaseConnectionLife, 0, longMonth},
	} {
		if d.value < d.least || d.value > d.most {
			errs = append(errs, bad(d.key, "%s is not from %s to %s", d.value, d.least, d.most))
		}
	}
	if d := c.KafkaRetention; d != 0 && (d < time.Hour || d > maxTopicRetention) {
		errs = append(errs, bad("KAFKA_RETENTION", "%s is not from 1h to %s: the inboxes remember each event for longer than its topic holds it", d, maxTopicRetention))
	}
	if n := c.KafkaReplication; n < 0 || n > math.MaxInt16 {
		errs = append(errs, bad("KAFKA_REPLICATION", "%d is no number of copies", n))
	}
	if n := c.KafkaMinInsyncReplicas; n < 0 || n > math.MaxInt16 || c.KafkaReplication > 0 && n > c.KafkaReplication {
		errs = append(errs, bad("KAFKA_MIN_INSYNC_REPLICAS", "%d of %d copies can never have a record", n, c.KafkaReplication))
	}
	most := maxPartitions
	if len(c.KafkaBrokers) == 0 {
		most = embedded.MaxPartitions
	}
	if n := c.KafkaPartitions; n < 0 || n > most {
		errs = append(errs, bad("KAFKA_PARTITIONS", "%d is no number of partitions: want 1 to %d, or 0 for the usual one", n, most))
	}
	if n := c.DatabaseConnections; n != 0 && (n <= relay.Sessions || n > math.MaxInt16) {
		errs = append(errs, bad("DATABASE_CONNECTIONS", "%d is not from %d to %d: the relay of a service needs %d, and the rest at least one", n, relay.Sessions+1, math.MaxInt16, relay.Sessions))
	}
	if n := c.RetryAttempts; n < 1 || n > 1000 {
		errs = append(errs, bad("RETRY_ATTEMPTS", "%d is not from 1 to 1000", n))
	}
	if n := c.RateLimit; n < 0 || n > 1_000_000 {
		errs = append(errs, bad("RATE_LIMIT", "%d is not from 0 to 1000000", n))
	}
	return errors.Join(errs...)
}

func (c Config) validateURLs() error {
	var errs []error
	if c.DatabaseURL != "" && !isPostgres(c.DatabaseURL) {
		errs = append(errs, bad("DATABASE_URL", "want postgres://…; without it there are SQLite files in DATA_DIR"))
	} else if c.DatabaseURL != "" {
		errs = append(errs, checkDatabase("DATABASE_URL", c.DatabaseURL))
	}
	for _, s := range serviceTable {
		if own := c.ownDatabaseURL(s.name); own != "" {
			errs = append(errs, checkDatabase(c.databaseKey(s.name), own))
		}
	}
	if c.runs("frontend") && !c.runs("order") && len(c.OrderURL) == 0 {
		errs = append(errs, bad("ORDER_URL", "is empty, and the frontend runs without the order service: say where it is"))
	}
	for _, raw := range c.OrderURL {
		u, err := url.Parse(raw)
		if err == nil && isHost(u.Hostname()) {
			_, err = frontend.Remote([]string{raw}, nil, nil)
		}
		if err != nil || !isHost(u.Hostname()) || !isPort(u.Port()) {
			errs = append(errs, bad("ORDER_URL", "%q is not http://HOST:PORT", redact.URL(raw)))
		}
	}
	if _, err := c.origin(); err != nil {
		errs = append(errs, err)
	}
	for _, o := range []struct {
		key, value, service string
		build               func() (any, error)
	}{
		{"PAYMENT_PROVIDER_URL", c.PaymentProviderURL, "payment", func() (any, error) { return payment.NewProvider(c.PaymentProviderURL, c.PaymentProviderTimeout, nil) }},
		{"SMTP_URL", c.SMTPURL, "notification", func() (any, error) { return notification.NewSMTP(c.SMTPURL, nil) }},
		{"SMS_URL", c.SMSURL, "notification", func() (any, error) { return notification.NewSMS(c.SMSURL, nil) }},
	} {
		if o.value == "" && c.runs(o.service) && !c.runs("sandbox") {
			errs = append(errs, bad(o.key, "is empty, and no sandbox runs in this process: say what the %s service is to use", o.service))
		}
		if o.value == "" {
			continue
		}
		made, err := o.build()
		if u, e := url.Parse(o.value); err == nil && e == nil && (!isHost(u.Hostname()) || !isPort(u.Port())) {
			err = errors.New("its host or its port is none")
		}
		if err != nil {
			errs = append(errs, bad(o.key, "%w", err))
		} else if opened, ok := made.(io.Closer); ok {
			_ = opened.Close() // nothing was connected
		}
	}
	return errors.Join(errs...)
}

// checkDatabase refuses the URL of a database that cannot be used. A parser's error can quote a part of the password, and is
// not shown.
func checkDatabase(key, raw string) error {
	if isPostgres(raw) && strings.HasSuffix(redact.URL(raw), redact.Hidden) {
		return bad(key, "its host cannot be told: in user and password write / ? # @ and : as %%2F %%3F %%23 %%40 and %%3A")
	}
	err := sqldb.Check(raw)
	if file, ok := errors.AsType[*fs.PathError](err); ok { // of a certificate
		return bad(key, "%w", file)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, sqldb.ErrClear), errors.Is(err, sqldb.ErrURL):
		return bad(key, "%w", err)
	}
	return bad(key, "is no URL of PostgreSQL that can be read: want postgres://USER:PASSWORD@HOST:PORT/DATABASE with %%… for odd characters, and parameters that PostgreSQL knows")
}

// validateMessages checks what the messages to customers are made of.
func (c Config) validateMessages() error {
	var errs []error
	public, err := c.origin()
	if err != nil { // which is told elsewhere
		public = ""
	}
	if err := notification.CheckFrom(c.MailFrom, public); err != nil {
		errs = append(errs, bad("MAIL_FROM", "%w", err))
	}
	if folder := c.NotificationTemplates; folder != "" {
		if info, err := os.Stat(folder); err != nil || !info.IsDir() {
			errs = append(errs, bad("NOTIFICATION_TEMPLATES", "%q is not a folder", redact.Value(folder)))
		} else if err := notification.CheckTemplates(os.DirFS(folder), public); err != nil {
			errs = append(errs, bad("NOTIFICATION_TEMPLATES", "%w", err))
		}
	}
	return errors.Join(errs...)
}

func (c Config) trustedProxies() ([]netip.Prefix, error) {
	var out []netip.Prefix
	var errs []error
	for _, s := range c.TrustedProxies {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			addr, e := netip.ParseAddr(s)
			if e != nil {
				errs = append(errs, bad("TRUSTED_PROXIES", "%q is no address and no CIDR range", redact.Value(s)))
				continue
			}
			p = netip.PrefixFrom(addr, addr.BitLen())
		}
		out = append(out, p)
	}
	return out, errors.Join(errs...)
}

// origin is PUBLIC_URL as browsers write an origin: scheme, host as A-label, and a port that is not the scheme's own. It is
// empty when PUBLIC_URL is.
func (c Config) origin() (string, error) {
	if c.PublicURL == "" {
		return "", nil
	}
	u, err := url.Parse(c.PublicURL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return "", bad("PUBLIC_URL", "%q is not http(s)://HOST", redact.URL(c.PublicURL))
	}
	for _, part := range []struct {
		name  string
		there bool
	}{
		{"user", u.User != nil},
		{"path", strings.Trim(u.Path, "/") != ""},
		{"query", u.RawQuery != "" || u.ForceQuery},
		{"fragment", strings.Contains(c.PublicURL, "#")},
	} {
		if part.there {
			return "", bad("PUBLIC_URL", "%q has a %s: the shop is at the root of its host", redact.URL(c.PublicURL), part.name)
		}
	}
	host, err := hostname(u.Hostname())
	if err != nil || !isPort(u.Port()) {
		return "", bad("PUBLIC_URL", "%q has no host and port that can be reached", redact.URL(c.PublicURL))
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port := u.Port(); port != "" && port != map[string]string{"http": "80", "https": "443"}[u.Scheme] {
		host = fmt.Sprintf("%s:%s", host, port)
	}
	return u.Scheme + "://" + host, nil
}
