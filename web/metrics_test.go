package web

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// A bad collector panics, fails or hangs when it is collected.
type bad struct {
	desc *prometheus.Desc
	do   func(ch chan<- prometheus.Metric)
}

func (b bad) Describe(ch chan<- *prometheus.Desc) { ch <- b.desc }
func (b bad) Collect(ch chan<- prometheus.Metric) { b.do(ch) }

// badCollectors has a collector for each way to spoil a page, by name.
func badCollectors(hang <-chan struct{}) map[string]prometheus.Collector {
	collector := func(name string, do func(desc *prometheus.Desc, ch chan<- prometheus.Metric)) prometheus.Collector {
		desc := prometheus.NewDesc(name, "Bad.", nil, nil)
		return bad{desc, func(ch chan<- prometheus.Metric) { do(desc, ch) }}
	}
	return map[string]prometheus.Collector{
		"bad_invalid": collector("bad_invalid", func(desc *prometheus.Desc, ch chan<- prometheus.Metric) {
			ch <- prometheus.NewInvalidMetric(desc, errors.New("the database is away"))
		}),
		"bad_panic": collector("bad_panic", func(*prometheus.Desc, chan<- prometheus.Metric) { panic("collect") }),
		"bad_late":  collector("bad_late", func(*prometheus.Desc, chan<- prometheus.Metric) { <-hang }),
		"bad_half": collector("bad_half", func(desc *prometheus.Desc, ch chan<- prometheus.Metric) {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, 1)
			panic("collect")
		}),
		"bad_func": prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "bad_func", Help: "Bad."}, func() float64 { panic("write") }),
		"bad_late_func": prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "bad_late_func", Help: "Bad."}, func() float64 {
			<-hang
			return 1
		}),
	}
}

// Only the bad collectors are left out of the page. It is read twice, because the
// first call of a collector that hangs is still under way at the second.
func TestGuardedCollectorsSpoilNoPage(t *testing.T) {
	for _, wrap := range []string{"", "pizza_"} {
		synctest.Test(t, func(t *testing.T) {
			hang := make(chan struct{})
			defer close(hang)
			registry := prometheus.NewRegistry()
			reg := Guard(prometheus.WrapRegistererWithPrefix(wrap, registry), slog.New(slog.DiscardHandler))
			for name, c := range badCollectors(hang) {
				if err := reg.Register(c); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
			}
			good := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "good", Help: "Good.", Buckets: []float64{1}}, []string{"of"})
			reg.MustRegister(good)
			good.WithLabelValues("orders").Observe(3)
			mux := Admin(registry, nil)
			for range 2 {
				body := scrape(t, mux)
				if !strings.Contains(body, "\n"+wrap+`good_sum{of="orders"} 3`+"\n") || strings.Contains(body, "bad_") {
					t.Errorf("the page is\n%s", body)
				}
			}
			if want := `pizza_promhttp_metric_handler_errors_total{cause="gathering"} 2`; !strings.Contains(scrape(t, mux), want) {
				t.Errorf("no %s", want)
			}
		})
	}
}

// scrape reads /metrics, which is 200 within a second.
func scrape(t *testing.T, mux http.Handler) string {
	t.Helper()
	began := time.Now()
	rec := httptest.NewRecorder()
	mux.ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	if took := time.Since(began); rec.Code != 200 || took > time.Second {
		t.Fatalf("%d after %v: %s", rec.Code, took, rec.Body)
	}
	return rec.Body.String()
}

// A gatherer without Guard that panics, fails or hangs costs the page its content,
// but neither the answer nor the process; while it hangs it is not called again.
func TestPageIsThereWhateverGathers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		calls := 0
		for name, g := range map[string]prometheus.GathererFunc{
			"panics": func() ([]*dto.MetricFamily, error) { panic("gather") },
			"fails":  func() ([]*dto.MetricFamily, error) { return nil, errors.New("gather") },
			"hangs": func() ([]*dto.MetricFamily, error) {
				calls++
				<-hang
				return nil, nil
			},
		} {
			mux := Admin(g, nil)
			for n := range 3 {
				want := fmt.Sprintf(`pizza_promhttp_metric_handler_errors_total{cause="gathering"} %d`, n)
				if body := scrape(t, mux); !strings.Contains(body, want) {
					t.Errorf("%s: no %s in\n%s", name, want, body)
				}
			}
		}
		close(hang)
		if synctest.Wait(); calls != 1 {
			t.Errorf("%d calls hang", calls)
		}
	})
}
