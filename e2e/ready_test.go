package e2e

import (
	"context"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pizzaflow/sqldb"
)

// atOnce is how long an answer may take that needs no server, on a busy machine: as
// long as a probe waits.
const atOnce = 5 * time.Second

// silentServer is the address of a server that accepts connections and never answers.
func silentServer(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
		}
	}()
	return ln.Addr().String()
}

// TestStartWithTheDatabaseAway wants every port to answer before the database does:
// requests that need no database get their answer, others 503 with Retry-After.
func TestStartWithTheDatabaseAway(t *testing.T) {
	t.Parallel()
	for name, away := range map[string]func(*testing.T) string{
		"hangs up": func(*testing.T) string { return "" },
		"silent":   silentServer,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := prepare(t, setup{engine: sqldb.Postgres, behind: true})
			d.db.Lead(away(t))
			d.launch("")
			p := d.process("")
			eventually(t, startLimit, func() string {
				if why := p.ready(t.Context()); !strings.Contains(why, "waiting for the order database") {
					return why
				}
				return ""
			})
			d.checkClosed(t)
			eventually(t, time.Minute, func() string {
				why := p.ready(t.Context())
				if !strings.Contains(why, "503") || !strings.Contains(why, "still starting") || !strings.Contains(why, "order database: configuration: DATABASE_URL: ") {
					return "/readyz does not say which database it waits for: " + why
				}
				return ""
			})
			d.checkClosed(t)

			d.db.Lead(hostOf(t, d.dbURL))
			d.awaitReady("")
			o := d.place(t, customer(1, ""))
			d.await(t, o.OrderID, "paid", settleLimit)
		})
	}
}

// checkClosed makes requests that need a database, and requests that need none.
func (d *deployment) checkClosed(t *testing.T) {
	t.Helper()
	for _, c := range []struct {
		method, path, accept string
		status               int
		kind                 string
	}{
		{http.MethodPost, "/api/v1/orders", "", http.StatusServiceUnavailable, "application/problem+json"},
		{http.MethodGet, "/api/v1/menu", "*/*", http.StatusServiceUnavailable, "application/problem+json"},
		{http.MethodGet, "/", "text/html", http.StatusServiceUnavailable, "text/html"},
		{http.MethodGet, "/orders/01890000-0000-7000-8000-000000000000", "text/html", http.StatusServiceUnavailable, "text/html"},
		{http.MethodGet, "/static/icon.svg", "", http.StatusOK, "image/svg+xml"},
		{http.MethodGet, "/robots.txt", "", http.StatusOK, "text/plain"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), atOnce)
		req, err := http.NewRequestWithContext(ctx, c.method, d.shop(c.path), strings.NewReader(good))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		if c.accept != "" {
			req.Header.Set("Accept", c.accept)
		}
		status, header, body, err := send(req)
		cancel()
		if err != nil || status != c.status || !strings.HasPrefix(header.Get("Content-Type"), c.kind) || len(body) == 0 {
			t.Errorf("%s %s: %d %s %v %s, want %d %s", c.method, c.path, status, header.Get("Content-Type"), err, body, c.status, c.kind)
		}
		if retry, err := strconv.Atoi(header.Get("Retry-After")); c.status != http.StatusOK && (err != nil || retry < 1) {
			t.Errorf("%s %s: Retry-After %q", c.method, c.path, header.Get("Retry-After"))
		}
	}
}

// TestReadyWhileWritesAreRefused wants /readyz to say that orders cannot be stored,
// and that they can again, without an order being placed.
func TestReadyWhileWritesAreRefused(t *testing.T) {
	t.Parallel()
	for _, engine := range []sqldb.Engine{sqldb.SQLite, sqldb.Postgres} {
		t.Run(string(engine), func(t *testing.T) {
			t.Parallel()
			d := deploy(t, setup{engine: engine})
			unlock := d.lockWrites(t, "order", "orders")
			d.awaitUnready(t, "the order database does not take writes")
			unlock()
			d.awaitReady("")
			if engine == sqldb.Postgres {
				d.execute(t, "order", `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); END $$`)
				d.execute(t, "order", `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`)
				d.awaitUnready(t, "read-only transaction")
				d.execute(t, "order", `BEGIN; SET TRANSACTION READ WRITE; DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = off', current_database()); END $$; COMMIT`)
				d.awaitReady("")
			}
			o := d.place(t, customer(1, ""))
			d.await(t, o.OrderID, "paid", settleLimit)
		})
	}
}

// awaitUnready waits until the only process says that it is not ready, for that reason.
func (d *deployment) awaitUnready(t *testing.T, because string) {
	t.Helper()
	eventually(t, time.Minute, func() string {
		began := time.Now()
		why := d.process("").ready(t.Context())
		if took := time.Since(began); took > atOnce {
			t.Errorf("/readyz took %v", took)
		}
		if !strings.Contains(why, "503") || !strings.Contains(why, because) {
			return "/readyz: " + why
		}
		return ""
	})
}

// execute runs a statement, or several, on the service's database.
func (d *deployment) execute(t *testing.T, service, statement string) {
	t.Helper()
	db, err := d.database(t.Context(), service)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), statement, pgx.QueryExecModeSimpleProtocol); err != nil { // which takes several statements
		t.Fatalf("%s: %v", statement, err)
	}
}

// lockWrites keeps other connections from writing to the table, or on SQLite to the
// file, until unlock is called.
func (d *deployment) lockWrites(t *testing.T, service, table string) (unlock func()) {
	t.Helper()
	db, err := d.database(t.Context(), service)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	tx, err := db.BeginTx(t.Context(), nil) // which takes SQLite's write lock
	if err != nil {
		t.Fatal(err)
	}
	if db.Engine == sqldb.Postgres {
		if _, err := tx.ExecContext(t.Context(), `LOCK TABLE `+table+` IN SHARE MODE`); err != nil {
			t.Fatal(err)
		}
	}
	return func() { _ = tx.Rollback() } // the end of the test has done it, maybe
}
