package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"

	server "pizzaflow/e2e/servers"
)

// TestStartDuringIncidents starts a process while the database cannot serve: it listens
// at once and says that it is not ready, and becomes ready by itself.
func TestStartDuringIncidents(t *testing.T) {
	t.Parallel()
	database := server.Postgres(t, "max_connections=30")
	h := newHost(t, database)
	d := prepare(t, h.setup)
	for _, in := range []incident{
		{name: "read-only, and new", effect: atIntake, begin: func(t *testing.T) func() {
			h.execute(t, `ALTER SYSTEM SET default_transaction_read_only = on`, `SELECT pg_reload_conf()`)
			return func() { h.execute(t, `ALTER SYSTEM RESET default_transaction_read_only`, `SELECT pg_reload_conf()`) }
		}},
		{name: "away", effect: atIntake, begin: func(*testing.T) func() { database.Stop(); return database.Start }},
		{name: "all connections taken by others", effect: atIntake, begin: h.occupy},
		{name: "locked", lasts: 2 * time.Second, begin: func(t *testing.T) func() {
			return h.lock(t, "order_service.outbox_events", "payment_service.outbox_lease", "notification_service.outbox_migrations")
		}},
	} {
		t.Run(in.name, func(t *testing.T) { d.startDuring(t, in) })
	}
	d.start("")
	s := d.startStream(t, 5)
	s.awaitServed(t, paidLimit)
	s.finish(t)
}

func (d *deployment) startDuring(t *testing.T, in incident) {
	end := in.begin(t)
	ended := false
	defer func() {
		if !ended {
			end()
		}
	}()
	d.launch("")
	p := d.process("")
	eventually(t, paidLimit, func() string {
		if p.address("HTTP_ADDR") == "" || p.address("ADMIN_ADDR") == "" {
			return "it does not listen"
		}
		return ""
	})
	asked := time.Now()
	status, header, body, err := d.postWithKey(t.Context(), customer(0, ""))
	if err != nil || status != http.StatusServiceUnavailable || header.Get("Retry-After") == "" {
		t.Errorf("an order gets %d, Retry-After %q, %s %v", status, header.Get("Retry-After"), body, err)
	}
	if took := time.Since(asked); took > 5*time.Second {
		t.Errorf("the answer took %s", took)
	}
	d.awaitNotReady(t, 10*time.Second)
	if in.effect&atIntake != 0 {
		eventually(t, answerLimit, func() string {
			if reason := p.ready(t.Context()); !strings.Contains(reason, "waiting for the order database: ") {
				return "/readyz does not say which database it waits for: " + reason
			}
			return ""
		})
	}
	time.Sleep(in.lasts)
	ended = true
	end()
	eventually(t, backLimit, func() string { return p.ready(t.Context()) })
	d.stop()
}
