package notification

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync/atomic"
	"time"
)

// ErrSMSURL is returned by NewSMS for anything but an http or https URL.
var ErrSMSURL = errors.New("SMS URL: want http://HOST:PORT/sms/messages")

const smsTimeout = 10 * time.Second

// NewSMS is the Sender of SMS by the gateway of a URL, such as
// http://HOST:PORT/sms/messages, to which it posts {to, text, reference}; the
// reference is the message's ID. The gateway answers 202 and {id}.
//
// A 4xx that is about the SMS is Permanent; any other refusal is Temporary, and
// a request without an answer Unknown. The gateway is connected to by dial; nil is the
// net package's.
func NewSMS(rawURL string, dial func(ctx context.Context, network, address string) (net.Conn, error)) (Sender, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return nil, ErrSMSURL
	}
	if dial == nil {
		dial = (&net.Dialer{Timeout: 5 * time.Second}).DialContext
	}
	return &smsSender{url: rawURL, client: &http.Client{
		Timeout: smsTimeout,
		// a redirect does not get the customer's number to another address
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext:           dial,
			TLSHandshakeTimeout:   5 * time.Second,
			ResponseHeaderTimeout: smsTimeout,
			MaxIdleConnsPerHost:   inFlightLimit,
			IdleConnTimeout:       idleLimit,
		},
	}}, nil
}

type smsSender struct {
	url    string
	client *http.Client
}

// Send sends one SMS to the gateway.
func (s *smsSender) Send(ctx context.Context, m Message) Result {
	body, err := json.Marshal(map[string]string{"to": m.To, "text": m.Text, "reference": m.ID})
	if err != nil {
		return Result{Outcome: Permanent, Err: fmt.Errorf("compose SMS: %w", err)}
	}
	var written atomic.Bool // the request may have reached the gateway
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { written.Store(true) }})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(body))
	if err != nil {
		return Result{Outcome: Permanent, Err: fmt.Errorf("compose SMS: %w", err)}
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := s.client.Do(req)
	if err != nil {
		if wrapped, ok := errors.AsType[*url.Error](err); ok { // it quotes the URL, which may hold a key
			err = wrapped.Err
		}
		r := Result{Outcome: Temporary, Err: fmt.Errorf("SMS gateway: %w", err)}
		if written.Load() {
			r.Outcome = Unknown
		}
		return r
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	return smsResult(res.StatusCode, answer, err)
}

// Close closes the idle connections.
func (s *smsSender) Close() error {
	s.client.CloseIdleConnections()
	return nil
}

// aboutAccount are the refusals that are about our account, our URL or our rate
// rather than the SMS, so that the same SMS may be accepted later.
var aboutAccount = map[int]bool{
	http.StatusUnauthorized: true, http.StatusPaymentRequired: true, http.StatusForbidden: true,
	http.StatusNotFound: true, http.StatusMethodNotAllowed: true,
	http.StatusRequestTimeout: true, http.StatusTooManyRequests: true,
}

// smsResult is the result of the gateway's answer. The status alone decides: a 202
// whose body broke off is a 202.
func smsResult(status int, body []byte, readErr error) Result {
	r := Result{Outcome: Temporary, Code: status}
	switch {
	case status >= 200 && status < 300:
		r.Outcome = Accepted
		var answer struct {
			ID string `json:"id"`
		}
		if readErr == nil && json.Unmarshal(body, &answer) == nil {
			r.ProviderID = answer.ID
		}
		return r
	case aboutAccount[status]:
	case status >= 400 && status < 500:
		r.Outcome = Permanent
	}
	r.Err = fmt.Errorf("SMS gateway: %d %s", status, truncate(oneLine(string(body)), 200))
	return r
}
