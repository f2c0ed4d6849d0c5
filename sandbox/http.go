package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
)

const (
	maxBody      = 1 << 20
	readTimeout  = 10 * time.Second // of a body, after its header
	writeTimeout = 2 * time.Minute  // of one answer; a list may be long
)

// apiError is an error as a client sees it.
type apiError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	status  int
	facts   record // stored with the answer
}

// Error returns the code and the message.
func (e *apiError) Error() string { return e.Code + ": " + e.Message }

func badRequest(code, message string) error {
	return &apiError{status: http.StatusBadRequest, Code: code, Message: message}
}

func invalid(code, message string) error {
	return &apiError{status: http.StatusUnprocessableEntity, Code: code, Message: message}
}

// methods has the handlers of one path by method. Any other method is answered 405.
type methods map[string]http.HandlerFunc

// ServeHTTP serves HEAD as GET.
func (m methods) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	if h := m[method]; h != nil {
		h(w, r)
		return
	}
	var allowed []string
	for name := range m {
		allowed = append(allowed, name)
	}
	slices.Sort(allowed)
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	writeError(w, nil, &apiError{status: http.StatusMethodNotAllowed, Code: "method_not_allowed", Message: "allowed: " + strings.Join(allowed, ", ")})
}

func (s *Sandbox) routes() (http.Handler, error) {
	page, err := newPage(s)
	if err != nil {
		return nil, err
	}
	p := s.payments
	mux := http.NewServeMux()
	mux.Handle("/payments/charges", methods{"POST": p.handleExchange(p.handleCreateCharge), "GET": p.handleExchange(p.handleListCharges)})
	mux.Handle("/payments/refunds", methods{"POST": p.handleExchange(p.handleCreateRefund)})
	mux.Handle("/payments/requests", methods{"GET": p.handleListRequests})
	mux.Handle("/payments/behaviour", methods{"GET": p.handleGetBehaviour, "PUT": p.handlePutBehaviour})
	mux.Handle("/mail/messages", methods{"GET": s.mails.handleList})
	mux.Handle("/mail/messages/{number}/html", methods{"GET": page.handleMailHTML})
	mux.Handle("/sms/messages", methods{"GET": s.sms.handleList, "POST": s.handleSendSMS})
	mux.Handle("/assets/", methods{"GET": page.handleAsset})
	mux.Handle("/{$}", methods{"GET": page.handleShow})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		writeError(w, nil, &apiError{status: http.StatusNotFound, Code: "not_found", Message: "there is nothing here"})
	})
	return withSecurityHeaders(http.NewCrossOriginProtection().Handler(mux)), nil
}

// withSecurityHeaders sets headers that allow a browser the page's own files only.
func withSecurityHeaders(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "+
			"connect-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// decode decodes the body, which must be one JSON value.
func decode(w http.ResponseWriter, r *http.Request, v any) error {
	body, err := readBody(w, r)
	if err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return badRequest("invalid_json", "the body cannot be read: "+describeJSONError(err))
	}
	if _, err := dec.Token(); err != io.EOF {
		return badRequest("invalid_json", "the body must be one JSON object")
	}
	return nil
}

// describeJSONError describes a decoding error without the client's values.
func describeJSONError(err error) string {
	var wrongType *json.UnmarshalTypeError
	switch {
	case errors.As(err, &wrongType):
		return fmt.Sprintf("%q has the wrong type", wrongType.Field)
	case strings.HasPrefix(err.Error(), "json: unknown field"):
		return strings.TrimPrefix(err.Error(), "json: ")
	}
	return "it is not the JSON that is asked for"
}

// readBody reads the body before a deadline, and then removes the deadline: while an
// answer hangs, net/http would take its end for a client that has left.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	control := http.NewResponseController(w)
	if err := control.SetReadDeadline(time.Now().Add(readTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return nil, fmt.Errorf("read body: %w", err)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, &apiError{status: http.StatusRequestEntityTooLarge, Code: "too_large", Message: "the body may have 1 MiB"}
	case err != nil:
		return nil, badRequest("unreadable", "the body did not arrive")
	}
	if err := control.SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return nil, fmt.Errorf("read body: %w", err)
	}
	return body, nil
}

func writeJSON(w http.ResponseWriter, log *slog.Logger, status int, v any) {
	body, err := encodeLine(v)
	if err != nil {
		writeError(w, log, err)
		return
	}
	setWriteDeadline(w, log)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if _, err := w.Write(body); err != nil {
		logUndelivered(log, err)
	}
}

// writeError answers with an apiError as it is. Any other error is logged and answered
// with 500 without details.
func writeError(w http.ResponseWriter, log *slog.Logger, err error) {
	var e *apiError
	if !errors.As(err, &e) {
		log.Error("request failed", "error", err)
		e = &apiError{status: http.StatusInternalServerError, Code: "sandbox_failed", Message: "the sandbox itself has failed, perhaps to keep the evidence"}
	}
	writeJSON(w, log, e.status, e)
}

// streamList writes a bare array, item by item. An error in the middle cuts the
// connection, so that a client does not take a part for the whole.
func streamList(w http.ResponseWriter, log *slog.Logger, each func(item func(any) error) error) {
	setWriteDeadline(w, log)
	w.Header().Set("Content-Type", "application/json")
	separator := "["
	err := each(func(v any) error {
		line, ok := v.([]byte)
		if !ok {
			var err error
			if line, err = encodeLine(v); err != nil {
				return err
			}
		}
		if _, err := io.WriteString(w, separator); err != nil {
			return err
		}
		separator = ","
		_, err := w.Write(line)
		return err
	})
	if err == nil {
		_, err = io.WriteString(w, strings.TrimSuffix(separator, ",")+"]\n")
	}
	if err != nil {
		logUndelivered(log, err)
		panic(http.ErrAbortHandler) // how net/http cuts a connection
	}
}

func setWriteDeadline(w http.ResponseWriter, log *slog.Logger) {
	err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
	if err != nil && !errors.Is(err, http.ErrNotSupported) {
		logUndelivered(log, err)
	}
}

func logUndelivered(log *slog.Logger, err error) {
	if log != nil {
		log.Debug("answer not delivered", "error", err)
	}
}

// httpServer serves the handler. Only answers have no time limit: they may hang.
type httpServer struct {
	*http.Server
	listener net.Listener
}

func (s *Sandbox) httpServer(ln net.Listener) httpServer {
	return httpServer{listener: ln, Server: &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}}
}

func (h httpServer) serve() error {
	if err := h.Serve(h.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve http: %w", err)
	}
	return nil
}

// stop waits until ctx ends for requests under way, then cuts their connections.
func (h httpServer) stop(ctx context.Context) error {
	err := h.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = h.Close()
	}
	if err != nil {
		return fmt.Errorf("stop http: %w", err)
	}
	return nil
}
