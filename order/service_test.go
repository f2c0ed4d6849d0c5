package order

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pizzaflow/outbox"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
	"pizzaflow/web"
)

var schemas = []sqltest.Schema{{Name: "outbox", FS: outbox.Schema}, {Name: "order", FS: Schema}}

// A fixture is the service behind a real server.
type fixture struct {
	*Service
	t       *testing.T
	url     string
	metrics *prometheus.Registry
}

func newFixture(t *testing.T, db *sqldb.DB, cfg Config) *fixture {
	t.Helper()
	reg := prometheus.NewRegistry()
	cfg.Outbox, cfg.Metrics = outbox.New(db, "/order-service"), reg
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	s.Routes(mux)
	server := httptest.NewServer(web.Handler(mux, web.HandlerConfig{Log: cfg.Log}))
	t.Cleanup(server.Close)
	return &fixture{Service: s, t: t, url: server.URL, metrics: reg}
}

// A reply is an answer with its body read.
type reply struct {
	*http.Response
	body []byte
}

// do sends a request; headers come as name, value, name, value.
func (f *fixture) do(method, path, body string, headers ...string) reply {
	f.t.Helper()
	r, err := f.try(method, path, body, headers...)
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

func (f *fixture) try(method, path, body string, headers ...string) (reply, error) {
	req, err := http.NewRequestWithContext(f.t.Context(), method, f.url+path, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Content-Type" {
			req.Header.Del(headers[i])
		}
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return reply{Response: resp, body: b}, err
}

// place posts an order and wants it to be accepted.
func (f *fixture) place(body string, headers ...string) (createdView, reply) {
	f.t.Helper()
	r := f.do("POST", "/api/v1/orders", body, headers...)
	if r.StatusCode != http.StatusCreated {
		f.t.Fatalf("place: %d %s", r.StatusCode, r.body)
	}
	var v createdView
	decode(f.t, r.body, &v)
	return v, r
}

// get reads an order over HTTP.
func (f *fixture) get(id string) orderView {
	f.t.Helper()
	r := f.do("GET", "/api/v1/orders/"+id, "")
	if r.StatusCode != http.StatusOK {
		f.t.Fatalf("get: %d %s", r.StatusCode, r.body)
	}
	var v orderView
	decode(f.t, r.body, &v)
	return v
}

func decode(t *testing.T, b []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
}

// count is one number out of the database.
func (f *fixture) count(query string, args ...any) int {
	f.t.Helper()
	var n int
	if err := f.db.QueryRowContext(f.t.Context(), query, args...).Scan(&n); err != nil {
		f.t.Fatal(err)
	}
	return n
}

// tables are the tables that a placement writes to.
var tables = []string{"orders", "order_items", "order_history", "idempotency_keys", "outbox_events"}

// wantRows compares the sizes of the tables.
func (f *fixture) wantRows(want ...int) {
	f.t.Helper()
	for i, table := range tables {
		if n := f.count(`SELECT COUNT(*) FROM ` + table); n != want[i] {
			f.t.Errorf("%s has %d rows, want %d", table, n, want[i])
		}
	}
}

func (f *fixture) exec(query string, args ...any) {
	f.t.Helper()
	if _, err := f.db.ExecContext(f.t.Context(), query, args...); err != nil {
		f.t.Fatal(err)
	}
}

// run runs the jobs until the test ends.
func (f *fixture) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	f.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			f.t.Errorf("run: %v", err)
		}
	})
}

// eventually waits for the condition to hold.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(45 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("not in time: %s", what)
		case <-tick.C:
		}
	}
}

const (
	margherita = "ac2176b3-ac09-4589-9a12-de3265692c5b"

	sample = `{ "customer_name": "Иван Иванов", "customer_email": "ivan@example.com",
  "customer_phone": "+7-900-123-45-67",
  "items": [ { "pizza_id": "` + margherita + `", "quantity": 2, "size": "large" } ],
  "delivery_address": "ул. Пушкина, д. 10" }`
)

// with is the sample with some of its fields replaced; a nil value removes one.
func with(t *testing.T, fields map[string]any) string {
	t.Helper()
	var m map[string]any
	decode(t, []byte(sample), &m)
	for k, v := range fields {
		if m[k] = v; v == nil {
			delete(m, k)
		}
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func items(n int, pizzaID string, quantity any, size string) []any {
	lines := make([]any, n)
	for i := range lines {
		lines[i] = map[string]any{"pizza_id": pizzaID, "quantity": quantity, "size": size}
	}
	return lines
}

func TestPlace(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		f := newFixture(t, db, Config{})
		before := sqldb.Now()
		v, r := f.place(sample, "Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
		if got := r.Header.Get("Location"); got != "/api/v1/orders/"+v.OrderID || !isID(v.OrderID) {
			t.Errorf("location %q of order %q", got, v.OrderID)
		}
		want := fmt.Sprintf(`{"order_id":"%s","order_number":"%s","status":"pending","total_amount":1200.00,"currency":"RUB",`+
			`"items":[{"pizza_id":"%s","name":"Маргарита","size":"large","quantity":2,"price":600.00}],`+
			`"delivery_address":"ул. Пушкина, д. 10","created_at":"%s"}`,
			v.OrderID, v.OrderNumber, margherita, v.CreatedAt.Format(time.RFC3339Nano))
		if got := strings.TrimSpace(string(r.body)); got != want {
			t.Errorf("body\n%s\nwant\n%s", got, want)
		}
		if v.CreatedAt.Before(before) || v.CreatedAt.After(sqldb.Now()) || len(v.OrderNumber) != 8 {
			t.Errorf("created at %s, number %q", v.CreatedAt, v.OrderNumber)
		}
		if cc := r.Header.Get("Cache-Control"); cc != "no-store" {
			t.Errorf("cache control %q", cc)
		}
		f.wantRows(1, 1, 1, 0, 1)

		var data, headers, key string
		var version int
		err := db.QueryRowContext(t.Context(), `SELECT event_data, headers, key, aggregate_version FROM outbox_events
			WHERE event_type = 'OrderCreated' AND topic = 'order-events' AND aggregate_id = $1`, v.OrderID).
			Scan(&data, &headers, &key, &version)
		if err != nil {
			t.Fatal(err)
		}
		want = fmt.Sprintf(`{"order_id":"%s","order_number":"%s","customer_name":"Иван Иванов","customer_email":"ivan@example.com",`+
			`"customer_phone":"+79001234567","total_amount":1200.00,"currency":"RUB",`+
			`"items":[{"pizza_id":"%s","name":"Маргарита","size":"large","quantity":2,"price":600.00}],`+
			`"delivery_address":"ул. Пушкина, д. 10","locale":"ru","created_at":"%s"}`,
			v.OrderID, v.OrderNumber, margherita, v.CreatedAt.Format(time.RFC3339Nano))
		if data != want || version != 1 || key != v.OrderID {
			t.Errorf("event %d of %s\n%s\nwant\n%s", version, key, data, want)
		}
		if !strings.Contains(headers, "00-0af7651916cd43dd8448eb211c80319c-") {
			t.Errorf("the request's trace is not in the event's headers: %s", headers)
		}
	}, schemas...)
}

// TestPlaceKeepsText stores the customer's texts in their normal form.
func TestPlaceKeepsText(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		f := newFixture(t, db, Config{Currency: "EUR"})
		v, _ := f.place(with(t, map[string]any{
			"customer_name":    "  <script>alert(1)</script> И\u0306О'Нил\u202e ",
			"delivery_address": "ул. Ленина, 1\r\nподъезд 2",
			"comment":          "=cmd|' /C calc'!A0",
			"locale":           "en",
			"items":            append(items(1, margherita, 1, "small"), items(2, margherita, 100, "medium")...),
		}))
		o, err := f.Order(t.Context(), v.OrderID)
		if err != nil {
			t.Fatal(err)
		}
		if o.Customer.Name != "<script>alert(1)</script> Й"+"О'Нил" || o.Address != "ул. Ленина, 1\nподъезд 2" || o.Comment != "=cmd|' /C calc'!A0" {
			t.Errorf("stored %q, %q, %q", o.Customer.Name, o.Address, o.Comment)
		}
		if len(o.Items) != 3 || o.Items[1].Name != "Margherita" || o.Items[2].Quantity != 100 || o.Total != 400_00+200*500_00 {
			t.Errorf("items %+v, total %s", o.Items, o.Total)
		}
		if o.Currency != "EUR" || o.Locale != "en" || o.Customer.Phone != "+79001234567" {
			t.Errorf("currency %s, locale %s, phone %s", o.Currency, o.Locale, o.Customer.Phone)
		}
	}, schemas...)
}

// TestPlaceMany places at once and finds every order whole.
func TestPlaceMany(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		f := newFixture(t, db, Config{})
		const n = 64
		replies := f.parallel(n, func(i int) (reply, error) {
			return f.try("POST", "/api/v1/orders", sample, "Idempotency-Key", fmt.Sprint("key-", i))
		})
		ids := map[string]bool{}
		for _, r := range replies {
			if r.StatusCode != http.StatusCreated {
				t.Fatalf("%d %s", r.StatusCode, r.body)
			}
			var v createdView
			decode(t, r.body, &v)
			ids[v.OrderID] = true
		}
		if len(ids) != n {
			t.Errorf("%d different orders, want %d", len(ids), n)
		}
		f.wantRows(n, n, n, n, n)
		whole := f.count(`SELECT COUNT(*) FROM orders o
			JOIN order_items i ON i.order_id = o.id JOIN order_history h ON h.order_id = o.id AND h.version = o.version
			JOIN idempotency_keys k ON k.order_id = o.id
			WHERE EXISTS (SELECT 1 FROM outbox_events e WHERE e.event_type = 'OrderCreated' AND e.event_data IS NOT NULL)`)
		if whole != n {
			t.Errorf("%d whole orders, want %d", whole, n)
		}
	}, schemas...)
}

// parallel makes n requests at once.
func (f *fixture) parallel(n int, send func(i int) (reply, error)) []reply {
	f.t.Helper()
	type result struct {
		reply
		err error
	}
	results, begin := make(chan result), make(chan struct{})
	for i := range n {
		go func() {
			<-begin
			r, err := send(i)
			results <- result{r, err}
		}()
	}
	close(begin)
	replies := make([]reply, 0, n)
	for range n {
		r := <-results
		if r.err != nil {
			f.t.Error(r.err)
			continue
		}
		replies = append(replies, r.reply)
	}
	if len(replies) != n {
		f.t.FailNow()
	}
	return replies
}

// TestPlaceIsAtomic lets the last statement of the transaction fail.
func TestPlaceIsAtomic(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		f := newFixture(t, db, Config{})
		f.exec(`ALTER TABLE outbox_events RENAME TO elsewhere`)
		r := f.do("POST", "/api/v1/orders", sample, "Idempotency-Key", "k")
		if r.StatusCode != http.StatusServiceUnavailable || r.Header.Get("Retry-After") == "" || bytes.Contains(r.body, []byte("outbox_events")) {
			t.Errorf("%d %s", r.StatusCode, r.body)
		}
		f.exec(`ALTER TABLE elsewhere RENAME TO outbox_events`)
		f.wantRows(0, 0, 0, 0, 0)
		f.place(sample, "Idempotency-Key", "k") // a failure does not use the key up
		f.wantRows(1, 1, 1, 1, 1)
	}, schemas...)
}

// TestNumberIsDrawnAgain gives two orders the same number at first.
func TestNumberIsDrawnAgain(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		f := newFixture(t, db, Config{})
		numbers := []string{"222-2222", "222-2222", "222-2222", "333-3333"}
		f.drawNumber = func() string {
			n := numbers[0]
			numbers = numbers[1:]
			return n
		}
		first, _ := f.place(sample)
		second, _ := f.place(sample)
		if first.OrderNumber != "222-2222" || second.OrderNumber != "333-3333" {
			t.Errorf("numbers %s and %s", first.OrderNumber, second.OrderNumber)
		}
		f.drawNumber = func() string { return "222-2222" }
		if r := f.do("POST", "/api/v1/orders", sample); r.StatusCode != http.StatusInternalServerError {
			t.Errorf("without a free number: %d %s", r.StatusCode, r.body)
		}
		f.wantRows(2, 2, 2, 0, 2)
	}, schemas...)
}

// TestDatabaseAway wants 503 and nothing said about the reason.
func TestDatabaseAway(t *testing.T) {
	for _, engine := range []sqldb.Engine{sqldb.SQLite, sqldb.Postgres} {
		t.Run(string(engine), func(t *testing.T) {
			url := sqltest.URL(t, engine)
			db := sqltest.Connect(t, url, schemas...)
			f := newFixture(t, db, Config{})
			v, _ := f.place(sample)
			readOnly := f
			if engine == sqldb.Postgres { // as after a fail-over that was not noticed
				readOnly = newFixture(t, sqltest.Connect(t, url+"&default_transaction_read_only=on"), Config{})
			} else {
				f.exec(`PRAGMA query_only(1)`)
			}
			r := readOnly.do("POST", "/api/v1/orders", sample, "Idempotency-Key", "k")
			if r.StatusCode != http.StatusServiceUnavailable || r.Header.Get("Retry-After") == "" {
				t.Errorf("%d %s", r.StatusCode, r.body)
			}
			for _, word := range []string{"read", "sql", "SQL", "INSERT", "transaction"} {
				if bytes.Contains(bytes.ReplaceAll(r.body, []byte("stored or read"), nil), []byte(word)) {
					t.Errorf("the answer says %q: %s", word, r.body)
				}
			}
			readOnly.get(v.OrderID)
			if engine == sqldb.SQLite {
				f.exec(`PRAGMA query_only(0)`)
			}
			f.wantRows(1, 1, 1, 0, 1)
			f.place(sample, "Idempotency-Key", "k")
		})
	}
}

func TestNewRefusesNonsense(t *testing.T) {
	db := sqltest.Open(t, sqldb.SQLite)
	ob := outbox.New(db, "/order-service")
	for name, cfg := range map[string]Config{
		"no outbox": {}, "currency": {Outbox: ob, Currency: "rub"}, "deadline": {Outbox: ob, Deadline: -1},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	reg := prometheus.NewRegistry()
	if _, err := New(Config{Outbox: ob, Metrics: reg}); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{Outbox: ob, Metrics: reg}); err == nil {
		t.Error("two services in one registry are accepted")
	}
}
