package payment

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
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

var schemas = []sqltest.Schema{{Name: "outbox", FS: outbox.Schema}, {Name: "payment", FS: Schema}}

// A bank is the real sandbox on a loopback listener. What stands between it
// and the service can be bent by setting a front.
type bank struct {
	t    *testing.T
	box  http.Handler
	addr string

	mu    sync.Mutex
	front func(w http.ResponseWriter, r *http.Request, box http.Handler)
}

func openBank(t *testing.T) *bank {
	t.Helper()
	box, err := sandbox.Open(sandbox.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	b := &bank{t: t, box: box.Handler()}
	srv := httptest.NewServer(b)
	b.addr = srv.Listener.Addr().String()
	t.Cleanup(func() {
		if err := box.Close(); err != nil { // lets the hanging requests go
			t.Error(err)
		}
		srv.Close()
	})
	return b
}

func (b *bank) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	front := b.front
	b.mu.Unlock()
	if front == nil {
		b.box.ServeHTTP(w, r)
		return
	}
	front(w, r, b.box)
}

func (b *bank) setFront(front func(w http.ResponseWriter, r *http.Request, box http.Handler)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.front = front
}

func away(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
	w.WriteHeader(http.StatusServiceUnavailable)
}

// ask goes to the sandbox itself, past the front.
func (b *bank) ask(method, path, key string, in, out any) int {
	b.t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		b.t.Fatal(err)
	}
	r := httptest.NewRequest(method, path, bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Idempotency-Key", key)
	w := httptest.NewRecorder()
	b.box.ServeHTTP(w, r)
	if out != nil {
		if err := json.Unmarshal(w.Body.Bytes(), out); err != nil {
			b.t.Fatalf("%s %s: %v", method, path, err)
		}
	}
	return w.Code
}

type bankCharge struct {
	ID             string `json:"id"`
	IdempotencyKey string `json:"idempotency_key"`
	Amount         int64  `json:"amount"`
	Currency       string `json:"currency"`
	Status         string `json:"status"`
	RefundedAmount int64  `json:"refunded_amount"`
}

func (b *bank) ledger(orderID string) (taken []bankCharge) {
	b.t.Helper()
	var all []bankCharge
	b.ask("GET", "/payments/charges?order_reference="+orderID, "", nil, &all)
	for _, c := range all {
		if c.Status == "succeeded" {
			taken = append(taken, c)
		}
	}
	return taken
}

func (b *bank) provider() Provider { return providerAt(b.t, b.addr, time.Minute) }

// newService has short limits; edit changes them.
func newService(t *testing.T, db *sqldb.DB, p Provider, edit func(*Config)) *Service {
	t.Helper()
	cfg := Config{
		Outbox: outbox.New(db, "/payment-service"), Provider: p, Metrics: prometheus.NewRegistry(),
		Log:     slog.New(slog.NewTextHandler(t.Output(), nil)),
		Timeout: 500 * time.Millisecond, Lease: 1500 * time.Millisecond,
	}
	if edit != nil {
		edit(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// patient has limits that no slow machine reaches.
func patient(c *Config) { c.Timeout, c.Lease = 20*time.Second, time.Minute }

// unhurried waits for every answer, and soon takes over from a process that died.
func unhurried(c *Config) { c.Timeout = 20 * time.Second }

// run runs the service until the test ends or stop is called, which waits.
func run(t *testing.T, s *Service) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// order is a new order of a customer whose address has the tag.
func order(tag string) event.OrderCreated {
	address := "ivan@example.com"
	if tag != "" {
		address = "ivan+" + tag + "@example.com"
	}
	return event.OrderCreated{
		OrderID: uuid.NewString(), OrderNumber: "A-1", CustomerName: "Иван", CustomerEmail: address, CustomerPhone: "+79001234567",
		TotalAmount: 120000, Currency: "RUB", Locale: "ru", CreatedAt: sqldb.Now(),
		Items: []event.Item{{PizzaID: uuid.NewString(), Name: "Маргарита", Size: "large", Quantity: 2, Price: 60000}},
	}
}

// deliver hands the event to the service as its consumer does.
func deliver(ctx context.Context, s *Service, o event.OrderCreated) error {
	return s.outbox.Tx(ctx, func(tx *outbox.Tx) error {
		return s.onOrderCreated(ctx, tx, []inbox.Delivery[event.OrderCreated]{{EventID: uuid.NewString(), Event: o}})
	})
}

// awaitOpen waits until a worker accepts payments that are handed over.
func awaitOpen(t *testing.T, s *Service) {
	t.Helper()
	eventually(t, func() string {
		if !s.charges.Lease(1).Token.Valid {
			return "nothing is handed over"
		}
		return ""
	})
}

func accept(t *testing.T, s *Service, o event.OrderCreated) {
	t.Helper()
	if err := deliver(t.Context(), s, o); err != nil {
		t.Fatal(err)
	}
}

// awaitResults waits until a result was counted so often: it is counted after it is
// stored.
func awaitResults(t *testing.T, s *Service, result string, want float64) {
	t.Helper()
	eventually(t, func() string {
		if got := testutil.ToFloat64(s.metrics.payments.WithLabelValues(result)); got != want {
			return fmt.Sprintf("pizza_payments_total{result=%q} is %v, want %v", result, got, want)
		}
		return ""
	})
}

// eventually waits until check returns "", or fails with the last text it returned.
func eventually(t *testing.T, check func() string) {
	t.Helper()
	deadline, tick := time.After(45*time.Second), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for {
		said := check()
		if said == "" {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal(said)
		}
	}
}

// row is a payment as it is stored, with its work columns.
type row struct {
	Payment
	message string
	due     time.Time
	leased  bool
	claims  int
}

func readRow(t *testing.T, db *sqldb.DB, orderID string) (r row) {
	t.Helper()
	err := db.Read().QueryRowContext(t.Context(), `
		SELECT id, order_id, amount, currency, status, COALESCE(transaction_id, ''), COALESCE(error_code, ''), COALESCE(error_message, ''),
			version, calls, checks, created_at, completed_at, due_at, lease_token IS NOT NULL, attempts
		FROM payments WHERE order_id = $1`, orderID).Scan(
		&r.ID, &r.OrderID, &r.Amount, &r.Currency, &r.Status, &r.TransactionID, &r.ErrorCode, &r.message,
		&r.Version, &r.Calls, &r.Checks, sqldb.Time(&r.CreatedAt), sqldb.Time(&r.CompletedAt), sqldb.Time(&r.due), &r.leased, &r.claims)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// history is the attempts of a payment in words: "charge unknown, lookup captured".
func history(t *testing.T, db *sqldb.DB, paymentID string) string {
	t.Helper()
	rows, err := db.Read().QueryContext(t.Context(), `
		SELECT attempt, kind, COALESCE(outcome, 'open'), COALESCE(detail, ''), started_at, ended_at
		FROM payment_attempts WHERE payment_id = $1 ORDER BY attempt`, paymentID)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var all []string
	for rows.Next() {
		var n int
		var kind, outcome, detail string
		var from, to time.Time
		if err := rows.Scan(&n, &kind, &outcome, &detail, sqldb.Time(&from), sqldb.Time(&to)); err != nil {
			t.Fatal(err)
		}
		if all = append(all, kind+" "+outcome); n != len(all) || to.Before(from) && outcome != "open" {
			t.Errorf("attempt %d is the %dth, from %s to %s", n, len(all), from, to)
		}
		if (outcome == "unknown") != (detail != "") || strings.Contains(detail, "@") {
			t.Errorf("attempt %d was %s: %q", n, outcome, detail)
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, ", ")
}

// awaitFinal waits until each order's payment is final and nothing is due.
func awaitFinal(t *testing.T, db *sqldb.DB, orders ...event.OrderCreated) {
	t.Helper()
	for _, o := range orders {
		eventually(t, func() string {
			if r := readRow(t, db, o.OrderID); r.Status != Completed && r.Status != Failed {
				return fmt.Sprintf("order of %s: still %s after %s", o.CustomerEmail, r.Status, history(t, db, r.ID))
			}
			return ""
		})
	}
}

// audit compares an order's payment in the database, its event, and the provider's
// ledger and request log.
func audit(t *testing.T, db *sqldb.DB, b *bank, o event.OrderCreated) row {
	t.Helper()
	r := readRow(t, db, o.OrderID)
	who := fmt.Sprintf("order of %s, %s after %s", o.CustomerEmail, r.Status, history(t, db, r.ID))
	if r.Amount != o.TotalAmount || r.Currency != o.Currency || r.leased && r.due.IsZero() {
		t.Errorf("%s: stored as %+v", who, r)
	}
	var n, version int
	var kind, data, topic string
	err := db.Read().QueryRowContext(t.Context(), `
		SELECT COUNT(*), MAX(aggregate_version), MAX(event_type), MAX(CAST(event_data AS TEXT)), MAX(topic) FROM outbox_events WHERE aggregate_id = $1`, r.ID).
		Scan(&n, &version, &kind, &data, &topic)
	if err != nil {
		t.Fatalf("%s: %v", who, err)
	}
	if n != 1 || version != 1 || r.Version != 1 || topic != event.PaymentTopic {
		t.Errorf("%s: %d events, version %d (row %d), on %s", who, n, version, r.Version, topic)
	}
	var want event.Money
	switch r.Status {
	case Completed:
		want = o.TotalAmount
		var e event.PaymentCompleted
		decodeEvent(t, data, &e)
		if kind != "PaymentCompleted" || e.Validate() != nil || e.Amount != o.TotalAmount || e.OrderID != o.OrderID ||
			e.TransactionID != r.TransactionID || !e.CompletedAt.Equal(r.CompletedAt) {
			t.Errorf("%s: emitted %s %s", who, kind, data)
		}
	case Failed:
		var e event.PaymentFailed
		decodeEvent(t, data, &e)
		if kind != "PaymentFailed" || e.Validate() != nil || e.Amount != o.TotalAmount || e.OrderID != o.OrderID ||
			e.ErrorCode != r.ErrorCode || e.ErrorMessage == "" || e.ErrorMessage != r.message || !e.FailedAt.Equal(r.CompletedAt) {
			t.Errorf("%s: emitted %s %s", who, kind, data)
		}
	default:
		t.Errorf("%s: not final", who)
	}
	if strings.Contains(data, "@") || strings.Contains(data, "Иван") {
		t.Errorf("%s: the event has personal data: %s", who, data)
	}
	var kept event.Money
	taken := b.ledger(o.OrderID)
	for _, c := range taken {
		kept += event.Money(c.Amount - c.RefundedAmount)
		if c.IdempotencyKey != r.ID || c.ID != r.TransactionID || c.Amount != int64(o.TotalAmount) || c.Currency != o.Currency {
			t.Errorf("%s: charged as %+v", who, c)
		}
	}
	if len(taken) > 1 || kept != want {
		t.Errorf("%s: %d charges, %s kept, want %s", who, len(taken), kept, want)
	}
	return r
}

func decodeEvent(t *testing.T, data string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(data), v); err != nil {
		t.Fatal(err)
	}
}

// auditKeys checks that no charge was ever asked for under two keys.
func auditKeys(t *testing.T, b *bank) {
	t.Helper()
	var requests []struct {
		Method, Path   string
		IdempotencyKey string `json:"idempotency_key"`
		OrderReference string `json:"order_reference"`
	}
	b.ask("GET", "/payments/requests", "", nil, &requests)
	keys := map[string]string{}
	for _, r := range requests {
		if r.Method != "POST" || !strings.HasSuffix(r.Path, "/charges") {
			continue
		}
		if known, ok := keys[r.OrderReference]; ok && known != r.IdempotencyKey {
			t.Errorf("order %s was charged under two keys", r.OrderReference)
		}
		keys[r.OrderReference] = r.IdempotencyKey
	}
}

// A fate is what becomes of a customer's order, and how.
type fate struct {
	tag     string
	status  Status
	code    string
	history string
}

func TestEveryTagEndsRight(t *testing.T) {
	t.Parallel()
	cases := []fate{
		{"", Completed, "", "charge captured"},
		{"declined", Failed, "card_declined", "charge declined"},
		{"insufficient_funds", Failed, "insufficient_funds", "charge declined"},
		{"declined-always", Failed, "card_declined", "charge declined"},
		{"error", Completed, "", "charge unknown, lookup absent, charge captured"},
		{"lost", Completed, "", "charge unknown, lookup captured"},
		{"lost-always", Completed, "", "charge unknown, lookup captured"},
		{"timeout", Completed, "", "charge unknown, lookup captured"},
		{"timeout-always", Completed, "", "charge unknown, lookup captured"},
		{"hang", Completed, "", "charge unknown, lookup absent, charge captured"},
	}
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		t.Parallel()
		// every answer that comes is in time, even where the disk is busy
		s := endAll(t, db, 5*time.Second, cases)
		for result, want := range map[string]float64{"completed": 7, "declined": 3, "unknown": 6, "provider_unavailable": 0, "refunded": 0} {
			awaitResults(t, s, result, want)
		}
	}, schemas...)
}

// TestSlowAnswer has the answer come after two seconds, when nobody waits for
// it any more.
func TestSlowAnswer(t *testing.T) {
	t.Parallel()
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		t.Parallel()
		s := endAll(t, db, 1500*time.Millisecond, []fate{{"slow", Completed, "", "charge unknown, lookup captured"}})
		awaitResults(t, s, "completed", 1)
		awaitResults(t, s, "unknown", 1)
	}, schemas...)
}

// endAll has an order of each customer charged, with a limit for each call, and
// wants their fates.
func endAll(t *testing.T, db *sqldb.DB, timeout time.Duration, cases []fate) *Service {
	t.Helper()
	b := openBank(t)
	s := newService(t, db, b.provider(), func(c *Config) { c.Timeout, c.Lease = timeout, time.Minute })
	run(t, s)
	orders := make([]event.OrderCreated, len(cases))
	for i, c := range cases {
		orders[i] = order(c.tag)
		accept(t, s, orders[i])
	}
	awaitFinal(t, db, orders...)
	for i, c := range cases {
		r := audit(t, db, b, orders[i])
		// a slow machine may lose the answer to a lookup
		if got := strings.ReplaceAll(history(t, db, r.ID), "lookup unknown, ", ""); r.Status != c.status || r.ErrorCode != c.code || got != c.history {
			t.Errorf("+%s: %s %q after %s; want %s %q after %s", c.tag, r.Status, r.ErrorCode, got, c.status, c.code, c.history)
		}
		if !r.due.IsZero() {
			t.Errorf("+%s: due again at %s", c.tag, r.due)
		}
	}
	auditKeys(t, b)
	return s
}

// TestLateCharge has the provider take the money 20 seconds after it was asked.
func TestLateCharge(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 20 seconds")
	}
	t.Parallel()
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		t.Parallel()
		b := openBank(t)
		s := newService(t, db, b.provider(), func(c *Config) { c.Timeout = time.Second })
		o := order("late")
		accept(t, s, o)
		run(t, s)
		awaitFinal(t, db, o)
		if r := audit(t, db, b, o); r.Status != Completed {
			t.Errorf("%s after %s", r.Status, history(t, db, r.ID))
		}
		auditKeys(t, b)
	}, schemas...)
}

func TestOneOrderOnePayment(t *testing.T) {
	t.Parallel()
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		t.Parallel()
		b := openBank(t)
		s := newService(t, db, b.provider(), nil)
		run(t, s)
		o := order("")
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				if err := deliver(t.Context(), s, o); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		awaitFinal(t, db, o)
		accept(t, s, o) // and once more when it is over
		audit(t, db, b, o)
		if n := countRows(t, db, "payments"); n != 1 {
			t.Errorf("%d payments for one order", n)
		}

		dearer := o
		dearer.TotalAmount++
		if err := deliver(t.Context(), s, dearer); !errors.Is(err, ErrAmountChanged) {
			t.Errorf("another amount: %v", err)
		}
		foreign := o
		foreign.Currency = "USD"
		if err := deliver(t.Context(), s, foreign); !errors.Is(err, ErrAmountChanged) {
			t.Errorf("another currency: %v", err)
		}
		nonsense := order("")
		nonsense.OrderID = "{" + nonsense.OrderID + "}"
		if err := deliver(t.Context(), s, nonsense); !errors.Is(err, ErrOrderID) {
			t.Errorf("an order id that is none: %v", err)
		}
		if n := countRows(t, db, "payments"); n != 1 {
			t.Errorf("%d payments after refusals", n)
		}
		audit(t, db, b, o)
	}, schemas...)
}

func countRows(t *testing.T, db *sqldb.DB, table string) (n int) {
	t.Helper()
	if err := db.Read().QueryRowContext(t.Context(), `SELECT COUNT(*) FROM `+table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestNewNeedsItsParts(t *testing.T) {
	db := sqltest.Open(t, sqldb.SQLite)
	if _, err := New(Config{Outbox: outbox.New(db, "/payment-service")}); err == nil {
		t.Error("no provider is needed")
	}
	if _, err := New(Config{Provider: openBank(t).provider()}); err == nil {
		t.Error("no outbox is needed")
	}
}

// proxy passes a request on to the sandbox and returns what it answered.
func proxy(r *http.Request, box http.Handler) *httptest.ResponseRecorder {
	body, _ := io.ReadAll(r.Body) // what is cut off the sandbox will refuse
	to := httptest.NewRequest(r.Method, r.URL.String(), bytes.NewReader(body))
	to.Header = r.Header.Clone()
	w := httptest.NewRecorder()
	box.ServeHTTP(w, to)
	return w
}
