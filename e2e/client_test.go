package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"testing"
	"time"
)

// client keeps no connections, which a kill would break, and follows no redirects.
var client = &http.Client{
	Timeout:       45 * time.Second,
	Transport:     &http.Transport{DisableKeepAlives: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// send makes a request and reads the whole answer.
func send(req *http.Request) (status int, header http.Header, body []byte, err error) {
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, body, err
}

// An orderRequest is the body of POST /api/v1/orders.
type orderRequest struct {
	CustomerName    string `json:"customer_name"`
	CustomerEmail   string `json:"customer_email"`
	CustomerPhone   string `json:"customer_phone"`
	Items           []line `json:"items"`
	DeliveryAddress string `json:"delivery_address"`
}

type line struct {
	PizzaID  string `json:"pizza_id"`
	Quantity int    `json:"quantity"`
	Size     string `json:"size"`
}

// ivan is the request of the API's documentation: two large pizzas, 1200.00.
func ivan(email string) orderRequest {
	return orderRequest{
		CustomerName: "Иван Иванов", CustomerEmail: email, CustomerPhone: "+7-900-123-45-67",
		Items: []line{{PizzaID: margherita, Quantity: 2, Size: "large"}}, DeliveryAddress: "ул. Пушкина, д. 10",
	}
}

// margherita is the first pizza of the menu, whose id never changes.
const margherita = "ac2176b3-ac09-4589-9a12-de3265692c5b"

// An order is one as the API returns it.
type order struct {
	OrderID       string          `json:"order_id"`
	OrderNumber   string          `json:"order_number"`
	Status        string          `json:"status"`
	TotalAmount   json.RawMessage `json:"total_amount"`
	Currency      string          `json:"currency"`
	CreatedAt     time.Time       `json:"created_at"`
	PaidAt        *time.Time      `json:"paid_at"`
	FailureReason *string         `json:"failure_reason"`
	Version       int64           `json:"version"`
	History       []struct {
		Version int64     `json:"version"`
		Status  string    `json:"status"`
		At      time.Time `json:"at"`
	} `json:"history"`
}

// errRefused is a definite answer that is not 201.
var errRefused = errors.New("order refused")

// post places an order once. An error that is not errRefused leaves unknown
// whether it was placed.
func (d *deployment) post(ctx context.Context, body any, key string) (order, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return order{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.shop("/api/v1/orders"), bytes.NewReader(raw))
	if err != nil {
		return order{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	status, _, answer, err := send(req)
	var o order
	switch {
	case err != nil:
		return order{}, err
	case status >= 500 || status == http.StatusConflict || status == http.StatusTooManyRequests:
		return order{}, fmt.Errorf("status %d: %s", status, answer)
	case status != http.StatusCreated:
		return order{}, fmt.Errorf("%w: %d %s", errRefused, status, answer)
	}
	return o, json.Unmarshal(answer, &o)
}

func (d *deployment) shop(path string) string { return "http://" + d.address("HTTP_ADDR") + path }

// place places an order, which must be accepted. Its history is printed when the
// test fails.
func (d *deployment) place(t *testing.T, body any) order {
	t.Helper()
	o, err := d.post(t.Context(), body, "")
	if err != nil {
		t.Fatal(err)
	}
	d.printOnFailure(o.OrderID)
	return o
}

// printOnFailure lets the order's history be printed when the test fails, for up to
// three orders.
func (d *deployment) printOnFailure(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.printed) < 3 && !slices.Contains(d.printed, id) {
		d.printed = append(d.printed, id)
	}
}

// getOrder reads an order.
func (d *deployment) getOrder(ctx context.Context, id string) (order, error) {
	var o order
	status, body, err := fetch(ctx, d.shop("/api/v1/orders/"+id))
	if err != nil {
		return o, err
	}
	if status != http.StatusOK {
		return o, fmt.Errorf("GET order: %d %s", status, body)
	}
	return o, json.Unmarshal(body, &o)
}

// await waits until the order has the status.
func (d *deployment) await(t *testing.T, id, status string, within time.Duration) order {
	t.Helper()
	var o order
	wrong := waitFor(t.Context(), within, func() string {
		var err error
		if o, err = d.getOrder(t.Context(), id); err != nil {
			return err.Error()
		}
		if o.Status != status {
			return o.Status
		}
		return ""
	})
	if wrong != "" {
		d.mu.Lock()
		d.printed = []string{id}
		d.mu.Unlock()
		t.Fatalf("order %s is not %s after %s: %s", id, status, within, wrong)
	}
	return o
}

// What the sandbox has recorded.
type (
	charge struct {
		ID             string `json:"id"`
		IdempotencyKey string `json:"idempotency_key"`
		OrderReference string `json:"order_reference"`
		Amount         int64  `json:"amount"`
		Currency       string `json:"currency"`
		Status         string `json:"status"`
		Code           string `json:"code"`
		RefundedAmount int64  `json:"refunded_amount"`
	}
	mail struct {
		To        []string `json:"to"`
		Subject   string   `json:"subject"`
		Text      string   `json:"text"`
		HTML      string   `json:"html"`
		MessageID string   `json:"message_id"`
	}
	sms struct {
		To        string `json:"to"`
		Text      string `json:"text"`
		Reference string `json:"reference"`
	}
)

// list reads a list of the sandbox; filter is names and values in turn.
func list[T any](t *testing.T, d *deployment, path string, filter ...string) []T {
	t.Helper()
	query := url.Values{}
	for i := 0; i < len(filter); i += 2 {
		query.Set(filter[i], filter[i+1])
	}
	status, body, err := fetch(t.Context(), "http://"+d.address("SANDBOX_ADDR")+path+"?"+query.Encode())
	if err != nil || status != http.StatusOK {
		t.Fatalf("%s: %d %s %v", path, status, body, err)
	}
	var out []T
	if err := json.Unmarshal(body, &out); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return out
}

func (d *deployment) charges(t *testing.T, orderID string) []charge {
	t.Helper()
	return list[charge](t, d, "/payments/charges", "order_reference", orderID)
}

// succeeded is how many charges took money and were not refunded.
func succeeded(charges []charge) int {
	n := 0
	for _, c := range charges {
		if c.Status == "succeeded" {
			n++
		}
	}
	return n
}

// awaitMessages waits until the customer has n mails and n SMS or more, and returns
// them.
func (d *deployment) awaitMessages(t *testing.T, email, phone string, n int, within time.Duration) (mails []mail, texts []sms) {
	t.Helper()
	eventually(t, within, func() string {
		mails = list[mail](t, d, "/mail/messages", "to", email)
		texts = list[sms](t, d, "/sms/messages", "to", phone)
		if len(mails) < n || len(texts) < n {
			return fmt.Sprintf("%d mails and %d SMS of %d each", len(mails), len(texts), n)
		}
		return ""
	})
	return mails, texts
}
