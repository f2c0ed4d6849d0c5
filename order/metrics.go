package order

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"pizzaflow/measure"
)

// metrics are the service's own.
type metrics struct {
	orders    *prometheus.CounterVec // by the status they entered, in this process
	endToEnd  prometheus.Histogram   // seconds from placed to paid
	attention *prometheus.GaugeVec   // marked orders in the database, by reason; no series while they cannot be counted
	errors    prometheus.Counter     // failed counts of the marked orders
}

func newMetrics(reg prometheus.Registerer) (metrics, error) {
	m := metrics{
		orders: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pizza_orders_total", Help: "Orders that entered a status.",
		}, []string{"status"}),
		endToEnd: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "pizza_order_end_to_end_seconds", Help: "Time from an order's acceptance to its payment.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900, 1800, 3600},
		}),
		attention: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "pizza_orders_attention", Help: "Orders that need a human, by reason.",
		}, []string{"reason"}),
		errors: measure.Errors("pizza_", "orders_attention", "order"),
	}
	for _, s := range []Status{Pending, Paid, PaymentFailed} {
		m.orders.WithLabelValues(string(s))
	}
	if reg == nil {
		return m, nil
	}
	return m, errors.Join(reg.Register(m.orders), reg.Register(m.endToEnd), reg.Register(m.attention), reg.Register(m.errors))
}
