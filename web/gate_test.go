package web

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestGate(t *testing.T) {
	gate := NewGate(time.Hour)
	gate.StopWaiting()
	door := Handler(gate, HandlerConfig{})
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

// A request that arrives shortly before the gate opens is answered by the handler.
func TestGateHoldsForAMoment(t *testing.T) {
	for name, c := range map[string]struct {
		then func(*Gate)
		want int
		took time.Duration
	}{
		"it opens": {func(g *Gate) {
			g.Open(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
		}, http.StatusTeapot, time.Second},
		"it will take longer": {(*Gate).StopWaiting, http.StatusServiceUnavailable, time.Second},
		"nothing comes of it": {func(*Gate) {}, http.StatusServiceUnavailable, 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gate, began := NewGate(2*time.Second), time.Now()
				time.AfterFunc(time.Second, func() { c.then(gate) })
				w := httptest.NewRecorder()
				gate.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
				if took := time.Since(began); w.Code != c.want || took != c.took {
					t.Errorf("%d after %s, want %d after %s", w.Code, took, c.want, c.took)
				}
				gate.StopWaiting()
			})
		})
	}
}
