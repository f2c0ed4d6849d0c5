package order

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/event"
	"pizzaflow/kafka"
	"pizzaflow/kafka/kafkatest"
	"pizzaflow/outbox"
	"pizzaflow/outbox/inbox"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// A bank stands in for the payment service at the one place where the two
// meet: it produces records to payment-events.
type bank struct {
	t      *testing.T
	client *kgo.Client
}

// subscribe runs the service's consumer on a broker of its own.
func (f *fixture) subscribe() *bank {
	f.t.Helper()
	opts, err := kafkatest.Start(f.t, kafka.Topic{Name: event.PaymentTopic, Partitions: 3, Replicas: 1}).Options()
	if err != nil {
		f.t.Fatal(err)
	}
	client, err := kgo.NewClient(opts...)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(client.Close)
	c := inbox.New(inbox.Config{
		Outbox: f.outbox, Group: "order-service", Kafka: opts, Delay: time.Millisecond, Metrics: f.metrics,
		Log: slog.New(slog.NewTextHandler(f.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	f.Subscribe(c)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	f.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			f.t.Errorf("consume: %v", err)
		}
	})
	return &bank{t: f.t, client: client}
}

// send produces an event and returns its id.
func (b *bank) send(e outbox.Event) string {
	b.t.Helper()
	id := uuid.Must(uuid.NewV7()).String()
	b.sendAs(id, e)
	return id
}

func (b *bank) sendAs(id string, e outbox.Event) {
	b.t.Helper()
	data, err := json.Marshal(e)
	if err != nil {
		b.t.Fatal(err)
	}
	value, err := json.Marshal(event.Envelope{
		EventID: id, EventType: e.EventType(), AggregateID: e.AggregateID(), EventData: data, Timestamp: sqldb.Now(),
	})
	if err != nil {
		b.t.Fatal(err)
	}
	record := &kgo.Record{Topic: e.Topic(), Key: []byte(e.AggregateID()), Value: value}
	if err := b.client.ProduceSync(b.t.Context(), record).FirstErr(); err != nil {
		b.t.Fatal(err)
	}
}

func completed(v createdView) event.PaymentCompleted {
	return event.PaymentCompleted{
		PaymentID: uuid.NewString(), OrderID: v.OrderID, Amount: v.TotalAmount, Currency: v.Currency,
		TransactionID: "ch_1", CompletedAt: sqldb.Now(),
	}
}

func failed(v createdView, code string) event.PaymentFailed {
	return event.PaymentFailed{
		PaymentID: uuid.NewString(), OrderID: v.OrderID, Amount: v.TotalAmount, Currency: v.Currency,
		ErrorCode: code, ErrorMessage: "no", FailedAt: sqldb.Now(),
	}
}

// handled waits until the group has nothing more to do with an event.
func (f *fixture) handled(eventIDs ...string) {
	f.t.Helper()
	for _, id := range eventIDs {
		eventually(f.t, "event is handled", func() bool {
			return f.count(`SELECT COUNT(*) FROM inbox_events WHERE event_id = $1`, id) == 1 &&
				f.count(`SELECT COUNT(*) FROM parked_records WHERE event_id = $1 AND state IN ('retrying', 'waiting')`, id) == 0
		})
	}
}

// emitted is the data of the order's event of that type; it must have one.
func (f *fixture) emitted(id, eventType string, version int, v any) (headers string) {
	f.t.Helper()
	var data string
	err := f.db.QueryRowContext(f.t.Context(), `SELECT event_data, headers FROM outbox_events
		WHERE aggregate_id = $1 AND event_type = $2 AND topic = 'order-events' AND aggregate_version = $3`, id, eventType, version).
		Scan(&data, &headers)
	if err != nil {
		f.t.Fatalf("%s %d: %v", eventType, version, err)
	}
	decode(f.t, []byte(data), v)
	return headers
}

// attention is the order's mark, "" without one.
func (f *fixture) attention(id string) string {
	f.t.Helper()
	var reason string
	var since time.Time
	err := f.db.QueryRowContext(f.t.Context(), `SELECT COALESCE(attention_reason, ''), attention_since FROM orders WHERE id = $1`, id).
		Scan(&reason, sqldb.Time(&since))
	if err != nil {
		f.t.Fatal(err)
	}
	if (reason == "") != since.IsZero() {
		f.t.Errorf("attention %q since %s", reason, since)
	}
	return reason
}

func (f *fixture) wantStatus(id string, want ...Status) orderView {
	f.t.Helper()
	v := f.get(id)
	var got []Status
	for i, step := range v.History {
		got = append(got, step.Status)
		if step.Version != int64(i+1) {
			f.t.Errorf("step %d has version %d", i, step.Version)
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) || v.Status != want[len(want)-1] || v.Version != int64(len(want)) {
		f.t.Errorf("status %s, version %d, history %v; want %v", v.Status, v.Version, got, want)
	}
	if n := f.count(`SELECT COUNT(*) FROM outbox_events WHERE aggregate_id = $1`, id); n != len(want) {
		f.t.Errorf("%d events of %d versions", n, len(want))
	}
	return v
}

func TestPayments(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		f := newFixture(t, db, Config{})
		b := f.subscribe()
		t.Run("completed", func(t *testing.T) { f.at(t).testCompleted(b) })
		t.Run("failed", func(t *testing.T) { f.at(t).testFailed(b) })
		t.Run("absorbed", func(t *testing.T) { f.at(t).testAbsorbed(b) })
		t.Run("mismatch", func(t *testing.T) { f.at(t).testMismatch(b) })
		t.Run("unknown order", func(t *testing.T) { f.at(t).testUnknownOrder(b) })
	}, schemas...)
}

// at is the fixture for a subtest.
func (f *fixture) at(t *testing.T) *fixture {
	g := *f
	g.t = t
	return &g
}

func (f *fixture) testCompleted(b *bank) {
	before := testutil.ToFloat64(f.Service.metrics.orders.WithLabelValues("paid"))
	placed, _ := f.place(sample)
	p := completed(placed)
	id := b.send(p)
	f.handled(id)
	v := f.wantStatus(placed.OrderID, Pending, Paid)
	if v.PaidAt == nil || !v.PaidAt.Equal(v.History[1].At) || v.PaidAt.Before(v.CreatedAt) || v.FailureReason != nil {
		f.t.Errorf("paid at %v, failure %v", v.PaidAt, v.FailureReason)
	}
	var e event.OrderPaid
	headers := f.emitted(placed.OrderID, "OrderPaid", 2, &e)
	want := event.OrderPaid{OrderID: placed.OrderID, PaymentID: p.PaymentID, Amount: 1200_00, Currency: "RUB", PaidAt: *v.PaidAt}
	if e != want || e.Validate() != nil || !strings.Contains(headers, id) {
		f.t.Errorf("event %+v with %s\nwant %+v", e, headers, want)
	}
	eventually(f.t, "metrics", func() bool {
		return testutil.ToFloat64(f.Service.metrics.orders.WithLabelValues("paid")) == before+1
	})
	if n := testutil.CollectAndCount(f.Service.metrics.endToEnd); n != 1 {
		f.t.Errorf("%d histograms", n)
	}
}

func (f *fixture) testFailed(b *bank) {
	placed, _ := f.place(sample)
	p := failed(placed, "insufficient_funds")
	f.handled(b.send(p))
	v := f.wantStatus(placed.OrderID, Pending, PaymentFailed)
	if v.FailureReason == nil || *v.FailureReason != "insufficient_funds" || v.PaidAt != nil {
		f.t.Errorf("failure %v, paid at %v", v.FailureReason, v.PaidAt)
	}
	var e event.OrderPaymentFailed
	f.emitted(placed.OrderID, "OrderPaymentFailed", 2, &e)
	want := event.OrderPaymentFailed{OrderID: placed.OrderID, PaymentID: p.PaymentID, Reason: "insufficient_funds", FailedAt: v.History[1].At}
	if e != want || e.Validate() != nil {
		f.t.Errorf("event %+v\nwant %+v", e, want)
	}
}

// testAbsorbed delivers events that must not change a final order: the same event again,
// the same news in another event, and the opposite news.
func (f *fixture) testAbsorbed(b *bank) {
	paid, _ := f.place(sample)
	lost, _ := f.place(sample)
	p, q := completed(paid), failed(lost, "declined")
	first, second := b.send(p), b.send(q)
	f.handled(first, second)
	b.sendAs(first, p)
	b.sendAs(second, q)
	opposite := failed(paid, "declined")
	opposite.PaymentID = p.PaymentID
	late := completed(lost)
	late.PaymentID = q.PaymentID
	f.handled(b.send(p), b.send(q), b.send(opposite), b.send(late))
	if v := f.wantStatus(paid.OrderID, Pending, Paid); v.FailureReason != nil {
		f.t.Errorf("failure reason %q", *v.FailureReason)
	}
	if v := f.wantStatus(lost.OrderID, Pending, PaymentFailed); v.PaidAt != nil {
		f.t.Errorf("paid at %s", v.PaidAt)
	}
	if n := f.count(`SELECT COUNT(*) FROM parked_records WHERE state = 'dead'`); n != 0 {
		f.t.Errorf("%d dead records", n)
	}
}

// testMismatch delivers the wrong amount and the wrong currency, then the right
// payment.
func (f *fixture) testMismatch(b *bank) {
	less, _ := f.place(sample)
	dollars, _ := f.place(sample)
	p, q := completed(less), completed(dollars)
	p.Amount--
	q.Currency = "USD"
	for id, v := range map[string]createdView{b.send(p): less, b.send(q): dollars} {
		f.handled(id)
		f.wantStatus(v.OrderID, Pending)
		if reason := f.attention(v.OrderID); reason != AttentionMismatch {
			f.t.Errorf("attention %q", reason)
		}
		if n := f.count(`SELECT COUNT(*) FROM parked_records WHERE event_id = $1 AND state = 'dead' AND attempts = 1`, id); n != 1 {
			f.t.Errorf("the payment is not dead at once")
		}
		if n := f.count(`SELECT COUNT(*) FROM outbox_events WHERE topic = 'payment-events-dlq' AND event_data IS NULL`); n == 0 {
			f.t.Errorf("nothing for the dead letters")
		}
	}
	f.handled(b.send(completed(less))) // another payment: the key of the first one is blocked
	f.wantStatus(less.OrderID, Pending, Paid)
	if reason := f.attention(less.OrderID); reason != AttentionMismatch {
		f.t.Errorf("the mismatch was forgotten: %q", reason)
	}
}

// testUnknownOrder delivers payments of orders that are not there: one may yet
// come, the other cannot.
func (f *fixture) testUnknownOrder(b *bank) {
	stranger := completed(createdView{OrderID: uuid.NewString(), TotalAmount: 1, Currency: "RUB"})
	nonsense := stranger
	nonsense.OrderID, nonsense.PaymentID = "order-1", uuid.NewString()
	known, _ := f.place(sample)
	a, z, ok := b.send(stranger), b.send(nonsense), b.send(completed(known))
	f.handled(a, z, ok)
	f.wantStatus(known.OrderID, Pending, Paid)
	for id, attempts := range map[string]int{a: 3, z: 1} {
		if n := f.count(`SELECT COUNT(*) FROM parked_records WHERE event_id = $1 AND state = 'dead' AND attempts = $2`, id, attempts); n != 1 {
			f.t.Errorf("no dead record after %d attempts", attempts)
		}
	}
}

// TestDeadline marks an order that stays pending, counts it, and lets a final status
// take the mark away.
func TestDeadline(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		f := newFixture(t, db, Config{Deadline: 30 * time.Minute})
		b := f.subscribe()
		old, _ := f.place(sample)
		forgotten, _ := f.place(sample)
		paid, _ := f.place(sample)
		young, _ := f.place(sample)
		wrong, _ := f.place(sample)
		mismatch := completed(wrong)
		mismatch.Amount++
		f.handled(b.send(completed(paid)), b.send(mismatch))
		f.exec(`UPDATE orders SET created_at = $1 WHERE id <> $2`, sqldb.Now().Add(-30*time.Minute), young.OrderID)
		if err := f.watchDeadlines(t.Context()); err != nil {
			t.Fatal(err)
		}
		for id, want := range map[string]string{
			old.OrderID: AttentionOverdue, forgotten.OrderID: AttentionOverdue, paid.OrderID: "", young.OrderID: "", wrong.OrderID: AttentionMismatch,
		} {
			if got := f.attention(id); got != want {
				t.Errorf("attention %q, want %q", got, want)
			}
		}
		f.wantStatus(old.OrderID, Pending)
		gauge := func(reason string) float64 {
			return testutil.ToFloat64(f.Service.metrics.attention.WithLabelValues(reason))
		}
		if gauge(AttentionOverdue) != 2 || gauge(AttentionMismatch) != 1 {
			t.Errorf("%v overdue, %v mismatched", gauge(AttentionOverdue), gauge(AttentionMismatch))
		}
		const marks = `SELECT COUNT(DISTINCT attention_since) FROM orders WHERE attention_since IS NOT NULL AND id <> $1`
		since := f.count(marks, old.OrderID)
		f.handled(b.send(completed(old)))
		if err := f.watchDeadlines(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.wantStatus(old.OrderID, Pending, Paid)
		if f.attention(old.OrderID) != "" || gauge(AttentionOverdue) != 1 {
			t.Errorf("a paid order is marked %q, %v overdue", f.attention(old.OrderID), gauge(AttentionOverdue))
		}
		if n := f.count(marks, old.OrderID); n != since {
			t.Errorf("a mark was renewed: %d times, %d before", n, since)
		}
	}, schemas...)
}

// Marks that cannot be counted are not shown, and never were none.
func TestMarksAreShownWhenCounted(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		f := newFixture(t, db, Config{})
		shown := func() int { return testutil.CollectAndCount(f.Service.metrics.attention) }
		if n := shown(); n != 0 {
			t.Errorf("%d reasons are shown before anybody has counted", n)
		}
		if err := f.measureAttention(t.Context()); err != nil || shown() != 2 {
			t.Errorf("%d reasons are shown, %v", shown(), err)
		}
		f.exec(`ALTER TABLE orders RENAME TO elsewhere`)
		if err := f.measureAttention(t.Context()); err == nil || shown() != 0 || testutil.ToFloat64(f.Service.metrics.errors) != 1 {
			t.Errorf("%d reasons are shown of a table that is not there, %v", shown(), err)
		}
	}, schemas...)
}

// TestRunMarksOverdue lets the job itself find an order.
func TestRunMarksOverdue(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		f := newFixture(t, db, Config{Deadline: time.Millisecond})
		placed, _ := f.place(sample)
		f.run()
		eventually(t, "the order is marked", func() bool { return f.attention(placed.OrderID) == AttentionOverdue })
		eventually(t, "it is counted", func() bool {
			return math.Abs(testutil.ToFloat64(f.Service.metrics.attention.WithLabelValues(AttentionOverdue))-1) < .5
		})
	}, schemas...)
}

// TestPaymentRace has two transactions decide the same order at once: one of
// them changes it, the other finds it changed.
func TestPaymentRace(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		f := newFixture(t, db, Config{})
		for range 20 {
			placed, _ := f.place(sample)
			errs, begin := make(chan error), make(chan struct{})
			deliver := func(handle func(tx *outbox.Tx) error) {
				<-begin
				errs <- f.outbox.Tx(context.Background(), handle)
			}
			go deliver(func(tx *outbox.Tx) error {
				return f.onPaymentCompleted(context.Background(), tx, inbox.Delivery[event.PaymentCompleted]{Event: completed(placed)})
			})
			go deliver(func(tx *outbox.Tx) error {
				return f.onPaymentFailed(context.Background(), tx, inbox.Delivery[event.PaymentFailed]{Event: failed(placed, "declined")})
			})
			close(begin)
			for range 2 {
				if err := <-errs; err != nil {
					t.Fatal(err)
				}
			}
			f.wantStatus(placed.OrderID, Pending, f.get(placed.OrderID).Status)
			if f.get(placed.OrderID).Status == Pending {
				t.Fatal("neither event changed the order")
			}
		}
	}, schemas...)
}

// TestOverdueRace pays an order while it is about to be marked as overdue.
func TestOverdueRace(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		f := newFixture(t, db, Config{})
		placed, _ := f.place(sample)
		marked := make(chan error, 1)
		err := f.outbox.Tx(t.Context(), func(tx *outbox.Tx) error {
			err := f.onPaymentCompleted(t.Context(), tx, inbox.Delivery[event.PaymentCompleted]{Event: completed(placed)})
			go func() {
				_, err := markOverdue(context.Background(), db, 0)
				marked <- err
			}()
			if db.Engine == sqldb.Postgres { // SQLite's one connection is taken: it waits anyhow
				eventually(t, "the job waits for the row", func() bool {
					return f.count(`SELECT COUNT(*) FROM pg_locks WHERE NOT granted`) > 0
				})
			}
			return err
		})
		if err := errors.Join(err, <-marked); err != nil {
			t.Fatal(err)
		}
		f.wantStatus(placed.OrderID, Pending, Paid)
		if reason := f.attention(placed.OrderID); reason != "" {
			t.Errorf("a paid order is marked %s", reason)
		}
	}, schemas...)
}

// TestPaymentsTogether pays orders in one call: pending orders change, final orders
// stay, and if one of the payments is wrong none is applied.
func TestPaymentsTogether(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		f := newFixture(t, db, Config{})
		handle := func(ds []inbox.Delivery[event.PaymentCompleted]) error {
			return f.outbox.Tx(t.Context(), func(tx *outbox.Tx) error { return f.onPaymentsCompleted(t.Context(), tx, ds) })
		}
		var ds []inbox.Delivery[event.PaymentCompleted]
		for range 6 {
			placed, _ := f.place(sample)
			ds = append(ds, inbox.Delivery[event.PaymentCompleted]{EventID: uuid.NewString(), Event: completed(placed)})
		}
		err := f.outbox.Tx(t.Context(), func(tx *outbox.Tx) error {
			var p event.PaymentFailed
			p.OrderID, p.ErrorCode = ds[1].Event.OrderID, "declined"
			return f.onPaymentFailed(t.Context(), tx, inbox.Delivery[event.PaymentFailed]{Event: p})
		})
		if err != nil {
			t.Fatal(err)
		}
		events := f.count(`SELECT COUNT(*) FROM outbox_events`)
		for what, spoil := range map[string]func(p *event.PaymentCompleted){
			"another amount": func(p *event.PaymentCompleted) { p.Amount++ },
			"no such order":  func(p *event.PaymentCompleted) { p.OrderID = uuid.NewString() },
			"no order id":    func(p *event.PaymentCompleted) { p.OrderID = "x" },
		} {
			bad := slices.Clone(ds)
			spoil(&bad[4].Event)
			if err := handle(bad); err == nil || f.count(`SELECT COUNT(*) FROM orders WHERE status = 'paid'`) != 0 {
				t.Errorf("%s: %v, %d are paid", what, err, f.count(`SELECT COUNT(*) FROM orders WHERE status = 'paid'`))
			}
		}
		for range 2 { // a repetition changes nothing
			if err := handle(append(ds, ds[0])); err != nil {
				t.Fatal(err)
			}
		}
		for i, d := range ds {
			want := []Status{Pending, Paid}
			if i == 1 {
				want = []Status{Pending, PaymentFailed}
			}
			f.wantStatus(d.Event.OrderID, want...)
			n := f.count(`SELECT COUNT(*) FROM outbox_events WHERE event_type = 'OrderPaid' AND aggregate_id = '` + d.Event.OrderID + `'
				AND CAST(headers AS TEXT) LIKE '%` + d.EventID + `%'`)
			if (n == 1) != (i != 1) {
				t.Errorf("order %d has %d events that name their cause", i, n)
			}
		}
		if n := f.count(`SELECT COUNT(*) FROM outbox_events`); n != events+5 {
			t.Errorf("%d events were added, want 5", n-events)
		}
	}, schemas...)
}
