package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// ProblemBase begins the type of every problem. The whole type is an identifier
// that never changes its meaning; it is no address to fetch.
const ProblemBase = "https://pizzaflow.example/problems/"

// StatusClientClosedRequest is the status in the access log when the client left
// before its answer was ready.
const StatusClientClosedRequest = 499

// FieldError is the error of one field of a request.
type FieldError struct {
	// Pointer is a JSON pointer in URI fragment form, such as "#/items/0/quantity".
	Pointer string `json:"pointer"`
	// Code is stable and for programs, such as "unknown_field".
	Code string `json:"code"`
	// Detail is for people. It never repeats the submitted value.
	Detail string `json:"detail,omitempty"`
}

// Problem is an error answer as RFC 9457 describes it. It is an error, so that the
// function that finds a fault returns it and the handler writes it by [Error]. A
// Problem may be shared: [Error] never changes it.
type Problem struct {
	// Type is a stable identifier, [ProblemBase] and a slug.
	Type string `json:"type"`
	// Title is the same for every problem of a type.
	Title string `json:"title"`
	// Status is the HTTP status.
	Status int `json:"status"`
	// Detail explains this occurrence to a person.
	Detail string `json:"detail,omitempty"`
	// Instance is the path of the request, without its query. [Error] fills it in.
	Instance string `json:"instance,omitempty"`
	// RequestID is the X-Request-Id of the answer. [Error] fills it in.
	RequestID string `json:"request_id,omitempty"`
	// Errors lists the fields at fault, if there are any.
	Errors []FieldError `json:"errors,omitempty"`
	// RetryAfter, if positive, becomes the header Retry-After, in whole seconds
	// rounded up.
	RetryAfter time.Duration `json:"-"`

	cause error
}

// NewProblem returns a problem of the type [ProblemBase] + slug.
func NewProblem(status int, slug, title, detail string) *Problem {
	return &Problem{Type: ProblemBase + slug, Title: title, Status: status, Detail: detail}
}

// Invalid returns the 422 problem for a well-formed request with unacceptable fields.
func Invalid(errs ...FieldError) *Problem {
	p := NewProblem(http.StatusUnprocessableEntity, "invalid-request", "The request is not acceptable",
		"The request was understood, but some of its fields are missing or out of range.")
	p.Errors = errs
	return p
}

// NotFound returns the 404 problem.
func NotFound(detail string) *Problem {
	return NewProblem(http.StatusNotFound, "not-found", "Not found", detail)
}

// Unavailable returns the 503 problem, with Retry-After of five seconds.
func Unavailable(detail string) *Problem {
	p := NewProblem(http.StatusServiceUnavailable, "unavailable", "Temporarily unavailable", detail)
	p.RetryAfter = 5 * time.Second
	return p
}

// statusProblem returns the problem for a status. If nothing is known beyond the
// status, its type is about:blank, as RFC 9457 says.
func statusProblem(status int) *Problem {
	switch status {
	case http.StatusNotFound:
		return NotFound("There is nothing at this address.")
	case http.StatusMethodNotAllowed:
		return NewProblem(status, "method-not-allowed", "Method not allowed",
			"This address does not take this method; the header Allow lists those it takes.")
	case http.StatusRequestEntityTooLarge:
		return NewProblem(status, "body-too-large", "The request body is too large",
			fmt.Sprintf("The request body may have at most %d bytes.", MaxBody))
	case http.StatusServiceUnavailable:
		return Unavailable("The service cannot answer at the moment.")
	case http.StatusInternalServerError:
		return NewProblem(status, "internal", "Internal error", "Something went wrong on our side.")
	}
	return &Problem{Type: "about:blank", Title: http.StatusText(status), Status: status}
}

// Because returns a copy of p that wraps err. [Error] logs err if the status is 500
// or above, and never sends it.
func (p *Problem) Because(err error) *Problem {
	c := *p
	c.cause = err
	return &c
}

// Error describes the problem for a log.
func (p *Problem) Error() string {
	var s strings.Builder
	s.WriteString(strconv.Itoa(p.Status) + " " + p.Title)
	for _, e := range p.Errors {
		s.WriteString("; " + e.Pointer + " " + e.Code)
	}
	if p.cause != nil {
		s.WriteString(": " + p.cause.Error())
	}
	return s.String()
}

// Unwrap returns the error given to [Problem.Because].
func (p *Problem) Unwrap() error { return p.cause }

// Error answers the request with err. A [*Problem] in err's chain is written as it
// is, a [*http.MaxBytesError] is 413, and any other error is a 500 without details.
// An answer of 500 and above is logged with the request's id. When the client has
// left, nothing is sent, which is logged below level error; when the server cancelled
// the request's context because it stops, the answer is 503.
func Error(w http.ResponseWriter, r *http.Request, log *slog.Logger, err error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	p, cancelled := problemOf(r.Context(), err)
	if p == nil {
		level := slog.LevelWarn
		if cancelled {
			level = slog.LevelDebug
		}
		log.Log(r.Context(), level, "client left", "request_id", RequestID(r), "error", err.Error())
		w.WriteHeader(StatusClientClosedRequest)
		return
	}
	if p.Status >= http.StatusInternalServerError {
		level := slog.LevelError
		if p.Status == http.StatusServiceUnavailable {
			level = slog.LevelWarn
		}
		log.Log(r.Context(), level, "request failed",
			"status", p.Status, "request_id", RequestID(r), "error", err.Error())
	}
	writeProblem(w, r, p)
}

// problemOf returns the problem of an error, nil if the client has left. cancelled
// reports that the error is the cancelled context.
func problemOf(ctx context.Context, err error) (p *Problem, cancelled bool) {
	cancelled = errors.Is(err, context.Canceled)
	gone := errors.Is(ctx.Err(), context.Canceled)
	stopped := gone && errors.Is(context.Cause(ctx), errStopping)
	var tooLarge *http.MaxBytesError
	switch found := errors.As(err, &p); {
	case gone && !stopped && (cancelled || !found):
		return nil, cancelled // drivers have errors of their own for a cancelled context
	case found:
		return p, cancelled
	case errors.As(err, &tooLarge):
		return statusProblem(http.StatusRequestEntityTooLarge), cancelled
	case stopped:
		return Unavailable("The service is being restarted."), cancelled
	}
	return statusProblem(http.StatusInternalServerError), cancelled
}

// writeProblem sends p with the id and the path of the request.
func writeProblem(w http.ResponseWriter, r *http.Request, p *Problem) {
	c := *p
	c.RequestID = RequestID(r)
	if path := r.URL.EscapedPath(); len(path) <= 256 {
		c.Instance = path
	}
	body, err := json.Marshal(&c)
	if err != nil {
		panic(fmt.Errorf("marshal problem: %w", err)) // strings and integers only: cannot happen
	}
	h := w.Header()
	for _, name := range []string{"Content-Encoding", "Etag", "Last-Modified", "Content-Disposition"} {
		h.Del(name) // they describe the answer that p replaces
	}
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if c.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(c.RetryAfter.Seconds()))))
	}
	if c.Status == http.StatusRequestEntityTooLarge || c.Status == http.StatusRequestTimeout {
		h.Set("Connection", "close") // the rest of the body is still on its way
	}
	writeBody(w, c.Status, "application/problem+json; charset=utf-8", body)
}

// JSON answers with v. It panics if encoding/json cannot encode v, which [Handler]
// answers with 500.
func JSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Errorf("marshal answer: %w", err))
	}
	writeBody(w, status, "application/json; charset=utf-8", body)
}

func writeBody(w http.ResponseWriter, status int, contentType string, body []byte) {
	body = append(body, '\n')
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // the only error is a client that is gone
}
