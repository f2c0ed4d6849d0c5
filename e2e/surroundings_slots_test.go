package e2e

import (
	"testing"
	"time"

	server "pizzaflow/e2e/servers"
)

// TestFewConnections runs two of each service on a PostgreSQL that has fewer
// connections than they may open together.
func TestFewConnections(t *testing.T) {
	t.Parallel()
	// 20, and some for this test's own look at it
	h := newHost(t, server.Postgres(t, "max_connections=27", "superuser_reserved_connections=10"))
	s := h.setup
	s.processes = []string{"broker,sandbox,frontend", "order", "order/2", "payment", "payment/2", "notification", "notification/2"}
	s.own.brokers = []string{quietAddress(t)}
	d := deploy(t, s)
	load := d.startStream(t, 40)
	<-time.After(10 * time.Second)
	load.finish(t)
}
