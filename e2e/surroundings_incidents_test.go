package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	server "pizzaflow/e2e/servers"
	"pizzaflow/internal/retry"
	"pizzaflow/sqldb"
)

// An incident is something that happens to a PostgreSQL that others operate.
type incident struct {
	name   string
	begin  func(t *testing.T) (end func())
	lasts  time.Duration // how long it goes on after its effect was seen
	effect effect
}

// An effect says where an incident must at least have an effect.
type effect int

const (
	atIntake    effect = 1 << iota // orders are refused, and the process is not ready
	byConsumers                    // consumers are paused
	noEffect    effect = 0
)

// TestDatabaseIncidents has one incident after another happen to a PostgreSQL, under a
// stream of orders. During each the process is not ready and answers 503, seconds
// after its end the services work again, and it costs no failed attempt, no dead
// letter and no order.
func TestDatabaseIncidents(t *testing.T) {
	t.Parallel()
	const slots = 45
	database := server.Postgres(t, fmt.Sprintf("max_connections=%d", slots))
	h := newHost(t, database)
	d := deploy(t, h.setup.with("RETRY_DELAY=100ms"))
	s := d.startStream(t, 5)
	s.awaitServed(t, paidLimit)
	for _, in := range []incident{
		{name: "read-only", lasts: time.Second, effect: atIntake, begin: func(t *testing.T) func() {
			h.execute(t, `ALTER SYSTEM SET default_transaction_read_only = on`, `SELECT pg_reload_conf()`)
			return func() { h.execute(t, `ALTER SYSTEM RESET default_transaction_read_only`, `SELECT pg_reload_conf()`) }
		}},
		{name: "sessions ended all the time", lasts: 3 * time.Second, begin: func(t *testing.T) func() {
			return h.repeat(t, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'pizza'`)
		}},
		{name: "statements canceled all the time", lasts: 3 * time.Second, begin: func(t *testing.T) func() {
			return h.repeat(t, `SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE usename = 'pizza'`)
		}},
		{name: "all connections taken by others", lasts: 2 * time.Second, effect: atIntake, begin: func(t *testing.T) func() { return h.occupy(t) }},
		{name: "the role may not log in", lasts: time.Second, effect: atIntake, begin: func(t *testing.T) func() {
			h.execute(t, `ALTER ROLE pizza NOLOGIN`, h.terminateSessions())
			return func() { h.execute(t, `ALTER ROLE pizza LOGIN`) }
		}},
		{name: "the database takes no connections", lasts: time.Second, effect: atIntake, begin: func(t *testing.T) func() {
			h.execute(t, `ALTER DATABASE `+h.name+` ALLOW_CONNECTIONS false`, h.terminateSessions())
			return func() { h.execute(t, `ALTER DATABASE `+h.name+` ALLOW_CONNECTIONS true`) }
		}},
		{name: "a right is gone", effect: byConsumers, lasts: time.Second, begin: func(t *testing.T) func() {
			execute(t, h.url, `REVOKE INSERT ON payment_service.payments FROM pizza`)
			return func() { execute(t, h.url, `GRANT INSERT ON payment_service.payments TO pizza`) }
		}},
		{name: "smart and fast restart", lasts: time.Second, effect: atIntake, begin: func(t *testing.T) func() {
			database.StopSmart()
			time.Sleep(2 * time.Second)
			database.Stop()
			return database.Start
		}},
		{name: "crash", lasts: time.Second, effect: atIntake, begin: func(t *testing.T) func() {
			database.Crash()
			return database.Start
		}},
		{name: "a locked table", lasts: time.Second, effect: atIntake, begin: func(t *testing.T) func() {
			return h.lock(t, "order_service.orders", "payment_service.payments", "notification_service.notification_deliveries")
		}},
	} {
		t.Run(in.name, func(t *testing.T) { d.runIncident(t, s, in) })
	}
	s.finish(t)
}

// runIncident begins an incident, waits for its effect, ends it, and waits until the
// services work again.
func (d *deployment) runIncident(t *testing.T, s *stream, in incident) {
	end := in.begin(t)
	ended := false
	defer func() {
		if !ended {
			end()
		}
	}()
	if in.effect&atIntake != 0 {
		s.awaitRefused(t, 3)
		d.awaitNotReady(t, 10*time.Second)
	}
	if in.effect&byConsumers != 0 {
		d.awaitPaused(t, settleLimit) // on SQLite the transactions wait for the lock one after the other, ten seconds each
	}
	time.Sleep(in.lasts)
	ended = true
	end()
	t.Logf("back after %s", s.awaitServed(t, backLimit).Round(100*time.Millisecond))
	for _, name := range d.setup.processes {
		eventually(t, backLimit, func() string { return d.process(name).ready(t.Context()) })
	}
	eventually(t, backLimit, func() string {
		if n := d.metric(t.Context(), "pizza_consumer_paused"); n != 0 {
			return fmt.Sprintf("pizza_consumer_paused is %v", n)
		}
		return ""
	})
}

// backLimit is how long after the end of an incident the services may take to work again.
const backLimit = 20 * time.Second

// awaitPaused waits until a consumer is paused.
func (d *deployment) awaitPaused(t *testing.T, within time.Duration) {
	t.Helper()
	eventually(t, within, func() string {
		if d.metric(t.Context(), "pizza_consumer_paused") == 0 {
			return "no consumer is paused"
		}
		return ""
	})
}

// awaitNotReady waits until a process that takes orders says that it is not
// ready, with a reason.
func (d *deployment) awaitNotReady(t *testing.T, within time.Duration) {
	t.Helper()
	for _, name := range d.setup.processes {
		if !runs(name, "order") {
			continue
		}
		wrong := waitFor(t.Context(), within, func() string {
			answer := d.process(name).ready(t.Context())
			reason, is := strings.CutPrefix(answer, "/readyz: 503 not ready:")
			if !is || strings.TrimSpace(reason) == "" {
				return fmt.Sprintf("%q", answer)
			}
			return ""
		})
		if wrong != "" {
			t.Errorf("after %s pizza %s is still not unready: %s", within, name, wrong)
		}
	}
}

// A databaseHost is a PostgreSQL with one database, which the services use as the role
// pizza, which is no superuser.
type databaseHost struct {
	server *server.Database
	url    string // of the database, for the superuser
	name   string
	setup  setup // everything in one process
}

// newHost creates the database and the role on the server. Settings (name = value) are
// the role's.
func newHost(t *testing.T, database *server.Database, settings ...string) *databaseHost {
	t.Helper()
	url := databaseOn(t, database.URL)
	name := url[strings.LastIndexByte(strings.Split(url, "?")[0], '/')+1 : strings.IndexByte(url, '?')]
	h := &databaseHost{server: database, url: url, name: name}
	h.execute(t, `CREATE ROLE pizza LOGIN`, `GRANT CREATE ON DATABASE `+name+` TO pizza`)
	for _, s := range settings {
		h.execute(t, `ALTER ROLE pizza SET `+s)
	}
	h.setup = setup{engine: sqldb.Postgres, own: &ownServers{database: url}}.with("DATABASE_URL=" + strings.Replace(url, "postgres@", "pizza@", 1))
	return h
}

// terminateSessions is a statement that ends the sessions of the services.
func (h *databaseHost) terminateSessions() string {
	return `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'pizza'`
}

// execute runs statements as the superuser, in another database.
func (h *databaseHost) execute(t *testing.T, statements ...string) {
	t.Helper()
	execute(t, h.server.URL, statements...)
}

// textOf is the only value of a statement's result, on a connection of its own.
func textOf(t *testing.T, url, statement string) (text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if err := conn.QueryRow(ctx, statement).Scan(&text); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	return text
}

// repeat runs the statement ten times a second until end is called.
func (h *databaseHost) repeat(t *testing.T, statement string) (end func()) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), h.server.URL)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer conn.Close(context.WithoutCancel(ctx))
		for retry.Sleep(ctx, 100*time.Millisecond) {
			if _, err := conn.Exec(context.WithoutCancel(ctx), statement); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// occupy takes every connection of the server that is not reserved for the superuser,
// those of the services too, until end is called.
func (h *databaseHost) occupy(t *testing.T) (end func()) {
	t.Helper()
	h.execute(t, `CREATE ROLE guest LOGIN`)
	url := strings.Replace(h.server.URL, "postgres@", "guest@", 1)
	ctx, cancel := context.WithCancel(t.Context())
	full, ended := make(chan struct{}), make(chan struct{})
	isFull := sync.OnceFunc(func() { close(full) })
	go func() {
		defer close(ended)
		var taken []*pgx.Conn
		for refused := 0; ctx.Err() == nil; {
			conn, err := pgx.Connect(ctx, url)
			if err == nil {
				taken = append(taken, conn)
				refused = 0
				continue
			}
			if refused++; refused == 20 { // by then connections of ended sessions are free, too
				isFull()
			}
			retry.Sleep(ctx, 5*time.Millisecond)
		}
		for _, conn := range taken {
			conn.Close(context.WithoutCancel(ctx))
		}
	}()
	endServices := h.repeat(t, h.terminateSessions())
	select {
	case <-full:
	case <-time.After(paidLimit):
		t.Errorf("after %s there is still a free connection", paidLimit)
	}
	return func() {
		endServices()
		cancel()
		<-ended
		h.execute(t, `DROP ROLE guest`)
	}
}

// lock locks tables for all other sessions until end is called. It waits for the lock
// for a minute at most.
func (h *databaseHost) lock(t *testing.T, tables ...string) (end func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, h.url)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{`BEGIN`, `LOCK TABLE ` + strings.Join(tables, ", ") + ` IN ACCESS EXCLUSIVE MODE`} {
		if _, err := conn.Exec(ctx, s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
	return func() { conn.Close(context.Background()) }
}
