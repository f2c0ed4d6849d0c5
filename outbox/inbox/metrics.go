package inbox

import (
	"context"
	"database/sql"
	"fmt"
	"maps"

	"github.com/prometheus/client_golang/prometheus"

	"pizzaflow/measure"
)

// consumerMetrics are the metrics of a consumer.
type consumerMetrics struct {
	processed     *prometheus.CounterVec
	processing    *prometheus.HistogramVec
	lag           *prometheus.GaugeVec
	paused        prometheus.Gauge
	deletedUnread *prometheus.CounterVec

	conflicts   prometheus.Counter
	conflicting prometheus.Gauge
}

// newConsumerMetrics registers the metrics of a consumer.
func newConsumerMetrics(cfg Config) consumerMetrics {
	reg, of := cfg.Metrics, prometheus.Labels{"group": cfg.Group}
	return consumerMetrics{
		processed: measure.Register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "consumer_processed_total", Help: "Records by outcome: handled, duplicate, ignored (no handler), retrying, waiting (behind a parked record of its key), dead, or again (produced again while the event is parked or discarded).", ConstLabels: of,
		}, []string{"topic", "event_type", "result"})),
		processing: measure.Register(reg, prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "consumer_processing_seconds", Help: "Time from taking a record to the commit of its effect.", ConstLabels: of,
			Buckets: []float64{.0005, .001, .002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"topic", "event_type"})),
		lag: measure.Register(reg, prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "consumer_lag", Help: "Records of an assigned partition above its low watermark.", ConstLabels: of,
		}, []string{"topic", "partition"})),
		deletedUnread: measure.Register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "consumer_skipped_total", Help: "Records that the broker deleted before they were read.", ConstLabels: of,
		}, []string{"topic", "partition"})),
		conflicts: measure.Register(reg, prometheus.NewCounter(prometheus.CounterOpts{
			Name: "consumer_conflicts_total", Help: "Transactions that were retried after a deadlock or a serialization failure.", ConstLabels: of,
		})),
		conflicting: measure.Register(reg, prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "consumer_conflicting", Help: "Transactions that have been retried after conflicts for more than 5 seconds.", ConstLabels: of,
		})),
		paused: measure.Register(reg, prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "consumer_paused", Help: "1 while the consumer waits for an unavailable dependency, 0 otherwise.", ConstLabels: of,
		})),
	}
}

// forRoute returns the counters of a route by outcome, and its duration.
func (m *consumerMetrics) forRoute(r route) (map[outcome]prometheus.Counter, prometheus.Observer) {
	counts := map[outcome]prometheus.Counter{}
	for _, o := range []outcome{handled, duplicate, waiting, retrying, dead, producedAgain} {
		counts[o] = m.processed.WithLabelValues(r.topic, r.eventType, string(o))
	}
	return counts, m.processing.WithLabelValues(r.topic, r.eventType)
}

// count counts the outcome of a message.
func (m *consumerMetrics) count(msg *message, o outcome) {
	if msg.sub == nil {
		m.processed.WithLabelValues(msg.rec.Topic, msg.typeLabel(), string(o)).Inc()
		return
	}
	msg.sub.outcomes[o].Inc()
}

// countIgnored counts a record without a handler.
func (m *consumerMetrics) countIgnored(topic string) {
	m.processed.WithLabelValues(topic, "other", "ignored").Inc()
}

// newDeadLetterCount measures how many dead letters of the group there are, by topic.
func newDeadLetterCount(c *Consumer) *measure.Measure[map[string]int64] {
	return measure.New(measure.Config[map[string]int64]{
		Metric: "dead_letters", Service: c.cfg.Group, Log: c.cfg.Log,
		Ask: func(ctx context.Context) (map[string]int64, error) {
			return countDeadLetters(ctx, c.db.Read(), c.cfg.Group)
		},
	})
}

// deadLetterCollector exports that number, also 0 for a topic without any.
func (c *Consumer) deadLetterCollector() prometheus.Collector {
	desc := prometheus.NewDesc("dead_letters", "Dead-lettered records that were neither replayed nor discarded, counted up to about 100000.",
		[]string{"topic"}, prometheus.Labels{"group": c.cfg.Group})
	return c.deadLetters.Collector(func(counts map[string]int64, ch chan<- prometheus.Metric) {
		counts = maps.Clone(counts)
		for r := range c.subscriptions {
			counts[r.topic] += 0
		}
		for topic, n := range counts {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(n), topic)
		}
	}, desc)
}

// countDeadLetters counts the dead records of a group by topic, up to a limit.
func countDeadLetters(ctx context.Context, db *sql.DB, group string) (map[string]int64, error) {
	rows, err := db.QueryContext(ctx, `
		SELECT topic, COUNT(*) FROM (SELECT topic FROM parked_records WHERE consumer = $1 AND state = 'dead' LIMIT $2) dead GROUP BY topic`,
		group, measure.Limit+1)
	if err != nil {
		return nil, fmt.Errorf("count dead letters: %w", err)
	}
	defer rows.Close()
	counts := map[string]int64{}
	for rows.Next() {
		var topic string
		var n int64
		if err := rows.Scan(&topic, &n); err != nil {
			return nil, fmt.Errorf("count dead letters: %w", err)
		}
		counts[topic] = n
	}
	return counts, rows.Err()
}
