package verify

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"
)

// sound is the evidence of two orders, one paid and one whose payment failed, with no violation.
var sound = []string{
	`INSERT INTO promised VALUES ('k1', 'o1', 100), ('k2', 'o2', 200)`,
	`INSERT INTO orders VALUES ('o1', 'paid', 2, 100, 'RUB', 1000, 2000, 'p1', NULL, 1), ('o2', 'payment_failed', 2, 200, 'RUB', 1000, NULL, 'p2', NULL, 0)`,
	`INSERT INTO keys VALUES ('k1', 'o1')`,
	`INSERT INTO channels VALUES ('email'), ('sms')`,
	`INSERT INTO items VALUES ('o1', 100), ('o2', 200)`,
	`INSERT INTO history VALUES ('o1', 1, 'pending'), ('o1', 2, 'paid'), ('o2', 1, 'pending'), ('o2', 2, 'payment_failed')`,
	`INSERT INTO payments VALUES ('p1', 'o1', 'completed', 1, 1000), ('p2', 'o2', 'failed', 1, 1000)`,
	`INSERT INTO contacts VALUES ('o1'), ('o2')`,
	`INSERT INTO events VALUES
		('order', 1, 'e1', 'o1', 1, 'OrderCreated', 'order-events', x'01', 1, 0, 1000), ('order', 2, 'e2', 'o2', 1, 'OrderCreated', 'order-events', x'02', 1, 0, 1000),
		('order', 3, 'e3', 'o1', 2, 'OrderPaid', 'order-events', x'03', 1, 0, 1000), ('order', 4, 'e4', 'o2', 2, 'OrderPaymentFailed', 'order-events', x'04', 1, 0, 1000),
		('payment', 1, 'e5', 'p1', 1, 'PaymentCompleted', 'payment-events', x'05', 1, 0, 1000), ('payment', 2, 'e6', 'p2', 1, 'PaymentFailed', 'payment-events', x'06', 1, 0, 1000)`,
	`INSERT INTO records SELECT topic, CASE WHEN aggregate LIKE '%1' THEN 0 ELSE 1 END, seq, aggregate, id, type, version, sum, created_at, created_at + seq, 1 FROM events`,
	`INSERT INTO records SELECT topic, part, pos + 10, key, event_id, type, version, sum, at, written + 10, 1 FROM records WHERE event_id = 'e1'`, // it may come again
	`INSERT INTO partitions VALUES ('order-events', 0, 0, 0), ('order-events', 1, 0, 0), ('payment-events', 0, 0, 0), ('payment-events', 1, 0, 0)`,
	`INSERT INTO dead VALUES ('payment', 'payment-service', 'e8', 'order-events', 'order-events/0/5', 900)`,
	`INSERT INTO dead_letters VALUES ('payment', 'order-events-dlq', 'payment-service', 'order-events/0/5', 900, x'0a', 1, 70000000)`,
	`INSERT INTO dlq_records VALUES ('order-events-dlq', x'0a'), ('order-events-dlq', x'0a'), ('order-events-dlq', x'0b')`, // again, and somebody's
	`INSERT INTO partitions VALUES ('order-events-dlq', 0, 0, 0), ('payment-events-dlq', 0, 0, 0)`,
	`INSERT INTO inbox SELECT DISTINCT s.consumer, r.event_id FROM records r JOIN subscriptions s ON s.topic = r.topic AND s.type = r.type`,
	`INSERT INTO deliveries SELECT o.id || t.type || c.channel, o.id,
		CASE t.type WHEN 'payment' THEN CASE o.status WHEN 'paid' THEN 'payment_confirmation' ELSE 'payment_failed' END ELSE t.type END, c.channel, 'sent', 1000
		FROM orders o, (SELECT 'email' AS channel UNION SELECT 'sms') c, (SELECT 'order_confirmation' AS type UNION SELECT 'payment') t`,
	`INSERT INTO messages SELECT channel, id FROM deliveries`,
	`INSERT INTO charges VALUES ('c1', 'o1', 'succeeded', 100, 'RUB', 0), ('c2', 'o2', 'declined', 200, 'RUB', 0)`,
}

// later makes the events old enough to be pruned.
const later = `UPDATE began SET at = at + 8 * 86400000000`

// repartitioned gives order-events a third partition, and a key an event of before in partition 0, where the key belongs of
// two partitions, and one of after in partition 1, where it belongs of three.
const repartitioned = `INSERT INTO partitions VALUES ('order-events', 2, 0, 0);
	INSERT INTO events VALUES ('order', 5, 'e8', 'k3', 1, 'Before', 'order-events', x'08', 1, 0, 1000), ('order', 6, 'e9', 'k3', 2, 'After', 'order-events', x'09', 1, 0, 1000);
	INSERT INTO records VALUES ('order-events', 0, 50, 'k3', 'e8', 'Before', 1, x'08', 1000, 2000, 1), ('order-events', 1, 50, 'k3', 'e9', 'After', 2, x'09', 1000, 3000, 1)`

// plant are changes of the evidence, each with the invariants that must see a violation: no fewer, no more.
var plant = []struct{ statement, seen string }{
	{`DELETE FROM orders WHERE id = 'o3'`, ``},
	{`INSERT INTO promised VALUES ('k3', 'o3', 100)`, `promised orders exist`},
	{`UPDATE promised SET total = 101 WHERE key = 'k1'`, `promised totals hold`},
	{`INSERT INTO promised VALUES ('k1', 'o2', 200)`, `one order for a key`},
	{`UPDATE keys SET order_id = 'o2'`, `one order for a key`},
	{`DELETE FROM promised; UPDATE orders SET loaded = 1`, `one order for a key`},
	{`UPDATE orders SET loaded = 1; UPDATE began SET at = at + 24 * 3600 * 1000000`, ``}, // its key has gone
	{`UPDATE items SET total = 99 WHERE order_id = 'o1'`, `totals add up`},
	{`DELETE FROM items WHERE order_id = 'o1'`, `totals add up`},
	{`INSERT INTO orders VALUES ('o3', 'pending', 1, 5, 'RUB', 3000, NULL, NULL, 'overdue', 0); INSERT INTO items VALUES ('o3', 5);
		INSERT INTO history VALUES ('o3', 1, 'pending')`, `orders have their event, customers are told`},
	{`DELETE FROM history WHERE order_id = 'o1' AND version = 1`, `histories are whole`},
	{`UPDATE history SET status = 'payment_failed' WHERE order_id = 'o1' AND version = 2`, `histories are whole`},
	{`UPDATE orders SET version = 3 WHERE id = 'o1'`, `histories are whole, events follow the orders`},
	{`INSERT INTO history VALUES ('o1', 3, 'paid'); UPDATE orders SET version = 3 WHERE id = 'o1'`, `statuses follow the rules, events follow the orders`},
	{`UPDATE history SET status = 'paid' WHERE order_id = 'o1' AND version = 1`, `statuses follow the rules`},
	{
		`UPDATE orders SET status = 'pending', version = 1 WHERE id = 'o1'; DELETE FROM history WHERE order_id = 'o1' AND version = 2`,
		`orders are final, events follow the orders, the money is right, payments reach their order, customers are told`,
	},
	{`UPDATE events SET version = 3 WHERE id = 'e3'`, `events are gapless, events follow the orders, published events are on their topic`},
	{`UPDATE events SET published = 0 WHERE id = 'e3'`, `events are published`},
	{`UPDATE events SET published = 0, blocked = 1 WHERE id = 'e3'`, ``},
	{`DELETE FROM records WHERE event_id = 'e4'`, `published events are on their topic`},
	{`UPDATE events SET sum = x'ff' WHERE id = 'e5'`, `published events are on their topic`},
	{`UPDATE partitions SET first = 5, retained_since = 3000; DELETE FROM records WHERE event_id IN ('e1', 'e2')`, ``}, // retention
	// pruned
	{`DELETE FROM events; ` + later, ``},
	{`DELETE FROM events WHERE service = 'order' AND seq < 3; UPDATE events SET created_at = 2000; ` + later, ``},
	{later + `; UPDATE events SET blocked = 1, published = 0 WHERE id = 'e1'; DELETE FROM events WHERE id = 'e2'; UPDATE events SET created_at = 2000 WHERE id IN ('e3', 'e4')`, ``},
	{ // too young for that
		`DELETE FROM events WHERE seq IN (1, 2) AND service = 'order'`,
		`orders have their event, records come from the outbox`,
	},
	{`DELETE FROM events`, `orders have their event, records come from the outbox, payments tell their end once`},
	{
		`INSERT INTO records VALUES ('order-events', 0, 99, 'x', 'e9', 'OrderCreated', 1, x'09', 1000, 1000, 1); INSERT INTO inbox SELECT consumer, 'e9' FROM subscriptions`,
		`records come from the outbox`,
	},
	{`INSERT INTO records VALUES ('order-events', 0, 99, 'x', 'e9', 'Later', 1, x'09', 1000, 1000, 0)`, ``}, // its row was read before it was written
	{`UPDATE records SET pos = 0 WHERE event_id = 'e3'`, `first occurrences are in order`},
	{`UPDATE records SET pos = 0 WHERE event_id = 'e3'; UPDATE records SET pos = pos - 20 WHERE event_id = 'e1' AND pos > 10`, ``},
	{`DELETE FROM records WHERE event_id = 'e1'`, `published events are on their topic, first occurrences are in order`},
	{ // an operator gave the first up
		`UPDATE events SET blocked = 1, published = 0 WHERE id = 'e1'; DELETE FROM records WHERE event_id = 'e1'`, ``,
	},
	{ // the retention took the first time it was there
		`UPDATE partitions SET first = 2, retained_since = 1500 WHERE topic = 'order-events'; DELETE FROM records WHERE event_id = 'e1' AND pos < 10`, ``,
	},
	{ // another machine's clock
		later + `; UPDATE orders SET created_at = 1500 WHERE id = 'o1'; UPDATE records SET at = 1500 WHERE event_id = 'e1'; DELETE FROM events WHERE id = 'e1'`, ``,
	},
	{`UPDATE records SET part = 1 WHERE event_id = 'e3'`, `a key has one partition`},
	{ // all was published again when the topic had more partitions, and nobody's records have no key
		`INSERT INTO records SELECT topic, part + 2, pos - 4, key, event_id, type, version, sum, at, 5000, 1 FROM records WHERE event_id IN ('e3', 'e4');
		INSERT INTO records SELECT topic, part, 50, '', event_id, type, 0, sum, at, 6000, 1 FROM records WHERE event_id IN ('e3')`, ``,
	},
	{repartitioned, ``},
	{repartitioned + `; UPDATE records SET part = 2 WHERE event_id = 'e9'`, `a key has one partition`}, // it does not belong there
	{repartitioned + `; UPDATE records SET part = 2 WHERE event_id = 'e8'`, `a key has one partition`}, // nor did it there
	{ // there were three before
		repartitioned + `; INSERT INTO records SELECT topic, 2, 1, key, event_id, type, version, sum, at, 1900, 1 FROM records WHERE event_id = 'e2'`,
		`a key has one partition`,
	},
	{ // and back
		repartitioned + `; INSERT INTO records SELECT topic, part, 52, key, event_id, type, version, sum, at, 4000, 1 FROM records WHERE event_id = 'e8'`,
		`a key has one partition`,
	},
	{ // and on
		repartitioned + `; INSERT INTO records SELECT topic, 2, 52, key, event_id, type, version, sum, at, 4000, 1 FROM records WHERE event_id = 'e8'`,
		`a key has one partition`,
	},
	{`UPDATE records SET sum = x'ff' WHERE event_id = 'e1' AND pos > 10`, `repetitions are identical`},
	{`INSERT INTO charges VALUES ('c3', 'o1', 'succeeded', 100, 'RUB', 100)`, `one charge for an order`},
	{`UPDATE charges SET amount = 99, refunded = -1 WHERE id = 'c1'`, `charges are for orders`},
	{`INSERT INTO charges VALUES ('c3', 'o3', 'declined', 100, 'RUB', 0)`, `charges are for orders`},
	{`UPDATE charges SET refunded = 100 WHERE id = 'c1'`, `the money is right`},
	{`UPDATE charges SET status = 'succeeded' WHERE id = 'c2'`, `the money is right`},
	{`UPDATE charges SET status = 'succeeded', refunded = 200 WHERE id = 'c2'`, ``},
	{`INSERT INTO payments VALUES ('p3', 'o3', 'processing', 0, NULL)`, `payments are for orders, payments are settled`},
	{`INSERT INTO events VALUES ('payment', 3, 'e7', 'p1', 2, 'PaymentFailed', 'payment-events', NULL, 1, 0, 1000)`, `payments tell their end once`},
	{`UPDATE payments SET status = 'failed' WHERE id = 'p1'`, `payments tell their end once, paid orders have their payment, payments reach their order`},
	{`UPDATE orders SET payment_id = 'p9' WHERE id = 'o1'`, `paid orders have their payment`},
	{`INSERT INTO refunds VALUES ('r1', 'p2', 'pending')`, `payments are settled`},
	{`DELETE FROM inbox WHERE consumer = 'order-service' AND event_id = 'e5'`, `records are handled`},
	{`DELETE FROM inbox WHERE consumer = 'order-service' AND event_id = 'e5'; INSERT INTO parked VALUES ('order-service', 'e5', 'dead', 'payment-events', 0, 1, 'p1')`, ``},
	{`INSERT INTO parked VALUES ('order-service', 'e5', 'retrying', 'payment-events', 0, 1, 'p1')`, `nothing is retried`},
	{`INSERT INTO parked VALUES ('order-service', 'e5', 'waiting', 'payment-events', 0, 1, 'p1'), ('order-service', 'e9', 'dead', 'payment-events', 0, 0, 'p1')`, ``},
	{
		`INSERT INTO parked VALUES ('order-service', 'e5', 'waiting', 'payment-events', 0, 1, 'p1'), ('order-service', 'e9', 'dead', 'payment-events', 0, 0, 'p2')`,
		`nothing is retried`,
	},
	// dead letters
	{`DELETE FROM dead_letters`, `dead records have their letter`},
	{`UPDATE dead_letters SET consumer = 'notification-service'`, `dead records have their letter`},
	{`UPDATE dead_letters SET position = 'order-events/0/6'`, `dead records have their letter`},
	{`UPDATE dead_letters SET service = 'notification'`, `dead records have their letter`},
	{`UPDATE dead_letters SET topic = 'payment-events-dlq'`, `dead records have their letter, dead letters are on their topic`},
	{`UPDATE dead SET failed_at = 950`, `dead records have their letter`}, // it was replayed and died again
	{`UPDATE dead SET service = 'notification'; DELETE FROM dead_letters`, `dead records have their letter`},
	{`UPDATE dead SET service = 'notification'; DELETE FROM dead_letters; UPDATE began SET at = at + 8 * 86400000000`, ``}, // pruned
	{`UPDATE dead_letters SET published = 0; DELETE FROM dlq_records`, ``},
	{`DELETE FROM dlq_records WHERE sum = x'0a'`, `dead letters are on their topic`},
	{`UPDATE dlq_records SET topic = 'payment-events-dlq'`, `dead letters are on their topic`},
	{`DELETE FROM dead; DELETE FROM dlq_records`, `dead letters are on their topic`}, // it was replayed and handled
	{`DELETE FROM dlq_records; UPDATE partitions SET first = 1, retained_since = 80000000 WHERE topic = 'order-events-dlq'`, ``},
	{`DELETE FROM dlq_records; UPDATE partitions SET first = 1, retained_since = 10000000 WHERE topic = 'order-events-dlq'`, ``}, // by another clock
	{`DELETE FROM dlq_records; UPDATE partitions SET first = 1, retained_since = 9999999 WHERE topic = 'order-events-dlq'`, `dead letters are on their topic`},
	{ // long after, on a topic that keeps its records for longer than an inbox
		`UPDATE began SET at = 1400000000000; DELETE FROM inbox; DELETE FROM events`, ``,
	},
	{ // nobody's record, dead-lettered under an id made for it
		`INSERT INTO records VALUES ('order-events', 0, 99, 'x', '', 'OrderCreated', 0, x'09', 1000, 1000, 1);
		INSERT INTO parked SELECT consumer, 'made', 'dead', topic, 0, 99, 'x' FROM subscriptions WHERE type = 'OrderCreated'`,
		`records come from the outbox`,
	},
	{
		`INSERT INTO deliveries SELECT id || 'again', order_id, type, channel, status, sent_at FROM deliveries LIMIT 1; INSERT INTO messages SELECT channel, id FROM deliveries`,
		`a message once, customers are told`,
	},
	{`DELETE FROM deliveries WHERE order_id = 'o1' AND channel = 'sms' AND type = 'payment_confirmation'`, `customers are told`},
	{`UPDATE deliveries SET type = 'payment_failed' WHERE order_id = 'o1' AND type = 'payment_confirmation'`, `customers are told`},
	{ // the customer has a message about a payment that the order refuses: the order is marked
		`UPDATE orders SET status = 'pending', version = 1, attention = 'amount mismatch' WHERE id = 'o1'; DELETE FROM history WHERE order_id = 'o1' AND version = 2;
		DELETE FROM events WHERE id = 'e3'; DELETE FROM records WHERE event_id = 'e3'`, `the money is right`,
	},
	{`UPDATE deliveries SET status = 'pending' WHERE order_id = 'o1' AND channel = 'sms'`, `deliveries are ended`},
	{`DELETE FROM messages WHERE delivery_id = 'o1paymentsms'`, `sent messages were received`},
	{`DELETE FROM channels WHERE channel = 'sms'; DELETE FROM messages WHERE channel = 'sms'`, ``}, // they go elsewhere
}

// Each invariant sees the violations that are planted for it, and no others.
func TestInvariantsSeeWhatIsPlanted(t *testing.T) {
	everSeen := map[string]bool{}
	for _, p := range plant {
		e, err := newEvidence(t.Context(), t.TempDir(), time.UnixMicro(10_000_000))
		if err != nil {
			t.Fatal(err)
		}
		for _, statement := range append(slices.Clone(sound), strings.Split(p.statement, ";")...) {
			if _, err := e.db.Exec(statement); err != nil {
				t.Fatalf("%s: %v", statement, err)
			}
		}
		r, err := e.ask(context.Background(), nil)
		if err != nil {
			t.Fatal(err)
		}
		var seen []string
		for _, f := range r.Findings {
			if f.State != Holds {
				seen = append(seen, f.Name)
				everSeen[f.Name] = true
				if f.Count == 0 || len(f.Samples) == 0 {
					t.Errorf("%s: %+v", p.statement, f)
				}
			}
		}
		if got := strings.Join(seen, ", "); got != p.seen {
			t.Errorf("%s\n was seen as: %s\n want: %s", p.statement, got, p.seen)
		}
		if err := e.db.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, inv := range invariants {
		if !everSeen[inv.name] {
			t.Errorf("nothing was planted for %q", inv.name)
		}
	}
}

// An invariant whose evidence is missing is not checked, and its finding says why.
func TestNotChecked(t *testing.T) {
	e, err := newEvidence(t.Context(), t.TempDir(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	defer e.db.Close()
	r, err := e.ask(t.Context(), map[string]string{needsTopics: "away", needsDeadLetters: "away", needsSandbox: "away", needsLog: "none"})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Findings {
		if (f.State == NotChecked) != (f.Needs != "") || f.State == NotChecked && f.Why == "" {
			t.Errorf("%+v", f)
		}
	}
}

// Payments and messages of the time of the collection, or of a moment before, are counted, but not those that a clock that
// is ahead has given a later time.
func TestTooYoungToBeAskedAbout(t *testing.T) {
	e, err := newEvidence(t.Context(), t.TempDir(), time.UnixMicro(10_000_000))
	if err != nil {
		t.Fatal(err)
	}
	defer e.db.Close()
	for _, statement := range append(slices.Clone(sound),
		`UPDATE orders SET paid_at = 5000000 WHERE id = 'o1'`,
		`UPDATE deliveries SET sent_at = 11000000 WHERE id IN ('o1paymentemail', 'o2paymentsms')`,
		`UPDATE deliveries SET sent_at = 4999999 WHERE id = 'o1paymentsms'`,
		`UPDATE deliveries SET sent_at = 1000000 * (strftime('%s') + 3600) WHERE id = 'o2paymentemail'`,
	) {
		if _, err := e.db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	r, err := e.ask(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.young != 3 {
		t.Errorf("%d are too young, want 3", r.young)
	}
}
