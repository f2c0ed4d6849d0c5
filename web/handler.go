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

// HandlerConfig is what [Handler] needs to know. The zero value works: no log, no
// rate limit, and problems for paths under /api.
type HandlerConfig struct {
	// Log takes the access log (at level info) and panics.
	Log *slog.Logger
	// RateLimit is the number of requests a minute that one peer may make; 0 is
	// no limit. Requests from this machine are never limited.
	RateLimit int
	// TrustedProxies are the addresses whose X-Forwarded-For tells the real peer.
	TrustedProxies []netip.Prefix
	// API tells the paths whose plain-text errors (404 and 405 of a ServeMux among
	// them) are answered as problems. Default: /api and everything below it.
	API func(path string) bool
}

// Handler puts in front of h what every request to a public address goes through:
// a request id, a traceparent, security headers, the rate limit, the refusal of
// cross-origin writes, the body limit, recovery from panics, and the access log.
//
// h finds the request id and a valid traceparent in the request's headers
// X-Request-Id and Traceparent, whatever the client sent. It may replace any of
// the answer's headers, the content security policy and Cache-Control (no-store)
// among them. An answer of type text/event-stream is exempt from the server's
// time-outs (each write has 30 seconds of its own), and its request's context
// ends when [Serve] begins to stop.
func Handler(h http.Handler, cfg HandlerConfig) http.Handler {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.API == nil {
		cfg.API = func(path string) bool { return path == "/api" || strings.HasPrefix(path, "/api/") }
	}
	return &edge{next: h, cfg: cfg, limit: newLimiter(cfg.RateLimit), origin: http.NewCrossOriginProtection()}
}

type edge struct {
	next   http.Handler
	cfg    HandlerConfig
	limit  *limiter // nil: none
	origin *http.CrossOriginProtection
}

// ServeHTTP takes one request through everything in order.
func (e *edge) ServeHTTP(conn http.ResponseWriter, r *http.Request) {
	began := time.Now()
	ctx, cancel := context.WithCancelCause(r.Context())
	r = r.WithContext(ctx)
	w := &response{ResponseWriter: conn, request: r, cancel: cancel, api: e.cfg.API(r.URL.Path)}
	identify(r)
	secure(w.Header())
	w.Header().Set(requestIDHeader, RequestID(r))
	defer func() {
		abort := e.recovered(recover(), w, r)
		if w.status == 0 && !abort {
			w.status = http.StatusOK // which net/http sends for a handler that sent nothing
		}
		w.finish()
		e.access(w, r, time.Since(began))
		if abort {
			panic(http.ErrAbortHandler)
		}
	}()
	if p := e.refusal(r); p != nil {
		writeProblem(w, r, p)
		return
	}
	if r.Body != nil {
		// The limit is told the connection, not our wrapper: only so can it close it.
		r.Body = http.MaxBytesReader(conn, r.Body, MaxBody)
	}
	e.next.ServeHTTP(w, r)
}

// refusal is the answer to a request that h never gets to see.
func (e *edge) refusal(r *http.Request) *Problem {
	if peer, limited := peerOf(r, e.cfg.TrustedProxies); limited && e.limit != nil {
		if wait := e.limit.take(peer); wait > 0 {
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

// recovered answers for a handler that panicked, and reports whether the
// connection has to be cut because half an answer is already out.
func (e *edge) recovered(v any, w *response, r *http.Request) (abort bool) {
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

// access writes the request's line in the access log; a status of 0 means that
// nothing was answered. The query, the headers and
// the peer stay out of it, and so does a path that no route matches unless it
// looks like one.
func (e *edge) access(w *response, r *http.Request, took time.Duration) {
	route := r.Pattern
	if route == "" {
		route = plainPath(r.URL.Path)
	}
	e.cfg.Log.InfoContext(r.Context(), "request",
		"method", plainMethod(r.Method), "route", route, "status", w.status,
		"duration_ms", float64(took.Microseconds())/1000, "request_id", RequestID(r))
}

// plainPath keeps a path of letters, digits and the marks of paths.
func plainPath(path string) string {
	if len(path) > 128 {
		return "(other)"
	}
	for _, c := range path {
		if !isWord(c) && !strings.ContainsRune("/-_.", c) {
			return "(other)"
		}
	}
	return path
}

// plainMethod keeps a method that is a short word: clients may invent others.
func plainMethod(method string) string {
	if len(method) > 16 || strings.ContainsFunc(method, func(c rune) bool { return !isWord(c) }) {
		return "(other)"
	}
	return method
}

func isWord(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// secure sets the headers that every answer has unless its handler replaces them.
func secure(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'self'; object-src 'none'; base-uri 'none'; "+
		"frame-ancestors 'none'; form-action 'self'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
}
