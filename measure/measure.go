// Package measure keeps at hand what a process can only learn by asking others,
// a database above all, so that showing it costs nothing and cannot fail: what
// is shown is what the last answer said. The asking is done in the background,
// at most once a minute, and only while somebody looks.
package measure

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pizzaflow/internal/retry"
)

// Limit is how far rows are counted: one row more is found to know that there
// are more, so that a count costs the same whatever waits.
const Limit = 100_000

const (
	interval = time.Minute          // between two askings
	timeout  = 5 * time.Second      // of one
	interest = 5 * time.Minute      // for how long who has looked is taken to look again
	lifetime = interval + 2*timeout // of an answer
)

// Config says what is measured.
type Config[T any] struct {
	Metric  string // what a page lacks while there is no answer: the label metric of metrics_errors_total
	Service string // whose it is: the label service
	Prefix  string // of the name metrics_errors_total
	Log     *slog.Logger

	// Ask finds out, within five seconds. It must be cheap whatever there is to
	// find: see Limit.
	Ask func(context.Context) (T, error)
}

// A Measure is a value that is found out by asking.
type Measure[T any] struct {
	cfg    Config[T]
	errors prometheus.Counter
	wake   chan struct{}

	mu     sync.Mutex
	value  T
	at     time.Time // of the value; zero while there is none
	looked time.Time // when somebody did last
	failed bool      // the last asking
}

// New makes a Measure; Start has it ask.
func New[T any](cfg Config[T]) *Measure[T] {
	return &Measure[T]{cfg: cfg, wake: make(chan struct{}, 1), errors: Errors(cfg.Prefix, cfg.Metric, cfg.Service)}
}

// Errors makes the counter metrics_errors_total, its name begun with prefix: of
// failures to find out a metric of a service.
func Errors(prefix, metric, service string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{
		Name: prefix + "metrics_errors_total", Help: "Metrics that could not be found out, so that the page lacks them.",
		ConstLabels: prometheus.Labels{"metric": metric, "service": service},
	})
}

// Get returns the last answer, a little more than a minute old at most. It is
// false when there is none: nobody has looked for five minutes, or the last
// asking failed. To look is what keeps it asking.
func (m *Measure[T]) Get() (value T, known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.looked = time.Now()
	select {
	case m.wake <- struct{}{}:
	default:
	}
	if m.at.IsZero() || time.Since(m.at) > lifetime {
		return value, false
	}
	return m.value, true
}

// Start has m ask, once a minute while somebody looks, until ctx ends or stop is
// called, which returns when nothing is asked any more.
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
	for m.awaitLook(ctx) {
		m.ask(ctx)
		retry.Sleep(ctx, interval)
	}
}

// awaitLook waits until somebody looks or has lately; false says that ctx has
// ended.
func (m *Measure[T]) awaitLook(ctx context.Context) bool {
	for ctx.Err() == nil {
		m.mu.Lock()
		lately := !m.looked.IsZero() && time.Since(m.looked) < interest
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

func (m *Measure[T]) ask(ctx context.Context) {
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
		m.at = time.Time{} // what was says nothing about what is
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

// Errors counts the askings that failed.
func (m *Measure[T]) Errors() prometheus.Counter { return m.errors }

// Collector shows the answer as metrics of the descriptions, none while there
// is no answer, and counts the askings that failed. It turns the answer into
// metrics by show at each look, so that an age grows between two askings.
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
