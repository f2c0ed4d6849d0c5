package e2e

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	server "pizzaflow/e2e/servers"
	"pizzaflow/kafka"
	pizzaload "pizzaflow/load"
)

// many runs several processes of each service, which share only PostgreSQL and Apache
// Kafka. Both frontends know all three processes of the order service.
var many = func() setup {
	s := servers
	s.processes = []string{
		"sandbox", "order", "order/2", "order/3", "payment", "payment/2", "notification", "notification/2", "frontend", "frontend/2",
	}
	return s
}()

// testRollingRestart stops each process with SIGTERM and starts it again, one after
// the other under load, as an upgrade does. Nothing is lost, and because every stop
// is clean nothing is done twice, no record on the topics either.
func testRollingRestart(t *testing.T, s setup) {
	d := deploy(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), loadLimit)
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

// TestEverythingDies runs several processes of each service on a PostgreSQL and three
// brokers of its own, under pizza load, which logs the answers it got. Each process
// and each broker is killed in turn and started again, and PostgreSQL crashes, twice.
// Then pizza verify must find no violation. PIZZA_TEST_RATE is how many orders are
// placed a second; between two kills the orders of one second are placed.
func TestEverythingDies(t *testing.T) {
	t.Parallel()
	cluster, database := server.Kafka(t, 3), server.Postgres(t)
	s := many
	s.own = &ownServers{database: database.URL, brokers: strings.Split(cluster.Brokers, ",")}
	rate := cmp.Or(os.Getenv("PIZZA_TEST_RATE"), "20")
	perSecond, err := strconv.Atoi(rate)
	if err != nil {
		t.Fatal(err)
	}
	d := prepare(t, s.with("KAFKA_REPLICATION=3", "KAFKA_PARTITIONS=6", "PAYMENT_PROVIDER_TIMEOUT=1s", "RATE_LIMIT=0"))
	d.command(t, "topics", "apply")
	d.start(s.processes...)
	promised := filepath.Join(d.logs, "promised.jsonl")
	stop := d.startPizzaLoad(t, "--rate", rate, "--log", promised)

	began := time.Now()
	log := func(what string) { t.Logf("%5.1f s: %s", time.Since(began).Seconds(), what) }
	more := func() { // waits for the orders of a second
		placed := placedIn(t, promised)
		eventually(t, settleLimit, func() string {
			if now := placedIn(t, promised); now < placed+perSecond {
				return fmt.Sprintf("%d orders are placed, %d before", now, placed)
			}
			return ""
		})
	}
	for _, name := range s.processes[1:] { // without the sandbox, which is not ours
		more()
		d.kill(name)
		d.start(name)
		log("killed and started " + name)
	}
	for range 2 {
		more()
		database.Crash()
		database.Start()
		log("crashed and started PostgreSQL")
		for _, name := range s.processes[1:] {
			d.awaitReady(name)
		}
		log("all are ready again")
	}
	for broker := 1; broker <= 3; broker++ {
		more()
		cluster.Kill(broker)
		log("killed a broker")
		more()
		cluster.Restart(broker)
		d.awaitTopics(t, func(topic kafka.TopicState) string { return strings.Join(topic.Warnings, "; ") })
		log("it is back in sync")
	}
	t.Logf("pizza load:\n%s", stop())
	d.verify(t, "--log", promised)
	log("settled and verified")
}

// placedIn is the number of accepted orders in the log of pizza load.
func placedIn(t *testing.T, file string) (n int) {
	t.Helper()
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) { // pizza load has only just begun
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = pizzaload.ReadLog(f, func(l pizzaload.Line) error {
		if l.Kind == pizzaload.KindPlaced {
			n++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// startPizzaLoad runs pizza load until stop is called, which returns its report.
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
		kill := time.AfterFunc(stopLimit, func() { _ = cmd.Process.Kill() }) // Wait then returns that it was killed
		defer kill.Stop()
		if err := cmd.Wait(); err != nil {
			t.Fatalf("pizza load, within %s of the interrupt: %v\n%s\n%s", stopLimit, err, &report, &said)
		}
		return report.Bytes()
	}
}
