package web

import (
	"context"
	"net/http"
	"net/http/pprof"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pizzaflow/internal/redact"
)

// readyTimeout is how long /readyz waits for its answer.
const readyTimeout = 2 * time.Second

// Admin returns the routes for operators: /metrics shows the metrics of reg within a
// second and is always 200 (see Guard), /livez is 200 as long as the process answers,
// /readyz is 200 if ready returns nil within two seconds and else 503 with the error,
// and /debug/pprof/ has the profiles, with the
// names of the command line's flags, but none of their values. Keep it off public addresses. The caller may
// add routes.
func Admin(reg prometheus.Gatherer, ready func(context.Context) error) *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metricsPage(reg))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		writeText(w, http.StatusOK, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
		defer cancel()
		if err := ready(ctx); err != nil {
			writeText(w, http.StatusServiceUnavailable, "not ready: "+err.Error())
			return
		}
		writeText(w, http.StatusOK, "ready")
	})
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", func(w http.ResponseWriter, _ *http.Request) {
		// as pprof.Cmdline writes it, but without the secrets that were given as flags
		writeText(w, http.StatusOK, strings.Join(redact.CommandLine(os.Args), "\x00"))
	})
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

func writeText(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text + "\n")) //nolint:gosec // G705: it is plain text
}
