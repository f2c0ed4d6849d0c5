package frontend

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	orders "pizzaflow/order"
	"pizzaflow/outbox"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
	"pizzaflow/web"
)

const (
	margherita = "ac2176b3-ac09-4589-9a12-de3265692c5b"
	pepperoni  = "ebb039d2-7446-408c-956b-d230bd463680"
	fourCheese = "f769c178-640c-4ac3-97bb-0d7313e052b4"
)

// orderAPI is the order service on a database of its own. It can be away or busy,
// and it counts the reads of orders.
type orderAPI struct {
	t       testing.TB
	db      *sqldb.DB
	service http.Handler

	mu      sync.Mutex
	away    bool // answers 503
	busy    int  // answers 409 to that many more orders
	reads   int
	headers []http.Header // of the orders that were posted
}

func newOrderAPI(t testing.TB) *orderAPI {
	t.Helper()
	db := sqltest.Open(t, sqldb.SQLite, sqltest.Schema{Name: "outbox", FS: outbox.Schema}, sqltest.Schema{Name: "order", FS: orders.Schema})
	s, err := orders.New(orders.Config{Outbox: outbox.New(db, "/order-service")})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	s.Routes(mux)
	return &orderAPI{t: t, db: db, service: mux}
}

// ServeHTTP is http.Handler's.
func (a *orderAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if p := a.refusal(r); p != nil {
		web.Error(w, r, nil, p)
		return
	}
	a.service.ServeHTTP(w, r)
}

// refusal counts a request and returns the problem to refuse it with, or nil.
func (a *orderAPI) refusal(r *http.Request) *web.Problem {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.away {
		return web.Unavailable("The database is away.")
	}
	switch {
	case r.Method == http.MethodPost:
		a.headers = append(a.headers, r.Header.Clone())
		if a.busy > 0 {
			a.busy--
			return web.NewProblem(http.StatusConflict, "idempotency-key-in-progress", "busy", "")
		}
	case strings.HasPrefix(r.URL.Path, "/api/v1/orders/"):
		a.reads++
	}
	return nil
}

func (a *orderAPI) set(change func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change()
}

// countReads returns how often an order was read.
func (a *orderAPI) countReads() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.reads
}

// countOrders returns how many orders are stored.
func (a *orderAPI) countOrders() (n int) {
	a.t.Helper()
	if err := a.db.QueryRow(`SELECT COUNT(*) FROM orders`).Scan(&n); err != nil {
		a.t.Fatal(err)
	}
	return n
}

// onlyNumber returns the number of the only order.
func (a *orderAPI) onlyNumber() (number string) {
	a.t.Helper()
	if err := a.db.QueryRow(`SELECT order_number FROM orders`).Scan(&number); err != nil {
		a.t.Fatal(err)
	}
	return number
}

// advance adds a step to an order, as a payment event does. A status that the
// service does not know is added to the history alone.
func (a *orderAPI) advance(id, status, reason string) {
	a.t.Helper()
	err := a.db.Tx(context.Background(), func(tx *sql.Tx) error {
		_, err := tx.Exec(`UPDATE orders SET version = version + 1, failure_reason = NULLIF($1, ''),
			status = CASE WHEN $2 IN ('paid', 'payment_failed') THEN $2 ELSE status END,
			paid_at = CASE WHEN $2 = 'paid' THEN $3 END WHERE id = $4`, reason, status, sqldb.Now(), id)
		if err != nil {
			return err
		}
		_, err = tx.Exec(`INSERT INTO order_history (order_id, version, status, at) SELECT id, version, $1, $2 FROM orders WHERE id = $3`, status, sqldb.Now(), id)
		return err
	})
	if err != nil {
		a.t.Error(err)
	}
}

// menu returns the pizzas of the order service's menu.
func (a *orderAPI) menu() []pizza {
	a.t.Helper()
	rec := httptest.NewRecorder()
	a.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/api/v1/menu", nil))
	var m menu
	if err := json.Unmarshal(rec.Body.Bytes(), &m); err != nil || len(m.Pizzas) == 0 {
		a.t.Fatalf("menu: %d %s %v", rec.Code, rec.Body, err)
	}
	return m.Pizzas
}

// place places an order by the API itself and returns its id.
func (a *orderAPI) place(t testing.TB) string {
	t.Helper()
	body := fmt.Sprintf(`{"customer_name":"Иван Иванов","customer_email":"ivan@example.com","customer_phone":"+7-900-123-45-67",
		"items":[{"pizza_id":%q,"quantity":2,"size":"large"}],"delivery_address":"ул. Пушкина, д. 10","locale":"ru"}`, margherita)
	req := httptest.NewRequest(http.MethodPost, "/api/v1/orders", strings.NewReader(body))
	req.Header.Set("Content-Type", "application/json")
	rec := httptest.NewRecorder()
	a.ServeHTTP(rec, req)
	var o order
	if err := json.Unmarshal(rec.Body.Bytes(), &o); err != nil || rec.Code != http.StatusCreated {
		t.Fatalf("place: %d %s %v", rec.Code, rec.Body, err)
	}
	return o.OrderID
}

// withWordReplaced returns api with a word replaced in all its answers: an order
// service of a later version.
func withWordReplaced(api http.Handler, word, another string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := httptest.NewRecorder()
		api.ServeHTTP(rec, r)
		w.WriteHeader(rec.Code)
		fmt.Fprint(w, strings.ReplaceAll(rec.Body.String(), word, another))
	})
}

// noBroker is the address of a broker for tests that do not call Run.
var noBroker = []kgo.Opt{kgo.SeedBrokers("127.0.0.1:1")}

func newService(t testing.TB, api http.Handler, kafka []kgo.Opt) *Service {
	t.Helper()
	s, err := New(Config{API: api, Kafka: kafka})
	if err != nil {
		t.Fatal(err)
	}
	return s
}
