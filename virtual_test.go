//go:build synctests

package pizzaflow

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/kafka/kafkatest"
	"pizzaflow/sqldb"
)

// virtually runs the test in virtual time, beside others.
func virtually(t *testing.T, fn func(t *testing.T)) {
	t.Helper()
	t.Parallel()
	kafkatest.Bubble(t, fn)
}

// The whole system in one bubble: everything that stands in the README, with
// nothing too much.
func TestVirtualHappyPath(t *testing.T) {
	virtually(t, func(t *testing.T) {
		w := open(t, nil)
		id := w.place("ivan@example.com")
		began := time.Now()
		w.ends(id, "paid", 5*time.Second)
		if took := time.Since(began); took > time.Second {
			t.Errorf("paid after %v", took)
		}
		w.told("ivan@example.com", 2, 2)
		if n := w.asked(http.MethodPost); n != 1 {
			t.Errorf("the provider was asked for %d charges", n)
		}
		if n := w.charged(id); n != 1 {
			t.Errorf("charged %d times", n)
		}
		records := w.records()
		if got := eventTypes(records, "order-events", id); !slices.Equal(got, []string{"OrderCreated", "OrderPaid"}) || len(records) != 3 {
			t.Errorf("%v on order-events, %d records in all", got, len(records))
		}
	})
}

func TestVirtualProviderFailsTwice(t *testing.T) {
	virtually(t, func(t *testing.T) {
		w := open(t, nil)
		w.send(http.MethodPut, sandboxAddr+"/payments/behaviour", map[string]any{"error_rate": 1})
		id := w.place("ivan@example.com")
		w.until("the provider has failed twice", time.Minute, func() bool { return w.asked(http.MethodPost)+w.asked(http.MethodGet) >= 2 })
		if s := w.status(id); s != "pending" {
			t.Errorf("the order is %s", s)
		}
		w.send(http.MethodPut, sandboxAddr+"/payments/behaviour", map[string]any{})
		w.ends(id, "paid", 10*time.Minute)
		w.told("ivan@example.com", 2, 2)
		if n := w.charged(id); n != 1 {
			t.Errorf("charged %d times", n)
		}
		keys := map[string]bool{}
		for _, r := range w.list("/payments/requests") {
			if r.Method == http.MethodPost {
				keys[r.IdempotencyKey] = true
			}
		}
		if len(keys) != 1 {
			t.Errorf("charges under %d keys", len(keys))
		}
	})
}

// The provider charges and never answers, cuts the line, answers late: each is
// charged once and ends paid.
func TestVirtualProviderChargesWithoutAnAnswer(t *testing.T) {
	virtually(t, func(t *testing.T) {
		w := open(t, nil)
		ids := map[string]string{}
		for _, tag := range []string{"timeout", "lost", "late", "slow"} {
			ids[tag] = w.place("ivan+" + tag + "@example.com")
		}
		for _, id := range ids {
			w.ends(id, "paid", 10*time.Minute)
		}
		for tag, id := range ids {
			w.told("ivan+"+tag+"@example.com", 2, 2)
			if n := w.charged(id); n != 1 {
				t.Errorf("%s: charged %d times", tag, n)
			}
		}
	})
}

func TestVirtualDeclined(t *testing.T) {
	virtually(t, func(t *testing.T) {
		w := open(t, nil)
		id := w.place("ivan+declined@example.com")
		w.ends(id, "payment_failed", time.Minute)
		w.told("ivan+declined@example.com", 2, 2)
		if got := eventTypes(w.records(), "order-events", id); !slices.Equal(got, []string{"OrderCreated", "OrderPaymentFailed"}) {
			t.Errorf("%v", got)
		}
	})
}

// Every record of both topics comes again, twice, in the worst order.
func TestVirtualDuplicates(t *testing.T) {
	virtually(t, func(t *testing.T) {
		w := open(t, nil)
		ids := map[string]string{}
		for _, name := range []string{"anna", "boris+declined", "vera"} {
			ids[name] = w.place(name + "@example.com")
		}
		w.ends(ids["anna"], "paid", time.Minute)
		w.ends(ids["vera"], "paid", time.Minute)
		w.ends(ids["boris+declined"], "payment_failed", time.Minute)
		records := w.records()
		slices.Reverse(records)
		w.produce(records...)
		w.produce(records...)
		for name, id := range ids {
			w.told(name+"@example.com", 2, 2)
			if n := w.charged(id); n != 1 {
				t.Errorf("%s was charged %d times", name, n)
			}
		}
		if n := len(w.records()); n != 3*len(records) {
			t.Errorf("%d records on the topics, of which %d are repetitions: an effect was repeated", n, 2*len(records))
		}
	})
}

// The two topics have no order between them: notification is handed the same
// records with either topic first, and the customers are told the same.
func TestVirtualEitherTopicFirst(t *testing.T) {
	t.Parallel()
	var records []*kgo.Record
	kafkatest.Bubble(t, func(t *testing.T) {
		w := open(t, nil)
		w.ends(w.place("anna@example.com"), "paid", time.Minute)
		w.ends(w.place("boris+declined@example.com"), "payment_failed", time.Minute)
		records = w.records()
	})
	for _, first := range []string{"order-events", "payment-events"} {
		kafkatest.Bubble(t, func(t *testing.T) {
			w := open(t, func(c *Config) { c.Services = "notification,broker,sandbox" })
			slices.SortStableFunc(records, func(a, b *kgo.Record) int {
				switch a.Topic {
				case b.Topic:
					return 0
				case first:
					return -1
				}
				return 1
			})
			for i, r := range records {
				if i > 0 && records[i-1].Topic != r.Topic {
					time.Sleep(10 * time.Minute) // virtual: what could be done is done
				}
				w.produce(r)
			}
			w.told("anna@example.com", 2, 2)
			w.told("boris+declined@example.com", 2, 2)
		})
	}
}

// The broker is away for minutes while orders come in: each is taken, and each ends.
func TestVirtualBrokerCut(t *testing.T) {
	virtually(t, func(t *testing.T) {
		w := open(t, nil)
		w.ends(w.place("first@example.com"), "paid", time.Minute)
		var ids []string
		for i := range 6 {
			switch i {
			case 1:
				w.net.Cut(brokerAddr)
			case 4:
				w.net.Heal(brokerAddr)
				w.net.Freeze(brokerAddr)
			}
			ids = append(ids, w.place(fmt.Sprintf("guest%d@example.com", i)))
			time.Sleep(40 * time.Second) // virtual
		}
		for _, id := range ids[1:] {
			if s := w.status(id); s != "pending" {
				t.Errorf("without a broker an order is %s", s)
			}
		}
		w.net.Heal(brokerAddr)
		for _, id := range ids {
			w.ends(id, "paid", 2*time.Minute)
			if n := w.charged(id); n != 1 {
				t.Errorf("charged %d times", n)
			}
		}
		for i := range ids {
			w.told(fmt.Sprintf("guest%d@example.com", i), 2, 2)
		}
	})
}

// One order's event cannot be handled: it is tried three times, then dead and
// on the dead-letter topic; others flow meanwhile. Once the cause is mended and
// it is replayed, its order ends like any other.
func TestVirtualPoisonAndReplay(t *testing.T) {
	virtually(t, func(t *testing.T) {
		w := open(t, nil)
		db := w.database("payment")
		w.exec(db, `CREATE TRIGGER poison BEFORE INSERT ON payments WHEN NEW.customer_email = 'poison@example.com' BEGIN SELECT RAISE(ABORT, 'poison'); END`)
		poison := w.place("poison@example.com")
		began := time.Now()
		other := w.place("other@example.com")
		w.ends(other, "paid", 5*time.Second)
		var letters []*kgo.Record
		w.until("there is a dead letter", 2*time.Minute, func() bool {
			letters = w.records("order-events-dlq")
			return len(letters) > 0
		})
		if d := time.Since(began); d < 15*time.Second {
			t.Errorf("dead after %v: attempts come 5 and 10 seconds apart", d)
		}
		if len(letters) != 1 || string(letters[0].Key) != poison || !strings.Contains(string(letters[0].Value), `"retry_count":3`) {
			t.Errorf("%d dead letters, the first of %s: %s", len(letters), letters[0].Key, letters[0].Value)
		}
		time.Sleep(5 * time.Minute) // virtual
		if s := w.status(poison); s != "pending" || w.charged(poison) != 0 {
			t.Errorf("the poisoned order is %s", s)
		}
		w.exec(db, `DROP TRIGGER poison`)
		w.exec(db, `UPDATE parked_records SET state = 'retrying', due_at = $1, attempts = 0 WHERE state = 'dead'`, sqldb.Now())
		w.ends(poison, "paid", time.Minute)
		w.told("poison@example.com", 2, 2)
		w.told("other@example.com", 2, 2)
		if n := w.charged(poison); n != 1 {
			t.Errorf("charged %d times", n)
		}
	})
}

// An order that is still pending after ORDER_DEADLINE is marked, and no longer
// once it is paid.
func TestVirtualOrderDeadline(t *testing.T) {
	virtually(t, func(t *testing.T) {
		w := open(t, func(c *Config) { c.OrderDeadline = 5 * time.Minute })
		db := w.database("payment")
		w.exec(db, `CREATE TRIGGER poison BEFORE INSERT ON payments BEGIN SELECT RAISE(ABORT, 'poison'); END`)
		id := w.place("ivan@example.com")
		time.Sleep(290 * time.Second) // virtual
		if n := w.marked(); n != "0" {
			t.Errorf("%s orders are marked before the deadline", n)
		}
		w.until("the order is marked", 3*time.Minute, func() bool { return w.marked() == "1" })
		w.exec(db, `DROP TRIGGER poison`)
		w.exec(db, `UPDATE parked_records SET state = 'retrying', due_at = $1, attempts = 0 WHERE state = 'dead'`, sqldb.Now())
		w.ends(id, "paid", time.Minute)
		w.until("the mark is gone", 3*time.Minute, func() bool { return w.marked() == "0" })
	})
}

// marked is how many orders stand in the metric of those that need a human
// because their deadline has passed.
func (w *town) marked() string {
	w.t.Helper()
	var metrics string
	w.get(adminAddr+"/metrics", &metrics)
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "pizza_orders_attention{") && !strings.Contains(line, "mismatch") {
			return strings.Fields(line)[1]
		}
	}
	return "none"
}

// The provider knows nothing of a charge, however often it is asked: after
// PAYMENT_TTL the payment has failed, and nothing was charged.
func TestVirtualPaymentTTL(t *testing.T) {
	virtually(t, func(t *testing.T) {
		w := open(t, func(c *Config) { c.PaymentTTL = 4 * time.Minute })
		id := w.place("ivan+hang-always@example.com")
		time.Sleep(230 * time.Second) // virtual
		if s := w.status(id); s != "pending" {
			t.Errorf("before PAYMENT_TTL the order is %s", s)
		}
		w.ends(id, "payment_failed", 10*time.Minute)
		w.told("ivan+hang-always@example.com", 2, 2)
		if n := w.charged(id); n != 0 {
			t.Errorf("charged %d times", n)
		}
	})
}
