package relay

import (
	"github.com/prometheus/client_golang/prometheus"

	"pizzaflow/measure"
)

type relayMetrics struct {
	published prometheus.Counter
	errors    prometheus.Counter
	delay     prometheus.Histogram
}

func newRelayMetrics(cfg Config) relayMetrics {
	of := prometheus.Labels{"service": cfg.Service}
	return relayMetrics{
		published: measure.Register(cfg.Metrics, prometheus.NewCounter(prometheus.CounterOpts{
			Name: "outbox_published_total", Help: "Events published and recorded as such.", ConstLabels: of,
		})),
		errors: measure.Register(cfg.Metrics, prometheus.NewCounter(prometheus.CounterOpts{
			Name: "outbox_publish_errors_total", Help: "Records refused by the broker and failed batches.", ConstLabels: of,
		})),
		delay: measure.Register(cfg.Metrics, prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "outbox_publish_delay_seconds", Help: "From writing an event to recording it as published.", ConstLabels: of,
			Buckets: []float64{.0005, .001, .002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300},
		})),
	}
}
