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

// One order in the whole system: paid within a second, charged once, with all messages and events, and none too many.
func TestVirtualHappyPath(t *testing.T) {
	virtually(t, func(t *testing.T) {
		w := open(t, nil)
		id := w.place("ivan@example.com")
		began := time.Now()
		w.wantStatus(id, "paid", 5*time.Second)
		if took := time.Since(began); took > time.Second {
			t.Errorf("paid after %v", took)
		}
		w.wantMessages("ivan@example.com", 2, 2)
		if n := w.providerRequests(http.MethodPost); n != 1 {
			t.Errorf("the provider was asked for %d charges", n)
		}
		if n := w.charges(id); n != 1 {
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
		w.until("the provider has failed twice", time.Minute, func() bool { return w.providerRequests(http.MethodPost)+w.providerRequests(http.MethodGet) >= 2 })
		if s := w.status(id); s != "pending" {
			t.Errorf("the order is %s", s)
		}
		w.send(http.MethodPut, sandboxAddr+"/payments/behaviour", map[string]any{})
		w.wantStatus(id, "paid", 10*time.Minute)
		w.wantMessages("ivan@example.com", 2, 2)
		if n := w.charges(id); n != 1 {
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

// The provider charges an order and does not answer, closes the connection, or answers late: each order is charged once and
// becomes paid.
func TestVirtualProviderChargesWithoutAnAnswer(t *testing.T) {
	virtually(t, func(t *testing.T) {
		w := open(t, nil)
		ids := map[string]string{}
		for _, tag := range []string{"timeout", "lost", "late", "slow"} {
			ids[tag] = w.place("ivan+" + tag + "@example.com")
		}
		for _, id := range ids {
			w.wantStatus(id, "paid", 10*time.Minute)
		}
		for tag, id := range ids {
			w.wantMessages("ivan+"+tag+"@example.com", 2, 2)
			if n := w.charges(id); n != 1 {
				t.Errorf("%s: charged %d times", tag, n)
			}
		}
	})
}

func TestVirtualDeclined(t *testing.T) {
	virtually(t, func(t *testing.T) {
		w := open(t, nil)
		id := w.place("ivan+declined@example.com")
		w.wantStatus(id, "payment_failed", time.Minute)
		w.wantMessages("ivan+declined@example.com", 2, 2)
		if got := eventTypes(w.records(), "order-events", id); !slices.Equal(got, []string{"OrderCreated", "OrderPaymentFailed"}) {
			t.Errorf("%v", got)
		}
	})
}

// Every record of both topics comes again twice, in reverse order, and has no effect.
func TestVirtualDuplicates(t *testing.T) {
	virtually(t, func(t *testing.T) {
		w := open(t, nil)
		ids := map[string]string{}
		for _, name := range []string{"anna", "boris+declined", "vera"} {
			ids[name] = w.place(name + "@example.com")
		}
		w.wantStatus(ids["anna"], "paid", time.Minute)
		w.wantStatus(ids["vera"], "paid", time.Minute)
		w.wantStatus(ids["boris+declined"], "payment_failed", time.Minute)
		records := w.records()
		slices.Reverse(records)
		w.produce(records...)
		w.produce(records...)
		for name, id := range ids {
			w.wantMessages(name+"@example.com", 2, 2)
			if n := w.charges(id); n != 1 {
				t.Errorf("%s was charged %d times", name, n)
			}
		}
		if n := len(w.records()); n != 3*len(records) {
			t.Errorf("%d records on the topics, of which %d are repetitions: an effect was repeated", n, 2*len(records))
		}
	})
}

// The two topics have no order between them: whichever topic notification reads first, it sends the same messages.
func TestVirtualEitherTopicFirst(t *testing.T) {
	t.Parallel()
	var records []*kgo.Record
	kafkatest.Bubble(t, func(t *testing.T) {
		w := open(t, nil)
		w.wantStatus(w.place("anna@example.com"), "paid", time.Minute)
		w.wantStatus(w.place("boris+declined@example.com"), "payment_failed", time.Minute)
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
					time.Sleep(10 * time.Minute) // virtual: longer than any retry
				}
				w.produce(r)
			}
			w.wantMessages("anna@example.com", 2, 2)
			w.wantMessages("boris+declined@example.com", 2, 2)
		})
	}
}

// Orders are accepted while the broker is away for minutes, and paid when it is back.
func TestVirtualBrokerCut(t *testing.T) {
	virtually(t, func(t *testing.T) {
		w := open(t, nil)
		w.wantStatus(w.place("first@example.com"), "paid", time.Minute)
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
			w.wantStatus(id, "paid", 2*time.Minute)
			if n := w.charges(id); n != 1 {
				t.Errorf("charged %d times", n)
			}
		}
		for i := range ids {
			w.wantMessages(fmt.Sprintf("guest%d@example.com", i), 2, 2)
		}
	})
}

// An event that cannot be handled is tried three times and becomes a dead letter, while other orders are paid. When its cause
// is gone and it is replayed, its order is paid, too.
func TestVirtualPoisonAndReplay(t *testing.T) {
	virtually(t, func(t *testing.T) {
		w := open(t, nil)
		db := w.database("payment")
		w.exec(db, `CREATE TRIGGER poison BEFORE INSERT ON payments WHEN NEW.customer_email = 'poison@example.com' BEGIN SELECT RAISE(ABORT, 'poison'); END`)
		poison := w.place("poison@example.com")
		began := time.Now()
		other := w.place("other@example.com")
		w.wantStatus(other, "paid", 5*time.Second)
		var deadLetters []*kgo.Record
		w.until("there is a dead letter", 2*time.Minute, func() bool {
			deadLetters = w.records("order-events-dlq")
			return len(deadLetters) > 0
		})
		if d := time.Since(began); d < 15*time.Second {
			t.Errorf("dead after %v: attempts come 5 and 10 seconds apart", d)
		}
		if len(deadLetters) != 1 || string(deadLetters[0].Key) != poison || !strings.Contains(string(deadLetters[0].Value), `"retry_count":3`) {
			t.Errorf("%d dead deadLetters, the first of %s: %s", len(deadLetters), deadLetters[0].Key, deadLetters[0].Value)
		}
		time.Sleep(5 * time.Minute) // virtual
		if s := w.status(poison); s != "pending" || w.charges(poison) != 0 {
			t.Errorf("the poisoned order is %s", s)
		}
		w.exec(db, `DROP TRIGGER poison`)
		w.exec(db, `UPDATE parked_records SET state = 'retrying', due_at = $1, attempts = 0 WHERE state = 'dead'`, sqldb.Now())
		w.wantStatus(poison, "paid", time.Minute)
		w.wantMessages("poison@example.com", 2, 2)
		w.wantMessages("other@example.com", 2, 2)
		if n := w.charges(poison); n != 1 {
			t.Errorf("charged %d times", n)
		}
	})
}

// An order that is pending after ORDER_DEADLINE is marked until it is paid.
func TestVirtualOrderDeadline(t *testing.T) {
	virtually(t, func(t *testing.T) {
		w := open(t, func(c *Config) { c.OrderDeadline = 5 * time.Minute })
		db := w.database("payment")
		w.exec(db, `CREATE TRIGGER poison BEFORE INSERT ON payments BEGIN SELECT RAISE(ABORT, 'poison'); END`)
		id := w.place("ivan@example.com")
		time.Sleep(290 * time.Second) // virtual
		if n := w.ordersMarked(); n != "0" {
			t.Errorf("%s orders are marked before the deadline", n)
		}
		w.until("the order is marked", 3*time.Minute, func() bool { return w.ordersMarked() == "1" })
		w.exec(db, `DROP TRIGGER poison`)
		w.exec(db, `UPDATE parked_records SET state = 'retrying', due_at = $1, attempts = 0 WHERE state = 'dead'`, sqldb.Now())
		w.wantStatus(id, "paid", time.Minute)
		w.until("the mark is gone", 3*time.Minute, func() bool { return w.ordersMarked() == "0" })
	})
}

// ordersMarked is the metric of orders whose deadline has passed.
func (w *virtualSystem) ordersMarked() string {
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

// A charge that the provider does not know after PAYMENT_TTL is a failed payment, and the customer is not charged.
func TestVirtualPaymentTTL(t *testing.T) {
	virtually(t, func(t *testing.T) {
		w := open(t, func(c *Config) { c.PaymentTTL = 4 * time.Minute })
		id := w.place("ivan+hang-always@example.com")
		time.Sleep(230 * time.Second) // virtual
		if s := w.status(id); s != "pending" {
			t.Errorf("before PAYMENT_TTL the order is %s", s)
		}
		w.wantStatus(id, "payment_failed", 10*time.Minute)
		w.wantMessages("ivan+hang-always@example.com", 2, 2)
		if n := w.charges(id); n != 0 {
			t.Errorf("charged %d times", n)
		}
	})
}
