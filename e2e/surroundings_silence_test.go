package e2e

import (
	"testing"
	"time"

	"pizzaflow/sqldb"
)

// TestSilentDatabase has a proxy before PostgreSQL drop all bytes, like a firewall that
// forgot its connections. Within seconds, and without a restart, all parts go on:
// intake, relays, retries of events, payments and messages that are tried again, the
// mark of an order that is overdue, and the process that stands by.
func TestSilentDatabase(t *testing.T) {
	t.Parallel()
	const first, second = "order,payment,notification,frontend", "order,payment,notification,frontend/2"
	d := deploy(t, setup{
		engine: sqldb.Postgres, behind: true, processes: []string{"broker,sandbox", first, second},
		own: &ownServers{database: newDatabase(t), brokers: []string{stableAddress(t)}},
	}.with("RETRY_DELAY=2s", "RETRY_ATTEMPTS=30", "ORDER_DEADLINE=12s", "PAYMENT_PROVIDER_TIMEOUT=1s"))
	s := d.startStream(t, 5)
	s.awaitServed(t, paidLimit)

	// A message whose record is lost in the silence is sent again, as after a kill.
	inFlight := map[string]int{}
	silence := func(newOnes bool) {
		d.db.Silence(newOnes)
		for _, id := range d.deliveriesInFlight(t) {
			inFlight[id]++
		}
	}
	d.smtp.Cut() // so that mails need a second attempt
	unanswered := d.place(t, customer(10_000, "+lost"))
	d.obstruct(t)
	failing := d.place(t, obstructed)
	eventually(t, paidLimit, func() string {
		if n := d.value(t, "payment", `SELECT COUNT(*) FROM parked_records WHERE state = 'retrying'`); n != "1" {
			return n + " records wait for another attempt, want 1"
		}
		return ""
	})
	silence(false)
	t.Logf("served again after %s", s.awaitServed(t, backLimit).Round(100*time.Millisecond))
	d.smtp.Lead(d.process("broker,sandbox").address("SANDBOX_SMTP_ADDR"))
	d.await(t, unanswered.OrderID, "paid", backLimit)
	eventually(t, backLimit, func() string {
		if n := d.value(t, "order", `SELECT COUNT(attention_since) FROM orders WHERE id = $1`, failing.OrderID); n != "1" {
			return "the order that cannot be paid is not marked as overdue"
		}
		return ""
	})
	d.clear(t)
	d.await(t, failing.OrderID, "paid", paidLimit)

	t.Run("new connections, too", func(t *testing.T) {
		silence(true)
		s.awaitRefused(t, 3)
		d.awaitNotReady(t, answerLimit)
		d.db.EndSilence()
		s.awaitServed(t, backLimit)
	})
	t.Run("the standby takes over", func(t *testing.T) {
		silence(false)
		s.breaks.Store(true)
		defer s.breaks.Store(false)
		for _, name := range []string{first, second} { // one of them leads
			d.kill(name)
			for _, id := range d.deliveriesInFlight(t) {
				inFlight[id]++
			}
			s.awaitServed(t, backLimit)
			d.start(name)
		}
	})
	s.expect(obstructed, failing)
	s.expect(customer(10_000, "+lost"), unanswered)
	s.settle(t, inFlight)
	d.checkNothingParked(t)
}

// obstructed is the order of a customer whose payments the database refuses between
// obstruct and clear, as it would refuse invalid rows.
var obstructed = customer(20_000, "+obstructed")

func (d *deployment) obstruct(t *testing.T) {
	t.Helper()
	execute(t, d.dbURL, `CREATE FUNCTION payment_service.obstruct() RETURNS trigger LANGUAGE plpgsql AS
		$$ BEGIN IF NEW.customer_email = '`+obstructed.CustomerEmail+`' THEN RAISE 'obstructed'; END IF; RETURN NEW; END $$`,
		`CREATE TRIGGER obstruct BEFORE INSERT ON payment_service.payments FOR EACH ROW EXECUTE FUNCTION payment_service.obstruct()`)
}

func (d *deployment) clear(t *testing.T) {
	t.Helper()
	execute(t, d.dbURL, `DROP TRIGGER obstruct ON payment_service.payments`)
}
