package order

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"golang.org/x/text/language"

	"pizzaflow/event"
	"pizzaflow/outbox"
	"pizzaflow/sqldb"
	"pizzaflow/web"
)

// Routes registers the order API and its contracts.
func (s *Service) Routes(mux *http.ServeMux) {
	for pattern, handle := range s.routes() {
		mux.HandleFunc(pattern, handle)
	}
}

func (s *Service) routes() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"GET /api/v1/menu":        s.handleGetMenu,
		"POST /api/v1/orders":     s.handlePlaceOrder,
		"GET /api/v1/orders/{id}": s.handleGetOrder,
		"GET /openapi.json":       handleGetOpenAPI,
		"GET /asyncapi.yaml":      handleGetAsyncAPI,
		"GET /docs/":              handleGetDocs,
	}
}

// placeRequest is the body of POST /api/v1/orders. Other fields are refused, a
// price first of all.
type placeRequest struct {
	CustomerName    string      `json:"customer_name"`
	CustomerEmail   string      `json:"customer_email"`
	CustomerPhone   string      `json:"customer_phone"`
	Items           []placeItem `json:"items"`
	DeliveryAddress string      `json:"delivery_address"`
	Comment         string      `json:"comment,omitempty"`
	Locale          string      `json:"locale,omitempty"`
}

type placeItem struct {
	PizzaID  string `json:"pizza_id"`
	Quantity int    `json:"quantity"`
	Size     string `json:"size"`
}

func (p *placeRequest) draft(r *http.Request) Draft {
	d := Draft{
		Name: p.CustomerName, Email: p.CustomerEmail, Phone: p.CustomerPhone,
		Address: p.DeliveryAddress, Comment: p.Comment, Locale: p.Locale, Lines: make([]Line, len(p.Items)),
	}
	if d.Locale == "" {
		d.Locale = preferredLocale(r)
	}
	for i, it := range p.Items {
		d.Lines[i] = Line(it)
	}
	return d
}

func (s *Service) handlePlaceOrder(w http.ResponseWriter, r *http.Request) {
	key, err := idempotencyKey(r.Header)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	var req placeRequest
	body, err := web.Decode(w, r, &req)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	ctx := outbox.WithTraceparent(r.Context(), r.Header.Get("Traceparent"))
	a, err := s.Place(ctx, Placement{Draft: req.draft(r), Key: key, Body: body})
	if err != nil {
		s.fail(w, r, err)
		return
	}
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Location", "/api/v1/orders/"+a.OrderID)
	if a.Replayed {
		h.Set("Idempotent-Replayed", "true")
	}
	web.JSON(w, http.StatusCreated, json.RawMessage(a.Body))
}

// idempotencyKey reads the header; "" when there is none. A comma is refused
// because two headers that were joined on their way look like that.
func idempotencyKey(h http.Header) (string, error) {
	keys := h.Values("Idempotency-Key")
	if len(keys) == 0 {
		return "", nil
	}
	bad := func(c rune) bool { return c < '!' || c > '~' || c == ',' }
	if k := keys[0]; len(keys) > 1 || k == "" || len(k) > 255 || strings.ContainsFunc(k, bad) {
		return "", web.NewProblem(http.StatusBadRequest, "idempotency-key-malformed", "The idempotency key is malformed",
			"Send one Idempotency-Key of at most 255 visible ASCII characters without a comma, or none.")
	}
	return keys[0], nil
}

// createdView is an order as the answer to its placement shows it.
type createdView struct {
	OrderID         string       `json:"order_id"`
	OrderNumber     string       `json:"order_number"`
	Status          Status       `json:"status"`
	TotalAmount     event.Money  `json:"total_amount"`
	Currency        string       `json:"currency"`
	Items           []event.Item `json:"items"`
	DeliveryAddress string       `json:"delivery_address"`
	CreatedAt       time.Time    `json:"created_at"`
}

// orderView is an order as anybody who knows its id may see it: the customer
// recognises the order, and no contact is there in full.
type orderView struct {
	createdView
	Version       int64      `json:"version"`
	History       []stepView `json:"history"`
	PaidAt        *time.Time `json:"paid_at"`
	FailureReason *string    `json:"failure_reason"`
	CustomerName  string     `json:"customer_name"`
	CustomerEmail string     `json:"customer_email"`
	CustomerPhone string     `json:"customer_phone"`
}

type stepView struct {
	Version int64     `json:"version"`
	Status  Status    `json:"status"`
	At      time.Time `json:"at"`
}

func viewCreated(o *Order) createdView {
	return createdView{
		OrderID: o.ID, OrderNumber: o.Number, Status: o.Status, TotalAmount: o.Total, Currency: o.Currency,
		Items: o.Items, DeliveryAddress: o.Address, CreatedAt: o.CreatedAt,
	}
}

// createdBody encodes the answer to a placed order. With an Idempotency-Key the
// answer is stored, so that a repeated request gets the same bytes.
func createdBody(o *Order) ([]byte, error) {
	body, err := json.Marshal(viewCreated(o))
	if err != nil {
		return nil, fmt.Errorf("encode order: %w", err)
	}
	return body, nil
}

func viewOrder(o *Order) orderView {
	v := orderView{
		createdView: viewCreated(o), Version: o.Version, History: make([]stepView, len(o.History)),
		CustomerName: maskName(o.Customer.Name), CustomerEmail: maskEmail(o.Customer.Email),
		CustomerPhone: maskPhone(o.Customer.Phone),
	}
	for i, step := range o.History {
		v.History[i] = stepView(step)
	}
	if o.Status == Paid {
		v.PaidAt = &o.PaidAt
	}
	if o.Status == PaymentFailed {
		v.FailureReason = &o.FailureReason
	}
	return v
}

func (s *Service) handleGetOrder(w http.ResponseWriter, r *http.Request) {
	o, err := s.Order(r.Context(), r.PathValue("id"))
	if err != nil {
		s.fail(w, r, err)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	web.JSON(w, http.StatusOK, viewOrder(&o))
}

type menuView struct {
	Currency string      `json:"currency"`
	Pizzas   []pizzaView `json:"pizzas"`
}

type pizzaView struct {
	ID          string     `json:"id"`
	Name        string     `json:"name"`
	Description string     `json:"description"`
	Image       string     `json:"image"`
	Prices      pricesView `json:"prices"`
	Available   bool       `json:"available"`
}

type pricesView struct {
	Small  event.Money `json:"small,omitempty"`
	Medium event.Money `json:"medium,omitempty"`
	Large  event.Money `json:"large,omitempty"`
}

func (s *Service) handleGetMenu(w http.ResponseWriter, r *http.Request) {
	locale := r.URL.Query().Get("lang")
	if locale != "ru" && locale != "en" {
		locale = preferredLocale(r)
	}
	v := menuView{Currency: s.currency, Pizzas: make([]pizzaView, len(s.menu.pizzas))}
	for i, p := range s.menu.pizzas {
		v.Pizzas[i] = pizzaView{
			ID: p.id, Name: p.name.in(locale), Description: p.description.in(locale), Image: p.image(),
			Prices: pricesView{Small: p.prices[0], Medium: p.prices[1], Large: p.prices[2]}, Available: p.available,
		}
	}
	h := w.Header()
	h.Set("Content-Language", locale)
	h.Add("Vary", "Accept-Language")
	web.JSON(w, http.StatusOK, v)
}

var locales = language.NewMatcher([]language.Tag{language.Russian, language.English})

// preferredLocale is that of our locales which the request's Accept-Language
// prefers, and Russian when it prefers neither or is missing.
func preferredLocale(r *http.Request) string {
	_, i := language.MatchStrings(locales, r.Header.Get("Accept-Language"))
	return []string{"ru", "en"}[i]
}

// fail answers a request that failed with err.
func (s *Service) fail(w http.ResponseWriter, r *http.Request, err error) {
	web.Error(w, r, s.log, problem(err))
}

// problem turns an error of the service into the problem that the client gets.
func problem(err error) error {
	var invalid *InvalidError
	switch {
	case errors.As(err, &invalid):
		errs := make([]web.FieldError, len(invalid.Faults))
		for i, f := range invalid.Faults {
			errs[i] = web.FieldError(f)
		}
		return web.Invalid(errs...)
	case errors.Is(err, ErrNotFound):
		return web.NotFound("There is no such order.")
	case errors.Is(err, ErrKeyReused):
		return web.NewProblem(http.StatusUnprocessableEntity, "idempotency-key-reused", "The idempotency key was used before",
			"This Idempotency-Key came with another body before. Use a new key for a new order.")
	case errors.Is(err, ErrKeyInProgress):
		p := web.NewProblem(http.StatusConflict, "idempotency-key-in-progress", "The idempotency key is in use",
			"Another request with this Idempotency-Key is under way. Try again with the same key and body.")
		p.RetryAfter = time.Second
		return p
	case sqldb.IsUnavailable(err):
		return web.Unavailable("Orders cannot be stored or read at the moment.").Because(err)
	}
	return err
}
