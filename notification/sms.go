package notification

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"
)

// ErrSMSURL is returned by NewSMS for anything but an http or https URL.
var ErrSMSURL = errors.New("SMS URL: want http://HOST:PORT/sms/messages")

const (
	// smsTimeout is how long a gateway may take: one that sends the SMS before it answers
	// may take a while, and giving up before repeats, and bills, the SMS.
	smsTimeout = time.Minute
	// smsAnswerLimit is how much of an answer is read, in bytes.
	smsAnswerLimit = 64 << 10
)

// NewSMS is the Sender of SMS by the gateway of a URL, such as
// http://HOST:PORT/sms/messages, to which it posts {to, text, reference}; the
// reference is the message's ID. The gateway answers 202 and {id}.
//
// Only an answer with the gateway's id of the SMS is a success. A 4xx that is about
// the SMS is Permanent; any other refusal is Temporary. A request without an answer,
// or with a 2xx that has neither an id nor an error, is Unknown. The gateway is connected to by dial; nil is the
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
			ExpectContinueTimeout: 5 * time.Second,
		},
	}}, nil
}

// An smsBody is the body of a request, and knows whether it was read: from then on it
// may have reached the gateway.
type smsBody struct {
	*bytes.Reader
	first *smsBody // of the same SMS, nil for itself
	read  atomic.Bool
}

// Read reads the body.
func (b *smsBody) Read(p []byte) (int, error) {
	cmp.Or(b.first, b).read.Store(true)
	return b.Reader.Read(p)
}

// WriteTo hides the Reader's, which would read without Read.
func (b *smsBody) WriteTo(w io.Writer) (int64, error) {
	cmp.Or(b.first, b).read.Store(true)
	return b.Reader.WriteTo(w)
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
	if !m.MayBeSent {
		return s.post(ctx, body, false)
	}
	r := s.post(ctx, body, true)
	if r.Code == http.StatusExpectationFailed { // the gateway does not know of it
		r = s.post(ctx, body, false)
	}
	return r
}

// post makes the request. With ask, the gateway is to say that it is there (100
// Continue) before it gets the SMS, or gets it when it keeps silent: so no repetition is
// spent on a gateway that is away behind a proxy which takes its connections.
func (s *smsSender) post(ctx context.Context, body []byte, ask bool) Result {
	b := &smsBody{Reader: bytes.NewReader(body)}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, b)
	if err != nil {
		return Result{Outcome: Permanent, Err: fmt.Errorf("compose SMS: %w", err)}
	}
	req.ContentLength = int64(len(body))
	req.GetBody = func() (io.ReadCloser, error) { // for a kept connection that had ended before
		again := &smsBody{Reader: bytes.NewReader(body), first: b}
		return io.NopCloser(again), nil
	}
	req.Header.Set("Content-Type", "application/json")
	if ask {
		req.Header.Set("Expect", "100-continue")
	}
	res, err := s.client.Do(req)
	if err != nil {
		if wrapped, ok := errors.AsType[*url.Error](err); ok { // it quotes the URL, which may hold a key
			err = wrapped.Err
		}
		r := Result{Outcome: Temporary, Err: fmt.Errorf("SMS gateway: %w", err)}
		if b.read.Load() {
			r.Outcome = Unknown
		}
		return r
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, smsAnswerLimit))
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

// smsResult is the result of the gateway's answer. A 2xx without the gateway's id is
// none of a gateway that took the SMS: a login page, a proxy's own words, an answer
// that broke off. If it holds an error, the gateway did not take the SMS; otherwise
// nobody knows.
func smsResult(status int, body []byte, readErr error) Result {
	r := Result{Outcome: Temporary, Code: status}
	said := truncate(oneLine(string(body)), 200)
	switch {
	case status >= 200 && status < 300:
		id, refused := smsAnswer(body)
		switch {
		case refused:
			r.AboutUs = "request"
		case id != "" && readErr == nil:
			return Result{Outcome: Accepted, Code: status, ProviderID: id}
		default:
			r.Outcome = Unknown
			said = "no id of the SMS in " + said
		}
	case aboutAccount[status]:
		r.AboutUs = "request"
	case status >= 400 && status < 500:
		r.Outcome = Permanent
	}
	r.Err = errors.Join(fmt.Errorf("SMS gateway: %d %s", status, said), readErr)
	return r
}

// smsAnswer is the id in a gateway's answer, a text or a number, "" without one that
// one can see, and whether the answer holds an error.
func smsAnswer(body []byte) (id string, refused bool) {
	var answer struct{ ID, Error any }
	numbers := json.NewDecoder(bytes.NewReader(body))
	numbers.UseNumber() // an id of 19 digits is no float
	if numbers.Decode(&answer) != nil {
		return "", false
	}
	switch v := answer.ID.(type) {
	case string:
		id = oneLine(v)
	case json.Number:
		id = v.String()
	}
	return id, answer.Error != nil && answer.Error != "" && answer.Error != false && fmt.Sprint(answer.Error) != "0"
}
