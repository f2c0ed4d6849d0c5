package web

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

const (
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 15 * time.Second
	writeTimeout      = 30 * time.Second
	idleTimeout       = 60 * time.Second
	maxHeaderBytes    = 16 << 10

	// stopTimeout is how long requests may take to finish when the server stops.
	// stopNotice before its end their contexts are cancelled.
	stopTimeout = 10 * time.Second
	stopNotice  = 2 * time.Second
)

// Serve serves h on ln until ctx ends. It always closes ln, and returns the error of
// a listener that failed.
//
// When ctx ends, Serve accepts no new request, ends event streams behind [Handler] at
// once, and lets the other requests finish: after eight seconds it cancels their
// contexts, after ten it cuts their connections, which is logged. Then it returns
// nil.
//
// A request has 5 seconds for its header (of 16 KiB at most) and 15 for its body,
// an answer 30, an idle connection 60.
func Serve(ctx context.Context, ln net.Listener, h http.Handler, log *slog.Logger) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	stopping, stop := context.WithCancel(context.Background())
	defer stop()
	requests, cancel := context.WithCancelCause(context.WithValue(context.Background(), stoppingKey{}, stopping))
	defer cancel(errStopping)
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		BaseContext:       func(net.Listener) context.Context { return requests },
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(ln) }()
	select {
	case err := <-failed:
		_ = srv.Close()
		return fmt.Errorf("serve HTTP on %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	stop()
	notice := time.AfterFunc(stopTimeout-stopNotice, func() { cancel(errStopping) })
	defer notice.Stop()
	grace, done := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer done()
	if err := srv.Shutdown(grace); err != nil {
		log.Warn("requests cut off", "address", ln.Addr().String(), "error", err.Error())
		_ = srv.Close()
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP on %s: %w", ln.Addr(), err)
	}
	return nil
}
