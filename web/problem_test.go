package web

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

const anID = "0190b2c3-4d5e-7f60-8172-839405162738"

// goldens are answers that clients rely on: a change of one breaks a client.
var goldens = []struct {
	name   string
	err    error
	status int
	retry  string
	want   string
}{
	{
		"invalid", fmt.Errorf("place order: %w", Invalid(
			FieldError{"#/items/0/quantity", "out_of_range", "From 1 to 100."}, FieldError{Pointer: "#/customer_email", Code: "required"})), 422, "",
		`{"type":"https://pizzaflow.example/problems/invalid-request","title":"The request is not acceptable","status":422,` +
			`"detail":"The request was understood, but some of its fields are missing or out of range.",` +
			`"instance":"/api/v1/orders/%D1%8F","request_id":"` + anID + `",` +
			`"errors":[{"pointer":"#/items/0/quantity","code":"out_of_range","detail":"From 1 to 100."},{"pointer":"#/customer_email","code":"required"}]}`,
	},
	{
		"not found", NotFound("There is no such order."), 404, "",
		`{"type":"https://pizzaflow.example/problems/not-found","title":"Not found","status":404,` +
			`"detail":"There is no such order.","instance":"/api/v1/orders/%D1%8F","request_id":"` + anID + `"}`,
	},
	{
		"unavailable", Unavailable("The database is away.").Because(errors.New("dial secret:5432")), 503, "5",
		`{"type":"https://pizzaflow.example/problems/unavailable","title":"Temporarily unavailable","status":503,` +
			`"detail":"The database is away.","instance":"/api/v1/orders/%D1%8F","request_id":"` + anID + `"}`,
	},
	{
		"own", &Problem{Type: ProblemBase + "in-progress", Title: "In progress", Status: 409, RetryAfter: 1200 * time.Millisecond}, 409, "2",
		`{"type":"https://pizzaflow.example/problems/in-progress","title":"In progress","status":409,` +
			`"instance":"/api/v1/orders/%D1%8F","request_id":"` + anID + `"}`,
	},
	{
		"anything else", errors.New("pq: secret at /root/x.go:12"), 500, "",
		`{"type":"https://pizzaflow.example/problems/internal","title":"Internal error","status":500,` +
			`"detail":"Something went wrong on our side.","instance":"/api/v1/orders/%D1%8F","request_id":"` + anID + `"}`,
	},
	{
		"deadline of our own", context.DeadlineExceeded, 500, "",
		`{"type":"https://pizzaflow.example/problems/internal","title":"Internal error","status":500,` +
			`"detail":"Something went wrong on our side.","instance":"/api/v1/orders/%D1%8F","request_id":"` + anID + `"}`,
	},
	{
		"form too large", fmt.Errorf("parse form: %w", &http.MaxBytesError{Limit: MaxBody}), 413, "",
		`{"type":"https://pizzaflow.example/problems/body-too-large","title":"The request body is too large","status":413,` +
			`"detail":"The request body may have at most 65536 bytes.","instance":"/api/v1/orders/%D1%8F","request_id":"` + anID + `"}`,
	},
}

func TestProblemGoldens(t *testing.T) {
	for _, c := range goldens {
		t.Run(c.name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "/api/v1/orders/%D1%8F?token=secret", nil)
			r.Header.Set("X-Request-Id", anID)
			rec := httptest.NewRecorder()
			rec.Header().Set("Etag", `"1"`)
			rec.Header().Set("Cache-Control", "max-age=60")
			before := fields(c.err)
			Error(rec, r, nil, c.err)
			if got := strings.TrimSpace(rec.Body.String()); got != c.want {
				t.Errorf("\n got %s\nwant %s", got, c.want)
			}
			h := rec.Header()
			if rec.Code != c.status || h.Get("Retry-After") != c.retry ||
				h.Get("Content-Type") != "application/problem+json; charset=utf-8" ||
				h.Get("Content-Length") != fmt.Sprint(rec.Body.Len()) ||
				h.Get("Cache-Control") != "no-store" || h.Get("Etag") != "" || h.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("%d %v", rec.Code, h)
			}
			if closes := h.Get("Connection") == "close"; closes != (c.status == 413) {
				t.Errorf("Connection: %q", h.Get("Connection"))
			}
			if after := fields(c.err); after != before {
				t.Errorf("Error changed a problem that others may share:\n%s\n%s", before, after)
			}
		})
	}
}

// fields returns the fields of the problem in err's chain.
func fields(err error) string {
	if p := (*Problem)(nil); errors.As(err, &p) {
		return fmt.Sprintf("%#v", *p)
	}
	return ""
}

func TestErrorLogsWhatIsOurFault(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	stopped, stop := context.WithCancelCause(t.Context())
	stop(errStopping)
	for _, c := range []struct {
		name   string
		ctx    context.Context
		err    error
		status int
		level  string // "" for no line
		logged string
	}{
		{"validation", t.Context(), Invalid(), 422, "", ""},
		{"not found", t.Context(), NotFound("x"), 404, "", ""},
		{"bug", t.Context(), errors.New("no such column"), 500, "ERROR", "no such column"},
		{"our own 500", t.Context(), NewProblem(500, "x", "X", "").Because(errors.New("why")), 500, "ERROR", "why"},
		{"database away", t.Context(), Unavailable("x").Because(errors.New("connection refused")), 503, "WARN", "connection refused"},
		{"cancelled, but not by the client", t.Context(), context.Canceled, 500, "ERROR", "context canceled"},
		{"client left", cancelled, fmt.Errorf("place order: %w", context.Canceled), 499, "DEBUG", "client left"},
		{"client left, wrapped in a problem", cancelled, Unavailable("x").Because(context.Canceled), 499, "DEBUG", "client left"},
		{"client left, in a driver's words", cancelled, errors.New("interrupted (9)"), 499, "WARN", "interrupted"},
		{"client left after a refusal", cancelled, Invalid(), 422, "", ""},
		{"stopping", stopped, fmt.Errorf("place order: %w", context.Canceled), 503, "WARN", "context canceled"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			log := slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
			r := httptest.NewRequestWithContext(c.ctx, "GET", "/api/x?secret", nil)
			r.Header.Set("X-Request-Id", anID)
			rec := httptest.NewRecorder()
			Error(rec, r, log, c.err)
			if rec.Code != c.status {
				t.Errorf("status %d, want %d", rec.Code, c.status)
			}
			if c.status == 503 && rec.Header().Get("Retry-After") == "" {
				t.Error("503 without Retry-After")
			}
			if c.status == StatusClientClosedRequest && rec.Body.Len() > 0 {
				t.Errorf("sent %s", rec.Body)
			}
			if c.level == "" {
				if out.Len() > 0 {
					t.Errorf("logged %s", &out)
				}
				return
			}
			var entry map[string]any
			if err := json.Unmarshal(out.Bytes(), &entry); err != nil {
				t.Fatalf("log is not one JSON line: %v: %s", err, &out)
			}
			if entry["level"] != c.level || entry["request_id"] != anID || !strings.Contains(out.String(), c.logged) || strings.Contains(out.String(), "secret") {
				t.Errorf("logged %s", &out)
			}
		})
	}
}

func TestProblemIsAnError(t *testing.T) {
	cause := errors.New("cause")
	p := Invalid(FieldError{"#/a", "required", "x"})
	if wrapped := p.Because(cause); !errors.Is(wrapped, cause) || errors.Is(p, cause) {
		t.Error("Because must wrap, in a copy")
	}
	if got := p.Because(cause).Error(); got != "422 The request is not acceptable; #/a required: cause" {
		t.Error(got)
	}
}

func TestJSON(t *testing.T) {
	rec := httptest.NewRecorder()
	JSON(rec, http.StatusCreated, map[string]any{"name": "Пицца <b>", "n": json.Number("1200.00")})
	if got := rec.Body.String(); got != `{"n":1200.00,"name":"Пицца \u003cb\u003e"}`+"\n" {
		t.Error(got)
	}
	if rec.Code != 201 || rec.Header().Get("Content-Type") != "application/json; charset=utf-8" ||
		rec.Header().Get("Content-Length") != fmt.Sprint(rec.Body.Len()) {
		t.Error(rec.Code, rec.Header())
	}
	h := Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { JSON(w, 200, func() {}) }), HandlerConfig{})
	rec = httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest("GET", "/", nil))
	if rec.Code != 500 {
		t.Errorf("what cannot be written is answered with %d", rec.Code)
	}
}
