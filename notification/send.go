package notification

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"time"

	"pizzaflow/internal/retry"
	"pizzaflow/job"
	"pizzaflow/sqldb"
)

const (
	// lease is how long what a killed process had in hand waits for others. One
	// that stands still for longer, and then goes on, may repeat its messages.
	lease = 10 * time.Second
	// patience is more than sending and recording take, also where the database
	// restarts meanwhile.
	patience = 5 * time.Minute
	// sendTimeout bounds one attempt; a mail server may think for a while
	// about what it was given, and giving up then may repeat the mail.
	sendTimeout = 30 * time.Second
	// laneLimit is how many messages of one channel are on their way at once,
	// until what came of them is recorded: so many may be sent twice when the
	// process dies. With 32 the whole flow came to 410 orders a second where it
	// comes to 480 with these; how many connections a mail server bears is seen
	// to by the smtpPool.
	laneLimit = 128
)

// A lane is a channel's sender and its workers. Each channel has its own, so
// that a mail server that hangs does not hold up the SMS.
type lane struct {
	sender Sender
	work   *job.Worker
}

func (s *Service) newLane(cfg Config, channel Channel, sender Sender) *lane {
	l := &lane{sender: sender}
	l.work = job.New(job.Config{
		DB: s.db, Table: "notification_deliveries", Where: `channel = '` + string(channel) + `'`, Limit: laneLimit,
		Lease: cmp.Or(cfg.lease, lease), Timeout: cmp.Or(cfg.patience, patience), Exclusive: cfg.Alone, Do: s.deliver, Log: cfg.Log,
		LongestPause: job.LongestBackoff(retryBase, retryLimit),
	})
	return l
}

func (l *lane) send(ctx context.Context, m Message) Result {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	return l.sender.Send(ctx, m)
}

// deliver makes one attempt at a delivery. The attempt was recorded when the
// row was claimed; what it came to is recorded here, before the worker takes
// another.
func (s *Service) deliver(ctx context.Context, c job.Job) error {
	d, ok := c.Data.(delivery)
	if !ok {
		f, err := s.loads.Do(ctx, c)
		if errors.Is(f.err, errLeaseLost) {
			return nil
		}
		if err != nil {
			return err
		}
		d = f.delivery
	}
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
func (s *Service) settle(ctx context.Context, c job.Job, d delivery, r Result) error {
	now := sqldb.Now()
	next := settlement{claim: c, status: Pending, pause: never, reason: r.reason()}
	label := string(r.Outcome)
	switch r.Outcome {
	case Accepted:
		next.status, next.sentAt, next.providerID = Sent, now, truncate(oneLine(r.ProviderID), maxError)
	case Permanent:
		next.status = Failed
	default:
		next.pause = retryIn(now.Sub(d.CreatedAt), c.Attempt, job.Backoff(c.Attempt, retryBase, retryLimit))
		if next.pause == never {
			next.status, label = Failed, "expired"
		}
	}
	switch err := s.record(ctx, next); {
	case errors.Is(err, errLeaseLost):
		return nil
	case err != nil:
		return err
	}
	s.metrics.deliveries.WithLabelValues(string(d.Channel), label).Inc()
	if next.status == Sent {
		s.metrics.seconds.WithLabelValues(string(d.Channel)).Observe(max(0, now.Sub(d.CreatedAt).Seconds()))
	}
	s.logAttempt(ctx, d, r, next)
	return nil
}

// record settles the row, with others, and keeps trying while the database is
// away: a message that was sent and not recorded would be sent again. That the
// lease may have run out meanwhile is no reason to give up: nobody takes a row
// from others before the database has been there for the length of a lease.
func (s *Service) record(ctx context.Context, next settlement) error {
	for try := 1; ; try++ {
		lost, err := s.settles.Do(ctx, next)
		if err == nil || !sqldb.IsUnavailable(err) || ctx.Err() != nil {
			return errors.Join(err, lost)
		}
		pause := time.NewTimer(retry.Backoff(try, 100*time.Millisecond, 2*time.Second))
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
func (s *Service) logAttempt(ctx context.Context, d delivery, r Result, next settlement) {
	attrs := []slog.Attr{
		slog.String("delivery_id", d.ID), slog.String("order_id", d.Order.ID), slog.String("type", string(d.Type)),
		slog.String("channel", string(d.Channel)), slog.Int("attempt", next.claim.Attempt), slog.String("outcome", string(r.Outcome)),
	}
	if r.Code != 0 {
		attrs = append(attrs, slog.Int("code", r.Code))
	} else if r.Err != nil {
		attrs = append(attrs, slog.Any("err", r.Err))
	}
	switch next.status {
	case Sent:
		s.log.LogAttrs(ctx, slog.LevelInfo, "Notification sent", attrs...)
	case Failed:
		s.log.LogAttrs(ctx, slog.LevelError, "Notification failed", attrs...)
	default:
		attrs = append(attrs, slog.Time("next_attempt", sqldb.Now().Add(next.pause)))
		s.log.LogAttrs(ctx, slog.LevelWarn, "Notification postponed", attrs...)
	}
}
