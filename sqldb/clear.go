package sqldb

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ErrClear is wrapped by the error about a PostgreSQL URL that would let a
// connection to another machine fall back to clear text in silence.
var ErrClear = errors.New("could fall back to clear text in silence")

// Check reports what is wrong with a URL, without connecting: a scheme that is not
// postgres:// or sqlite: (ErrURL), a URL that cannot be parsed, and a PostgreSQL on
// another machine whose sslmode leaves open whether the connection is encrypted
// (ErrClear). That is prefer, the default, and allow; sslmode=disable says that
// clear text is wanted.
func Check(rawURL string) error {
	path, lite := strings.CutPrefix(rawURL, "sqlite:")
	switch {
	case lite && path != "":
		return nil
	case strings.HasPrefix(rawURL, "postgres://"), strings.HasPrefix(rawURL, "postgresql://"):
		_, err := parsePostgres(rawURL)
		return err
	}
	return ErrURL
}

// parsePostgres parses a URL. The environment of libpq (PGSSLMODE, for one) gives
// the values that the URL leaves out.
func parsePostgres(rawURL string) (*pgx.ConnConfig, error) {
	cfg, err := pgx.ParseConfig(rawURL)
	if err != nil {
		return nil, err // pgx redacts the password
	}
	attempts := append([]*pgconn.FallbackConfig{{Host: cfg.Host, TLSConfig: cfg.TLSConfig}}, cfg.Fallbacks...)
	encrypted := false // one of the attempts is: then one in clear is a fallback, which nobody asked for
	for _, a := range attempts {
		encrypted = encrypted || a.TLSConfig != nil
	}
	for _, a := range attempts {
		if encrypted && a.TLSConfig == nil && !local(a.Host) {
			return nil, fmt.Errorf("the connection to %s %w: write sslmode=verify-full (sslrootcert=FILE names your own authority),"+
				" or sslmode=disable to send everything in clear knowingly", a.Host, ErrClear)
		}
	}
	return cfg, nil
}

// local reports whether a host is this machine: a socket's folder, a loopback
// address, or the name that always stands for one.
func local(host string) bool {
	addr, err := netip.ParseAddr(host)
	return strings.HasPrefix(host, "/") || host == "localhost" || err == nil && addr.Unmap().IsLoopback()
}
