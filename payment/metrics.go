package payment

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/prometheus/client_golang/prometheus"

	"pizzaflow/measure"
	"pizzaflow/sqldb"
)

// The values of the label result of pizza_payments_total.
const (
	resultCompleted   = "completed"
	resultDeclined    = "declined"
	resultUnknown     = "unknown"              // a charge without a believable answer
	resultUnavailable = "provider_unavailable" // failed without a believable answer
	resultLate        = "late_capture"         // captured although it had failed
	resultRefunded    = "refunded"
)

// metrics are the service's own.
type metrics struct {
	payments   *prometheus.CounterVec
	unanswered *measure.Measure[map[Status]tally] // payments in the database
}

// A tally is a count of rows.
type tally struct {
	rows   int64
	oldest time.Time     // when the first of them was created; zero without any
	clock  sqldb.Reading // the database's
}

// age is the age of the oldest row in seconds, 0 without one.
func (t tally) age() float64 {
	if t.rows == 0 {
		return 0
	}
	return max(0, t.clock.Now().Sub(t.oldest).Seconds())
}

func newMetrics(reg prometheus.Registerer, db *sqldb.DB, c circuit, log *slog.Logger) (metrics, error) {
	m := metrics{
		payments: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pizza_payments_total",
			Help: "Payments by what came of them. A payment can be unknown first and something else later.",
		}, []string{"result"}),
		unanswered: measure.New(measure.Config[map[Status]tally]{
			Metric: "payments_unanswered", Service: "payment", Prefix: "pizza_", Log: log,
			Ask: func(ctx context.Context) (map[Status]tally, error) { return countUnanswered(ctx, db.Read()) },
		}),
	}
	for _, r := range []string{resultCompleted, resultDeclined, resultUnknown, resultUnavailable, resultLate, resultRefunded} {
		m.payments.WithLabelValues(r)
	}
	if reg == nil {
		return m, nil
	}
	errs := []error{reg.Register(m.payments), reg.Register(m.unansweredGauges())}
	for _, state := range []circuitbreaker.State{circuitbreaker.ClosedState, circuitbreaker.HalfOpenState, circuitbreaker.OpenState} {
		errs = append(errs, reg.Register(circuitGauge(c, state)))
	}
	return m, errors.Join(errs...)
}

// circuitGauge is 1 while the circuit before the provider is in the state, else 0.
func circuitGauge(c circuit, state circuitbreaker.State) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "pizza_payment_circuit",
		Help:        "1 for the state of the circuit before the payment provider: closed (every call is made), open (none is), half_open (a few are).",
		ConstLabels: prometheus.Labels{"state": strings.ReplaceAll(state.String(), "-", "_")},
	}, func() float64 {
		if c.policy.State() == state {
			return 1
		}
		return 0
	})
}

func (m metrics) unansweredGauges() prometheus.Collector {
	count := prometheus.NewDesc("pizza_payments_unanswered",
		"Payments that the provider was asked for and has not answered, by status; 100001 when there are more.", []string{"status"}, nil)
	age := prometheus.NewDesc("pizza_payments_unanswered_oldest_seconds", "Age of the oldest of them; 0 without one.", []string{"status"}, nil)
	return m.unanswered.Collector(func(tallies map[Status]tally, ch chan<- prometheus.Metric) {
		for status, t := range tallies {
			ch <- prometheus.MustNewConstMetric(count, prometheus.GaugeValue, float64(t.rows), string(status))
			ch <- prometheus.MustNewConstMetric(age, prometheus.GaugeValue, t.age(), string(status))
		}
	}, count, age)
}
