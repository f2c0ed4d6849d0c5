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
	"pizzaflow/sqldb"
)

// A trouble is what happens to a PostgreSQL that others run, too.
type trouble struct {
	name  string
	begin func(t *testing.T) (end func())
	holds time.Duration // how long it goes on after the services have felt it
	felt  feeling
}

// A feeling is where a trouble must be felt, at least.
type feeling int

const (
	atIntake    feeling = 1 << iota // orders are refused, and the process is not ready
	byConsumers                     // they say that they wait
	nowhere     feeling = 0
)

// TestDatabaseTroubles has a PostgreSQL with much trouble, one after another,
// under a stream of orders. Each is met with 503 and a process that is not
// ready, is over for the services seconds after it is over, and costs nothing:
// no failed attempt, no dead letter, no order.
func TestDatabaseTroubles(t *testing.T) {
	t.Parallel()
	const slots = 45
	database := server.Postgres(t, fmt.Sprintf("max_connections=%d", slots))
	h := newHost(t, database)
	d := deploy(t, h.setup.with("RETRY_DELAY=100ms"))
	s := d.startStream(t, 5)
	s.awaitServed(t, paidLimit)
	for _, tr := range []trouble{
		{name: "read-only", holds: time.Second, felt: atIntake, begin: func(t *testing.T) func() {
			h.execute(t, `ALTER SYSTEM SET default_transaction_read_only = on`, `SELECT pg_reload_conf()`)
			return func() { h.execute(t, `ALTER SYSTEM RESET default_transaction_read_only`, `SELECT pg_reload_conf()`) }
		}},
		{name: "sessions ended all the time", holds: 3 * time.Second, begin: func(t *testing.T) func() {
			return h.again(t, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'pizza'`)
		}},
		{name: "statements canceled all the time", holds: 3 * time.Second, begin: func(t *testing.T) func() {
			return h.again(t, `SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE usename = 'pizza'`)
		}},
		{name: "all connections taken by others", holds: 2 * time.Second, felt: atIntake, begin: func(t *testing.T) func() { return h.occupy(t) }},
		{name: "the role may not log in", holds: time.Second, felt: atIntake, begin: func(t *testing.T) func() {
			h.execute(t, `ALTER ROLE pizza NOLOGIN`, h.endAll())
			return func() { h.execute(t, `ALTER ROLE pizza LOGIN`) }
		}},
		{name: "the database takes no connections", holds: time.Second, felt: atIntake, begin: func(t *testing.T) func() {
			h.execute(t, `ALTER DATABASE `+h.name+` ALLOW_CONNECTIONS false`, h.endAll())
			return func() { h.execute(t, `ALTER DATABASE `+h.name+` ALLOW_CONNECTIONS true`) }
		}},
		{name: "a right is gone", felt: byConsumers, holds: time.Second, begin: func(t *testing.T) func() {
			execute(t, h.url, `REVOKE INSERT ON payment_service.payments FROM pizza`)
			return func() { execute(t, h.url, `GRANT INSERT ON payment_service.payments TO pizza`) }
		}},
		{name: "smart and fast restart", holds: time.Second, felt: atIntake, begin: func(t *testing.T) func() {
			database.StopSmart()
			<-time.After(2 * time.Second)
			database.Stop()
			return database.Start
		}},
		{name: "crash", holds: time.Second, felt: atIntake, begin: func(t *testing.T) func() {
			database.Crash()
			return database.Start
		}},
		{name: "a locked table", holds: time.Second, felt: atIntake, begin: func(t *testing.T) func() {
			return h.lock(t, "order_service.orders", "payment_service.payments", "notification_service.notification_deliveries")
		}},
	} {
		t.Run(tr.name, func(t *testing.T) { d.goThrough(t, s, tr) })
	}
	s.finish(t)
}

// goThrough begins the trouble, sees that it is felt, ends it and sees that it
// is over.
func (d *deployment) goThrough(t *testing.T, s *stream, tr trouble) {
	end := tr.begin(t)
	ended := false
	defer func() {
		if !ended {
			end()
		}
	}()
	if tr.felt&atIntake != 0 {
		s.awaitRefused(t, 3)
		d.awaitNotReady(t, 10*time.Second)
	}
	if tr.felt&byConsumers != 0 {
		d.awaitPaused(t, settleLimit) // on SQLite one waits after the other, ten seconds each
	}
	<-time.After(tr.holds)
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

// backLimit is how long after the end of a trouble everything is as before.
const backLimit = 20 * time.Second

// awaitPaused waits until a consumer says that it waits for its database.
func (d *deployment) awaitPaused(t *testing.T, within time.Duration) {
	t.Helper()
	eventually(t, within, func() string {
		if d.metric(t.Context(), "pizza_consumer_paused") == 0 {
			return "no consumer says that it waits"
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
			said := d.process(name).ready(t.Context())
			reason, is := strings.CutPrefix(said, "/readyz: 503 not ready:")
			if !is || strings.TrimSpace(reason) == "" {
				return fmt.Sprintf("%q", said)
			}
			return ""
		})
		if wrong != "" {
			t.Errorf("after %s pizza %s still says of its readiness: %s", within, name, wrong)
		}
	}
}

// A databaseHost is a PostgreSQL with one database in which the services live
// as the role pizza, which is no superuser.
type databaseHost struct {
	server *server.Database
	url    string // of the database, for the superuser
	name   string
	setup  setup // everything in one process
}

// newHost makes the database on the server. Settings (name = value) are of the
// role.
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

func (h *databaseHost) endAll() string {
	return `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'pizza'`
}

// execute runs statements as the superuser, beside the database.
func (h *databaseHost) execute(t *testing.T, statements ...string) {
	t.Helper()
	execute(t, h.server.URL, statements...)
}

// textOf is the one value that a statement gives, on a connection of its own.
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

// again runs the statement ten times a second until the returned function is
// called.
func (h *databaseHost) again(t *testing.T, statement string) (end func()) {
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
		for pauseFor(ctx, 100*time.Millisecond) {
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

// occupy takes every connection that the server has for others than its
// superuser, also those that the services have, until the returned function is
// called.
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
			if refused++; refused == 20 { // those of a process that has just ended are free by then, too
				isFull()
			}
			pauseFor(ctx, 5*time.Millisecond)
		}
		for _, conn := range taken {
			conn.Close(context.WithoutCancel(ctx))
		}
	}()
	endServices := h.again(t, h.endAll())
	select {
	case <-full:
	case <-time.After(paidLimit):
		t.Error("there is always one more connection")
	}
	return func() {
		endServices()
		cancel()
		<-ended
		h.execute(t, `DROP ROLE guest`)
	}
}

// lock locks tables against everything until the returned function is called.
func (h *databaseHost) lock(t *testing.T, tables ...string) (end func()) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), h.url)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{`BEGIN`, `LOCK TABLE ` + strings.Join(tables, ", ") + ` IN ACCESS EXCLUSIVE MODE`} {
		if _, err := conn.Exec(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	return func() { conn.Close(context.Background()) }
}
