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

// Limits of one collector and of all of them. They are short because a scraper waits
// for ten seconds only, and collectors read from memory.
const (
	collectorTimeout = 700 * time.Millisecond
	pageTimeout      = 900 * time.Millisecond
)

var errTimeout = errors.New("took too long")

// metricsPage shows the metrics of reg and always answers 200. Metrics that fail or
// take too long are left out and counted on the next page, in
// pizza_promhttp_metric_handler_errors_total.
func metricsPage(reg prometheus.Gatherer) http.Handler {
	own := prometheus.NewRegistry()
	return promhttp.HandlerFor(prometheus.Gatherers{&boundedGatherer{Gatherer: reg}, own}, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, Registry: prometheus.WrapRegistererWithPrefix("pizza_", own),
	})
}

// A boundedGatherer neither panics nor takes longer than pageTimeout. While a call is
// under way it joins that call instead of making another.
type boundedGatherer struct {
	prometheus.Gatherer
	flight singleflight.Group
}

// Gather implements prometheus.Gatherer.
func (b *boundedGatherer) Gather() ([]*dto.MetricFamily, error) {
	families, err := callWithin(&b.flight, pageTimeout, b.Gatherer.Gather)
	return append([]*dto.MetricFamily(nil), families...), err
}

// Guard returns a Registerer that registers collectors with reg so that none can
// spoil the page for the others: a collector that panics, fails or takes longer than
// 700 ms shows nothing and has its error logged. Give it the registerer of any other
// wrapper, not the other way round: it cannot recover a panic in a goroutine that a
// wrapper starts.
func Guard(reg prometheus.Registerer, log *slog.Logger) prometheus.Registerer {
	return guardedRegisterer{reg, log}
}

type guardedRegisterer struct {
	prometheus.Registerer
	log *slog.Logger
}

// Register implements prometheus.Registerer.
func (g guardedRegisterer) Register(c prometheus.Collector) error {
	return g.Registerer.Register(&guardedCollector{Collector: c, log: g.log})
}

// MustRegister implements prometheus.Registerer.
func (g guardedRegisterer) MustRegister(cs ...prometheus.Collector) {
	for _, c := range cs {
		g.Registerer.MustRegister(&guardedCollector{Collector: c, log: g.log})
	}
}

type guardedCollector struct {
	prometheus.Collector
	log    *slog.Logger
	flight singleflight.Group
}

// Collect implements prometheus.Collector.
func (g *guardedCollector) Collect(ch chan<- prometheus.Metric) {
	all, err := callWithin(&g.flight, collectorTimeout, g.collect)
	if err != nil {
		desc := g.firstDesc()
		g.log.Error("metrics not collected", "of", desc.String(), "err", err)
		ch <- prometheus.NewInvalidMetric(desc, err)
	}
	for _, m := range all {
		ch <- m
	}
}

// firstDesc returns a description of the collector: the registry's wrappers refuse
// an invalid metric with any other.
func (g *guardedCollector) firstDesc() *prometheus.Desc {
	desc := prometheus.NewDesc("collector", "Not described.", nil, nil)
	ch := make(chan *prometheus.Desc)
	go func() { defer close(ch); g.Describe(ch) }()
	for d := range ch {
		desc = d
	}
	return desc
}

// collect collects the metrics and writes each of them here, because Write may call
// functions of the collector, too.
func (g *guardedCollector) collect() (all []prometheus.Metric, err error) {
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
		w := metricSnapshot{desc: m.Desc()}
		if err := m.Write(&w.metric); err != nil {
			return nil, err
		}
		all[i] = &w
	}
	return all, nil
}

// A metricSnapshot is a metric as it was when it was collected.
type metricSnapshot struct {
	desc   *prometheus.Desc
	metric dto.Metric
}

// Desc implements prometheus.Metric.
func (w *metricSnapshot) Desc() *prometheus.Desc { return w.desc }

// Write implements prometheus.Metric.
func (w *metricSnapshot) Write(out *dto.Metric) error {
	out.Label = append([]*dto.LabelPair(nil), w.metric.GetLabel()...)
	out.Gauge, out.Counter, out.Summary = w.metric.Gauge, w.metric.Counter, w.metric.Summary
	out.Untyped, out.Histogram, out.TimestampMs = w.metric.Untyped, w.metric.Histogram, w.metric.TimestampMs
	return nil
}

// callWithin calls fn, or joins the call that is under way, and waits for it no
// longer than limit. A panic is an error.
func callWithin[T any](flight *singleflight.Group, limit time.Duration, fn func() (T, error)) (result T, err error) {
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
		return result, errTimeout
	}
}
