package notification

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"strconv"
	"time"

	"pizzaflow/internal/retry"
	"pizzaflow/job"
	"pizzaflow/sqldb"
)

const (
	// lease is how long a delivery stays leased to a process that was killed. A
	// process that stands still for longer, and then goes on, may repeat its
	// messages.
	lease = 10 * time.Second
	// jobTimeout is more than sending, waiting for the answer and recording it take,
	// even when the database restarts meanwhile.
	jobTimeout = sendTimeout + answerTimeout + 5*time.Minute
	// sendTimeout is the limit of an attempt up to the moment when the mail server has
	// the whole mail. Until then giving up repeats nothing.
	sendTimeout = 30 * time.Second
	// answerTimeout is how long the answer to a mail's final dot is waited for: RFC
	// 5321, 4.5.3.2.6 asks for ten minutes, because a server that looks at a mail for
	// long accepts it in the end, and giving up before repeats the mail.
	answerTimeout = 10 * time.Minute
	// slowAfter is how long an attempt counts against inFlightLimit: one that waits
	// for its answer for longer leaves its place to another message.
	slowAfter = sendTimeout
	// stopWait is how long a stop waits for the answers to the messages in flight. So
	// much time is always left to the workers (workersStopped in stage.go); an answer
	// that has not come by then is an unknown outcome.
	stopWait = 7 * time.Second
	// inFlightLimit is how many messages of one channel are sent at once, or sent
	// and not recorded yet: so many, and as many again that are slow, may be sent
	// twice when the process dies. With 32
	// the whole flow did 410 orders a second, with 128 it does 480. How many
	// connections a mail server accepts is the smtpPool's concern.
	inFlightLimit = 128
)

// A channelSender is the sender of a channel with its workers. Each channel has its
// own, so that a mail server that hangs does not hold up the SMS.
type channelSender struct {
	sender Sender
	worker *job.Worker
}

func (s *Service) newChannelSender(cfg Config, channel Channel, sender Sender) *channelSender {
	return &channelSender{sender: sender, worker: job.New(job.Config{
		DB: s.db, Table: "notification_deliveries", Where: `channel = '` + string(channel) + `'`, Limit: inFlightLimit,
		Lease: cmp.Or(cfg.lease, lease), Timeout: cmp.Or(cfg.jobTimeout, jobTimeout), Exclusive: cfg.Exclusive, Do: s.deliver, Log: cfg.Log,
		LongestPause: job.LongestBackoff(retryBase, retryLimit),
	})}
}

// deliver makes one attempt at the delivery of a job, and records its result
// before the worker takes another job.
func (s *Service) deliver(ctx context.Context, j job.Job) error {
	d, handedOver := j.Data.(delivery)
	if !handedOver {
		r, err := s.reads.Do(ctx, j)
		if err = errors.Join(err, r.err); err != nil {
			return err
		}
		d = r.delivery
	}
	slow := time.AfterFunc(s.slowAfter, j.CallDone)
	defer slow.Stop()
	return s.recordResult(ctx, j, d, s.send(ctx, d))
}

func (s *Service) send(ctx context.Context, d delivery) Result {
	m, err := s.templates.message(d)
	if err != nil { // an operator can mend a template within the day
		return Result{Outcome: Temporary, Err: err}
	}
	m.From, m.MayBeSent = s.from, d.unknownAttempts > 0
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.sending, cancel)()
	return s.channels[d.Channel].sender.Send(ctx, m)
}

// recordResult stores, counts and logs the result of an attempt.
func (s *Service) recordResult(ctx context.Context, j job.Job, d delivery, r Result) error {
	u := newUpdate(j, d, r, sqldb.Now())
	if err := s.storeUpdate(ctx, u); err != nil {
		return err
	}
	s.countAttempt(d, r, u)
	s.logAttempt(ctx, d, r, u)
	return nil
}

// newUpdate is what the result of an attempt makes of the delivery of a job.
func newUpdate(j job.Job, d delivery, r Result, now time.Time) update {
	u := update{job: j, at: now, status: Pending, pause: never, unknownAttempts: d.unknownAttempts}
	if r.Outcome == Unknown {
		u.unknownAttempts++
	}
	u.reason = r.reason(u.unknownAttempts)
	switch {
	case r.Outcome == Accepted:
		u.status, u.providerID = Sent, truncate(oneLine(r.ProviderID), maxError)
	case r.Outcome == Permanent, u.unknownAttempts >= unknownAttemptsLimit[d.Channel]:
		u.status = Failed
	default:
		u.pause = retryIn(now.Sub(d.CreatedAt), j.Attempt, job.Backoff(j.Attempt, retryBase, retryLimit))
		if u.pause == never {
			u.status = Failed
		}
	}
	return u
}

// storeUpdate stores an update, with others, and tries again while the database is
// unavailable: a message that is sent and not recorded would be sent again. The
// lease may run out meanwhile and still be this job's: no process takes over rows
// before it has been in touch with the database for the length of a lease.
func (s *Service) storeUpdate(ctx context.Context, u update) error {
	for try := 1; ; try++ {
		lost, err := s.updates.Do(ctx, u)
		if err == nil || !sqldb.IsUnavailable(err) || ctx.Err() != nil {
			return errors.Join(err, lost)
		}
		if !retry.Sleep(ctx, retry.Backoff(try, 100*time.Millisecond, 2*time.Second)) {
			return err
		}
	}
}

// countAttempt counts an attempt by its result, and measures how long a delivery
// took that was sent.
func (s *Service) countAttempt(d delivery, r Result, u update) {
	result := string(r.Outcome)
	switch {
	case u.status == Failed && r.Outcome == Temporary:
		result = "expired"
	case u.status == Failed && r.Outcome == Unknown:
		result = "abandoned"
	}
	s.metrics.deliveries.WithLabelValues(string(d.Channel), result).Inc()
	if r.AboutUs != "" {
		s.metrics.refusals.WithLabelValues(string(d.Channel), r.AboutUs, strconv.Itoa(r.Code)).Inc()
	}
	if u.status == Sent {
		s.metrics.seconds.WithLabelValues(string(d.Channel)).Observe(max(0, u.at.Sub(d.CreatedAt).Seconds()))
	}
}

// logAttempt logs an attempt without personal data.
func (s *Service) logAttempt(ctx context.Context, d delivery, r Result, u update) {
	attrs := []slog.Attr{
		slog.String("delivery_id", d.ID), slog.String("order_id", d.Order.ID), slog.String("type", string(d.Type)),
		slog.String("channel", string(d.Channel)), slog.Int("attempt", u.job.Attempt), slog.String("outcome", string(r.Outcome)),
	}
	if u.unknownAttempts > 0 {
		attrs = append(attrs, slog.Int("unknown_attempts", u.unknownAttempts))
	}
	if r.Code != 0 {
		attrs = append(attrs, slog.Int("code", r.Code))
	}
	if r.Code != 0 && r.Err != nil {
		attrs = append(attrs, slog.String("reply", r.reply(d.to())))
	} else if r.Err != nil {
		attrs = append(attrs, slog.Any("err", r.Err))
	}
	switch u.status {
	case Sent:
		s.log.LogAttrs(ctx, slog.LevelInfo, "Notification sent", attrs...)
	case Failed:
		s.log.LogAttrs(ctx, slog.LevelError, "Notification failed", attrs...)
	default:
		attrs = append(attrs, slog.Time("next_attempt", sqldb.Now().Add(u.pause)))
		s.log.LogAttrs(ctx, slog.LevelWarn, "Notification postponed", attrs...)
	}
}
