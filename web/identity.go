package web

import (
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"strings"

	"github.com/google/uuid"
)

const (
	requestIDHeader   = "X-Request-Id"
	traceparentHeader = "Traceparent"
)

// RequestID returns the id that [Handler] gave the request, "" without Handler. The
// answer, its problem and the log show it.
func RequestID(r *http.Request) string { return r.Header.Get(requestIDHeader) }

// ensureRequestID replaces a missing or malformed X-Request-Id: it goes into logs
// and headers, where a client must not write other text.
func ensureRequestID(r *http.Request) {
	if ids := r.Header.Values(requestIDHeader); len(ids) != 1 || len(ids[0]) != 36 || uuid.Validate(ids[0]) != nil {
		r.Header.Set(requestIDHeader, uuid.Must(uuid.NewV7()).String())
	}
}

// ensureTraceparent begins a new trace if the request has no valid Traceparent.
func ensureTraceparent(r *http.Request) {
	if parents := r.Header.Values(traceparentHeader); len(parents) != 1 || !validTraceparent(parents[0]) {
		r.Header.Set(traceparentHeader, newTraceparent())
		r.Header.Del("Tracestate") // it belongs to the trace that was not continued
	}
}

// newTraceparent returns the traceparent of a new W3C trace.
func newTraceparent() string {
	var b [24]byte
	_, _ = rand.Read(b[:]) // never fails
	b[0] |= 1              // an id of zeros is invalid
	b[16] |= 1
	return "00-" + hex.EncodeToString(b[:16]) + "-" + hex.EncodeToString(b[16:]) + "-01"
}

// validTraceparent reports whether s is a W3C traceparent of version 00, the only
// version so far.
func validTraceparent(s string) bool {
	parts := strings.Split(s, "-")
	return len(parts) == 4 && parts[0] == "00" &&
		isHex(parts[1], 32) && strings.Trim(parts[1], "0") != "" &&
		isHex(parts[2], 16) && strings.Trim(parts[2], "0") != "" &&
		isHex(parts[3], 2)
}

func isHex(s string, length int) bool {
	return len(s) == length && strings.Trim(s, "0123456789abcdef") == ""
}
