package web

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"
)

// streamWriteTimeout is how long one write to an event stream may take. It takes
// the place of the server's time-outs, which count from the request on.
const streamWriteTimeout = 30 * time.Second

// response stands between a handler and the connection. It remembers what was
// answered, turns the plain-text errors of the standard library into problems
// where a program is asking, and lets event streams live as long as they like.
type response struct {
	http.ResponseWriter
	request *http.Request
	cancel  context.CancelCauseFunc // of the request's context
	api     bool                    // errors are problems here

	status   int // 0 until the header is sent
	stream   bool
	replaced bool        // the handler's body gave way to a problem
	detach   func() bool // from the signal that the server stops
}

// Unwrap lets http.ResponseController reach the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader sends the header, or a problem in place of a plain-text error.
func (w *response) WriteHeader(status int) {
	if status >= 100 && status < 200 && status != http.StatusSwitchingProtocols {
		w.ResponseWriter.WriteHeader(status)
		return
	}
	if w.replaced {
		return
	}
	contentType := w.Header().Get("Content-Type")
	bare := contentType == "" || strings.HasPrefix(contentType, "text/plain")
	if w.api && bare && w.status == 0 && status >= 400 && status != StatusClientClosedRequest {
		writeProblem(w, w.request, statusProblem(status))
		w.replaced = true
		return
	}
	if w.status == 0 {
		w.status = status
		if strings.HasPrefix(contentType, "text/event-stream") {
			w.openStream()
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

// openStream frees the answer from the server's time-outs and ties it to the
// server's stop instead: a stream has no end to be waited for.
func (w *response) openStream() {
	w.stream = true
	if stopping, ok := w.request.Context().Value(stoppingKey{}).(context.Context); ok {
		w.detach = context.AfterFunc(stopping, func() { w.cancel(errStopping) })
	}
}

// extend gives the next write of a stream its time. A writer without a connection
// (a recorder) has no deadline to move.
func (w *response) extend() {
	_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(streamWriteTimeout))
}

// Write sends a part of the body.
func (w *response) Write(b []byte) (int, error) {
	if w.replaced {
		return len(b), nil
	}
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if w.stream {
		w.extend()
	}
	return w.ResponseWriter.Write(b)
}

// FlushError sends what was written so far.
func (w *response) FlushError() error {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if w.stream {
		w.extend()
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Flush is FlushError for those who ask for an http.Flusher.
func (w *response) Flush() { _ = w.FlushError() }

// finish lets go of what the request holds.
func (w *response) finish() {
	if w.detach != nil {
		w.detach()
	}
	w.cancel(errFinished)
}

// stoppingKey is the context key of the context that [Serve] ends when it is
// asked to stop, long before it takes away the requests' own.
type stoppingKey struct{}

var (
	errStopping = errors.New("the server is stopping")
	errFinished = errors.New("the request is finished")
)
