package payment

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"

	"pizzaflow/event"
)

// maxAnswer is how much of an answer's body is read, in bytes.
const maxAnswer = 1 << 20

// A sandboxProvider is a client of the sandbox's payment provider. Any answer but the
// two documented ones of each call is Unanswered.
type sandboxProvider struct {
	base    string
	timeout time.Duration
	client  *http.Client
}

func newSandbox(u *url.URL, timeout time.Duration, dial dialFunc) (Provider, error) {
	bare := url.URL{Scheme: u.Scheme, Host: u.Host}
	if *u != bare || u.Hostname() == "" || u.Port() == "" {
		return nil, ErrProviderURL
	}
	return &sandboxProvider{
		base:    "http://" + u.Host + "/payments",
		timeout: timeout,
		client: &http.Client{
			Transport: &http.Transport{
				DialContext:            dial,
				ResponseHeaderTimeout:  timeout,
				IdleConnTimeout:        30 * time.Second,
				MaxIdleConnsPerHost:    64,
				MaxResponseHeaderBytes: 64 << 10,
				DisableCompression:     true,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// sandboxCharge is a charge in an answer of the sandbox. Every answer has id and
// status; the other fields may be missing, and must be as asked for where they are
// there. Amounts are in minor units.
type sandboxCharge struct {
	ID             string  `json:"id"`
	IdempotencyKey *string `json:"idempotency_key"`
	OrderReference *string `json:"order_reference"`
	Amount         *int64  `json:"amount"`
	Currency       *string `json:"currency"`
	Status         string  `json:"status"`
	Code           string  `json:"code"`
	RefundedAmount int64   `json:"refunded_amount"`
}

// Charge posts the charge: 201 is Captured, 402 Declined.
func (s *sandboxProvider) Charge(ctx context.Context, c Charge) Answer {
	status, body, err := s.call(ctx, http.MethodPost, "/charges", c.Key, struct {
		Amount         int64  `json:"amount"`
		Currency       string `json:"currency"`
		CustomerEmail  string `json:"customer_email"`
		OrderReference string `json:"order_reference"`
	}{int64(c.Amount), c.Currency, c.CustomerEmail, c.OrderID})
	if err != nil {
		return unanswered(err)
	}
	want, ok := map[int]Outcome{http.StatusCreated: Captured, http.StatusPaymentRequired: Declined}[status]
	if !ok {
		return unanswered(fmt.Errorf("status %d", status))
	}
	var found sandboxCharge
	if err := decode(body, &found); err != nil {
		return unanswered(err)
	}
	a := found.answer(c)
	if a.Outcome != want && a.Outcome != Unanswered {
		return unanswered(fmt.Errorf("status %d with a charge that is %s", status, a.Outcome))
	}
	return a
}

// Lookup lists the charges under the key: an empty list is Absent.
func (s *sandboxProvider) Lookup(ctx context.Context, c Charge) Answer {
	status, body, err := s.call(ctx, http.MethodGet, "/charges?idempotency_key="+url.QueryEscape(c.Key), "", nil)
	if err != nil {
		return unanswered(err)
	}
	if status != http.StatusOK {
		return unanswered(fmt.Errorf("status %d", status))
	}
	var found []sandboxCharge
	if err := decode(body, &found); err != nil {
		return unanswered(err)
	}
	switch {
	case found == nil: // null
		return unanswered(errors.New("no list of charges"))
	case len(found) == 0:
		return Answer{Outcome: Absent}
	case len(found) > 1:
		return unanswered(fmt.Errorf("%d charges under one key", len(found)))
	case found[0].IdempotencyKey == nil:
		return unanswered(errors.New("a charge without its key"))
	}
	return found[0].answer(c)
}

// Refund posts the refund: 201 is Refunded, 422 Refused.
func (s *sandboxProvider) Refund(ctx context.Context, r Refund) Answer {
	status, body, err := s.call(ctx, http.MethodPost, "/refunds", r.Key, struct {
		ChargeID string `json:"charge_id"`
		Amount   int64  `json:"amount"`
	}{r.TransactionID, int64(r.Amount)})
	switch {
	case err != nil:
		return unanswered(err)
	case status == http.StatusUnprocessableEntity:
		return Answer{Outcome: Refused, Detail: "status 422"}
	case status != http.StatusCreated:
		return unanswered(fmt.Errorf("status %d", status))
	}
	var done struct {
		ID       string `json:"id"`
		ChargeID string `json:"charge_id"`
		Amount   int64  `json:"amount"`
		Status   string `json:"status"`
	}
	if err := decode(body, &done); err != nil {
		return unanswered(err)
	}
	if done.ID == "" || strings.ContainsFunc(done.ID, unicode.IsControl) || done.ChargeID != r.TransactionID || done.Amount != int64(r.Amount) || done.Status != "succeeded" {
		return unanswered(errors.New("a refund of something else"))
	}
	return Answer{Outcome: Refunded, TransactionID: done.ID, Amount: r.Amount, Currency: r.Currency}
}

// answer is the answer for c. A field that is missing is taken to be as asked for;
// a charge for something else is Unanswered.
func (e sandboxCharge) answer(c Charge) Answer {
	a := Answer{
		TransactionID: e.ID, Code: e.Code, Amount: c.Amount, Currency: c.Currency,
		Refunded: event.Money(e.RefundedAmount),
	}
	if e.Amount != nil {
		a.Amount = event.Money(*e.Amount)
	}
	if e.Currency != nil {
		a.Currency = *e.Currency
	}
	switch {
	case e.ID == "":
		return unanswered(errors.New("a charge without an id"))
	case strings.ContainsFunc(a.TransactionID+a.Code+a.Currency, unicode.IsControl): // no column takes a U+0000
		return unanswered(errors.New("a charge with control characters"))
	case e.IdempotencyKey != nil && *e.IdempotencyKey != c.Key, e.OrderReference != nil && *e.OrderReference != c.OrderID:
		return unanswered(errors.New("a charge for something else"))
	case e.Status == "succeeded":
		a.Outcome = Captured
	case e.Status == "declined":
		a.Outcome = Declined
	default:
		return unanswered(errors.New("a charge in an unknown status"))
	}
	return a
}

// call sends one request, exactly once, and reads the whole answer.
func (s *sandboxProvider) call(ctx context.Context, method, path, key string, in any) (status int, body []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	var content io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return 0, nil, err
		}
		content = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, s.base+path, content)
	if err != nil {
		return 0, nil, err
	}
	// Without GetBody net/http cannot send the request a second time by itself, as
	// it would when the connection is cut: every attempt has to be recorded.
	req.GetBody = nil
	req.Header.Set("Accept", "application/json")
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Idempotency-Key", key)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return 0, nil, fmt.Errorf("read answer: %w", err)
	}
	if len(body) > maxAnswer {
		return 0, nil, fmt.Errorf("answer is larger than %d bytes", maxAnswer)
	}
	return resp.StatusCode, body, nil
}

func decode(body []byte, v any) error {
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("decode answer: %w", err)
	}
	return nil
}

func unanswered(err error) Answer { return Answer{Outcome: Unanswered, Detail: err.Error()} }

// Close closes the idle connections: a server that is being stopped would wait for
// them.
func (s *sandboxProvider) Close() error {
	s.client.CloseIdleConnections()
	return nil
}
