package kafka

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"pizzaflow/internal/redact"
	"pizzaflow/internal/retry"
)

const (
	dialTimeout    = 10 * time.Second // one attempt to connect, the TLS handshake included
	requestTimeout = 10 * time.Second // an answer, beyond the time that the request itself gives the broker
	idleTimeout    = 2 * time.Minute  // well below the 10 minutes after which brokers close idle connections

	// metadataMinAge is how soon a client may ask again who leads a partition. With franz-go's default of 5 s the
	// first record to a new topic, and every move of a leader, waits for seconds.
	metadataMinAge = 250 * time.Millisecond

	// A client waits between two tries from shortPause to longPause, so that a broker that is back is used within
	// a second.
	shortPause = 50 * time.Millisecond
	longPause  = time.Second
)

// What our clients write and read at most, and the embedded broker takes.
const (
	// MaxRequest bounds the bytes of a request: four times the largest batch of our largest topic, since a client
	// puts several batches into one request.
	MaxRequest = 16 << 20
	// MaxBatch bounds the bytes that a batch of records may unpack to: our largest topic takes records of a few MiB.
	MaxBatch = 64 << 20
)

// A Config says how to reach the brokers. Brokers must be set.
type Config struct {
	Brokers  []string // host:port of one broker or more; the others are found through them
	TLS      TLS
	SASL     SASL
	ClientID string // our name in the brokers' logs and quotas; "pizzaflow" when empty

	// Plaintext allows to send everything in clear, a PLAIN password included, to brokers of other machines.
	// Without it, and without TLS, clients connect only to brokers on the loopback interface.
	Plaintext bool

	// Dial opens a connection, nil means the net package. Tests pass a virtual network.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// A TLS says whether and how connections are encrypted.
type TLS struct {
	Enabled    bool
	CAFile     string // PEM file of the authorities to trust; empty means those of the system
	CertFile   string // PEM file of the client's certificate, together with KeyFile
	KeyFile    string // PEM file of the client's key
	ServerName string // the name expected in the broker's certificate; empty means the host dialled
}

// A SASL says how a client authenticates.
type SASL struct {
	Mechanism string // "" (without authentication), "PLAIN", "SCRAM-SHA-256" or "SCRAM-SHA-512"
	User      string
	Password  string
}

// Validate reports everything that is wrong with c, naming each field. It reads no file and asks no broker; the
// address behind a host name is checked when it is dialled.
func (c Config) Validate() error {
	var errs []error
	if len(c.Brokers) == 0 {
		errs = append(errs, errors.New("brokers: none given"))
	}
	for _, b := range c.Brokers {
		if err := validAddress(b); err != nil {
			errs = append(errs, fmt.Errorf("brokers: %w", err))
		} else if err := c.checkClear(b); err != nil {
			errs = append(errs, fmt.Errorf("brokers: %w", err))
		}
	}
	return errors.Join(append(errs, c.TLS.validate(), c.SASL.validate())...)
}

func validAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%q is not host:port", redact.Value(address))
	}
	if host == "" {
		return fmt.Errorf("%q has no host", redact.Value(address))
	}
	if strings.ContainsAny(host, " /?#@=,;") {
		return fmt.Errorf("%q is not host:port", redact.Value(address))
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q: the port must be a number from 1 to 65535", redact.Value(address))
	}
	return nil
}

func (t TLS) validate() error {
	switch {
	case !t.Enabled && (t.CAFile != "" || t.CertFile != "" || t.KeyFile != "" || t.ServerName != ""):
		return errors.New("TLS: files or a server name are set, but TLS is not enabled")
	case (t.CertFile == "") != (t.KeyFile == ""):
		return errors.New("TLS: the certificate file and the key file go together, and one is missing")
	}
	return nil
}

func (s SASL) validate() error {
	switch s.Mechanism {
	case "":
		if s.User != "" || s.Password != "" {
			return errors.New("SASL: a user or password is set, but no mechanism")
		}
	case "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512":
		if s.User == "" || s.Password == "" {
			return fmt.Errorf("SASL: %s needs a user and a password", s.Mechanism)
		}
	default:
		return fmt.Errorf("SASL: unknown mechanism %q, want PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512", redact.Value(s.Mechanism))
	}
	return nil
}

// errExposed is wrapped by the refusal to send in clear.
var errExposed = errors.New("is not this machine, and without TLS everything would be sent in clear")

// checkClear returns an error that wraps errExposed for an address that is known to be no loopback address, unless
// connections are encrypted or may be in clear.
func (c Config) checkClear(address string) error {
	peer, err := netip.ParseAddrPort(address)
	if c.TLS.Enabled || c.Plaintext || err != nil || peer.Addr().Unmap().IsLoopback() || peer.Addr().IsUnspecified() {
		return nil //nolint:nilerr // the address behind a name is checked when it is dialled
	}
	password := ""
	if c.SASL.Mechanism == "PLAIN" {
		password = ", the password too"
	}
	return fmt.Errorf("%s %w%s: enable TLS (KAFKA_TLS=true), or allow it (KAFKA_PLAINTEXT=true)", peer.Addr(), errExposed, password)
}

// Options returns the options of every client: brokers, dialling, deadlines and limits. The caller appends those of
// a producer or a consumer; an option given later replaces one from here. It reads the TLS files, and returns the
// error of Validate or one that [Field] knows.
func (c Config) Options() ([]kgo.Opt, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	secure, err := c.TLS.config()
	if err != nil {
		return nil, err
	}
	clientID := c.ClientID
	if clientID == "" {
		clientID = "pizzaflow"
	}
	opts := []kgo.Opt{
		kgo.SeedBrokers(c.Brokers...),
		kgo.ClientID(clientID),
		kgo.Dialer(c.dialer(secure)),
		kgo.RequestTimeoutOverhead(requestTimeout),
		kgo.ConnIdleTimeout(idleTimeout),
		kgo.MetadataMinAge(metadataMinAge),
		kgo.MetadataMaxAge(time.Minute),
		kgo.RetryBackoffFn(backoff),
		kgo.MaxDecompressBatchBytes(MaxBatch),
		kgo.BrokerMaxWriteBytes(MaxRequest),
		kgo.DisableClientMetrics(), // else a broker may ask every client for its metrics
	}
	if m := c.SASL.mechanism(); m != nil {
		opts = append(opts, kgo.SASL(m))
	}
	return opts, nil
}

// dialer returns a dial function that includes the TLS handshake, both within dialTimeout.
func (c Config) dialer(secure *tls.Config) func(context.Context, string, string) (net.Conn, error) {
	dial := c.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		if secure == nil {
			// This is the peer's address, not its name, and nothing has been sent yet.
			if err := c.checkClear(conn.RemoteAddr().String()); err != nil {
				_ = conn.Close() // only the first error is returned
				return nil, fmt.Errorf("%s: %w", address, err)
			}
			return conn, nil
		}
		shake := secure.Clone()
		if shake.ServerName == "" {
			// Each broker of a cluster has a certificate of its own.
			shake.ServerName, _, _ = net.SplitHostPort(address)
		}
		client := tls.Client(conn, shake)
		if err := client.HandshakeContext(ctx); err != nil {
			_ = conn.Close() // only the first error is returned
			return nil, fmt.Errorf("TLS with %s: %w", address, err)
		}
		return client, nil
	}
}

// A fieldError is an error of the file that a field of Config names.
type fieldError struct {
	field string
	error
}

func (e fieldError) Unwrap() error { return e.error }

// config is the configuration of encrypted connections, nil for those in clear.
func (t TLS) config() (*tls.Config, error) {
	if !t.Enabled {
		return nil, nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName}
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, fieldError{"TLS.CAFile", fmt.Errorf("TLS: read the authorities: %w", err)}
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fieldError{"TLS.CAFile", fmt.Errorf("TLS: no certificate in %s", t.CAFile)}
		}
	}
	if t.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, fieldError{"TLS.CertFile", fmt.Errorf("TLS: load the client's certificate and key: %w", err)}
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

func (s SASL) mechanism() sasl.Mechanism {
	switch s.Mechanism {
	case "PLAIN":
		return plain.Auth{User: s.User, Pass: s.Password}.AsMechanism()
	case "SCRAM-SHA-256":
		return scram.Auth{User: s.User, Pass: s.Password}.AsSha256Mechanism()
	case "SCRAM-SHA-512":
		return scram.Auth{User: s.User, Pass: s.Password}.AsSha512Mechanism()
	}
	return nil
}

func backoff(failures int) time.Duration { return retry.Backoff(failures, shortPause, longPause) }
