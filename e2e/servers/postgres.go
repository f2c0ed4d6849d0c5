package servers

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
)

// A Database is a running PostgreSQL.
type Database struct {
	// URL is that of its superuser, for DATABASE_URL.
	URL string
	// CA is the file of the authority of its certificate, "" without one.
	CA string

	t       testing.TB
	dir     string
	options string // of the server's command line
}

// Postgres starts an empty PostgreSQL with settings (name=value).
func Postgres(t testing.TB, settings ...string) *Database {
	t.Helper()
	d := &Database{t: t, dir: folder(t, "postgres")}
	for _, s := range settings {
		d.options += " -c " + s
	}
	t.Cleanup(d.Crash)
	d.Start()
	return d
}

// SecurePostgres is Postgres with a certificate for 127.0.0.1, issued by an authority of its own, CA.
func SecurePostgres(t testing.TB) *Database {
	t.Helper()
	d := &Database{t: t, dir: folder(t, "postgres")}
	t.Cleanup(d.Crash)
	a := NewAuthority(t)
	key, cert := a.Issue(t, "127.0.0.1")
	d.CA = a.File
	certFile, keyFile := write(t, d.dir, "server.crt", cert), write(t, d.dir, "server.key", key)
	giveToPostgres(t, certFile, keyFile)
	d.options = fmt.Sprintf("-c ssl=on -c ssl_cert_file=%s -c ssl_key_file=%s", certFile, keyFile)
	d.Start()
	return d
}

// Crash ends the server at once, so that its next start must recover from the log. A stopped server stays stopped.
func (d *Database) Crash() {
	d.t.Helper()
	script(d.t, "postgres-stop", d.dir, "immediate")
}

// Stop ends the server cleanly: it ends the sessions and writes all data to the disk.
func (d *Database) Stop() {
	d.t.Helper()
	script(d.t, "postgres-stop", d.dir, "fast")
}

// StopSmart lets the server refuse new sessions, and end when the last session has. It does not wait for that.
func (d *Database) StopSmart() {
	d.t.Helper()
	script(d.t, "postgres-stop", d.dir, "smart")
}

// Start starts the server again after Crash or Stop, with its URL and data, and returns when it accepts sessions.
func (d *Database) Start() {
	d.t.Helper()
	var env []string
	if d.options != "" {
		env = append(env, "PG_OPTIONS="+d.options)
	}
	d.URL = scriptWith(d.t, env, "postgres", d.dir)
}

// Standby starts a standby of d: it has the data of d and is read-only until it is promoted. For the copy d is stopped
// and started again.
func (d *Database) Standby() *Database {
	d.t.Helper()
	s := &Database{t: d.t, dir: folder(d.t, "postgres"), options: d.options}
	d.t.Cleanup(s.Crash)
	d.Stop()
	script(d.t, "postgres-follow", s.dir, d.dir)
	d.Start()
	s.Start()
	return s
}

// Pooler starts a pgbouncer before d and returns its URL. It lets the users in without a password; settings are name =
// value.
func Pooler(t testing.TB, d *Database, users []string, settings ...string) string {
	t.Helper()
	dir := folder(t, "pgbouncer")
	t.Cleanup(func() { script(t, "pgbouncer-stop", dir) })
	file := write(t, dir, "settings", []byte(strings.Join(settings, "\n")+"\n"))
	u, err := url.Parse(d.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = scriptWith(t, []string{"PGBOUNCER_SETTINGS=" + file, "PGBOUNCER_USERS=" + strings.Join(users, " ")}, "pgbouncer", dir, u.Port())
	return u.String()
}
