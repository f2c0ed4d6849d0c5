package e2e

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pizzaflow/sqldb"
)

const (
	loadOrders  = 200
	loadClients = 8
)

// settleLimit is how long after the last kill all orders may take to be done: a mail
// that was being sent is sent again 45 s later.
const settleLimit = 3 * time.Minute

// loadLimit is for a load during which processes are started again, several times.
const loadLimit = 5 * time.Minute

// testKill kills processes with SIGKILL in the middle of 200 orders and starts
// them again: together all at once, apart one by one.
func testKill(t *testing.T, s setup) {
	d := deploy(t, s.with("PAYMENT_PROVIDER_TIMEOUT=1s"))
	random := seededRand(t)
	ctx, cancel := context.WithTimeout(t.Context(), loadLimit)
	defer cancel()
	victims := [][]string{d.setup.processes, d.setup.processes, d.setup.processes}
	if len(s.processes) > 0 {
		victims = nil
		for _, at := range random.Perm(len(s.processes)) {
			victims = append(victims, []string{s.processes[at]})
		}
	}
	var requests []orderRequest
	var loads []*load
	inFlight := map[string]int{} // how many kills interrupted each delivery
	for i, v := range victims {
		wave := guests(i*1000, loadOrders/len(victims)+1)
		first := d.startLoad(ctx, wave[:1], 1)
		d.await(t, first.wait(t)[0].OrderID, "paid", settleLimit) // so that all services work again
		rest := d.startLoad(ctx, wave[1:], loadClients)
		requests, loads = append(requests, wave...), append(loads, first, rest)

		rest.awaitAccepted(t, random.IntN(len(wave)-1))
		pauseUpTo(random, []time.Duration{time.Millisecond, 50 * time.Millisecond, 300 * time.Millisecond}[random.IntN(3)])
		d.kill(v...)
		interrupted := d.deliveriesInFlight(t)
		t.Logf("killed %q after %d of %d orders, with %d messages in flight", v, rest.count(), len(wave)-1, len(interrupted))
		for _, id := range interrupted {
			inFlight[id]++
		}
		d.start(v...)
	}
	var orders []order
	for _, l := range loads {
		orders = append(orders, l.wait(t)...)
	}
	d.awaitSettled(t, len(orders))
	d.checkLoad(t, requests, orders, inFlight)
	d.checkKeys(ctx, t, requests, orders)
	d.verify(t)
}

// verify runs pizza verify, which must find no violation.
func (d *deployment) verify(t *testing.T, args ...string) {
	t.Helper()
	name := "payment,notification" // whose environment has the sandbox's address
	if len(d.setup.processes) == 1 {
		name = d.setup.processes[0]
	}
	t.Logf("pizza verify:\n%s", d.commandAs(t, name, append([]string{"verify", "--wait", "10m", "--require", "topics,sandbox"}, args...)...))
}

// guests are the requests of n customers; the card of one in ten is declined, fails or is slow.
func guests(from, n int) []orderRequest {
	tags := []string{"+lost", "+declined", "+timeout", "+error", "+hang", "+slow", "+late"}
	requests := make([]orderRequest, n)
	for i := range requests {
		tag := ""
		if i%10 == 3 {
			tag = tags[(from/1000*7+i/10)%len(tags)]
		}
		requests[i] = customer(from+i, tag)
	}
	return requests
}

// deliveriesInFlight are the messages that may have been sent without that being
// recorded, because of a kill.
func (d *deployment) deliveriesInFlight(t *testing.T) []string {
	t.Helper()
	const statement = `SELECT id FROM notification_deliveries WHERE status = 'pending' AND attempts > 0`
	if d.setup.engine == sqldb.Postgres {
		return column(d.rows(t, "notification", statement))
	}
	// It opens a copy: to open the files would recover them, which the killed process
	// must be able to do itself.
	copied := t.TempDir()
	for _, file := range []string{"notification.db", "notification.db-wal"} {
		content, err := os.ReadFile(filepath.Join(d.dir, file))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(copied, file), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	db, err := sqldb.Open(t.Context(), "sqlite:"+filepath.Join(copied, "notification.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	_, rows, err := queryText(t.Context(), db, statement)
	if err != nil {
		t.Fatal(err)
	}
	return column(rows)
}

func column(rows [][]string) []string {
	var out []string
	for _, row := range rows {
		out = append(out, row[0])
	}
	return out
}

// testTerminate stops all processes with SIGTERM under load, twice. Unlike after a
// kill no outcome may be unknown, so that nothing is done twice.
func testTerminate(t *testing.T, s setup) {
	d := deploy(t, s)
	random := seededRand(t)
	ctx, cancel := context.WithTimeout(t.Context(), loadLimit)
	defer cancel()
	requests := make([]orderRequest, loadOrders)
	for i := range requests {
		requests[i] = customer(i, "")
	}
	l := d.startLoad(ctx, requests, loadClients)
	for i := range 2 {
		l.awaitAccepted(t, i*loadOrders/2+random.IntN(loadOrders/3)+10)
		pauseUpTo(random, 50*time.Millisecond)
		began := time.Now()
		d.stop()
		if t.Failed() {
			return
		}
		t.Logf("stopped after %d orders in %s", l.count(), time.Since(began))
		for table, service := range map[string]string{"payments": "payment", "notification_deliveries": "notification"} {
			if taken := column(d.rows(t, service, `SELECT order_id FROM `+table+` WHERE lease_token IS NOT NULL`)); len(taken) > 0 {
				d.printOnFailure(taken[0])
				t.Errorf("a clean stop left %d rows of %s with a lease, so that no process takes them before it runs out", len(taken), table)
			}
		}
		d.start(d.setup.processes...)
	}
	orders := l.wait(t)
	d.awaitSettled(t, len(orders))
	d.checkLoad(t, requests, orders, nil)
	d.checkNothingTwice(t)
}

// checkNothingTwice wants every event once on the topics, as after clean stops.
func (d *deployment) checkNothingTwice(t *testing.T) {
	t.Helper()
	for _, topic := range []string{"order-events", "payment-events"} {
		seen := map[string]bool{}
		for _, r := range d.records(t, topic) {
			if id := headerOf(r, "ce_id"); seen[id] {
				t.Errorf("%s holds the event %s twice after clean stops", topic, id)
			} else {
				seen[id] = true
			}
		}
	}
}

// awaitSettled waits until n orders are paid or failed, their messages are sent, and
// their events are published.
func (d *deployment) awaitSettled(t *testing.T, n int) {
	t.Helper()
	for service, statement := range map[string]string{
		"order": `SELECT COUNT(*) FROM orders`, "payment": `SELECT COUNT(*) FROM payments`, "notification": `SELECT COUNT(*) FROM order_contacts`,
	} {
		eventually(t, settleLimit, func() string {
			if got := d.value(t, service, statement); got != strconv.Itoa(n) {
				return service + ": " + statement + " is " + got
			}
			return ""
		})
	}
	for _, unfinished := range []struct{ service, statement string }{
		{"order", `SELECT id FROM orders WHERE status = 'pending'`},
		{"payment", `SELECT order_id FROM payments WHERE status NOT IN ('completed', 'failed')`},
		{"notification", `SELECT order_id FROM order_contacts c WHERE 4 <> (SELECT COUNT(*) FROM notification_deliveries d WHERE d.order_id = c.order_id AND d.status = 'sent')`},
	} {
		var left []string
		wrong := waitFor(t.Context(), settleLimit, func() string {
			if left = column(d.rows(t, unfinished.service, unfinished.statement)); len(left) > 0 {
				return left[0]
			}
			return ""
		})
		if wrong != "" {
			d.printOnFailure(wrong)
			t.Fatalf("%s: %d are left of: %s", unfinished.service, len(left), unfinished.statement)
		}
	}
	d.awaitPublished(t, paidLimit)
}

// checkLoad wants each order paid or declined, charged once or never, and its
// messages sent once. A message may have been sent again only if a kill interrupted
// its delivery (inFlight).
func (d *deployment) checkLoad(t *testing.T, requests []orderRequest, orders []order, inFlight map[string]int) {
	t.Helper()
	charges := map[string][]charge{}
	for _, c := range list[charge](t, d, "/payments/charges") {
		charges[c.OrderReference] = append(charges[c.OrderReference], c)
	}
	copies := map[string]int{}            // how often each delivery was sent
	kinds := map[string]map[string]bool{} // the deliveries of each contact
	sent := func(contact, delivery string) {
		if kinds[contact] == nil {
			kinds[contact] = map[string]bool{}
		}
		kinds[contact][delivery] = true
		copies[delivery]++
	}
	for _, m := range list[mail](t, d, "/mail/messages") {
		id, _, _ := strings.Cut(strings.Trim(m.MessageID, "<>"), "@")
		sent(m.To[0], id)
	}
	for _, m := range list[sms](t, d, "/sms/messages") {
		sent(m.To, m.Reference)
	}

	statuses := map[string]string{}
	for _, row := range d.rows(t, "order", `SELECT id, status FROM orders`) {
		statuses[row[0]] = row[1]
	}
	for i, o := range orders {
		want, takings := "paid", 1
		if strings.Contains(requests[i].CustomerEmail, "+declined") {
			want, takings = "payment_failed", 0
		}
		wrong := statuses[o.OrderID] != want || succeeded(charges[o.OrderID]) != takings ||
			len(kinds[requests[i].CustomerEmail]) != 2 || len(kinds[requests[i].CustomerPhone]) != 2
		if wrong {
			d.printOnFailure(o.OrderID)
			t.Errorf("order %s of %s is %q, want %s; %d charges succeeded, want %d; %d different mails and %d different SMS, want 2 of each",
				o.OrderID, requests[i].CustomerEmail, statuses[o.OrderID], want, succeeded(charges[o.OrderID]), takings,
				len(kinds[requests[i].CustomerEmail]), len(kinds[requests[i].CustomerPhone]))
		}
	}
	if len(statuses) != len(orders) {
		t.Errorf("%d orders in the database, %d were accepted", len(statuses), len(orders))
	}
	again := 0
	for id, n := range copies {
		if again += n - 1; n > 1+inFlight[id] {
			t.Errorf("message %s was sent %d times, and %d kills interrupted it", id, n, inFlight[id])
		}
	}
	t.Logf("%d of %d messages were sent again, %d were in flight at a kill", again, len(copies), len(inFlight))
	d.checkRecords(t, orders)
}

// checkRecords wants each order's events on the topics, the first occurrences of each
// aggregate in order and without a gap, and no dead letters.
func (d *deployment) checkRecords(t *testing.T, orders []order) {
	t.Helper()
	repeated := 0
	types := map[string][]string{} // of each order
	for _, topic := range topics {
		versions := map[string]int{} // the last one of each aggregate
		seen := map[string]bool{}
		for _, r := range d.records(t, topic) {
			if strings.HasSuffix(topic, "-dlq") {
				t.Errorf("a dead letter: %s", r.Value)
				continue
			}
			if seen[headerOf(r, "ce_id")] {
				repeated++
				continue
			}
			seen[headerOf(r, "ce_id")] = true
			if versions[string(r.Key)]++; headerOf(r, "aggregate_version") != strconv.Itoa(versions[string(r.Key)]) {
				t.Errorf("%s: record %d of %s has version %s: %s", topic, versions[string(r.Key)], r.Key, headerOf(r, "aggregate_version"), r.Value)
			}
			types[string(r.Key)] = append(types[string(r.Key)], headerOf(r, "ce_type"))
		}
	}
	for _, o := range orders {
		if got := types[o.OrderID]; !slices.Equal(got, []string{"OrderCreated", "OrderPaid"}) && !slices.Equal(got, []string{"OrderCreated", "OrderPaymentFailed"}) {
			d.printOnFailure(o.OrderID)
			t.Errorf("the events of order %s are %v", o.OrderID, got)
		}
	}
	t.Logf("%d records were published again", repeated)
}

// checkKeys repeats every request: its key must return the same order.
func (d *deployment) checkKeys(ctx context.Context, t *testing.T, requests []orderRequest, orders []order) {
	t.Helper()
	for i, r := range requests {
		if o, err := d.post(ctx, r, r.CustomerEmail); err != nil || o.OrderID != orders[i].OrderID {
			t.Errorf("the key of order %s stands for %s: %v", orders[i].OrderID, o.OrderID, err)
		}
	}
}
