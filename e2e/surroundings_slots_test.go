package e2e

import (
	"testing"
	"time"

	server "pizzaflow/e2e/servers"
)

// TestFewConnections runs two processes of each service on a PostgreSQL with fewer
// connections than they may open together.
func TestFewConnections(t *testing.T) {
	t.Parallel()
	// 20 for the services, and 7 for this test
	h := newHost(t, server.Postgres(t, "max_connections=27", "superuser_reserved_connections=10"))
	s := h.setup
	s.processes = []string{"broker,sandbox,frontend", "order", "order/2", "payment", "payment/2", "notification", "notification/2"}
	s.own.brokers = []string{stableAddress(t)}
	d := deploy(t, s)
	load := d.startStream(t, 40)
	time.Sleep(10 * time.Second) // of orders
	load.finish(t)
}
