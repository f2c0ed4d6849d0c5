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
// that never changes its meaning; it is not meant to be fetched.
const ProblemBase = "https://pizzaflow.example/problems/"

// StatusClientClosedRequest is recorded (and never seen by anybody) when the
// client left before its answer was ready.
const StatusClientClosedRequest = 499

// FieldError says what is wrong with one field of a request.
type FieldError struct {
	// Pointer is a JSON pointer in URI fragment form, such as "#/items/0/quantity".
	Pointer string `json:"pointer"`
	// Code is stable and meant for programs, such as "unknown_field".
	Code string `json:"code"`
	// Detail is meant for people. It never repeats the submitted value.
	Detail string `json:"detail,omitempty"`
}

// Problem is an answer that is not a success, as RFC 9457 describes it. It is an
// error, so that it can be returned from where the fault is found and written by
// [Error] at the edge. A Problem may be shared: [Error] never changes it.
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
	// Errors lists the fields at fault, if it is about fields.
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

// Invalid returns the 422 problem for a request that was understood and is not
// acceptable.
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

// Unavailable returns the 503 problem, to be tried again after five seconds.
func Unavailable(detail string) *Problem {
	p := NewProblem(http.StatusServiceUnavailable, "unavailable", "Temporarily unavailable", detail)
	p.RetryAfter = 5 * time.Second
	return p
}

// statusProblem is the problem for a status alone. Where the status says it all,
// its type is about:blank, as RFC 9457 wants it.
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

// Because returns a copy of p that wraps err, which is logged by [Error] where
// the problem is our own fault (a status of 500 and above) and is never sent.
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

// Unwrap returns what [Problem.Because] was given.
func (p *Problem) Unwrap() error { return p.cause }

// Error answers the request with err. A [*Problem] in err's chain is written as it
// is, a [*http.MaxBytesError] is 413; anything else is a 500 that tells nothing.
// What is our fault (500 and above) is logged, with the request's id. When the
// client has left, nothing is sent, and that is not logged as an error; when the
// server is stopping and took the request's context away, it is a 503.
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

// problemOf maps an error to its problem, or to nil where there is nobody left to
// read it; cancelled says that the error is no more than that.
func problemOf(ctx context.Context, err error) (p *Problem, cancelled bool) {
	cancelled = errors.Is(err, context.Canceled)
	gone := errors.Is(ctx.Err(), context.Canceled)
	stopped := gone && errors.Is(context.Cause(ctx), errStopping)
	var tooLarge *http.MaxBytesError
	switch found := errors.As(err, &p); {
	case gone && !stopped && (cancelled || !found):
		return nil, cancelled // drivers have words of their own for a cancelled context
	case found:
		return p, cancelled
	case errors.As(err, &tooLarge):
		return statusProblem(http.StatusRequestEntityTooLarge), cancelled
	case stopped:
		return Unavailable("The service is being restarted."), cancelled
	}
	return statusProblem(http.StatusInternalServerError), cancelled
}

// writeProblem sends p with what it leaves open filled in from the request.
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
		h.Del(name) // they described the answer that is not given
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

// JSON answers with v. A v that encoding/json cannot write is a mistake in the
// program and panics, which [Handler] turns into a 500.
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
