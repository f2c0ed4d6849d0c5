package notification

import (
	"context"
	"encoding/json"
	"errors"
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
		{202, `nonsense`, Accepted, ""},
		{200, ``, Accepted, ""},
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
		t.Run(http.StatusText(tt.status), func(t *testing.T) {
			var got map[string]string
			requests := 0
			gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				requests++
				if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
					t.Error(err)
				}
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(tt.status)
				if _, err := io.WriteString(w, tt.body); err != nil {
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
			if strings.ContainsAny(r.reason(), "\r\n") {
				t.Errorf("reason %q", r.reason())
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
		if r.Outcome != Temporary || r.Code != 0 || strings.Contains(r.reason(), "s3cret") {
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
