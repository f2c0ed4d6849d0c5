package outbox

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pizzaflow/sqldb"
)

// register registers c and returns it; without a registry it only counts for
// itself.
func register[C prometheus.Collector](reg prometheus.Registerer, c C) C {
	if reg != nil {
		reg.MustRegister(c)
	}
	return c
}

type relayMetrics struct {
	published prometheus.Counter
	errors    prometheus.Counter
	delay     prometheus.Histogram
}

func newRelayMetrics(cfg RelayConfig, r *Relay) relayMetrics {
	var reg prometheus.Registerer
	if cfg.Metrics != nil {
		reg = prometheus.WrapRegistererWith(prometheus.Labels{"service": cfg.Service}, cfg.Metrics)
	}
	register(reg, prometheus.Collector(&backlog{r}))
	return relayMetrics{
		published: register(reg, prometheus.NewCounter(prometheus.CounterOpts{
			Name: "outbox_published_total", Help: "Events published and recorded as such.",
		})),
		errors: register(reg, prometheus.NewCounter(prometheus.CounterOpts{
			Name: "outbox_publish_errors_total", Help: "Records refused by the broker and rounds that came to nothing.",
		})),
		delay: register(reg, prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "outbox_publish_delay_seconds", Help: "From writing an event to recording it as published.",
			Buckets: []float64{.0005, .001, .002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300},
		})),
	}
}

var (
	unpublishedDesc = prometheus.NewDesc("outbox_unpublished", "Committed events that are not published yet.", nil, nil)
	refusedDesc     = prometheus.NewDesc("outbox_refused", "Events among them that the broker does not take now, by lane: a topic or a partition.", []string{"lane"}, nil)
	blockedDesc     = prometheus.NewDesc("outbox_blocked", "Events that the broker refuses for ever, and those behind them.", nil, nil)
	oldestDesc      = prometheus.NewDesc("outbox_oldest_seconds", "Age of the oldest event that is not published; 0 without one.", nil, nil)
)

// A backlog counts what is unpublished when it is asked. Only the relay that
// leads answers, so that a sum over all processes is right.
type backlog struct{ r *Relay }

// Describe implements prometheus.Collector.
func (b *backlog) Describe(ch chan<- *prometheus.Desc) {
	ch <- unpublishedDesc
	ch <- refusedDesc
	ch <- blockedDesc
	ch <- oldestDesc
}

// Collect implements prometheus.Collector.
func (b *backlog) Collect(ch chan<- prometheus.Metric) {
	t := b.r.leads.Load()
	if t == nil {
		return
	}
	floor := t.floor()
	t.mu.Lock()
	above := t.cursor.head
	for _, l := range t.lanes {
		ch <- prometheus.MustNewConstMetric(refusedDesc, prometheus.GaugeValue, float64(len(l.seqs)), l.name)
	}
	t.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var n, blocked int64
	var oldest time.Time
	// above the head nothing is published; between floor and head what no range covers
	err := b.r.db.Read().QueryRowContext(ctx, `
		SELECT COUNT(*), MIN(created_at) FROM outbox WHERE seq > $1 AND (seq > $2 OR published_at IS NULL)`,
		floor, above).Scan(&n, sqldb.Time(&oldest))
	if err != nil {
		ch <- prometheus.NewInvalidMetric(unpublishedDesc, err)
		return
	}
	if err := b.r.db.Read().QueryRowContext(ctx, `SELECT COUNT(*) FROM outbox_blocked WHERE skipped_at IS NULL`).Scan(&blocked); err != nil {
		ch <- prometheus.NewInvalidMetric(blockedDesc, err)
		return
	}
	ch <- prometheus.MustNewConstMetric(blockedDesc, prometheus.GaugeValue, float64(blocked))
	age := 0.0
	if !oldest.IsZero() {
		age = max(0, time.Since(oldest).Seconds())
	}
	ch <- prometheus.MustNewConstMetric(unpublishedDesc, prometheus.GaugeValue, float64(n))
	ch <- prometheus.MustNewConstMetric(oldestDesc, prometheus.GaugeValue, age)
}

type consumerMetrics struct {
	processed  *prometheus.CounterVec
	processing *prometheus.HistogramVec
	lag        *prometheus.GaugeVec
	paused     prometheus.Gauge
	skipped    *prometheus.CounterVec

	conflicts   prometheus.Counter
	conflicting prometheus.Gauge
}

func newConsumerMetrics(cfg ConsumerConfig, c *Consumer) consumerMetrics {
	var reg prometheus.Registerer
	if cfg.Metrics != nil {
		reg = prometheus.WrapRegistererWith(prometheus.Labels{"group": cfg.Group}, cfg.Metrics)
	}
	register(reg, prometheus.Collector(&deadCount{c}))
	return consumerMetrics{
		processed: register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "consumer_processed_total", Help: "Records by what became of them: handled, duplicate, ignored, retrying, waiting or dead.",
		}, []string{"topic", "event_type", "result"})),
		processing: register(reg, prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "consumer_processing_seconds", Help: "From taking up a record to the commit of its effect.",
			Buckets: []float64{.0005, .001, .002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"topic", "event_type"})),
		lag: register(reg, prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "consumer_lag", Help: "Records of an assigned partition that are not done.",
		}, []string{"topic", "partition"})),
		skipped: register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "consumer_skipped_total", Help: "Records that the broker deleted before they were read.",
		}, []string{"topic", "partition"})),
		conflicts: register(reg, prometheus.NewCounter(prometheus.CounterOpts{
			Name: "consumer_conflicts_total", Help: "Transactions that made way for others (deadlock, serialization) and were run again.",
		})),
		conflicting: register(reg, prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "consumer_conflicting", Help: "Transactions that have been making way for others for more than 5 seconds.",
		})),
		paused: register(reg, prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "consumer_paused", Help: "1 while what the consumer depends on is away and it waits for it, 0 otherwise.",
		})),
	}
}

// of is what is counted for a subject: its records by what became of them, and
// the time they took.
func (m *consumerMetrics) of(on subject) (map[outcome]prometheus.Counter, prometheus.Observer) {
	counts := map[outcome]prometheus.Counter{}
	for _, o := range []outcome{handled, duplicate, waiting, retrying, dead} {
		counts[o] = m.processed.WithLabelValues(on.topic, on.eventType, string(o))
	}
	return counts, m.processing.WithLabelValues(on.topic, on.eventType)
}

// count counts a record. Types that nobody subscribed to have one name, so that
// strangers cannot make up labels.
func (m *consumerMetrics) count(in *inbound, o outcome) {
	if in.sub == nil {
		m.processed.WithLabelValues(in.rec.Topic, in.eventType(), string(o)).Inc()
		return
	}
	in.sub.counts[o].Inc()
}

var deadDesc = prometheus.NewDesc("dead_letters", "Dead-lettered records that were neither replayed nor discarded.", []string{"topic"}, nil)

// A deadCount counts the dead letters when it is asked.
type deadCount struct{ c *Consumer }

// Describe implements prometheus.Collector.
func (d *deadCount) Describe(ch chan<- *prometheus.Desc) { ch <- deadDesc }

// Collect implements prometheus.Collector.
func (d *deadCount) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	counts := map[string]int64{}
	for on := range d.c.subs {
		counts[on.topic] = 0
	}
	rows, err := d.c.db.Read().QueryContext(ctx, `SELECT topic, COUNT(*) FROM parked_records WHERE consumer = $1 AND state = 'dead' GROUP BY topic`, d.c.cfg.Group)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(deadDesc, err)
		return
	}
	defer rows.Close()
	for rows.Next() {
		var topic string
		var n int64
		if err := rows.Scan(&topic, &n); err != nil {
			ch <- prometheus.NewInvalidMetric(deadDesc, err)
			return
		}
		counts[topic] = n
	}
	if err := rows.Err(); err != nil {
		ch <- prometheus.NewInvalidMetric(deadDesc, err)
		return
	}
	for topic, n := range counts {
		ch <- prometheus.MustNewConstMetric(deadDesc, prometheus.GaugeValue, float64(n), topic)
	}
}
