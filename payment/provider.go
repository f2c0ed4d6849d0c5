package payment

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"pizzaflow/event"
)

// ErrProviderURL is returned by NewProvider for a URL that names no provider.
var ErrProviderURL = errors.New("payment provider URL: want sandbox://HOST:PORT")

// A Provider takes money and refunds it. Its methods return when ctx ends at the
// latest, and always with an answer: Unanswered when the outcome is not known, and
// Declined only for a definite refusal. They are safe for concurrent use. A Provider
// that is an io.Closer is closed after the last call.
type Provider interface {
	// Charge takes the money once for each key, however often it is called, and
	// answers Captured, Declined or Unanswered.
	Charge(ctx context.Context, c Charge) Answer
	// Lookup finds the charge that was made under c.Key, and answers Captured,
	// Declined, Absent or Unanswered.
	Lookup(ctx context.Context, c Charge) Answer
	// Refund refunds the money once for each key, however often it is called, and
	// answers Refunded, Refused or Unanswered.
	Refund(ctx context.Context, r Refund) Answer
}

// A Charge is an amount to take.
type Charge struct {
	Key           string // the idempotency key: the payment's id
	OrderID       string
	Amount        event.Money
	Currency      string // ISO 4217
	CustomerEmail string
}

// A Refund is an amount to refund.
type Refund struct {
	Key           string // the idempotency key: the refund's id
	TransactionID string // the provider's id of the charge
	Amount        event.Money
	Currency      string // ISO 4217
}

// A dialFunc opens a connection.
type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// providers are the known providers by the scheme of their URL.
var providers = map[string]func(u *url.URL, timeout time.Duration, dial dialFunc) (Provider, error){
	"sandbox": newSandbox,
}

// NewProvider makes the provider that the scheme of the URL names. No call to
// it takes longer than timeout. It is reached by dial, nil means the net package.
func NewProvider(rawURL string, timeout time.Duration, dial func(ctx context.Context, network, address string) (net.Conn, error)) (Provider, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, ErrProviderURL // the parser's error would show the URL, and it may hold a secret
	}
	build, ok := providers[u.Scheme]
	if !ok {
		return nil, ErrProviderURL
	}
	if dial == nil {
		dial = (&net.Dialer{Timeout: timeout}).DialContext
	}
	p, err := build(u, timeout, dial)
	if err != nil {
		return nil, fmt.Errorf("payment provider: %w", err)
	}
	return p, nil
}
