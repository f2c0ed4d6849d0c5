package notification

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"pizzaflow/event"
	"pizzaflow/outbox"
	"pizzaflow/outbox/inbox"
	"pizzaflow/sandbox"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// each runs a test on both engines, on the tables of the service.
func each(t *testing.T, fn func(t *testing.T, db *sqldb.DB)) {
	t.Helper()
	sqltest.Each(t, fn, sqltest.Schema{Name: "outbox", FS: outbox.Schema}, sqltest.Schema{Name: "notification", FS: Schema})
}

// A world is a service, its database and the outside world.
type world struct {
	t    *testing.T
	db   *sqldb.DB
	ob   *outbox.Outbox
	mail *gate // stands before the sandbox's mail server
	sms  *gate // and this before its SMS gateway
	web  string
	http *http.Client
	edit func(*Config) // changes the config of the next service
}

func newWorld(t *testing.T, db *sqldb.DB) *world {
	t.Helper()
	box, err := sandbox.Open(sandbox.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	web, mail := listen(t), listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- box.Run(ctx, web, mail) }()
	w := &world{t: t, db: db, ob: outbox.New(db, "/notification-service"), web: "http://" + web.Addr().String()}
	w.http = &http.Client{Transport: &http.Transport{}, Timeout: time.Minute}
	t.Cleanup(func() {
		w.http.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	w.mail, w.sms = newGate(t, mail.Addr().String()), newGate(t, web.Addr().String())
	return w
}

// briefly has services take over after a second from a process that died.
func briefly(c *Config) { c.lease = time.Second }

// service makes a service that sends to the sandbox.
func (w *world) service() *Service {
	w.t.Helper()
	email, err := NewSMTP("smtp://"+w.mail.addr, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	sms, err := NewSMS("http://"+w.sms.addr+"/sms/messages", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.serviceWith(email, sms)
}

func (w *world) serviceWith(email, sms Sender) *Service {
	w.t.Helper()
	cfg := Config{
		Outbox: w.ob, Log: slog.New(slog.NewTextHandler(w.t.Output(), nil)), Metrics: prometheus.NewRegistry(),
		Email: email, SMS: sms, PublicURL: "http://127.0.0.1:8080",
	}
	if w.edit != nil {
		w.edit(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// run runs the service until the test ends or stop is called.
func (w *world) run(s *Service) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
	w.t.Cleanup(stop)
	return stop
}

// An anOrder is the order of some events.
type anOrder struct{ id, email, phone, number string }

var orders struct {
	sync.Mutex
	n int
}

// newOrder makes an order of a customer whose address has the tag.
func newOrder(tag string) anOrder {
	orders.Lock()
	defer orders.Unlock()
	orders.n++
	return anOrder{
		id: uuid.NewString(), email: fmt.Sprintf("ivan%d%s@example.com", orders.n, tag),
		phone: fmt.Sprintf("+7900%07d", orders.n), number: fmt.Sprintf("482-%03d", orders.n),
	}
}

func (o anOrder) created() event.OrderCreated {
	return event.OrderCreated{
		OrderID: o.id, OrderNumber: o.number, CustomerName: "Иван Иванов", CustomerEmail: o.email, CustomerPhone: o.phone,
		TotalAmount: 120000, Currency: "RUB", Locale: "ru", DeliveryAddress: "ул. Пушкина, д. 10", CreatedAt: sqldb.Now(),
		Items: []event.Item{{PizzaID: uuid.NewString(), Name: "Маргарита", Size: "large", Quantity: 2, Price: 60000}},
	}
}

func (o anOrder) paid() event.PaymentCompleted {
	return event.PaymentCompleted{
		PaymentID: uuid.NewString(), OrderID: o.id, Amount: 120000, Currency: "RUB", TransactionID: "ch_1", CompletedAt: sqldb.Now(),
	}
}

func (o anOrder) unpaid() event.PaymentFailed {
	return event.PaymentFailed{
		PaymentID: uuid.NewString(), OrderID: o.id, Amount: 120000, Currency: "RUB", ErrorCode: "insufficient_funds", FailedAt: sqldb.Now(),
	}
}

// handle gives the service events as its consumer does.
func (w *world) handle(s *Service, events ...outbox.Event) {
	w.t.Helper()
	for _, e := range events {
		if err := w.ob.Tx(w.t.Context(), func(tx *outbox.Tx) error { return s.on(w.t.Context(), tx, e) }); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (s *Service) on(ctx context.Context, tx *outbox.Tx, e outbox.Event) error {
	switch e := e.(type) {
	case event.OrderCreated:
		return s.onOrderCreated(ctx, tx, []inbox.Delivery[event.OrderCreated]{{Event: e}})
	case event.PaymentCompleted:
		return s.onPaymentCompleted(ctx, tx, []inbox.Delivery[event.PaymentCompleted]{{Event: e}})
	case event.PaymentFailed:
		return s.onPaymentFailed(ctx, tx, []inbox.Delivery[event.PaymentFailed]{{Event: e}})
	}
	return errors.New("no handler")
}

// received is a message as the sandbox shows it.
type received struct {
	Subject   string `json:"subject"`
	Text      string `json:"text"`
	HTML      string `json:"html"`
	MessageID string `json:"message_id"`
	Reference string `json:"reference"`
	From      string `json:"from"`
}

func (w *world) list(path, to string) (all []received) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, w.web+path+"?to="+url.QueryEscape(to), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	res, err := w.http.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&all); err != nil {
		w.t.Fatal(err)
	}
	return all
}

func (w *world) mails(o anOrder) []received { return w.list("/mail/messages", o.email) }
func (w *world) smses(o anOrder) []received { return w.list("/sms/messages", o.phone) }

// deliveries is the state of the order's deliveries: "type channel" to "status attempts".
func (w *world) deliveries(o anOrder) map[string]string {
	w.t.Helper()
	rows, err := w.db.Read().QueryContext(w.t.Context(),
		`SELECT type, channel, status, attempts FROM notification_deliveries WHERE order_id = $1`, o.id)
	if err != nil {
		w.t.Fatal(err)
	}
	defer rows.Close()
	all := map[string]string{}
	for rows.Next() {
		var typ, channel, status string
		var attempts int
		if err := rows.Scan(&typ, &channel, &status, &attempts); err != nil {
			w.t.Fatal(err)
		}
		all[typ+" "+channel] = fmt.Sprintf("%s %d", status, attempts)
	}
	if err := rows.Err(); err != nil {
		w.t.Fatal(err)
	}
	return all
}

// count is the number of deliveries with a status.
func (w *world) count(status Status) (n int) {
	w.t.Helper()
	err := w.db.Read().QueryRowContext(w.t.Context(), `SELECT COUNT(*) FROM notification_deliveries WHERE status = $1`, string(status)).Scan(&n)
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func (w *world) exec(query string, args ...any) {
	w.t.Helper()
	if _, err := w.db.ExecContext(w.t.Context(), query, args...); err != nil {
		w.t.Fatal(err)
	}
}

// awaitFinal waits until no delivery is pending.
func (w *world) awaitFinal() {
	w.t.Helper()
	w.eventually("all deliveries are final", func() bool { return w.count(Pending) == 0 })
}

// counted waits until so many attempts were counted: that comes after they are
// stored.
func (w *world) counted(s *Service, channel Channel, result string, n float64) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("%v attempts by %s are counted as %s", n, channel, result), func() bool {
		return testutil.ToFloat64(s.metrics.deliveries.WithLabelValues(string(channel), result)) == n
	})
}

func (w *world) eventually(what string, done func() bool) {
	w.t.Helper()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	end := time.NewTimer(time.Minute)
	defer end.Stop()
	for !done() {
		select {
		case <-look.C:
		case <-end.C:
			w.t.Fatalf("waited in vain until %s", what)
		}
	}
}

func (w *world) want(o anOrder, want map[string]string) {
	w.t.Helper()
	got := w.deliveries(o)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		w.t.Errorf("deliveries %v, want %v", got, want)
	}
}

// wantMessages checks how many mails and SMS the customer got.
func (w *world) wantMessages(o anOrder, mails, smses int) {
	w.t.Helper()
	if m, s := w.mails(o), w.smses(o); len(m) != mails || len(s) != smses {
		w.t.Errorf("%d mails, %d SMS, want %d and %d: %+v %+v", len(m), len(s), mails, smses, m, s)
	}
}

func TestPaidOrder(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		for name, events := range map[string]func(anOrder) []outbox.Event{
			"order first":   func(o anOrder) []outbox.Event { return []outbox.Event{o.created(), o.paid()} },
			"payment first": func(o anOrder) []outbox.Event { return []outbox.Event{o.paid(), o.created()} },
		} {
			t.Run(name, func(t *testing.T) {
				w := newWorld(t, db)
				s := w.service()
				w.run(s)
				o := newOrder("+tag")
				all := events(o)
				w.handle(s, all...)
				w.handle(s, all...) // the same facts again make nothing new
				w.awaitFinal()
				w.handle(s, all...)
				w.awaitFinal()
				w.want(o, map[string]string{
					"order_confirmation email": "sent 1", "order_confirmation sms": "sent 1",
					"payment_confirmation email": "sent 1", "payment_confirmation sms": "sent 1",
				})
				w.wantMessages(o, 2, 2)
				subjects := map[string]received{}
				for _, m := range w.mails(o) {
					subjects[m.Subject] = m
				}
				for _, subject := range []string{"Заказ " + o.number + " принят", "Заказ " + o.number + " оплачен"} {
					m, ok := subjects[subject]
					if !ok || !strings.Contains(m.Text, "1\u00a0200,00\u00a0₽") || !strings.Contains(m.Text, "/orders/"+o.id) ||
						!strings.Contains(m.HTML, "Маргарита") || !strings.Contains(m.HTML, "Иван Иванов") {
						t.Errorf("%q: %+v", subject, m)
					}
				}
				for channel := range s.channels {
					w.counted(s, channel, "sent", 2)
				}
				w.eventually("each channel has its histogram", func() bool { return testutil.CollectAndCount(s.metrics.seconds) == 2 })
			})
		}
	})
}

func TestFailedPaymentIsTold(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		w := newWorld(t, db)
		s := w.service()
		w.run(s)
		first, second := newOrder(""), newOrder("")
		w.handle(s, first.created(), first.unpaid())
		w.handle(s, second.unpaid(), second.created())
		w.awaitFinal()
		for _, o := range []anOrder{first, second} {
			w.wantMessages(o, 2, 2)
			messages := 0
			for _, m := range append(w.mails(o), w.smses(o)...) {
				if strings.Contains(m.Text, "не прошла") && strings.Contains(strings.ToLower(m.Text), "деньги не списаны") {
					messages++
				}
			}
			if messages != 2 {
				t.Errorf("%d messages tell of the failure, want a mail and an SMS", messages)
			}
		}
	})
}

func TestPaymentWaitsForContacts(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		w := newWorld(t, db)
		s := w.service()
		o := newOrder("")
		w.handle(s, o.paid())
		w.want(o, map[string]string{})
		var status string
		if err := db.QueryRowContext(t.Context(), `SELECT status FROM notifications WHERE order_id = $1`, o.id).Scan(&status); err != nil || status != "waiting" {
			t.Errorf("notification is %q, %v, want waiting", status, err)
		}
		w.handle(s, o.created())
		w.want(o, map[string]string{
			"order_confirmation email": "pending 0", "order_confirmation sms": "pending 0",
			"payment_confirmation email": "pending 0", "payment_confirmation sms": "pending 0",
		})
	})
}

// Two transactions of one order, open at the same time, whichever begins, and
// whether or not the order's row is there already.
func TestConcurrentTransactionsOfOneOrder(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		w := newWorld(t, db)
		s := w.service()
		for _, tt := range []struct {
			name           string
			swapped, there bool
		}{
			{"order begins", false, false},
			{"payment begins", true, false},
			{"order begins, row there", false, true},
			{"payment begins, row there", true, true},
		} {
			t.Run(tt.name, func(t *testing.T) {
				o := newOrder("")
				if tt.there {
					w.handle(s, o.unpaid())
				}
				events := []outbox.Event{o.created(), o.paid()}
				if tt.swapped {
					slices.Reverse(events)
				}
				second := make(chan error, 1)
				err := w.ob.Tx(t.Context(), func(tx *outbox.Tx) error {
					if err := s.on(t.Context(), tx, events[0]); err != nil {
						return err
					}
					blocked := w.blockedBy(tx)
					go func() {
						second <- w.ob.Tx(t.Context(), func(tx *outbox.Tx) error { return s.on(t.Context(), tx, events[1]) })
					}()
					w.eventually("the second transaction waits for the first", blocked)
					return nil
				})
				if err := errors.Join(err, <-second); err != nil {
					t.Fatal(err)
				}
				want := map[string]string{
					"order_confirmation email": "pending 0", "order_confirmation sms": "pending 0",
					"payment_confirmation email": "pending 0", "payment_confirmation sms": "pending 0",
				}
				if tt.there {
					want["payment_failed email"], want["payment_failed sms"] = "pending 0", "pending 0"
				}
				w.want(o, want)
			})
		}
	})
}

// blockedBy returns a function that reports whether another transaction waits for tx.
func (w *world) blockedBy(tx *outbox.Tx) func() bool {
	w.t.Helper()
	if w.db.Engine == sqldb.SQLite { // one writer: everybody waits for the connection
		before := w.db.Stats().WaitCount
		return func() bool { return w.db.Stats().WaitCount > before }
	}
	var pid int
	if err := tx.QueryRowContext(w.t.Context(), `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
		w.t.Fatal(err)
	}
	return func() bool {
		var n int
		err := w.db.QueryRowContext(w.t.Context(), `SELECT COUNT(*) FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))`, pid).Scan(&n)
		if err != nil {
			w.t.Fatal(err)
		}
		return n > 0
	}
}

func TestBadFromStopsNew(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		w := newWorld(t, db)
		_, err := New(Config{Outbox: w.ob, Log: slog.Default(), Metrics: prometheus.NewRegistry(), From: "nobody"})
		if !errors.Is(err, ErrFrom) {
			t.Errorf("New = %v, want ErrFrom", err)
		}
	})
}
