// Package measure caches values that a process must query, from a database mostly, so
// that a metric costs nothing to read and cannot fail: it shows the last result. The
// query runs in the background, at most once a minute, and only while the value is
// read.
package measure

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pizzaflow/internal/retry"
)

// Limit is how many rows a query counts at most, plus one to tell that there are more:
// a count has a limited cost.
const Limit = 100_000

const (
	interval  = time.Minute          // between two queries
	timeout   = 5 * time.Second      // of one query
	idleAfter = 5 * time.Minute      // after the last read, when the queries stop
	maxAge    = interval + 2*timeout // of a result
)

// Config configures a [Measure].
type Config[T any] struct {
	Metric  string // the metric that has no value without a result: the label metric of metrics_errors_total
	Service string // the label service
	Prefix  string // of the name metrics_errors_total
	Log     *slog.Logger

	// Ask queries the value, within five seconds. It must have a limited cost: see
	// Limit.
	Ask func(context.Context) (T, error)
}

// A Measure is a value that is queried in the background.
type Measure[T any] struct {
	cfg    Config[T]
	errors prometheus.Counter
	wake   chan struct{}

	mu       sync.Mutex
	value    T
	at       time.Time // of the value; zero without one
	lastRead time.Time // by Get
	failed   bool      // the last query
}

// New returns a Measure. Start starts its queries.
func New[T any](cfg Config[T]) *Measure[T] {
	return &Measure[T]{cfg: cfg, wake: make(chan struct{}, 1), errors: Errors(cfg.Prefix, cfg.Metric, cfg.Service)}
}

// Errors returns the counter metrics_errors_total, its name after prefix, which counts
// failed queries of a metric of a service.
func Errors(prefix, metric, service string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{
		Name: prefix + "metrics_errors_total", Help: "Metrics that could not be queried, so that the page lacks them.",
		ConstLabels: prometheus.Labels{"metric": metric, "service": service},
	})
}

// Get returns the last result, which is little more than a minute old at most. known is
// false without one: the value was not read for five minutes, or the last query failed.
// Reading the value keeps the queries going.
func (m *Measure[T]) Get() (value T, known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lastRead = time.Now()
	select {
	case m.wake <- struct{}{}:
	default:
	}
	if m.at.IsZero() || time.Since(m.at) > maxAge {
		return value, false
	}
	return m.value, true
}

// Start runs the query once a minute while the value is read, until ctx ends or stop is
// called. stop returns when no query is running.
func (m *Measure[T]) Start(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.run(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

func (m *Measure[T]) run(ctx context.Context) {
	for m.awaitReader(ctx) {
		m.refresh(ctx)
		retry.Sleep(ctx, interval)
	}
}

// awaitReader waits until the value was read within idleAfter. It returns false when ctx
// has ended.
func (m *Measure[T]) awaitReader(ctx context.Context) bool {
	for ctx.Err() == nil {
		m.mu.Lock()
		lately := !m.lastRead.IsZero() && time.Since(m.lastRead) < idleAfter
		m.mu.Unlock()
		if lately {
			return true
		}
		select {
		case <-ctx.Done():
		case <-m.wake:
		}
	}
	return false
}

func (m *Measure[T]) refresh(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	value, err := m.cfg.Ask(limited)
	if ctx.Err() != nil {
		return
	}
	m.mu.Lock()
	again := m.failed
	m.value, m.at, m.failed = value, time.Now(), err != nil
	if err != nil {
		m.at = time.Time{} // the value before says nothing about the value now
	}
	m.mu.Unlock()
	if err == nil {
		return
	}
	m.errors.Inc()
	if !again && m.cfg.Log != nil {
		m.cfg.Log.Warn("metric left out", "metric", m.cfg.Metric, "service", m.cfg.Service, "err", err)
	}
}

// Errors returns the counter of the failed queries.
func (m *Measure[T]) Errors() prometheus.Counter { return m.errors }

// Collector returns a collector of the result, and of the counter of failed queries. It
// calls show with the result at each scrape, so that an age grows between two queries.
// Without a result it shows no metric.
func (m *Measure[T]) Collector(show func(T, chan<- prometheus.Metric), descs ...*prometheus.Desc) prometheus.Collector {
	return collector[T]{m, show, descs}
}

type collector[T any] struct {
	measure *Measure[T]
	show    func(T, chan<- prometheus.Metric)
	descs   []*prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c collector[T]) Describe(ch chan<- *prometheus.Desc) {
	c.measure.errors.Describe(ch)
	for _, d := range c.descs {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector[T]) Collect(ch chan<- prometheus.Metric) {
	c.measure.errors.Collect(ch)
	if value, known := c.measure.Get(); known {
		c.show(value, ch)
	}
}

// Register registers c and returns it; without a registry it only counts for
// itself.
func Register[C prometheus.Collector](reg prometheus.Registerer, c C) C {
	if reg != nil {
		reg.MustRegister(c)
	}
	return c
}
