package web

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"golang.org/x/sync/singleflight"
)

// How long a collector may take, and all of them: who scrapes waits for ten
// seconds, and what a process tells of itself it has in memory.
const (
	collectorTimeout = 700 * time.Millisecond
	pageTimeout      = 900 * time.Millisecond
)

var errLate = errors.New("took too long")

// metricsPage shows what reg gathers, and is 200 whatever happens: what fails
// or takes too long is left out and counted on the next page, in
// pizza_promhttp_metric_handler_errors_total.
func metricsPage(reg prometheus.Gatherer) http.Handler {
	own := prometheus.NewRegistry()
	return promhttp.HandlerFor(prometheus.Gatherers{&bounded{Gatherer: reg}, own}, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, Registry: prometheus.WrapRegistererWithPrefix("pizza_", own),
	})
}

// A bounded Gatherer neither panics nor takes longer than pageTimeout. One that
// is still at it is waited for, not called again.
type bounded struct {
	prometheus.Gatherer
	flight singleflight.Group
}

// Gather implements prometheus.Gatherer.
func (b *bounded) Gather() ([]*dto.MetricFamily, error) {
	families, err := within(&b.flight, pageTimeout, b.Gatherer.Gather)
	return append([]*dto.MetricFamily(nil), families...), err
}

// Guard returns a Registerer that passes to reg what is registered with it, so
// that no collector can spoil the page for the others: one that panics, fails
// or takes longer than 700 ms has its error logged and shows nothing. It stands
// before whatever else wraps collectors: the goroutines of a wrapper cannot be
// guarded from outside.
func Guard(reg prometheus.Registerer, log *slog.Logger) prometheus.Registerer { return guard{reg, log} }

type guard struct {
	prometheus.Registerer
	log *slog.Logger
}

// Register implements prometheus.Registerer.
func (g guard) Register(c prometheus.Collector) error {
	return g.Registerer.Register(&guarded{Collector: c, log: g.log})
}

// MustRegister implements prometheus.Registerer.
func (g guard) MustRegister(cs ...prometheus.Collector) {
	for _, c := range cs {
		g.Registerer.MustRegister(&guarded{Collector: c, log: g.log})
	}
}

type guarded struct {
	prometheus.Collector
	log    *slog.Logger
	flight singleflight.Group
}

// Collect implements prometheus.Collector.
func (g *guarded) Collect(ch chan<- prometheus.Metric) {
	all, err := within(&g.flight, collectorTimeout, g.collect)
	if err != nil {
		desc := g.desc()
		g.log.Error("metrics not collected", "of", desc.String(), "err", err)
		ch <- prometheus.NewInvalidMetric(desc, err)
	}
	for _, m := range all {
		ch <- m
	}
}

// desc is one that the collector is registered with: no wrapper takes what is
// none.
func (g *guarded) desc() *prometheus.Desc {
	desc := prometheus.NewDesc("collector", "Not described.", nil, nil)
	ch := make(chan *prometheus.Desc)
	go func() { defer close(ch); g.Describe(ch) }()
	for d := range ch {
		desc = d
	}
	return desc
}

// collect has all that is collected written down: to write some metrics is to
// call a function of somebody's.
func (g *guarded) collect() (all []prometheus.Metric, err error) {
	ch, done := make(chan prometheus.Metric), make(chan struct{})
	go func() {
		defer close(done)
		for m := range ch {
			all = append(all, m)
		}
	}()
	func() {
		defer close(ch)
		g.Collector.Collect(ch)
	}()
	<-done
	for i, m := range all {
		w := written{desc: m.Desc()}
		if err := m.Write(&w.metric); err != nil {
			return nil, err
		}
		all[i] = &w
	}
	return all, nil
}

// A written metric is one as it was when it was collected.
type written struct {
	desc   *prometheus.Desc
	metric dto.Metric
}

// Desc implements prometheus.Metric.
func (w *written) Desc() *prometheus.Desc { return w.desc }

// Write implements prometheus.Metric.
func (w *written) Write(out *dto.Metric) error {
	out.Label = append([]*dto.LabelPair(nil), w.metric.GetLabel()...)
	out.Gauge, out.Counter, out.Summary = w.metric.Gauge, w.metric.Counter, w.metric.Summary
	out.Untyped, out.Histogram, out.TimestampMs = w.metric.Untyped, w.metric.Histogram, w.metric.TimestampMs
	return nil
}

// within calls fn, or joins the call that is under way, and waits for it no
// longer than limit. A panic is an error.
func within[T any](flight *singleflight.Group, limit time.Duration, fn func() (T, error)) (result T, err error) {
	done := flight.DoChan("", func() (result any, err error) {
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("panic: %v", p)
			}
		}()
		return fn()
	})
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case r := <-done:
		result, _ = r.Val.(T)
		return result, r.Err
	case <-timer.C:
		return result, errLate
	}
}
