package notification

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pizzaflow/measure"
	"pizzaflow/sqldb"
)

// metrics are the service's own.
type metrics struct {
	seconds    *prometheus.HistogramVec
	deliveries *prometheus.CounterVec
	refusals   *prometheus.CounterVec
	waiting    *measure.Measure[map[Channel]tally] // deliveries in the database
}

// A tally is a count of the deliveries that wait for a channel.
type tally struct {
	rows    int64
	unknown int64         // deliveries among them whose last attempt was Unknown
	oldest  time.Time     // when the first of them was created; zero without any
	clock   sqldb.Reading // the database's
}

// age is the age of the oldest delivery in seconds, 0 without one.
func (t tally) age() float64 {
	if t.rows == 0 {
		return 0
	}
	return max(0, t.clock.Now().Sub(t.oldest).Seconds())
}

func newMetrics(reg prometheus.Registerer, db *sqldb.DB, log *slog.Logger) (*metrics, error) {
	m := &metrics{
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "pizza_notification_delivery_seconds",
			Help:    "From the delivery's row to the other side's acceptance of the message.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2.5, 12),
		}, []string{"channel"}),
		deliveries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pizza_notification_deliveries_total",
			Help: "Attempts to deliver, by result: sent, temporary, unknown, permanent, expired (given up after a day), abandoned (given up after too many that were unknown).",
		}, []string{"channel", "result"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pizza_notification_refusals_total",
			Help: "Attempts among them that were refused for what we are or do, such as authentication, relaying, policy or a quota, and are tried again.",
		}, []string{"channel", "step", "code"}),
		waiting: measure.New(measure.Config[map[Channel]tally]{
			Metric: "notification_deliveries_waiting", Service: "notification", Prefix: "pizza_", Log: log,
			Ask: func(ctx context.Context) (map[Channel]tally, error) { return countWaiting(ctx, db.Read()) },
		}),
	}
	for _, c := range []prometheus.Collector{m.seconds, m.deliveries, m.refusals, m.waitingGauges()} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) waitingGauges() prometheus.Collector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("pizza_notification_deliveries_"+name, help, []string{"channel"}, nil)
	}
	count := desc("waiting", "Deliveries that are not sent yet; 100001 when there are more.")
	unknown := desc("unknown", "Deliveries among them whose last attempt may have gone through: its answer never came.")
	age := desc("oldest_seconds", "Age of the oldest delivery that is not sent yet; 0 without one.")
	return m.waiting.Collector(func(tallies map[Channel]tally, ch chan<- prometheus.Metric) {
		for channel, t := range tallies {
			ch <- prometheus.MustNewConstMetric(count, prometheus.GaugeValue, float64(t.rows), string(channel))
			ch <- prometheus.MustNewConstMetric(unknown, prometheus.GaugeValue, float64(t.unknown), string(channel))
			ch <- prometheus.MustNewConstMetric(age, prometheus.GaugeValue, t.age(), string(channel))
		}
	}, count, unknown, age)
}
