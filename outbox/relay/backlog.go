package relay

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pizzaflow/measure"
	"pizzaflow/outbox/internal/store"
)

// A standing is how far a term has come, by what it has in memory.
type standing struct {
	unpublished int64          // events that it has read and not recorded as published
	oldest      time.Time      // when the oldest of them was written; zero without any
	refused     map[string]int // those of them that are refused now, by lane
	blocked     int            // events that are refused for ever, and those behind them
	complete    bool           // there are no other unpublished ones, as of a few seconds ago
}

// readerPatience is how long the reader may be kept from reading by what it has
// read, before the term is not taken to know all there is.
const readerPatience = 5 * time.Second

// standing tells how far the term has come. It asks nobody.
func (t *term) standing() standing {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := standing{refused: map[string]int{}, blocked: t.blockedRows}
	s.complete = !t.behind && (t.handing.IsZero() || time.Since(t.handing) < readerPatience)
	count := func(n int, oldest time.Time) {
		if s.unpublished += int64(n); n > 0 && (s.oldest.IsZero() || oldest.Before(s.oldest)) {
			s.oldest = oldest
		}
	}
	for _, r := range t.flights {
		count(r.left, r.rows[0].CreatedAt)
	}
	for _, l := range t.lanes {
		count(len(l.seqs), l.oldest)
		name, _, alone := strings.Cut(l.name, "#")
		if alone { // of which there may be as many as records
			name += "#"
		}
		s.refused[name] += len(l.seqs)
	}
	return s
}

// askUnpublished counts what is unpublished by the tables alone.
func (r *Relay) askUnpublished(ctx context.Context) (store.Unpublished, error) {
	tx, err := store.Snapshot(ctx, r.db)
	if err != nil {
		return store.Unpublished{}, fmt.Errorf("count unpublished: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // it has changed nothing
	var floor int64
	if err := tx.QueryRowContext(ctx, `SELECT floor FROM outbox_lease WHERE id = 1`).Scan(&floor); err != nil {
		return store.Unpublished{}, fmt.Errorf("read lease: %w", err)
	}
	return store.CountUnpublished(ctx, tx, floor, measure.Limit+1)
}

// A backlog shows what is unpublished. Only the relay that leads does, so that
// a sum over all processes is right. It tells what its term has in memory; of
// what the term could not read yet it tells what was counted in the tables.
type backlog struct {
	relay   *Relay
	counted *measure.Measure[store.Unpublished]

	leader, unpublished, refused, blocked, oldest *prometheus.Desc
}

func newBacklog(r *Relay, cfg Config) *backlog {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, prometheus.Labels{"service": cfg.Service})
	}
	return &backlog{
		relay: r,
		counted: measure.New(measure.Config[store.Unpublished]{
			Metric: "outbox_unpublished", Service: cfg.Service, Log: cfg.Log,
			Ask: r.askUnpublished,
		}),
		leader:      desc("outbox_leader", "1 while this process publishes, 0 while another does or none."),
		unpublished: desc("outbox_unpublished", "Committed events that are not published yet; 100001 when there are more."),
		refused:     desc("outbox_refused", "Events among them that the broker does not take now, by lane: a topic or a partition.", "lane"),
		blocked:     desc("outbox_blocked", "Events that the broker refuses for ever, and those behind them."),
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
	s := t.standing()
	for lane, n := range s.refused {
		gauge(b.refused, float64(n), lane)
	}
	gauge(b.blocked, float64(s.blocked))
	known := s.complete
	if !known {
		var r store.Unpublished
		if r, known = b.counted.Get(); known {
			s.unpublished = max(s.unpublished, r.Events)
			if s.oldest.IsZero() { // else what is in hand was written before what is not
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
