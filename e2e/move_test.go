package e2e

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"pizzaflow/sqldb"
)

// movedOrders is how many orders are done when the embedded system stops, and how many
// are not.
const movedOrders = 25

// TestMove moves a system with its data from SQLite and the embedded broker to
// PostgreSQL and an empty Apache Kafka, with payments that the provider has not
// answered. All orders must be paid there, without a second charge or message:
// neither by a payment that was begun before the move, nor by the events that are
// published again.
func TestMove(t *testing.T) {
	t.Parallel()
	databaseServer(t)
	kafkaBrokers(t)
	d := deploy(t, embedded.with("PAYMENT_PROVIDER_TIMEOUT=1s"))
	ctx, cancel := context.WithTimeout(t.Context(), loadLimit)
	defer cancel()
	requests := make([]orderRequest, 2*movedOrders+5)
	for i := range requests {
		requests[i] = customer(i, "")
	}
	orders := d.startLoad(ctx, requests[:movedOrders], loadClients).wait(t)
	d.awaitSettled(t, movedOrders)

	d.behave(t, `{"error_rate":1}`)
	orders = append(orders, d.startLoad(ctx, requests[movedOrders:2*movedOrders], loadClients).wait(t)...)
	eventually(t, settleLimit, func() string {
		if n := d.value(t, "payment", `SELECT COUNT(*) FROM payments WHERE status = 'unknown'`); n == "0" {
			return "no payment is unknown yet"
		}
		return ""
	})
	target := newDatabase(t)
	move := []string{"migrate", "--from", "sqlite:" + d.dir, "--to", target}
	if code, said := d.tool(t, move...); code == 0 || !strings.Contains(said, "another process is using it") {
		t.Fatalf("moved under a running system: exit %d: %s", code, said)
	}
	d.stop()
	if n := d.value(t, "order", `SELECT COUNT(*) FROM orders WHERE status = 'pending'`); n == "0" {
		t.Fatal("no order is pending before the move")
	}
	for _, try := range []struct {
		args          []string
		moved, before int
	}{
		{append(move, "--service", "payment"), 1, 0}, // as after a crash during the move
		{move, 2, 1},
		{move, 0, 3},
	} {
		code, said := d.tool(t, try.args...)
		for table, rows := range d.tables(t) {
			if try.moved != 1 && !regexp.MustCompile(`(?m)^`+table+` +`+rows+`$`).MatchString(said) {
				t.Errorf("%v: %s rows of %s did not come along: %s", try.args, rows, table, said)
			}
		}
		if warned := strings.Contains(said, "nothing may start before these are moved"); warned != (try.moved == 1) {
			t.Errorf("%v: warned of the services that are left: %v: %s", try.args, warned, said)
		}
		if code != 0 || strings.Count(said, `"service moved"`) != try.moved || strings.Count(said, `"service was moved before"`) != try.before {
			t.Fatalf("%v: exit %d, want %d services moved and %d before: %s", try.args, code, try.moved, try.before, said)
		}
	}

	d.restartOn(t, target)
	d.behave(t, `{}`)
	d.awaitSettled(t, len(orders))
	orders = append(orders, d.startLoad(ctx, requests[len(orders):], loadClients).wait(t)...)
	d.awaitSettled(t, len(orders))
	d.awaitPublished(t, settleLimit)
	d.checkLoad(t, requests, orders, nil)
	if code, said := d.tool(t, move...); code != 1 || !strings.Contains(said, "the target is not empty") {
		t.Errorf("moved over a system that has gone on: exit %d: %s", code, said)
	}
	for _, service := range []string{"order", "payment", "notification"} {
		old := []string{
			"run", "--services", service, "--data-dir", d.dir, "--kafka-brokers", "127.0.0.1:1", "--http-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0",
			"--payment-provider-url", "sandbox://127.0.0.1:1", "--smtp-url", "smtp://127.0.0.1:1", "--sms-url", "http://127.0.0.1:1",
		}
		if code, said := d.tool(t, old...); code != 2 || !strings.Contains(said, "DATA_DIR: "+service+".db: it was moved to PostgreSQL") {
			t.Errorf("the old %s was started again: exit %d: %s", service, code, said)
		}
	}
}

// tables are the tables of all services, "service +table", and how many rows
// each has.
func (d *deployment) tables(t *testing.T) map[string]string {
	t.Helper()
	counts := map[string]string{}
	for _, service := range []string{"order", "payment", "notification"} {
		for _, table := range column(d.rows(t, service, `SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%' AND name NOT LIKE '%migrations'`)) {
			counts[service+" +"+table] = d.value(t, service, `SELECT COUNT(*) FROM `+table)
		}
	}
	return counts
}

// restartOn starts the stopped deployment again on PostgreSQL and Apache Kafka. The
// sandbox keeps its folder: the provider is the same.
func (d *deployment) restartOn(t *testing.T, database string) {
	t.Helper()
	kafkaFree.Lock()
	t.Cleanup(kafkaFree.Unlock)
	d.setup.engine, d.setup.realKafka, d.dbURL, d.brokers = sqldb.Postgres, true, database, kafkaBrokers(t)
	wipeKafka(t, d.brokers)
	t.Cleanup(d.end) // before kafkaFree is unlocked
	d.start(d.setup.processes...)
}

// behave sets how the provider treats all requests.
func (d *deployment) behave(t *testing.T, behaviour string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+d.address("SANDBOX_ADDR")+"/payments/behaviour", strings.NewReader(behaviour))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if status, _, body, err := send(req); err != nil || status != http.StatusOK {
		t.Fatalf("behaviour: %d %s %v", status, body, err)
	}
}

// tool runs pizza with only the given options to its end, and returns its exit code
// and its output.
func (d *deployment) tool(t *testing.T, args ...string) (code int, said string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, pizza, args...)
	cmd.Dir, cmd.Env = filepath.Dir(d.dir), []string{"PATH=" + os.Getenv("PATH"), "LOG_FORMAT=json"}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}
