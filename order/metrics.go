package order

import (
	"context"
	"errors"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"pizzaflow/measure"
	"pizzaflow/sqldb"
)

// metrics are the figures that the service tells about itself.
type metrics struct {
	orders    *prometheus.CounterVec             // by the status they entered, in this process
	endToEnd  prometheus.Histogram               // seconds from placed to paid
	attention *measure.Measure[map[string]int64] // marked orders in the database, by reason
}

func newMetrics(reg prometheus.Registerer, db *sqldb.DB, log *slog.Logger) (metrics, error) {
	m := metrics{
		orders: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pizza_orders_total", Help: "Orders that entered a status.",
		}, []string{"status"}),
		endToEnd: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "pizza_order_end_to_end_seconds", Help: "Time from an order's acceptance to its payment.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900, 1800, 3600},
		}),
		attention: measure.New(measure.Config[map[string]int64]{
			Metric: "orders_attention", Service: "order", Prefix: "pizza_", Log: log,
			Ask: func(ctx context.Context) (map[string]int64, error) { return countAttention(ctx, db.Read()) },
		}),
	}
	for _, s := range []Status{Pending, Paid, PaymentFailed} {
		m.orders.WithLabelValues(string(s))
	}
	if reg == nil {
		return m, nil
	}
	return m, errors.Join(reg.Register(m.orders), reg.Register(m.endToEnd), reg.Register(m.attentionGauge()))
}

func (m metrics) attentionGauge() prometheus.Collector {
	desc := prometheus.NewDesc("pizza_orders_attention", "Orders that need a human, by reason; of more than 100000 not all are counted.", []string{"reason"}, nil)
	return m.attention.Collector(func(counts map[string]int64, ch chan<- prometheus.Metric) {
		for _, reason := range []string{AttentionMismatch, AttentionOverdue} {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(counts[reason]), reason)
		}
	}, desc)
}
