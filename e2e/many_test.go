package e2e

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	server "pizzaflow/e2e/servers"
	"pizzaflow/kafka"
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

// TestEverythingDies runs several of each service on a PostgreSQL and three
// brokers of its own, under the load of pizza load, which notes what it was
// promised. Each process and each broker is killed in turn and started again,
// and PostgreSQL is stopped at once, twice. Then pizza verify must find nothing.
// PIZZA_TEST_RATE is how many orders are placed a second.
func TestEverythingDies(t *testing.T) {
	t.Parallel()
	cluster, database := server.Kafka(t, 3), server.Postgres(t)
	s := many
	s.own = &ownServers{database: database.URL, brokers: strings.Split(cluster.Brokers, ",")}
	rate := os.Getenv("PIZZA_TEST_RATE")
	if rate == "" {
		rate = "10"
	}
	d := prepare(t, s.with("KAFKA_REPLICATION=3", "KAFKA_PARTITIONS=6", "PAYMENT_PROVIDER_TIMEOUT=1s", "RATE_LIMIT=0"))
	d.command(t, "topics", "apply")
	d.start(s.processes...)
	promised := filepath.Join(d.logs, "promised.jsonl")
	stop := d.startPizzaLoad(t, "--rate", rate, "--log", promised)

	began := time.Now()
	tell := func(what string) { t.Logf("%5.1f s: %s", time.Since(began).Seconds(), what) }
	for _, name := range s.processes[1:] { // all but the sandbox, which is the world outside
		d.kill(name)
		d.start(name)
		tell("killed and started " + name)
	}
	for range 2 {
		database.Crash()
		database.Start()
		tell("crashed and started PostgreSQL")
		for _, name := range s.processes[1:] {
			d.awaitReady(name)
		}
		tell("all are ready again")
	}
	for broker := 1; broker <= 3; broker++ {
		cluster.Kill(broker)
		tell("killed a broker")
		cluster.Restart(broker)
		d.awaitTopics(t, func(topic kafka.TopicState) string { return strings.Join(topic.Warnings, "; ") })
		tell("it is back in sync")
	}
	t.Logf("pizza load:\n%s", stop())
	out := d.commandAs(t, "payment,notification", "verify", "--wait", "3m", "--log", promised)
	tell("settled and verified")
	t.Logf("pizza verify:\n%s", out)
}

// startPizzaLoad places orders by pizza load until the returned function is
// called, which returns the report.
func (d *deployment) startPizzaLoad(t *testing.T, args ...string) (stop func() []byte) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), pizza, append([]string{"load", "--url", d.urls("frontend"), "--duration", "1h"}, args...)...)
	cmd.Env, cmd.Dir = d.environment(d.setup.processes[0]), filepath.Dir(d.dir)
	var report, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &report, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() []byte {
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatalf("pizza load: %v\n%s\n%s", err, &report, &said)
		}
		return report.Bytes()
	}
}
