package order

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"pizzaflow/outbox"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
	"pizzaflow/web"
)

// BenchmarkIntake places orders, each with a key, and waits for each 201:
// through the whole HTTP handler and by Place, one transaction per order and
// grouped, in turn.
func BenchmarkIntake(b *testing.B) {
	for _, engine := range []sqldb.Engine{sqldb.SQLite, sqldb.Postgres} {
		for _, clients := range []int{1, 32, 256} {
			for _, way := range []string{"http", "place"} {
				for _, grouped := range []bool{false, true} {
					b.Run(fmt.Sprintf("%s/clients=%d/%s/grouped=%t", engine, clients, way, grouped), func(b *testing.B) {
						benchmarkIntake(b, engine, clients, way == "http", grouped)
					})
				}
			}
		}
	}
}

func benchmarkIntake(b *testing.B, engine sqldb.Engine, clients int, viaHTTP, grouped bool) {
	s, err := New(Config{Outbox: outbox.New(sqltest.Open(b, engine, schemas...), "/order-service")})
	if err != nil {
		b.Fatal(err)
	}
	if !grouped {
		s.put = func(ctx context.Context, o *newOrder) (error, error) {
			refused, err := s.store(ctx, []*newOrder{o})
			if err != nil {
				return nil, err
			}
			return refused[0], nil
		}
	}
	mux := http.NewServeMux()
	s.Routes(mux)
	handler := web.Handler(mux, web.HandlerConfig{Log: slog.New(slog.DiscardHandler)})
	body := []byte(sample)
	place := func(key string) error {
		if !viaHTTP {
			_, err := s.Place(b.Context(), Placement{Draft: validDraft, Key: key, Body: body})
			return err
		}
		r := httptest.NewRequestWithContext(b.Context(), http.MethodPost, "/api/v1/orders", bytes.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Idempotency-Key", key)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code != http.StatusCreated || !strings.Contains(w.Body.String(), `"total_amount":1200.00`) {
			return fmt.Errorf("answer %d %s", w.Code, w.Body)
		}
		return nil
	}
	for i := range 20 { // statements are prepared, pages are there
		if err := place(fmt.Sprint("warm-", i)); err != nil {
			b.Fatal(err)
		}
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	latencies := make([][]time.Duration, clients)
	busy := processorTime(b)
	b.ResetTimer()
	for c := range clients {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				start := time.Now()
				if err := place(fmt.Sprint("key-", i)); err != nil {
					b.Error(err)
					return
				}
				latencies[c] = append(latencies[c], time.Since(start))
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64((processorTime(b)-busy).Microseconds())/float64(b.N), "cpu-us/order")
	all := slices.Concat(latencies...)
	slices.Sort(all)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "orders/s")
	b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "p99-ms")
}

// processorTime is what this process has used of the processors, in the kernel
// too. Unlike a rate it does not depend on what else the machine is doing.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
