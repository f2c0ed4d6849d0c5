package frontend

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/event"
	"pizzaflow/web"
)

// orderAPI is an order API that keeps orders in memory and speaks the JSON of the
// real one, as far as the frontend can tell.
type orderAPI struct {
	mux *http.ServeMux

	mu      sync.Mutex
	orders  map[string]*order
	keys    map[string]keyed
	away    bool // answers 503
	busy    int  // answers 409 to that many more orders
	reads   int
	headers []http.Header // of the orders that were posted
}

type keyed struct {
	sum [32]byte
	id  string
}

var slugs = []string{
	"margherita", "pepperoni", "four-cheese", "hawaiian", "veggie", "mushroom",
	"diablo", "carbonara", "bbq-chicken", "seafood", "mexican", "chef-special",
}

const (
	margherita = "ac2176b3-ac09-4589-9a12-de3265692c5b"
	soldOut    = "00000000-0000-4000-8000-00000000000b"
)

func pizzaID(i int) string {
	if i == 0 {
		return margherita
	}
	return fmt.Sprintf("00000000-0000-4000-8000-%012x", i)
}

func newOrderAPI() *orderAPI {
	a := &orderAPI{mux: http.NewServeMux(), orders: map[string]*order{}, keys: map[string]keyed{}}
	a.mux.HandleFunc("GET /api/v1/menu", a.getMenu)
	a.mux.HandleFunc("POST /api/v1/orders", a.postOrder)
	a.mux.HandleFunc("GET /api/v1/orders/{id}", a.getOrder)
	a.mux.HandleFunc("GET /docs/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "docs") })
	return a
}

// ServeHTTP is http.Handler's.
func (a *orderAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	away := a.away
	a.mu.Unlock()
	if away {
		web.Error(w, r, nil, web.Unavailable("The database is away."))
		return
	}
	a.mux.ServeHTTP(w, r)
}

func (a *orderAPI) set(change func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change()
}

func (a *orderAPI) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.orders)
}

var menuNames = map[string][]string{
	"en": {"Margherita", "Pepperoni", "Four Cheese", "Hawaiian", "Veggie", "Mushroom", "Diablo", "Carbonara", "BBQ Chicken", "Seafood", "Mexican", "Chef's Special"},
	"ru": {"Маргарита", "Пепперони", "Четыре сыра", "Гавайская", "Овощная", "Грибная", "Дьябло", "Карбонара", "Цыплёнок барбекю", "Морская", "Мексиканская", "От шефа"},
}

func (a *orderAPI) getMenu(w http.ResponseWriter, r *http.Request) {
	lang := cmp.Or(r.URL.Query().Get("lang"), "ru")
	about := map[string]string{"en": "Tomato sauce, mozzarella, fresh basil and olive oil.", "ru": "Томатный соус, моцарелла, свежий базилик и оливковое масло."}
	m := menu{Currency: "RUB"}
	for i, slug := range slugs {
		p := pizza{ID: pizzaID(i), Name: menuNames[lang][i], Description: about[lang], Image: "/static/pizzas/" + slug + ".svg", Available: pizzaID(i) != soldOut}
		p.Prices.Small, p.Prices.Medium, p.Prices.Large = event.Money(400_00+10_00*i), event.Money(500_00+10_00*i), event.Money(600_00+10_00*i)
		m.Pizzas = append(m.Pizzas, p)
	}
	web.JSON(w, http.StatusOK, m)
}

type placed struct {
	CustomerName    string `json:"customer_name"`
	CustomerEmail   string `json:"customer_email"`
	CustomerPhone   string `json:"customer_phone"`
	DeliveryAddress string `json:"delivery_address"`
	Comment         string `json:"comment,omitempty"`
	Locale          string `json:"locale,omitempty"`
	Items           []struct {
		PizzaID  string `json:"pizza_id"`
		Quantity int    `json:"quantity"`
		Size     string `json:"size"`
	} `json:"items"`
}

func (p *placed) faults() (errs []web.FieldError) {
	add := func(pointer, code string) { errs = append(errs, web.FieldError{Pointer: pointer, Code: code}) }
	for pointer, v := range map[string]string{"#/customer_name": p.CustomerName, "#/delivery_address": p.DeliveryAddress, "#/customer_phone": p.CustomerPhone} {
		if v == "" {
			add(pointer, "required")
		}
	}
	if !strings.Contains(p.CustomerEmail, "@") {
		add("#/customer_email", "invalid_email")
	}
	if len(p.Items) == 0 {
		add("#/items", "required")
	}
	for i, it := range p.Items {
		if it.Quantity < 1 || it.Quantity > 100 {
			add(fmt.Sprintf("#/items/%d/quantity", i), "out_of_range")
		}
		if !slices.Contains([]string{"small", "medium", "large"}, it.Size) {
			add(fmt.Sprintf("#/items/%d/size", i), "required")
		}
	}
	return errs
}

func (a *orderAPI) postOrder(w http.ResponseWriter, r *http.Request) {
	var p placed
	body, err := web.Decode(w, r, &p)
	if err != nil {
		web.Error(w, r, nil, err)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	key := r.Header.Get("Idempotency-Key")
	a.headers = append(a.headers, r.Header.Clone())
	if a.busy > 0 {
		a.busy--
		web.Error(w, r, nil, web.NewProblem(http.StatusConflict, "idempotency-key-in-progress", "busy", ""))
		return
	}
	if k, ok := a.keys[key]; ok && key != "" {
		if k.sum != sha256.Sum256(body) {
			web.Error(w, r, nil, web.NewProblem(http.StatusUnprocessableEntity, "idempotency-key-reused", "used before", ""))
			return
		}
		web.JSON(w, http.StatusCreated, a.orders[k.id])
		return
	}
	if errs := p.faults(); len(errs) > 0 {
		web.Error(w, r, nil, web.Invalid(errs...))
		return
	}
	o := &order{
		OrderID: uuid.NewString(), OrderNumber: fmt.Sprintf("A%03d-77", len(a.orders)+1), Status: statusPending, Currency: "RUB",
		DeliveryAddress: p.DeliveryAddress, CreatedAt: now(), Version: 1,
		CustomerName: "И*** И***", CustomerEmail: "i***@example.com", CustomerPhone: "+7 *** ***-**-45",
	}
	for _, it := range p.Items {
		i := slices.IndexFunc(slugs, func(s string) bool { return pizzaID(slices.Index(slugs, s)) == it.PizzaID })
		price := map[string]event.Money{"small": 400_00, "medium": 500_00, "large": 600_00}[it.Size] + event.Money(10_00*i)
		o.Items = append(o.Items, event.Item{PizzaID: it.PizzaID, Name: menuNames[p.Locale][i], Size: it.Size, Quantity: it.Quantity, Price: price})
		o.TotalAmount += price * event.Money(it.Quantity)
	}
	o.History = []step{{1, statusPending, o.CreatedAt}}
	a.orders[o.OrderID] = o
	a.keys[key] = keyed{sha256.Sum256(body), o.OrderID}
	web.JSON(w, http.StatusCreated, o)
}

func now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }

func (a *orderAPI) getOrder(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reads++
	o := a.orders[r.PathValue("id")]
	if o == nil {
		web.Error(w, r, nil, web.NotFound("There is no such order."))
		return
	}
	web.JSON(w, http.StatusOK, o)
}

// asked tells how often an order was read.
func (a *orderAPI) asked() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.reads
}

// advance gives an order its next status.
func (a *orderAPI) advance(id, status, reason string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	o := a.orders[id]
	o.Version++
	o.Status, o.FailureReason = status, reason
	o.History = append(slices.Clone(o.History), step{o.Version, status, now()})
}

// put places an order by the API itself and returns its id.
func (a *orderAPI) put(t testing.TB) string {
	t.Helper()
	body := fmt.Sprintf(`{"customer_name":"Иван Иванов","customer_email":"ivan@example.com","customer_phone":"+7-900-123-45-67",
		"items":[{"pizza_id":%q,"quantity":2,"size":"large"}],"delivery_address":"ул. Пушкина, д. 10","locale":"ru"}`, margherita)
	req := httptest.NewRequest(http.MethodPost, "/api/v1/orders", bytes.NewBufferString(body))
	req.Header.Set("Content-Type", "application/json")
	rec := httptest.NewRecorder()
	a.ServeHTTP(rec, req)
	var o order
	if err := json.Unmarshal(rec.Body.Bytes(), &o); err != nil || rec.Code != http.StatusCreated {
		t.Fatalf("place: %d %s %v", rec.Code, rec.Body, err)
	}
	return o.OrderID
}

// nowhere is a broker that nobody tries to reach: Run is not called.
var nowhere = []kgo.Opt{kgo.SeedBrokers("127.0.0.1:1")}

func newService(t testing.TB, api http.Handler, kafka []kgo.Opt) *Service {
	t.Helper()
	s, err := New(Config{API: api, Kafka: kafka})
	if err != nil {
		t.Fatal(err)
	}
	return s
}
