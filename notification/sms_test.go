package notification

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func newTestSMS(t *testing.T, url string) Sender {
	t.Helper()
	s, err := NewSMS(url, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.(io.Closer).Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func testSMS() Message {
	return Message{ID: "0192f0c1-2b3c-7d4e-8f50-6a7b8c9d0e1f", To: "+79001234567", Text: "Заказ принят"}
}

func TestSMSAnswers(t *testing.T) {
	for _, tt := range []struct {
		status int
		body   string
		want   Outcome
		id     string
	}{
		{202, `{"id":"sms-1"}`, Accepted, "sms-1"},
		{200, `{"id":1234567890123456789,"error":null,"error_code":0}`, Accepted, "1234567890123456789"},
		{202, `{"id":"` + strings.Repeat("9", 2000) + `"}`, Accepted, strings.Repeat("9", 2000)},
		{202, `nonsense`, Unknown, ""},
		{202, `{"id":"sms`, Unknown, ""},
		{202, `{"id":""}`, Unknown, ""},
		{202, `{"id":" \u202e\n"}`, Unknown, ""},
		{202, `{"id":null}`, Unknown, ""},
		{202, `{"id":["a"]}`, Unknown, ""},
		{202, `["sms-1"]`, Unknown, ""},
		{202, strings.Repeat(" ", 1<<20) + `{"id":"sms-1"}`, Unknown, ""},
		{200, `<html><form action="/login">`, Unknown, ""},
		{204, ``, Unknown, ""},
		{200, ``, Unknown, ""},
		{200, `{"error":"no balance"}`, Temporary, ""},
		{200, `{"id":"sms-1","error":{"code":3}}`, Temporary, ""},
		{302, ``, Temporary, ""},
		{400, `bad`, Permanent, ""},
		{401, ``, Temporary, ""},
		{402, ``, Temporary, ""},
		{404, ``, Temporary, ""},
		{408, ``, Temporary, ""},
		{422, "no such\r\nnumber", Permanent, ""},
		{429, ``, Temporary, ""},
		{500, ``, Temporary, ""},
		{503, ``, Temporary, ""},
	} {
		t.Run(fmt.Sprintf("%d %.40s", tt.status, tt.body), func(t *testing.T) {
			var got map[string]string
			requests := 0
			gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				requests++
				if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
					t.Error(err)
				}
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(tt.status)
				if _, err := io.WriteString(w, tt.body); err != nil && tt.status != http.StatusNoContent && len(tt.body) < 1<<20 {
					t.Error(err)
				}
			}))
			defer gateway.Close()
			m := testSMS()
			r := newTestSMS(t, gateway.URL+"/sms/messages").Send(t.Context(), m)
			if r.Outcome != tt.want || r.ProviderID != tt.id || r.Code != tt.status || (r.Err == nil) != (tt.want == Accepted) {
				t.Errorf("Send = %+v, want %s %q", r, tt.want, tt.id)
			}
			if requests != 1 || len(got) != 3 || got["to"] != m.To || got["text"] != m.Text || got["reference"] != m.ID {
				t.Errorf("%d requests, the last with %v", requests, got)
			}
			if strings.ContainsAny(r.reason(0), "\r\n") {
				t.Errorf("reason %q", r.reason(0))
			}
		})
	}
}

func TestSMSWithoutAnswer(t *testing.T) {
	t.Run("cut", func(t *testing.T) {
		gateway := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
		defer gateway.Close()
		if r := newTestSMS(t, gateway.URL).Send(t.Context(), testSMS()); r.Outcome != Unknown {
			t.Errorf("Send = %+v, want unknown", r)
		}
	})
	t.Run("hanging", func(t *testing.T) {
		gateway := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // else the client's leaving is not noticed
			<-r.Context().Done()
		}))
		defer gateway.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if r := newTestSMS(t, gateway.URL).Send(ctx, testSMS()); r.Outcome != Unknown {
			t.Errorf("Send = %+v, want unknown", r)
		}
	})
	t.Run("down", func(t *testing.T) {
		ln := listen(t)
		if err := ln.Close(); err != nil {
			t.Fatal(err)
		}
		r := newTestSMS(t, "http://"+ln.Addr().String()+"/?key=s3cret").Send(t.Context(), testSMS())
		if r.Outcome != Temporary || r.Code != 0 || strings.Contains(r.reason(0), "s3cret") {
			t.Errorf("Send = %+v, want a temporary result", r)
		}
	})
}

func TestSMSURL(t *testing.T) {
	for _, bad := range []string{"", "127.0.0.1:80", "ftp://127.0.0.1", "http://", "http://h\x00"} {
		if _, err := NewSMS(bad, nil); !errors.Is(err, ErrSMSURL) {
			t.Errorf("NewSMS(%q): %v", bad, err)
		}
	}
}
