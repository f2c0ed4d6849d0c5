package web

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"
)

// streamWriteTimeout limits each write to an event stream. It replaces the server's
// time-outs, which limit the whole request.
const streamWriteTimeout = 30 * time.Second

// response wraps the http.ResponseWriter of a connection. It records the status,
// replaces the plain-text errors of the standard library by problems where
// HandlerConfig.API says so, and frees event streams from the server's time-outs.
type response struct {
	http.ResponseWriter
	request *http.Request
	cancel  context.CancelCauseFunc // of the request's context
	api     bool                    // plain-text errors become problems

	status   int // 0 until the header is sent
	stream   bool
	replaced bool        // a problem was sent in place of the handler's body
	detach   func() bool // ends the wait for the server's stop
}

// Unwrap lets http.ResponseController reach the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader sends the header, or a problem that replaces a plain-text error.
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

// openStream frees the answer from the server's time-outs. The request's context
// ends when the server begins to stop, which would otherwise wait for the stream.
func (w *response) openStream() {
	w.stream = true
	if stopping, ok := w.request.Context().Value(stoppingKey{}).(context.Context); ok {
		w.detach = context.AfterFunc(stopping, func() { w.cancel(errStopping) })
	}
}

// extendWriteDeadline sets the deadline of a stream's next write. A writer without a
// connection (a recorder) has none, which is no error.
func (w *response) extendWriteDeadline() {
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
		w.extendWriteDeadline()
	}
	return w.ResponseWriter.Write(b)
}

// FlushError flushes the answer.
func (w *response) FlushError() error {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if w.stream {
		w.extendWriteDeadline()
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Flush implements http.Flusher.
func (w *response) Flush() { _ = w.FlushError() }

// release releases the resources of the request.
func (w *response) release() {
	if w.detach != nil {
		w.detach()
	}
	w.cancel(errFinished)
}

// stoppingKey is the key of a context that [Serve] ends when it begins to stop,
// seconds before it cancels the requests' own contexts.
type stoppingKey struct{}

var (
	errStopping = errors.New("the server is stopping")
	errFinished = errors.New("the request is finished")
)
