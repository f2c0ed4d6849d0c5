package e2e

import (
	"net/http"
	"strconv"
	"strings"
	"testing"

	"pizzaflow/sqldb"
)

// ourServices are all services but broker and sandbox.
const ourServices = "order,payment,notification,frontend"

// testOutsideAway takes sandbox, broker and database away, one after the other.
func testOutsideAway(t *testing.T, s setup) {
	s.processes, s.behind = []string{ourServices, "sandbox"}, s.engine == sqldb.Postgres
	if !s.realKafka {
		s.processes = append(s.processes, "broker")
	}
	d := prepare(t, s.with("PAYMENT_PROVIDER_TIMEOUT=1s"))

	// At the first start there is neither broker nor sandbox.
	d.launch(ourServices)
	eventually(t, startLimit, func() string {
		if status, body, err := fetch(t.Context(), d.shop("/api/v1/menu")); err != nil || status != http.StatusOK {
			return "no menu: " + string(body)
		}
		return ""
	})
	if !s.realKafka {
		if wrong := d.process(ourServices).ready(t.Context()); !strings.Contains(wrong, "503") {
			t.Errorf("without a broker it is ready: %q", wrong)
		}
	}
	first := d.place(t, customer(1, ""))
	if !s.realKafka {
		d.start("broker")
	}
	d.awaitReady(ourServices)
	d.awaitAttempts(t)
	if o := d.await(t, first.OrderID, "pending", paidLimit); o.Version != 1 {
		t.Errorf("without a payment provider: %+v", o)
	}
	d.start("sandbox")
	d.checkServed(t, first, 1)

	if !s.realKafka {
		d.awaitPublished(t, paidLimit) // so that only the next event waits
		d.kill("broker")
		second := d.place(t, customer(2, ""))
		if n := d.value(t, "order", `SELECT COUNT(*) FROM outbox WHERE published_at IS NULL`); n != "1" {
			t.Errorf("%s events wait for the broker, want 1", n)
		}
		d.start("broker")
		d.checkServed(t, second, 2)
	}
	if s.behind {
		d.checkDatabaseAway(t)
	}
	d.awaitSettled(t, len(d.rows(t, "order", `SELECT id FROM orders`)))
}

// awaitAttempts waits until a charge and a delivery of each channel have failed.
func (d *deployment) awaitAttempts(t *testing.T) {
	t.Helper()
	eventually(t, paidLimit, func() string {
		if n := d.value(t, "payment", `SELECT COUNT(*) FROM payments WHERE status = 'unknown'`); n != "1" {
			return n + " payments are unknown"
		}
		if n := d.value(t, "notification", `SELECT COUNT(*) FROM notification_deliveries WHERE status = 'pending' AND attempts > 0 AND error IS NOT NULL`); n != "2" {
			return n + " deliveries were tried"
		}
		return ""
	})
}

// checkServed wants the order paid once, and its messages sent.
func (d *deployment) checkServed(t *testing.T, o order, guest int) {
	t.Helper()
	d.await(t, o.OrderID, "paid", settleLimit)
	if c := d.charges(t, o.OrderID); succeeded(c) != 1 {
		t.Errorf("charges %+v, want one", c)
	}
	mails, texts := d.awaitMessages(t, customer(guest, "").CustomerEmail, guestPhone(guest), 2, settleLimit)
	if len(mails) != 2 || len(texts) != 2 {
		t.Errorf("%d mails and %d SMS, want 2 of each", len(mails), len(texts))
	}
}

// checkDatabaseAway cuts the database off, and restores it.
func (d *deployment) checkDatabaseAway(t *testing.T) {
	t.Helper()
	d.db.Cut()
	status, header, body := d.postRaw(t, good, "")
	if retry, err := strconv.Atoi(header.Get("Retry-After")); status != http.StatusServiceUnavailable || err != nil || retry < 1 {
		t.Errorf("without a database: %d, Retry-After %q, %s", status, header.Get("Retry-After"), body)
	}
	if kind := header.Get("Content-Type"); !strings.HasPrefix(kind, "application/problem+json") || strings.Contains(string(body), "sql") || strings.Contains(string(body), "dial") {
		t.Errorf("without a database: %s %s", kind, body)
	}
	d.awaitNotReady(t, answerLimit) // what /readyz found out holds for a second
	metrics := scrape(t, d)         // which checks the status
	if _, ok := metrics["go_goroutines"]; !ok || sumOf(metrics, "pizza_orders_total", `status="paid"`) == 0 {
		t.Errorf("without a database the metrics are %v", metrics)
	}
	d.db.Lead(hostOf(t, d.dbURL))
	o, err := d.post(t.Context(), customer(3, ""), "")
	if err != nil {
		t.Fatal(err)
	}
	d.printOnFailure(o.OrderID)
	d.checkServed(t, o, 3)
}
