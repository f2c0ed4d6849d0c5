package e2e

import (
	"context"
	"slices"
	"testing"
)

// many is several of each service, on PostgreSQL and Apache Kafka. They share
// nothing but these, and two frontends know all three of the order service.
var many = func() setup {
	s := servers
	s.processes = []string{
		"sandbox", "order", "order/2", "order/3", "payment", "payment/2", "notification", "notification/2", "frontend", "frontend/2",
	}
	return s
}()

// testRollingRestart replaces each process in turn, under load, by SIGTERM and
// a new start, as an upgrade does. Nothing is lost, and because every stop is
// clean nothing is done twice either, down to the records on the topics.
func testRollingRestart(t *testing.T, s setup) {
	d := deploy(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), settleLimit)
	defer cancel()
	ours := slices.DeleteFunc(slices.Clone(s.processes), func(name string) bool { return name == "sandbox" })
	requests := make([]orderRequest, 30*len(ours))
	for i := range requests {
		requests[i] = customer(i, "")
	}
	l := d.startLoad(ctx, requests, loadClients)
	for i, name := range ours {
		l.awaitAccepted(t, 30*i+15)
		d.stop(name)
		d.start(name)
	}
	orders := l.wait(t)
	d.awaitSettled(t, len(orders))
	d.checkLoad(t, requests, orders, nil)
	d.checkNothingTwice(t)
}
