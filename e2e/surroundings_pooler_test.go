package e2e

import (
	"os"
	"strings"
	"testing"
	"time"

	server "pizzaflow/e2e/servers"
	"pizzaflow/sqldb"
)

// TestPooler puts a pgbouncer between the services and PostgreSQL.
func TestPooler(t *testing.T) {
	t.Parallel()
	database := server.Postgres(t)
	t.Run("session", func(t *testing.T) {
		d := deploy(t, pooled(t, database))
		s := d.startStream(t, 10)
		time.Sleep(3 * time.Second) // of orders
		s.finish(t)
		d.checkSchemas(t)
	})
	for _, mode := range []string{"transaction", "statement"} {
		t.Run(mode, func(t *testing.T) {
			said := startsNot(t, pooled(t, database, "pool_mode = "+mode))
			if !strings.Contains(said, "pool_mode=session") {
				t.Errorf("it does not say that the pooler has the wrong mode:\n%s", said)
			}
		})
	}
	t.Run("parameters ignored", func(t *testing.T) { // in the first message; and the server crashes
		d := deploy(t, pooled(t, database, "ignore_startup_parameters = search_path, idle_in_transaction_session_timeout, statement_timeout, options",
			"server_login_retry = 1")) // the default is 15 s
		s := d.startStream(t, 5)
		s.awaitServed(t, paidLimit)
		database.Crash()
		s.awaitRefused(t, 3)
		database.Start()
		t.Logf("back after %s", s.awaitServed(t, backLimit).Round(100*time.Millisecond))
		s.finish(t)
		d.checkSchemas(t)
	})
}

// pooled runs all services in one process behind a pgbouncer with the settings, on an
// empty database of the server.
func pooled(t *testing.T, database *server.Database, settings ...string) setup {
	t.Helper()
	direct := databaseOn(t, database.URL)
	pooler := server.Pooler(t, database, []string{"postgres"}, settings...)
	return setup{engine: sqldb.Postgres, own: &ownServers{database: direct}}.with("DATABASE_URL=" + onHost(direct, hostOf(t, pooler)))
}

// checkSchemas wants the tables of each service in a schema of its own.
func (d *deployment) checkSchemas(t *testing.T) {
	t.Helper()
	for _, row := range d.rows(t, "order", `SELECT table_schema, COUNT(*) FROM information_schema.tables
		WHERE table_schema NOT IN ('pg_catalog', 'information_schema') GROUP BY table_schema`) {
		if schema := row[0]; !strings.HasSuffix(schema, "_service") {
			t.Errorf("%s tables are in schema %s", row[1], schema)
		}
	}
}

// startsNot wants the process to end by itself with an error, and returns its log.
func startsNot(t *testing.T, s setup) string {
	t.Helper()
	d := prepare(t, s)
	d.launch("")
	p := d.process("")
	select {
	case <-p.ended:
	case <-time.After(startLimit):
		t.Fatalf("the process has not ended within %s, want an error", startLimit)
	}
	said, err := os.ReadFile(p.log)
	if err != nil {
		t.Fatal(err)
	}
	if code := p.cmd.ProcessState.ExitCode(); code <= 0 {
		t.Errorf("it ended with %s", p.cmd.ProcessState)
	}
	return string(said)
}
