package frontend

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/google/uuid"

	"pizzaflow/event"
	"pizzaflow/internal/retry"
	"pizzaflow/web"
)

const (
	readTimeout  = 8 * time.Second        // of one read from the order API
	placeTimeout = 20 * time.Second       // of placing an order, including all retries
	busyWait     = 200 * time.Millisecond // before the retry of an order whose key is in progress
	maxAnswer    = 4 << 20                // bytes of an answer of the order API
)

var errAnswerTooLarge = errors.New("the order API's answer is too large")

// menu is the answer of GET /api/v1/menu.
type menu struct {
	Currency string  `json:"currency"`
	Pizzas   []pizza `json:"pizzas"`
}

type pizza struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	Description string `json:"description"`
	Image       string `json:"image"`
	Prices      struct {
		Small  event.Money `json:"small"` // 0 where the size is not offered
		Medium event.Money `json:"medium"`
		Large  event.Money `json:"large"`
	} `json:"prices"`
	Available bool `json:"available"`
}

// order is the answer of GET /api/v1/orders/{id}. Contacts are masked.
type order struct {
	OrderID         string       `json:"order_id"`
	OrderNumber     string       `json:"order_number"`
	Status          string       `json:"status"`
	TotalAmount     event.Money  `json:"total_amount"`
	Currency        string       `json:"currency"`
	Items           []event.Item `json:"items"`
	DeliveryAddress string       `json:"delivery_address"`
	CreatedAt       time.Time    `json:"created_at"`
	Version         int64        `json:"version"`
	History         []step       `json:"history"`
	FailureReason   string       `json:"failure_reason"`
	CustomerName    string       `json:"customer_name"`
	CustomerEmail   string       `json:"customer_email"`
	CustomerPhone   string       `json:"customer_phone"`
}

type step struct {
	Version int64     `json:"version"`
	Status  string    `json:"status"`
	At      time.Time `json:"at"`
}

// The statuses of an order.
const (
	statusPending = "pending"
	statusPaid    = "paid"
	statusFailed  = "payment_failed"
)

// isFinal reports whether an order keeps the status.
func isFinal(status string) bool { return status == statusPaid || status == statusFailed }

// readMenu reads the menu from the order API. While the order API is away it
// returns the last menu that was read: an order is priced by the order service.
func (s *Service) readMenu(r *http.Request, lang string) (menu, error) {
	var m menu
	err := s.getJSON(r.Context(), r, "/api/v1/menu?lang="+lang, &m)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.menus[lang] = m
		return m, nil
	}
	if old, ok := s.menus[lang]; ok {
		return old, nil
	}
	return menu{}, fmt.Errorf("read menu: %w", err)
}

func (s *Service) readOrder(ctx context.Context, r *http.Request, id string) (order, error) {
	if uuid.Validate(id) != nil {
		return order{}, web.NotFound("There is no such order.")
	}
	var o order
	if err := s.getJSON(ctx, r, "/api/v1/orders/"+id, &o); err != nil {
		return order{}, fmt.Errorf("read order: %w", err)
	}
	return o, nil
}

// placeOrder sends an order and returns its id. It goes on when the customer has
// left. While another request with the same key is in progress (409) it retries.
func (s *Service) placeOrder(r *http.Request, key string, body []byte) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), placeTimeout)
	defer cancel()
	header := http.Header{"Content-Type": {"application/json"}, "Idempotency-Key": {key}}
	for {
		a, err := s.callOrderAPI(ctx, r, http.MethodPost, "/api/v1/orders", header, body)
		if p := findProblem(err); p != nil && p.Status == http.StatusConflict && retry.Sleep(ctx, busyWait) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("place order: %w", err)
		}
		var o order
		if err := json.Unmarshal(a.body.Bytes(), &o); err != nil {
			return "", fmt.Errorf("place order: %w", err)
		}
		if _, err := uuid.Parse(o.OrderID); err != nil {
			return "", fmt.Errorf("place order: order_id: %w", err)
		}
		return o.OrderID, nil
	}
}

func (s *Service) getJSON(ctx context.Context, r *http.Request, path string, v any) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	a, err := s.callOrderAPI(ctx, r, http.MethodGet, path, http.Header{}, nil)
	if err != nil {
		return err
	}
	return json.Unmarshal(a.body.Bytes(), v)
}

// callOrderAPI calls the order API on behalf of the customer's request from. An
// answer of 400 and above is returned as a *web.Problem.
func (s *Service) callOrderAPI(ctx context.Context, from *http.Request, method, path string, header http.Header, body []byte) (*answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, path, bytes.NewReader(body)) //nolint:gosec // the URL has no host: a handler serves it
	if err != nil {
		return nil, err
	}
	req.Header = header.Clone()
	for _, name := range []string{"Traceparent", "X-Request-Id"} {
		if v := from.Header.Get(name); v != "" {
			req.Header.Set(name, v)
		}
	}
	req.Host, req.RemoteAddr = from.Host, from.RemoteAddr
	a := &answer{header: http.Header{}}
	s.api.ServeHTTP(a, req)
	switch {
	case a.tooLarge:
		return nil, errAnswerTooLarge
	case a.status == 0 && ctx.Err() != nil:
		return nil, ctx.Err()
	case a.status >= 400:
		return nil, a.problem()
	}
	return a, nil
}

// An answer is a whole response: as an http.ResponseWriter it keeps what a handler
// writes.
type answer struct {
	status   int
	header   http.Header
	body     bytes.Buffer
	tooLarge bool
}

// Header is http.ResponseWriter's.
func (a *answer) Header() http.Header { return a.header }

// WriteHeader is http.ResponseWriter's.
func (a *answer) WriteHeader(status int) {
	if a.status == 0 && status >= 200 {
		a.status = status
	}
}

// Write is http.ResponseWriter's.
func (a *answer) Write(b []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	if a.body.Len()+len(b) > maxAnswer {
		a.tooLarge = true
		return 0, errAnswerTooLarge
	}
	return a.body.Write(b)
}

// problem decodes the answer as a problem. If the body is no problem, the result
// has the status alone.
func (a *answer) problem() *web.Problem {
	p := &web.Problem{}
	if err := json.Unmarshal(a.body.Bytes(), p); err != nil || p.Type == "" {
		p = &web.Problem{Type: "about:blank", Title: http.StatusText(a.status)}
	}
	p.Status = a.status
	if seconds, err := strconv.Atoi(a.header.Get("Retry-After")); err == nil {
		p.RetryAfter = time.Duration(seconds) * time.Second
	}
	return p
}

// findProblem returns the problem in an error's chain, or nil.
func findProblem(err error) *web.Problem {
	var p *web.Problem
	errors.As(err, &p)
	return p
}
