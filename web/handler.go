package web

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strings"
	"time"
)

// HandlerConfig configures [Handler]. The zero value has no log and no rate limit,
// and answers problems to paths under /api.
type HandlerConfig struct {
	// Log gets the access log (at level info) and panics.
	Log *slog.Logger
	// RateLimit is the number of requests a minute of one peer; 0 is no limit.
	// Requests from this machine are not limited.
	RateLimit int
	// TrustedProxies are the addresses whose X-Forwarded-For names the real peer.
	TrustedProxies []netip.Prefix
	// API reports whether the plain-text errors of a path, such as the 404 and 405
	// of a ServeMux, are answered as problems. Default: /api and all paths below it.
	API func(path string) bool
}

// Handler wraps h in the middleware of a public address: request id, traceparent,
// security headers, rate limit, refusal of cross-origin writes, body limit, recovery
// from panics, and access log.
//
// The request's headers X-Request-Id and Traceparent are valid when h is called. h
// may replace any header of the answer, including the content security policy and
// Cache-Control (no-store). An answer of type text/event-stream is exempt from the
// server's time-outs (each write has its own, of 30 seconds), and its request's
// context ends when [Serve] begins to stop.
func Handler(h http.Handler, cfg HandlerConfig) http.Handler {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.API == nil {
		cfg.API = func(path string) bool { return path == "/api" || strings.HasPrefix(path, "/api/") }
	}
	return &middleware{next: h, cfg: cfg, limit: newLimiter(cfg.RateLimit), origin: http.NewCrossOriginProtection()}
}

type middleware struct {
	next   http.Handler
	cfg    HandlerConfig
	limit  *limiter // nil: none
	origin *http.CrossOriginProtection
}

// ServeHTTP implements http.Handler.
func (e *middleware) ServeHTTP(conn http.ResponseWriter, r *http.Request) {
	began := time.Now()
	ctx, cancel := context.WithCancelCause(r.Context())
	r = r.WithContext(ctx)
	w := &response{ResponseWriter: conn, request: r, cancel: cancel, api: e.cfg.API(r.URL.Path)}
	ensureRequestID(r)
	ensureTraceparent(r)
	setSecurityHeaders(w.Header())
	w.Header().Set(requestIDHeader, RequestID(r))
	defer func() {
		abort := e.answerPanic(recover(), w, r)
		if w.status == 0 && !abort {
			w.status = http.StatusOK // net/http sends it for a handler that sent nothing
		}
		w.release()
		e.logAccess(w, r, time.Since(began))
		if abort {
			panic(http.ErrAbortHandler)
		}
	}()
	if p := e.admitRequest(r); p != nil {
		writeProblem(w, r, p)
		return
	}
	if r.Body != nil {
		// MaxBytesReader gets the connection, not our wrapper, so that it can close it.
		r.Body = http.MaxBytesReader(conn, r.Body, MaxBody)
	}
	e.next.ServeHTTP(w, r)
}

// admitRequest counts the request against the rate limit and checks its origin. It
// returns the problem to refuse it with, or nil.
func (e *middleware) admitRequest(r *http.Request) *Problem {
	if peer, limited := peerOf(r, e.cfg.TrustedProxies); limited && e.limit != nil {
		if wait := e.limit.reserve(peer); wait > 0 {
			p := NewProblem(http.StatusTooManyRequests, "too-many-requests", "Too many requests",
				"Please slow down and try again later.")
			p.RetryAfter = wait
			return p
		}
	}
	if err := e.origin.Check(r); err != nil {
		return NewProblem(http.StatusForbidden, "cross-origin", "Cross-origin request refused",
			"This address takes changes only from pages of its own origin.")
	}
	return nil
}

// answerPanic logs the panic v of a handler and answers 500. It returns true if the
// connection must be cut, because a part of another answer was sent. A nil v is no
// panic.
func (e *middleware) answerPanic(v any, w *response, r *http.Request) (abort bool) {
	if v == nil {
		return false
	}
	if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		return true
	}
	e.cfg.Log.ErrorContext(r.Context(), "handler panicked",
		"request_id", RequestID(r), "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	if w.status != 0 {
		return true
	}
	writeProblem(w, r, statusProblem(http.StatusInternalServerError))
	return false
}

// logAccess writes the request's line in the access log; a status of 0 means that
// nothing was answered. It logs no query, no header and no peer, and of a path that
// matches no route only what plainPath returns.
func (e *middleware) logAccess(w *response, r *http.Request, took time.Duration) {
	route := r.Pattern
	if route == "" {
		route = plainPath(r.URL.Path)
	}
	e.cfg.Log.InfoContext(r.Context(), "request",
		"method", plainMethod(r.Method), "route", route, "status", w.status,
		"duration_ms", float64(took.Microseconds())/1000, "request_id", RequestID(r))
}

// plainPath returns a short path of letters, digits and -_./ as it is, any other as
// (other).
func plainPath(path string) string {
	if len(path) > 128 {
		return "(other)"
	}
	for _, c := range path {
		if !isAlphanumeric(c) && !strings.ContainsRune("/-_.", c) {
			return "(other)"
		}
	}
	return path
}

// plainMethod returns a method that is a short word as it is, any other as (other):
// clients may invent methods.
func plainMethod(method string) string {
	if len(method) > 16 || strings.ContainsFunc(method, func(c rune) bool { return !isAlphanumeric(c) }) {
		return "(other)"
	}
	return method
}

func isAlphanumeric(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// setSecurityHeaders sets headers that a handler may replace.
func setSecurityHeaders(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'self'; object-src 'none'; base-uri 'none'; "+
		"frame-ancestors 'none'; form-action 'self'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
}
