package notification

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pizzaflow/outbox"
	"pizzaflow/sqldb"
)

const (
	// lease is longer than waiting for a free line, sending and recording take.
	lease = 45 * time.Second
	// sendTimeout bounds one attempt; a mail server may think for a while
	// about what it was given, and giving up then may repeat the mail.
	sendTimeout = 30 * time.Second
	// laneLimit is how many messages of one channel are on their way at once,
	// until what came of them is recorded: so many may be sent twice when the
	// process dies. SQLite has one writer, who would only have them queue.
	laneLimit, laneLimitSQLite = 32, 12
	// laneWait is how long a message waits for its channel.
	laneWait = 2 * time.Second
	// workLimit leaves room for one channel while all messages of the other
	// hang: those that wait for their lane give up after laneWait.
	workLimit = 4 * laneLimit
)

// A lane is a channel's sender and its share of the workers, so that a mail
// server that hangs does not hold up the SMS.
type lane struct {
	sender Sender
	slots  chan struct{}
}

func newLane(s Sender, engine sqldb.Engine) *lane {
	n := laneLimit
	if engine == sqldb.SQLite {
		n = laneLimitSQLite
	}
	return &lane{sender: s, slots: make(chan struct{}, n)}
}

// enter waits for a line; leave frees it.
func (l *lane) enter() (leave func(), ok bool) {
	wait := time.NewTimer(laneWait)
	defer wait.Stop()
	select {
	case l.slots <- struct{}{}:
		return func() { <-l.slots }, true
	case <-wait.C:
		return nil, false
	}
}

func (l *lane) send(ctx context.Context, m Message) Result {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	return l.sender.Send(ctx, m)
}

// deliver makes one attempt at a delivery. The attempt was recorded when the
// row was claimed; what it came to is recorded here.
func (s *Service) deliver(ctx context.Context, c outbox.Claim) error {
	d, err := loadDelivery(ctx, s.db, c)
	if errors.Is(err, errLeaseLost) {
		return nil
	}
	if err != nil {
		return err
	}
	leave, ok := s.channels[d.Channel].enter()
	if !ok { // it was not tried, and does not count
		return postpone(ctx, s.db, c, sqldb.Now().Add(laneWait))
	}
	defer leave() // not before the result is recorded
	return s.settle(ctx, c, d, s.send(ctx, d))
}

func (s *Service) send(ctx context.Context, d delivery) Result {
	m, err := s.templates.message(d)
	if err != nil { // an operator can mend a template within the day
		return Result{Outcome: Temporary, Err: err}
	}
	m.From = s.from
	return s.channels[d.Channel].send(ctx, m)
}

// settle records what an attempt came to.
func (s *Service) settle(ctx context.Context, c outbox.Claim, d delivery, r Result) error {
	now := sqldb.Now()
	next := settlement{Status: Pending, Error: r.reason()}
	label := string(r.Outcome)
	switch r.Outcome {
	case Accepted:
		next = settlement{Status: Sent, SentAt: now, ProviderID: truncate(oneLine(r.ProviderID), maxError)}
	case Permanent:
		next.Status = Failed
	default:
		due, again := retryAt(d.CreatedAt, now, outbox.Backoff(c.Attempt, retryBase, retryLimit))
		next.DueAt = due
		if !again {
			next.Status, label = Failed, "expired"
		}
	}
	switch err := s.record(ctx, c, next); {
	case errors.Is(err, errLeaseLost):
		return nil
	case err != nil:
		return err
	}
	s.metrics.deliveries.WithLabelValues(string(d.Channel), label).Inc()
	if next.Status == Sent {
		s.metrics.seconds.WithLabelValues(string(d.Channel)).Observe(now.Sub(d.CreatedAt).Seconds())
	}
	s.logAttempt(ctx, c, d, r, next)
	return nil
}

// record settles the row, and keeps trying for as long as the lease holds
// while the database is away: a message that was sent and not recorded would
// be sent again.
func (s *Service) record(ctx context.Context, c outbox.Claim, next settlement) error {
	for try := 1; ; try++ {
		err := settleDelivery(ctx, s.db, c, next)
		if err == nil || !sqldb.IsUnavailable(err) {
			return err
		}
		pause := time.NewTimer(outbox.Backoff(try, 100*time.Millisecond, 2*time.Second))
		select {
		case <-ctx.Done():
			pause.Stop()
			return err
		case <-pause.C:
		}
	}
}

// logAttempt tells of an attempt without naming anybody: an answer from
// outside may quote the address, so only its code is logged.
func (s *Service) logAttempt(ctx context.Context, c outbox.Claim, d delivery, r Result, next settlement) {
	attrs := []slog.Attr{
		slog.String("delivery_id", d.ID), slog.String("order_id", d.Order.ID), slog.String("type", string(d.Type)),
		slog.String("channel", string(d.Channel)), slog.Int("attempt", c.Attempt), slog.String("outcome", string(r.Outcome)),
	}
	if r.Code != 0 {
		attrs = append(attrs, slog.Int("code", r.Code))
	} else if r.Err != nil {
		attrs = append(attrs, slog.Any("err", r.Err))
	}
	switch next.Status {
	case Sent:
		s.log.LogAttrs(ctx, slog.LevelInfo, "Notification sent", attrs...)
	case Failed:
		s.log.LogAttrs(ctx, slog.LevelError, "Notification failed", attrs...)
	default:
		attrs = append(attrs, slog.Time("next_attempt", next.DueAt))
		s.log.LogAttrs(ctx, slog.LevelWarn, "Notification postponed", attrs...)
	}
}

// metrics are what the service tells of itself.
type metrics struct {
	seconds    *prometheus.HistogramVec
	deliveries *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "pizza_notification_delivery_seconds",
			Help:    "From the delivery's row to the other side's acceptance of the message.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2.5, 12),
		}, []string{"channel"}),
		deliveries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pizza_notification_deliveries_total",
			Help: "Attempts to deliver, by result: sent, temporary, unknown, permanent, expired (given up after a day).",
		}, []string{"channel", "result"}),
	}
	for _, c := range []prometheus.Collector{m.seconds, m.deliveries} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}
