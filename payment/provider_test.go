package payment

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

var aCharge = Charge{Key: "key", OrderID: "order", Amount: 120000, Currency: "RUB", CustomerEmail: "ivan@example.com"}

// provide is a sandbox provider whose far end is h.
func provide(t *testing.T, h http.HandlerFunc) Provider {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return providerAt(t, srv.Listener.Addr().String(), 30*time.Second)
}

func providerAt(t *testing.T, addr string, timeout time.Duration) Provider {
	t.Helper()
	p, err := NewProvider("sandbox://"+addr, timeout, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// hang answers nothing until the client leaves, which shows only when the body
// is read.
func hang(_ http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body) //nolint:errcheck // the client may have left
	<-r.Context().Done()
}

func TestProviderURLs(t *testing.T) {
	for _, url := range []string{
		"", "sandbox:", "sandbox://", "sandbox://localhost", "sandbox://:1", "sandbox://user:secret@localhost:1",
		"sandbox://localhost:1/path", "sandbox://localhost:1?x=y", "http://localhost:1", "stripe://", "sandbox://%zz:1",
	} {
		_, err := NewProvider(url, time.Second, nil)
		if !errors.Is(err, ErrProviderURL) {
			t.Errorf("%q: got %v", url, err)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the error shows the secret", url)
		}
	}
	if _, err := NewProvider("sandbox://[::1]:8082", time.Second, nil); err != nil {
		t.Error(err)
	}
}

// TestChargeAnswers says which answers to a charge count: two, and everything
// else is unknown.
func TestChargeAnswers(t *testing.T) {
	const whole = `{"id":"ch_1","idempotency_key":"key","amount":120000,"currency":"RUB","order_reference":"order","status":"succeeded","refunded_amount":0,"new":1}`
	for _, c := range []struct {
		name   string
		status int
		body   string
		want   Outcome
	}{
		{"succeeded", 201, whole, Captured},
		{"succeeded, nothing echoed", 201, `{"id":"ch_1","status":"succeeded"}`, Captured},
		{"declined", 402, `{"id":"ch_1","status":"declined","code":"card_declined"}`, Declined},
		{"200", 200, whole, Unanswered},
		{"201 with a decline", 201, `{"id":"ch_1","status":"declined","code":"card_declined"}`, Unanswered},
		{"402 with a success", 402, whole, Unanswered},
		{"402 without a body", 402, ``, Unanswered},
		{"402 of a proxy", 402, `<html>pay me</html>`, Unanswered},
		{"500", 500, `{"status":"declined"}`, Unanswered},
		{"429", 429, ``, Unanswered},
		{"400", 400, `{"code":"invalid"}`, Unanswered},
		{"redirect", 302, ``, Unanswered},
		{"not JSON", 201, `OK`, Unanswered},
		{"half of it", 201, whole[:40], Unanswered},
		{"more than it", 201, whole + `{}`, Unanswered},
		{"wrong type", 201, `{"id":"ch_1","status":"succeeded","amount":"120000"}`, Unanswered},
		{"a fraction", 201, `{"id":"ch_1","status":"succeeded","amount":1200.5}`, Unanswered},
		{"empty object", 201, `{}`, Unanswered},
		{"null", 201, `null`, Unanswered},
		{"no id", 201, `{"status":"succeeded"}`, Unanswered},
		{"an id that no column takes", 201, `{"id":"ch_\u0000","status":"succeeded"}`, Unanswered},
		{"unknown status", 201, `{"id":"ch_1","status":"pending"}`, Unanswered},
		{"other order", 201, strings.Replace(whole, `"order"`, `"other"`, 1), Unanswered},
		{"other key", 201, strings.Replace(whole, `"key"`, `"other"`, 1), Unanswered},
		{"other amount", 201, strings.Replace(whole, "120000", "120001", 1), Unanswered},
		{"other currency", 201, strings.Replace(whole, "RUB", "USD", 1), Unanswered},
		{"too long", 201, `{"id":"` + strings.Repeat("x", maxAnswer) + `","status":"succeeded"}`, Unanswered},
	} {
		t.Run(c.name, func(t *testing.T) {
			var calls atomic.Int32
			p := provide(t, func(w http.ResponseWriter, r *http.Request) {
				calls.Add(1)
				var in map[string]any
				if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
					t.Error(err)
				}
				want := map[string]any{"amount": 120000.0, "currency": "RUB", "customer_email": "ivan@example.com", "order_reference": "order"}
				if fmt.Sprint(in) != fmt.Sprint(want) || r.Header.Get("Idempotency-Key") != "key" || r.Method+r.URL.Path != "POST/payments/charges" {
					t.Errorf("asked %s %s with key %q for %v", r.Method, r.URL, r.Header.Get("Idempotency-Key"), in)
				}
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(c.status)
				io.WriteString(w, c.body) //nolint:errcheck // the client may have left
			})
			got := open(Processing).Believe(CallCharge, p.Charge(t.Context(), aCharge))
			if got.Outcome != c.want {
				t.Errorf("got %+v, want %s", got, c.want)
			}
			if got.Outcome == Captured && got != (Answer{Outcome: Captured, TransactionID: "ch_1", Amount: 120000, Currency: "RUB"}) {
				t.Errorf("got %+v", got)
			}
			if strings.Contains(got.Detail, "@") {
				t.Errorf("the detail has personal data: %s", got.Detail)
			}
			if calls.Load() != 1 {
				t.Errorf("%d requests for one call", calls.Load())
			}
		})
	}
}

func TestLookupAnswers(t *testing.T) {
	const whole = `{"id":"ch_1","idempotency_key":"key","amount":120000,"currency":"RUB","order_reference":"order","status":"succeeded","refunded_amount":20000}`
	for _, c := range []struct {
		name   string
		status int
		body   string
		want   Outcome
	}{
		{"taken", 200, `[` + whole + `]`, Captured},
		{"declined", 200, `[` + strings.Replace(whole, "succeeded", "declined", 1) + `]`, Declined},
		{"nothing", 200, `[]`, Absent},
		{"404", 404, `[]`, Unanswered},
		{"500", 500, ``, Unanswered},
		{"null", 200, `null`, Unanswered},
		{"object", 200, `{}`, Unanswered},
		{"empty body", 200, ``, Unanswered},
		{"two", 200, `[` + whole + `,` + whole + `]`, Unanswered},
		{"the filter was ignored", 200, `[` + strings.Replace(whole, `"key"`, `"other"`, 1) + `]`, Unanswered},
		{"a charge without its key", 200, `[{"id":"ch_1","status":"succeeded"}]`, Unanswered},
		{"unknown status", 200, `[` + strings.Replace(whole, "succeeded", "authorized", 1) + `]`, Unanswered},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := provide(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Method+" "+r.URL.String() != "GET /payments/charges?idempotency_key=key" {
					t.Errorf("asked %s %s", r.Method, r.URL)
				}
				w.WriteHeader(c.status)
				io.WriteString(w, c.body) //nolint:errcheck // the client may have left
			})
			got := p.Lookup(t.Context(), aCharge)
			if got.Outcome != c.want || (c.want == Captured && got.Refunded != 20000) {
				t.Errorf("got %+v, want %s", got, c.want)
			}
		})
	}
}

func TestRefundAnswers(t *testing.T) {
	for _, c := range []struct {
		name   string
		status int
		body   string
		want   Outcome
	}{
		{"refunded", 201, `{"id":"re_1","charge_id":"ch_1","amount":120000,"status":"succeeded"}`, Refunded},
		{"above what was captured", 422, `{"code":"amount_too_large"}`, Refused},
		{"an id that no column takes", 201, `{"id":"re_\u0000","charge_id":"ch_1","amount":120000,"status":"succeeded"}`, Unanswered},
		{"other amount", 201, `{"id":"re_1","charge_id":"ch_1","amount":1,"status":"succeeded"}`, Unanswered},
		{"other charge", 201, `{"id":"re_1","charge_id":"ch_2","amount":120000,"status":"succeeded"}`, Unanswered},
		{"failed", 201, `{"id":"re_1","charge_id":"ch_1","amount":120000,"status":"failed"}`, Unanswered},
		{"404", 404, ``, Unanswered},
		{"503", 503, ``, Unanswered},
		{"nonsense", 201, `[]`, Unanswered},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := provide(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Method+" "+r.URL.String() != "POST /payments/refunds" || r.Header.Get("Idempotency-Key") != "refund" {
					t.Errorf("asked %s %s with key %q", r.Method, r.URL, r.Header.Get("Idempotency-Key"))
				}
				w.WriteHeader(c.status)
				io.WriteString(w, c.body) //nolint:errcheck // the client may have left
			})
			got := p.Refund(t.Context(), Refund{Key: "refund", TransactionID: "ch_1", Amount: 120000, Currency: "RUB"})
			if got.Outcome != c.want {
				t.Errorf("got %+v, want %s", got, c.want)
			}
		})
	}
}

// TestNoAnswer is about answers that do not come: the call ends in time, is
// made once, and its outcome is unknown.
func TestNoAnswer(t *testing.T) {
	t.Run("hangs", func(t *testing.T) {
		p := provide(t, hang)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if a := p.Charge(ctx, aCharge); a.Outcome != Unanswered {
			t.Errorf("got %+v", a)
		}
	})
	t.Run("hangs in the middle of the body", func(t *testing.T) {
		p := provide(t, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(201)
			io.WriteString(w, `{"id":`) //nolint:errcheck // the client will tell
			w.(http.Flusher).Flush()
			hang(w, r)
		})
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if a := p.Charge(ctx, aCharge); a.Outcome != Unanswered {
			t.Errorf("got %+v", a)
		}
	})
	t.Run("the provider's own limit", func(t *testing.T) {
		srv := httptest.NewServer(http.HandlerFunc(hang))
		defer srv.Close()
		p := providerAt(t, srv.Listener.Addr().String(), 50*time.Millisecond)
		if a := p.Lookup(context.Background(), aCharge); a.Outcome != Unanswered {
			t.Errorf("got %+v", a)
		}
	})
	t.Run("cut on a connection used before", func(t *testing.T) {
		var calls atomic.Int32
		p := provide(t, func(w http.ResponseWriter, r *http.Request) {
			if calls.Add(1) == 1 {
				w.WriteHeader(201)
				io.WriteString(w, `{"id":"ch_1","status":"succeeded"}`) //nolint:errcheck // the client will tell
				return
			}
			panic(http.ErrAbortHandler)
		})
		if a := p.Charge(t.Context(), aCharge); a.Outcome != Captured {
			t.Fatalf("got %+v", a)
		}
		if a := p.Charge(t.Context(), aCharge); a.Outcome != Unanswered {
			t.Errorf("got %+v", a)
		}
		if calls.Load() != 2 {
			t.Errorf("%d requests for two calls", calls.Load())
		}
	})
	t.Run("refused", func(t *testing.T) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := ln.Addr().String()
		if err := ln.Close(); err != nil {
			t.Fatal(err)
		}
		if a := providerAt(t, addr, time.Second).Charge(t.Context(), aCharge); a.Outcome != Unanswered {
			t.Errorf("got %+v", a)
		}
	})
}
