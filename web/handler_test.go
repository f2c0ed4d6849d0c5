package web

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// routes is an API with every kind of answer, behind Handler.
func routes(t *testing.T, log io.Writer) http.Handler {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/v1/orders", func(w http.ResponseWriter, r *http.Request) {
		var v sample
		if _, err := Decode(w, r, &v); err != nil {
			Error(w, r, nil, err)
			return
		}
		JSON(w, http.StatusCreated, v.Lines)
	})
	mux.HandleFunc("GET /api/v1/orders/{id}", func(w http.ResponseWriter, r *http.Request) {
		JSON(w, http.StatusOK, map[string]string{"id": r.PathValue("id"), "trace": r.Header.Get("Traceparent")})
	})
	mux.HandleFunc("GET /api/v1/plain", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Etag", "x")
		http.Error(w, "secret at line 12", http.StatusTeapot)
	})
	mux.HandleFunc("GET /api/v1/bare", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	mux.HandleFunc("GET /api/v1/html", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(http.StatusConflict)
		_, _ = io.WriteString(w, "<p>")
	})
	mux.HandleFunc("GET /api/v1/panic", func(http.ResponseWriter, *http.Request) { panic("boom") })
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", "default-src 'none'")
		w.Header().Set("Cache-Control", "max-age=60")
		_, _ = io.WriteString(w, "shop")
	})
	mux.HandleFunc("POST /orders", func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil {
			Error(w, r, nil, err)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	var logger *slog.Logger
	if log != nil {
		logger = slog.New(slog.NewJSONHandler(log, nil))
	}
	return Handler(mux, HandlerConfig{Log: logger})
}

func ask(h http.Handler, method, target, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec
}

func TestErrorsOfTheAPIAreProblems(t *testing.T) {
	h := routes(t, nil)
	for _, c := range []struct {
		method, target string
		status         int
		problem, allow string
	}{
		{"GET", "/api", 404, "not-found", ""},
		{"GET", "/api/v2", 404, "not-found", ""},
		{"GET", "/api/v1/orders", 405, "method-not-allowed", "POST"},
		{"PUT", "/api/v1/orders", 405, "method-not-allowed", "POST"},
		{"TRACE", "/api/v1/orders", 405, "method-not-allowed", "POST"},
		{"FOO", "/api/v1/orders/1", 405, "method-not-allowed", "GET, HEAD"},
		{"GET", "/api/v1/plain", 418, "", ""},
		{"GET", "/api/v1/bare", 502, "", ""},
		{"GET", "/api/v1/panic", 500, "internal", ""},
		{"POST", "/api/v1/orders", 415, "unsupported-media-type", ""},
	} {
		rec := ask(h, c.method, c.target, "")
		var p Problem
		if err := json.Unmarshal(rec.Body.Bytes(), &p); err != nil {
			t.Errorf("%s %s: %v: %s", c.method, c.target, err, rec.Body)
			continue
		}
		kind := "about:blank"
		if c.problem != "" {
			kind = ProblemBase + c.problem
		}
		if rec.Code != c.status || p.Status != c.status || p.Type != kind || p.Title == "" || p.Instance != c.target ||
			rec.Header().Get("Allow") != c.allow ||
			rec.Header().Get("Content-Type") != "application/problem+json; charset=utf-8" {
			t.Errorf("%s %s: %d %v %s", c.method, c.target, rec.Code, rec.Header(), rec.Body)
		}
		if id := rec.Header().Get("X-Request-Id"); id == "" || p.RequestID != id {
			t.Errorf("%s %s: request id %q in the header, %q in the problem", c.method, c.target, id, p.RequestID)
		}
		if strings.Contains(rec.Body.String(), "secret") || strings.Contains(rec.Body.String(), "boom") {
			t.Errorf("%s %s: leaks %s", c.method, c.target, rec.Body)
		}
	}
}

func TestOtherErrorsStayAsTheyAre(t *testing.T) {
	h := routes(t, nil)
	if rec := ask(h, "GET", "/nothing", ""); rec.Code != 404 || rec.Body.String() != "404 page not found\n" {
		t.Errorf("a page: %d %s", rec.Code, rec.Body)
	}
	if rec := ask(h, "GET", "/api/v1/html", ""); rec.Code != 409 || rec.Body.String() != "<p>" {
		t.Errorf("an answer with a type of its own: %d %s", rec.Code, rec.Body)
	}
}

func TestSecurityHeadersAreEverywhere(t *testing.T) {
	h := routes(t, nil)
	want := map[string]string{
		"Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'",
		"X-Content-Type-Options":  "nosniff", "Referrer-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
		"Cache-Control": "no-store", "Access-Control-Allow-Origin": "",
	}
	for _, target := range []string{"/api/v1/orders/1", "/nothing", "/api/v1/nothing", "/api/v1/panic", "/api/v1/plain"} {
		rec := ask(h, "GET", target, "", "Origin", "https://evil.example")
		for name, value := range want {
			if got := rec.Header().Get(name); got != value {
				t.Errorf("%s: %s is %q", target, name, got)
			}
		}
	}
	rec := ask(h, "GET", "/", "")
	if rec.Header().Get("Content-Security-Policy") != "default-src 'none'" || rec.Header().Get("Cache-Control") != "max-age=60" {
		t.Errorf("a handler's own headers give way: %v", rec.Header())
	}
}

func TestRequestIdentity(t *testing.T) {
	h := routes(t, nil)
	const trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	get := func(header ...string) (id, parent string) {
		rec := ask(h, "GET", "/api/v1/orders/1", "", header...)
		var body struct{ Trace string }
		if err := json.Unmarshal(rec.Body.Bytes(), &body); err != nil {
			t.Fatal(err)
		}
		return rec.Header().Get("X-Request-Id"), body.Trace
	}
	if id, parent := get("X-Request-Id", anID, "Traceparent", trace); id != anID || parent != trace {
		t.Errorf("well-formed ones are kept: %s %s", id, parent)
	}
	id1, parent1 := get()
	id2, parent2 := get()
	if len(id1) != 36 || id1 == id2 || !validTraceparent(parent1) || parent1 == parent2 {
		t.Errorf("made: %s %s, %s %s", id1, parent1, id2, parent2)
	}
	for _, bad := range []string{
		"", "x", "ivan@example.com", "+7-900-123-45-67", strings.Repeat("a", 36), "{" + anID + "}", "urn:uuid:" + anID,
		"0190b2c34d5e7f608172839405162738", anID + "\n", anID[:35],
	} {
		if id, _ := get("X-Request-Id", bad); id == bad || len(id) != 36 {
			t.Errorf("request id %q was kept as %q", bad, id)
		}
	}
	for _, bad := range []string{
		"", "x", trace + "-00", trace[:54], strings.ToUpper(trace), "01" + trace[2:], "ff" + trace[2:],
		"00-00000000000000000000000000000000-00f067aa0ba902b7-01", "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
		"00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x",
	} {
		if _, parent := get("Traceparent", bad); parent == bad || !validTraceparent(parent) {
			t.Errorf("traceparent %q became %q", bad, parent)
		}
	}
	if _, parent := get("Traceparent", trace, "Traceparent", trace); parent == trace {
		t.Error("two traceparents: neither is to be believed")
	}
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Tracestate", "vendor=1")
	if ensureTraceparent(r); r.Header.Get("Tracestate") != "" {
		t.Error("the tracestate outlived its traceparent")
	}
}

func TestCrossOriginWritesAreRefused(t *testing.T) {
	h := routes(t, nil)
	for _, c := range []struct {
		header []string
		want   int
	}{
		{nil, 204}, // curl
		{[]string{"Sec-Fetch-Site", "same-origin"}, 204},
		{[]string{"Origin", "http://example.com"}, 204}, // httptest's host
		{[]string{"Sec-Fetch-Site", "cross-site"}, 403},
		{[]string{"Sec-Fetch-Site", "same-site"}, 403},
		{[]string{"Origin", "https://evil.example"}, 403},
		{[]string{"Origin", "null"}, 403},
	} {
		rec := ask(h, "POST", "/orders", "", c.header...)
		if rec.Code != c.want {
			t.Errorf("%v: %d, want %d", c.header, rec.Code, c.want)
		}
		if c.want == 403 && !strings.Contains(rec.Body.String(), ProblemBase+"cross-origin") {
			t.Errorf("%v: %s", c.header, rec.Body)
		}
	}
	if rec := ask(h, "GET", "/", "", "Sec-Fetch-Site", "cross-site"); rec.Code != 200 {
		t.Errorf("following a link from elsewhere: %d", rec.Code)
	}
}

func TestEveryBodyIsLimited(t *testing.T) {
	h := routes(t, nil)
	form := []string{"Content-Type", "application/x-www-form-urlencoded"}
	if rec := ask(h, "POST", "/orders", "a="+strings.Repeat("b", MaxBody-2), form...); rec.Code != 204 {
		t.Errorf("64 KiB: %d %s", rec.Code, rec.Body)
	}
	if rec := ask(h, "POST", "/orders", "a="+strings.Repeat("b", MaxBody-1), form...); rec.Code != 413 {
		t.Errorf("64 KiB and 1: %d %s", rec.Code, rec.Body)
	}
}

func TestAccessLog(t *testing.T) {
	const canary = "canary"
	for _, c := range []struct {
		method, target string
		route          string
		status         float64
	}{
		{"GET", "/api/v1/orders/42?x=" + canary, "GET /api/v1/orders/{id}", 200},
		{"GET", "/?lang=" + canary, "GET /{$}", 200},
		{"POST", "/orders?" + canary, "POST /orders", 204},
		{"GET", "/api/v1/panic", "GET /api/v1/panic", 500},
		{"GET", "/api/nothing", "/api/nothing", 404},
		{"GET", "/nothing/" + canary + "@example.com", "(other)", 404},
		{"GET", "/nothing/%0a" + canary, "(other)", 404},
		{"GET", "/" + strings.Repeat(canary, 30), "(other)", 404},
		{"PUT", "/api/v1/orders", "/api/v1/orders", 405},
	} {
		var out bytes.Buffer
		rec := ask(routes(t, &out), c.method, c.target, canary, "User-Agent", canary, "X-Forwarded-For", "203.0.113.7")
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		var entry map[string]any
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &entry); err != nil {
			t.Fatalf("%s %s: %v: %s", c.method, c.target, err, &out)
		}
		if entry["level"] != "INFO" || entry["msg"] != "request" || entry["method"] != c.method || entry["route"] != c.route ||
			entry["status"] != c.status || entry["request_id"] != rec.Header().Get("X-Request-Id") {
			t.Errorf("%s %s: %s", c.method, c.target, &out)
		}
		if ms, ok := entry["duration_ms"].(float64); !ok || ms < 0 || ms > 10_000 {
			t.Errorf("duration_ms is %v", entry["duration_ms"])
		}
		if strings.Contains(out.String(), canary) || strings.Contains(out.String(), "203.0.113") || strings.Contains(out.String(), "192.0.2") {
			t.Errorf("%s %s tells too much: %s", c.method, c.target, &out)
		}
	}
	var out bytes.Buffer
	h := routes(t, &out)
	ask(h, "VERYLONGMETHODNAMEINDEED", "/", "")
	ask(h, "A'B", "/", "")
	if got := strings.Count(out.String(), `"method":"(other)"`); got != 2 {
		t.Errorf("strange methods: %s", &out)
	}
}

func TestPanics(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewJSONHandler(&out, nil))
	serve := func(h http.HandlerFunc) (rec *httptest.ResponseRecorder, panicked any) {
		out.Reset()
		rec = httptest.NewRecorder()
		defer func() { panicked = recover() }()
		Handler(h, HandlerConfig{Log: log}).ServeHTTP(rec, httptest.NewRequest("GET", "/api/x", nil))
		return rec, nil
	}
	rec, panicked := serve(func(http.ResponseWriter, *http.Request) { var p *Problem; p.Status = 1 })
	if rec.Code != 500 || panicked != nil || !strings.Contains(out.String(), "nil pointer") || !strings.Contains(out.String(), "handler_test.go") {
		t.Errorf("before the answer: %d, %v, %s", rec.Code, panicked, &out)
	}
	rec, panicked = serve(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "half"); panic("boom") })
	if fmt.Sprint(panicked) != http.ErrAbortHandler.Error() || rec.Body.String() != "half" || !strings.Contains(out.String(), "boom") {
		t.Errorf("in the middle of the answer: %v, %s, %s", panicked, rec.Body, &out)
	}
	_, panicked = serve(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	if panicked != any(http.ErrAbortHandler) || strings.Contains(out.String(), "panicked") || !strings.Contains(out.String(), `"status":0`) {
		t.Errorf("on purpose: %v, %s", panicked, &out)
	}
}

func TestHandlerKeepsTheWriterWhole(t *testing.T) {
	rec := httptest.NewRecorder()
	Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		f, ok := w.(http.Flusher)
		if !ok {
			t.Fatal("no Flusher")
		}
		f.Flush()
		if !rec.Flushed {
			t.Error("Flush did not reach the connection")
		}
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		w.WriteHeader(http.StatusTeapot) // too late, as with any http.ResponseWriter
	}), HandlerConfig{}).ServeHTTP(rec, httptest.NewRequest("GET", "/", nil))
	if rec.Code != 200 {
		t.Error(rec.Code)
	}
}
