package relay

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pizzaflow/measure"
	"pizzaflow/outbox/internal/store"
)

// A progress is how far a term has come, as far as its memory tells.
type progress struct {
	unpublished int64          // events that it has read and not marked
	oldest      time.Time      // when the oldest of them was written; zero without any
	paused      map[string]int // how many of them wait, by paused partition
	blocked     int            // events that are blocked and were not skipped
	complete    bool           // no other event is unpublished, as of a few seconds ago
}

// maxDispatch is how long the reader may wait for the publisher before the term no
// longer counts as knowing all events.
const maxDispatch = 5 * time.Second

// progress returns how far the term has come, without a query.
func (t *term) progress() progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := progress{paused: map[string]int{}, blocked: t.blockedRows}
	s.complete = !t.catchingUp && (t.dispatchingSince.IsZero() || time.Since(t.dispatchingSince) < maxDispatch)
	count := func(n int, oldest time.Time) {
		if s.unpublished += int64(n); n > 0 && (s.oldest.IsZero() || oldest.Before(s.oldest)) {
			s.oldest = oldest
		}
	}
	for _, b := range t.inFlight {
		count(b.unpublished, b.rows[0].CreatedAt)
	}
	for _, p := range t.paused {
		count(len(p.seqs), p.oldest)
		s.paused[p.name] = len(p.seqs)
	}
	return s
}

// askUnpublished counts the unpublished events in the tables.
func (r *Relay) askUnpublished(ctx context.Context) (store.Backlog, error) {
	tx, err := store.Snapshot(ctx, r.db)
	if err != nil {
		return store.Backlog{}, fmt.Errorf("count unpublished: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // it has changed nothing
	var lowWatermark int64
	if err := tx.QueryRowContext(ctx, `SELECT floor FROM outbox_lease WHERE id = 1`).Scan(&lowWatermark); err != nil {
		return store.Backlog{}, fmt.Errorf("read lease: %w", err)
	}
	return store.CountUnpublished(ctx, tx, lowWatermark, measure.Limit+1)
}

// A backlog exposes the unpublished events as metrics, if its relay leads: so a sum
// over all processes is right. It adds up what the term has in memory; while the
// term could not read all events, it uses what was counted in the tables.
type backlog struct {
	relay   *Relay
	counted *measure.Measure[store.Backlog]

	leader, unpublished, refused, blocked, oldest *prometheus.Desc
}

func newBacklog(r *Relay, cfg Config) *backlog {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, prometheus.Labels{"service": cfg.Service})
	}
	return &backlog{
		relay: r,
		counted: measure.New(measure.Config[store.Backlog]{
			Metric: "outbox_unpublished", Service: cfg.Service, Log: cfg.Log,
			Ask: r.askUnpublished,
		}),
		leader:      desc("outbox_leader", "1 while this process publishes, 0 while another does or none."),
		unpublished: desc("outbox_unpublished", "Committed events that are not published yet; 100001 when there are more."),
		refused:     desc("outbox_refused", "Events among them that wait in a paused partition (label lane): a partition, a topic, or its events without a key.", "lane"),
		blocked:     desc("outbox_blocked", "Events that the broker refuses permanently, and later ones of their keys."),
		oldest:      desc("outbox_oldest_seconds", "Age of the oldest event that is not published; 0 without one."),
	}
}

// Describe implements prometheus.Collector.
func (b *backlog) Describe(ch chan<- *prometheus.Desc) {
	b.counted.Errors().Describe(ch)
	for _, d := range []*prometheus.Desc{b.leader, b.unpublished, b.refused, b.blocked, b.oldest} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (b *backlog) Collect(ch chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	b.counted.Errors().Collect(ch)
	t := b.relay.leads.Load()
	if t == nil {
		gauge(b.leader, 0)
		return
	}
	gauge(b.leader, 1)
	s := t.progress()
	for name, n := range s.paused {
		gauge(b.refused, float64(n), name)
	}
	gauge(b.blocked, float64(s.blocked))
	known := s.complete
	if !known {
		var r store.Backlog
		if r, known = b.counted.Get(); known {
			s.unpublished = max(s.unpublished, r.Events)
			if s.oldest.IsZero() { // else the events in memory are older than those not read yet
				s.oldest = r.Oldest
			}
		}
	}
	if known {
		gauge(b.unpublished, float64(s.unpublished))
	}
	switch {
	case !s.oldest.IsZero():
		gauge(b.oldest, max(0, time.Since(s.oldest).Seconds()))
	case known:
		gauge(b.oldest, 0)
	}
}
