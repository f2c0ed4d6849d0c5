package web

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestAdmin(t *testing.T) {
	reg := prometheus.NewRegistry()
	orders := prometheus.NewCounter(prometheus.CounterOpts{Name: "pizza_test_orders_total", Help: "Orders."})
	reg.MustRegister(orders)
	orders.Add(3)
	notReady := errors.New("topic order-events is missing")
	var state error
	mux := Admin(reg, func(context.Context) error { return state })
	get := func(target string) (int, string) {
		rec := httptest.NewRecorder()
		mux.ServeHTTP(rec, httptest.NewRequest("GET", target, nil))
		return rec.Code, rec.Body.String()
	}
	if code, body := get("/metrics"); code != 200 || !strings.Contains(body, "\npizza_test_orders_total 3\n") {
		t.Errorf("/metrics: %d %s", code, body)
	}
	for _, state = range []error{nil, notReady} {
		if code, body := get("/livez"); code != 200 || body != "ok\n" {
			t.Errorf("/livez: %d %s", code, body)
		}
		code, body := get("/readyz")
		if want := "ready\n"; state == nil && (code != 200 || body != want) {
			t.Errorf("/readyz: %d %s", code, body)
		}
		if want := "not ready: topic order-events is missing\n"; state != nil && (code != 503 || body != want) {
			t.Errorf("/readyz: %d %s", code, body)
		}
	}
	if code, body := get("/debug/pprof/"); code != 200 || !strings.Contains(body, "goroutine") {
		t.Errorf("/debug/pprof/: %d", code)
	}
	if code, body := get("/debug/pprof/goroutine?debug=1"); code != 200 || !strings.Contains(body, "TestAdmin") {
		t.Errorf("/debug/pprof/goroutine: %d", code)
	}
	if code, _ := get("/"); code != 404 {
		t.Errorf("/: %d", code)
	}
}

// TestSecretsGivenAsFlagsAreNotServed gives the process a token as a flag, in both ways.
func TestSecretsGivenAsFlagsAreNotServed(t *testing.T) {
	args := os.Args
	t.Cleanup(func() { os.Args = args })
	os.Args = append(slices.Clone(args), "--ops-token=hunter2hunter2hunter2", "--kafka-sasl-password", "hunter2")
	mux := Admin(prometheus.NewRegistry(), nil)
	for _, profile := range []string{"", "cmdline", "goroutine?debug=2", "heap?debug=1", "symbol", "threadcreate?debug=1"} {
		rec := httptest.NewRecorder()
		mux.ServeHTTP(rec, httptest.NewRequest("GET", "/debug/pprof/"+profile, nil))
		if rec.Code != 200 || strings.Contains(rec.Body.String(), "hunter2") {
			t.Errorf("%q: %d, shows a secret: %s", profile, rec.Code, rec.Body)
		}
		if profile == "cmdline" && !strings.Contains(rec.Body.String(), "--ops-token") {
			t.Errorf("the flag's name is not shown: %s", rec.Body)
		}
	}
}

func TestReadyHasTwoSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mux := Admin(prometheus.NewRegistry(), func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		})
		rec := httptest.NewRecorder()
		began := time.Now()
		mux.ServeHTTP(rec, httptest.NewRequest("GET", "/readyz", nil))
		if took := time.Since(began); rec.Code != 503 || took != 2*time.Second {
			t.Errorf("%d after %v", rec.Code, took)
		}
	})
}

// The seconds of a profile may exceed the time-out of an answer.
func TestProfilesOutliveTheTimeouts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, Handler(Admin(prometheus.NewRegistry(), nil), HandlerConfig{}))
		began := time.Now()
		resp, err := s.client.Get("http://pizza/debug/pprof/allocs?seconds=40")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		profile, err := gzip.NewReader(resp.Body)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("no profile: %d, %v", resp.StatusCode, err)
		}
		if _, err := io.Copy(io.Discard, profile); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took != 40*time.Second {
			t.Errorf("took %v", took)
		}
	})
}
