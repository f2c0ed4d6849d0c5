package web

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestGate(t *testing.T) {
	var gate Gate
	door := Handler(&gate, HandlerConfig{})
	ask := func(accept string) *httptest.ResponseRecorder {
		w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/api/v1/orders", strings.NewReader("{}"))
		r.Header.Set("Accept", accept)
		door.ServeHTTP(w, r)
		return w
	}
	for accept, kind := range map[string]string{
		"": "application/problem+json", "application/json": "application/problem+json", "*/*": "application/problem+json",
		"text/html,application/xhtml+xml;q=0.9": "text/html",
	} {
		w := ask(accept)
		if got := w.Header().Get("Content-Type"); w.Code != http.StatusServiceUnavailable || !strings.HasPrefix(got, kind) ||
			w.Header().Get("Retry-After") != "5" || w.Header().Get("Cache-Control") != "no-store" || w.Body.Len() == 0 {
			t.Errorf("Accept %q: %d %v %s", accept, w.Code, w.Header(), w.Body)
		}
	}
	gate.Open(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	if w := ask("text/html"); w.Code != http.StatusTeapot {
		t.Errorf("opened: %d", w.Code)
	}
}
