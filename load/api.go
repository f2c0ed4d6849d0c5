package load

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"pizzaflow/event"
	"pizzaflow/internal/redact"
)

const (
	maxAnswer   = 1 << 20 // bytes of an answer; a real one has a hundredth
	dialTimeout = 5 * time.Second
)

// api is the order API at several addresses.
type api struct {
	urls    []string
	timeout time.Duration
	client  *http.Client
}

func newAPI(cfg Config) *api {
	urls := make([]string, len(cfg.URLs))
	for i, u := range cfg.URLs {
		urls[i] = strings.TrimRight(u, "/")
	}
	return &api{urls: urls, timeout: cfg.Timeout, client: &http.Client{
		Transport: &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
			TLSHandshakeTimeout: dialTimeout,
			MaxIdleConnsPerHost: cfg.InFlight + maxPolls, // every connection is kept: new connections would be another load
			IdleConnTimeout:     time.Minute,
			ForceAttemptHTTP2:   true,
		},
		// a redirected POST would become a GET
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

func (a *api) close() { a.client.CloseIdleConnections() }

// CheckURL returns the error of a malformed address of the order API.
func CheckURL(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil: // without the URL, which may have a password
		return fmt.Errorf("is no URL: %w", errors.Unwrap(err))
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "":
		return fmt.Errorf("%q is not http://HOST[:PORT] or https://HOST[:PORT]", redact.URL(text))
	case u.RawQuery != "", u.Fragment != "":
		return fmt.Errorf("%q has a query or a fragment", redact.URL(text))
	}
	return nil
}

// redactedURL returns what may be shown of address n.
func (a *api) redactedURL(n int) string { return redact.URL(a.urls[n]) }

// A reply is a whole HTTP answer.
type reply struct {
	status     int
	retryAfter time.Duration // asked for before the next try
	text       []byte
}

// doRequest sends a request to address n modulo the number of addresses.
func (a *api) doRequest(ctx context.Context, n int, method, path, key string, body []byte) (reply, error) {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, a.urls[n%len(a.urls)]+path, bytes.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Idempotency-Key", key)
	}
	resp, err := a.client.Do(req)
	if err != nil {
		if wrapped, ok := errors.AsType[*url.Error](err); ok { // it quotes the URL, whose user may be a token
			err = wrapped.Err
		}
		return reply{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return reply{}, fmt.Errorf("read answer: %w", err)
	}
	got := reply{status: resp.StatusCode, text: text}
	if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && seconds > 0 {
		got.retryAfter = time.Duration(min(seconds, 3600)) * time.Second
	}
	return got, nil
}

// An answer is the result of one try; status 0 means no answer.
type answer struct {
	status     int
	retryAfter time.Duration
	order      orderView
	reason     string // why there is no status
}

// orderView has the fields of an order that are read.
type orderView struct {
	ID      string      `json:"order_id"`
	Number  string      `json:"order_number"`
	Status  string      `json:"status"`
	Total   event.Money `json:"total_amount"`
	History []struct {
		Status string    `json:"status"`
		At     time.Time `json:"at"`
	} `json:"history"`
}

func (a *answer) isPlaced() bool { return a.status == http.StatusCreated }

// isFinal reports whether the order is refused for good. 409 is not final: the key's
// first request is under way.
func (a *answer) isFinal() bool {
	switch a.status {
	case http.StatusRequestTimeout, http.StatusConflict, http.StatusTooEarly, http.StatusTooManyRequests:
		return false
	}
	return a.status >= 400 && a.status < 500
}

// outcome returns the word under which the try is counted.
func (a *answer) outcome() string {
	if a.status == 0 {
		return a.reason
	}
	return strconv.Itoa(a.status)
}

// postOrder tries once to place an order at address n.
func (a *api) postOrder(ctx context.Context, n int, key string, body []byte) answer {
	rep, err := a.doRequest(ctx, n, http.MethodPost, "/api/v1/orders", key, body)
	var timeout net.Error
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return answer{reason: "timeout"}
	case err != nil:
		return answer{reason: "connection error"}
	}
	got := answer{status: rep.status, retryAfter: rep.retryAfter}
	if got.isPlaced() {
		// a 201 without an order id is no promise that could be checked
		if err := json.Unmarshal(rep.text, &got.order); err != nil || got.order.ID == "" {
			return answer{reason: "unreadable 201"}
		}
	}
	return got
}

// getOrder reads an order at address n; found is false if there is none.
func (a *api) getOrder(ctx context.Context, n int, id string) (order orderView, found bool, err error) {
	rep, err := a.doRequest(ctx, n, http.MethodGet, "/api/v1/orders/"+url.PathEscape(id), "", nil)
	switch {
	case err != nil:
		return order, false, err
	case rep.status == http.StatusNotFound:
		return order, false, nil
	case rep.status != http.StatusOK:
		return order, false, fmt.Errorf("status %d", rep.status)
	}
	return order, true, json.Unmarshal(rep.text, &order)
}

// item is a line of an order.
type item struct {
	PizzaID  string `json:"pizza_id"`
	Size     string `json:"size"`
	Quantity int    `json:"quantity"`
}

// readMenu returns the items that can be ordered, from the first address that answers.
func (a *api) readMenu(ctx context.Context) ([]item, error) {
	tick := time.NewTicker(startPause)
	defer tick.Stop()
	for try := 1; ; try++ {
		var errs []error
		for n := range a.urls {
			items, err := a.readMenuAt(ctx, n)
			if err == nil {
				return items, nil
			}
			errs = append(errs, err)
		}
		err := errors.Join(errs...)
		if !errors.Is(err, errStarting) || try == startTries {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-tick.C:
		}
	}
}

// A system that is starting answers 503 until it has its databases, so the menu is
// tried for half a minute.
const (
	startTries = 60
	startPause = 500 * time.Millisecond
)

var errStarting = errors.New("it is not ready")

func (a *api) readMenuAt(ctx context.Context, n int) ([]item, error) {
	rep, err := a.doRequest(ctx, n, http.MethodGet, "/api/v1/menu", "", nil)
	if err != nil {
		return nil, err
	}
	switch rep.status {
	case http.StatusOK:
	case http.StatusServiceUnavailable:
		return nil, fmt.Errorf("%s: status %d: %w", a.redactedURL(n), rep.status, errStarting)
	default:
		return nil, fmt.Errorf("%s: status %d", a.redactedURL(n), rep.status)
	}
	var menu struct {
		Pizzas []struct {
			ID        string                 `json:"id"`
			Available bool                   `json:"available"`
			Prices    map[string]event.Money `json:"prices"`
		} `json:"pizzas"`
	}
	if err := json.Unmarshal(rep.text, &menu); err != nil {
		return nil, fmt.Errorf("%s: %w", a.redactedURL(n), err)
	}
	var items []item
	for _, p := range menu.Pizzas {
		for _, size := range []string{"small", "medium", "large"} {
			if p.Available && p.Prices[size] > 0 {
				items = append(items, item{p.ID, size, 1})
			}
		}
	}
	if len(items) == 0 {
		return nil, fmt.Errorf("%s: nothing can be ordered", a.redactedURL(n))
	}
	return items, nil
}

// encodeOrder returns the body of order n. Its customer does not exist: the domain is
// reserved, and the numbers run through the mobile numbers of the country code 7.
func (r *Run) encodeOrder(n int) ([]byte, error) {
	tag := ""
	if isDeclined(n, r.cfg.Declined) {
		tag = "+declined"
	}
	locale := "ru"
	if n%2 == 0 {
		locale = "en"
	}
	line := r.menu[n%len(r.menu)]
	line.Quantity = 1 + n%3
	body, err := json.Marshal(struct {
		Name    string `json:"customer_name"`
		Email   string `json:"customer_email"`
		Phone   string `json:"customer_phone"`
		Items   []item `json:"items"`
		Address string `json:"delivery_address"`
		Locale  string `json:"locale"`
	}{
		"Guest " + strconv.Itoa(n), fmt.Sprintf("guest%d%s@load.example", n, tag), fmt.Sprintf("+79%09d", n),
		[]item{line},
		"Load street " + strconv.Itoa(1+n%100), locale,
	})
	if err != nil {
		return nil, fmt.Errorf("encode order: %w", err)
	}
	return body, nil
}
