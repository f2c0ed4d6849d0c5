package kafka

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"pizzaflow/internal/retry"
)

// A Topic is a topic to be created. A zero value of one of the last four fields leaves the setting to the broker. Old
// records are deleted, never compacted (cleanup.policy), whatever the broker's default.
type Topic struct {
	Name       string
	Partitions int // at least 1
	Replicas   int // the number of copies, −1 for the broker's default
	// MinInsync is the number of copies that must have a record before it is acknowledged
	// (min.insync.replicas). Where Replicas is three or more, zero means two.
	MinInsync       int
	Retention       time.Duration // how long records stay, whole milliseconds
	RetentionBytes  int64         // how many bytes of records stay, for each partition
	MaxMessageBytes int           // the largest batch of records, as it travels (compressed)
}

const (
	// defaultMaxMessageBytes is the limit of Apache Kafka for a topic without one of its own.
	defaultMaxMessageBytes = 1<<20 + 12

	deadLetterRetention = 30 * 24 * time.Hour
)

// DeadLetters returns the topic for the records of t that consumers could not handle: "<topic>-dlq" with the same
// partitions and replicas. It has room for t's largest record inside an envelope, in base64 and as text, and
// keeps records for 30 days, or as long as t does if that is longer.
func DeadLetters(t Topic) Topic {
	largest := t.MaxMessageBytes
	if largest <= 0 {
		largest = defaultMaxMessageBytes
	}
	d := t
	d.Name = t.Name + "-dlq"
	d.MaxMessageBytes = 4*largest + 64<<10
	d.Retention = max(t.Retention, deadLetterRetention)
	return d
}

// SegmentTime is for how long records may go into one segment of t: a seventh of the retention, up to a day. Only
// whole segments are deleted, so a record may stay for as long as this beyond the retention.
func (t Topic) SegmentTime() time.Duration {
	return min(max(t.Retention/7, time.Minute), 24*time.Hour)
}

func (t Topic) validate() error {
	switch {
	case t.Name == "":
		return errors.New("topic: no name")
	case t.Partitions < 1:
		return fmt.Errorf("topic %s: %d partitions, want at least 1", t.Name, t.Partitions)
	case t.Replicas == 0 || t.Replicas < -1:
		return fmt.Errorf("topic %s: %d replicas, want at least 1, or -1 for the broker's own number", t.Name, t.Replicas)
	case t.MinInsync < 0 || t.Replicas > 0 && t.MinInsync > t.Replicas:
		return fmt.Errorf("topic %s: min.insync.replicas %d with %d replicas: no record would be acknowledged", t.Name, t.MinInsync, t.Replicas)
	case t.Retention < 0 || t.RetentionBytes < 0 || t.MaxMessageBytes < 0:
		return fmt.Errorf("topic %s: a negative limit", t.Name)
	}
	return nil
}

// A setting is a configuration of a topic, by the broker's name.
type setting struct{ name, value string }

// settings are the configurations of t that are not left to the broker.
func (t Topic) settings() []setting {
	out := []setting{{"cleanup.policy", "delete"}}
	number := func(name string, value int64) {
		if value > 0 {
			out = append(out, setting{name, strconv.FormatInt(value, 10)})
		}
	}
	if t.MinInsync == 0 && t.Replicas >= 3 {
		t.MinInsync = 2
	}
	number("min.insync.replicas", int64(t.MinInsync))
	number("retention.ms", t.Retention.Milliseconds())
	if t.Retention > 0 {
		number("segment.ms", t.SegmentTime().Milliseconds())
	}
	number("retention.bytes", t.RetentionBytes)
	number("max.message.bytes", int64(t.MaxMessageBytes))
	return out
}

// request is the request that creates t.
func (t Topic) request() kmsg.CreateTopicsRequestTopic {
	req := kmsg.NewCreateTopicsRequestTopic()
	req.Topic = t.Name
	req.NumPartitions = int32(t.Partitions)
	req.ReplicationFactor = int16(t.Replicas)
	for _, s := range t.settings() {
		c := kmsg.NewCreateTopicsRequestTopicConfig()
		c.Name, c.Value = s.name, new(s.value)
		req.Configs = append(req.Configs, c)
	}
	return req
}

// EnsureTopics creates the topics that are missing and waits until every partition of every topic has a
// leader. It alters no topic that exists: one with another number of partitions is only logged. Any number of
// processes may do this at once.
//
// While the brokers are away, or a topic is missing that this user may not create, it tries again until ctx ends
// and logs why it waits; its error then says what was missing and what to do. An error that waiting cannot cure (a
// refused password or certificate, a setting that the broker rejects) is returned at once.
func EnsureTopics(ctx context.Context, c Config, log *slog.Logger, topics ...Topic) error {
	return AwaitTopics(ctx, c, log, func(error) {}, topics...)
}

// AwaitTopics is EnsureTopics that calls waiting, before each pause, with the reason why it waits.
func AwaitTopics(ctx context.Context, c Config, log *slog.Logger, waiting func(reason error), topics ...Topic) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	opts, err := c.Options()
	if err != nil {
		return fmt.Errorf("ensure topics: %w", err)
	}
	for _, t := range topics {
		if err := t.validate(); err != nil {
			return fmt.Errorf("ensure topics: %w", err)
		}
	}
	client, err := kgo.NewClient(append(opts, kgo.RetryTimeout(longPause))...) // run tries again, and logs why
	if err != nil {
		return fmt.Errorf("ensure topics: %w", err)
	}
	defer client.Close()

	e := &ensurer{client: client, config: c, brokers: strings.Join(c.Brokers, ","), log: log, topics: topics, onWait: waiting, logged: map[string]bool{}}
	if err := e.run(ctx); err != nil {
		return fmt.Errorf("ensure topics: %w", err)
	}
	return nil
}

// An ensurer is one call of EnsureTopics.
type ensurer struct {
	client  *kgo.Client
	config  Config
	brokers string
	log     *slog.Logger
	topics  []Topic
	onWait  func(reason error)

	reason   error           // why it waits
	loggedAt time.Time       // when the reason was logged last
	logged   map[string]bool // topics whose other number of partitions was logged
}

// errFinal is wrapped by an error that another try cannot cure.
var errFinal = errors.New("cannot be cured by waiting")

const (
	firstPause  = 20 * time.Millisecond // a new topic gets its leaders within some tens of milliseconds
	logPause    = 8 * firstPause        // from this pause on the reason is logged
	logInterval = 30 * time.Second      // between two lines about the same reason
)

func (e *ensurer) run(ctx context.Context) error {
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		reason := e.tryOnce(ctx)
		if reason == nil {
			return nil
		}
		if errors.Is(reason, errFinal) || Field(reason) != "" {
			return reason
		}
		// The error of a request that ctx cut short says less than the reason before it.
		if ctx.Err() == nil || e.reason == nil {
			e.logReason(reason, pause)
			e.reason = reason
			e.onWait(reason)
		}
		if !retry.Sleep(ctx, pause) {
			return fmt.Errorf("%w (%w)", e.reason, context.Cause(ctx))
		}
	}
}

// logReason logs why run waits: when the reason is a new one, and every half a minute. The first tries are not
// logged, because a topic that was just created has no leaders for a moment.
func (e *ensurer) logReason(reason error, pause time.Duration) {
	isNew := e.reason == nil || e.reason.Error() != reason.Error()
	if pause >= logPause && (isNew || e.loggedAt.IsZero() || time.Since(e.loggedAt) >= logInterval) {
		e.loggedAt = time.Now()
		e.log.Warn("waiting for the topics", "brokers", e.brokers, "reason", reason.Error())
	}
}

// tryOnce creates the topics that are missing, and returns nil when all topics have all their leaders.
func (e *ensurer) tryOnce(ctx context.Context) error {
	missing, reason := e.check(ctx)
	if len(missing) == 0 {
		return reason
	}
	if err := e.create(ctx, missing); err != nil {
		return err
	}
	missing, reason = e.check(ctx)
	if len(missing) > 0 {
		return fmt.Errorf("topic %s was created and is not visible yet", missing[0].Name)
	}
	return reason
}

// check returns the topics that do not exist, and why the others are not ready.
func (e *ensurer) check(ctx context.Context) (missing []Topic, reason error) {
	req := kmsg.NewPtrMetadataRequest() // of its own, since the client's would be cached, and might create topics
	for _, t := range e.topics {
		rt := kmsg.NewMetadataRequestTopic()
		rt.Topic = new(t.Name)
		req.Topics = append(req.Topics, rt)
	}
	if len(req.Topics) == 0 {
		req.Topics = []kmsg.MetadataRequestTopic{} // nil would ask for all topics
	}
	resp, err := req.RequestWith(ctx, e.client)
	if err != nil {
		return nil, noAnswer(e.brokers, err)
	}
	for _, b := range resp.Brokers { // any of them may lead a partition, and would be refused then
		if err := e.config.checkClear(net.JoinHostPort(b.Host, strconv.Itoa(int(b.Port)))); err != nil {
			return nil, fmt.Errorf("a broker that %s tell of: %w", e.brokers, err)
		}
	}
	found := make(map[string]kmsg.MetadataResponseTopic, len(resp.Topics))
	for _, t := range resp.Topics {
		if t.Topic != nil {
			found[*t.Topic] = t
		}
	}
	for _, t := range e.topics {
		state := kerr.ErrorForCode(found[t.Name].ErrorCode)
		switch {
		case errors.Is(state, kerr.UnknownTopicOrPartition):
			missing = append(missing, t)
		case state != nil:
			reason = topicError(t.Name, state, nil)
		default:
			partitions := found[t.Name].Partitions
			if err := checkLeaders(t, partitions); err != nil {
				reason = err
				continue
			}
			e.logPartitions(t, len(partitions))
		}
	}
	return missing, reason
}

// noAnswer says what the reason may be for a request that got no answer.
func noAnswer(brokers string, err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("the brokers %s close the connection: are TLS and SASL set as they expect, and the password right? %w", brokers, err)
	}
	return fmt.Errorf("no answer from the brokers %s: %w", brokers, err)
}

// checkLeaders returns nil when every partition has a leader.
func checkLeaders(t Topic, partitions []kmsg.MetadataResponseTopicPartition) error {
	if len(partitions) == 0 {
		return fmt.Errorf("topic %s has no partitions yet", t.Name)
	}
	for _, p := range partitions {
		if p.Leader < 0 || p.ErrorCode == kerr.LeaderNotAvailable.Code {
			return fmt.Errorf("partition %d of topic %s has no leader: is one of the brokers down?", p.Partition, t.Name)
		}
	}
	return nil
}

// logPartitions logs, once for each topic, that it has another number of partitions than configured.
func (e *ensurer) logPartitions(t Topic, partitions int) {
	if partitions == t.Partitions || e.logged[t.Name] {
		return
	}
	e.logged[t.Name] = true
	e.log.Warn("topic has another number of partitions than configured and stays as it is",
		"topic", t.Name, "partitions", partitions, "configured", t.Partitions)
}

func (e *ensurer) create(ctx context.Context, topics []Topic) error {
	req := kmsg.NewPtrCreateTopicsRequest()
	req.TimeoutMillis = int32(requestTimeout.Milliseconds())
	for _, t := range topics {
		req.Topics = append(req.Topics, t.request())
	}
	resp, err := req.RequestWith(ctx, e.client)
	if err != nil {
		return fmt.Errorf("create topics: %w", err)
	}
	for _, t := range resp.Topics {
		switch err := kerr.ErrorForCode(t.ErrorCode); {
		case err == nil:
			e.log.Info("topic created", "topic", t.Topic)
		case errors.Is(err, kerr.TopicAlreadyExists): // by another process
		default:
			return topicError(t.Topic, err, t.ErrorMessage)
		}
	}
	return nil
}

// topicError adds to a broker's error what to do about it; it wraps errFinal if waiting cannot cure it.
func topicError(topic string, err error, detail *string) error {
	if detail != nil && *detail != "" {
		err = fmt.Errorf("%w (%s)", err, *detail)
	}
	switch {
	case errors.Is(err, kerr.TopicAuthorizationFailed), errors.Is(err, kerr.ClusterAuthorizationFailed):
		return fmt.Errorf("topic %s is missing or hidden, and this user may neither create nor see it:"+
			" let an administrator create it (pizza topics apply) and allow this user to describe, read and write it: %w", topic, err)
	case errors.Is(err, kerr.InvalidReplicationFactor):
		return fmt.Errorf("topic %s: there are fewer brokers than replicas: start them, or ask for fewer: %w", topic, err)
	case errors.Is(err, kerr.PolicyViolation), errors.Is(err, kerr.InvalidConfig), errors.Is(err, kerr.InvalidPartitions),
		errors.Is(err, kerr.InvalidTopicException), errors.Is(err, kerr.InvalidRequest):
		return fmt.Errorf("topic %s: the broker refuses these settings; create it by hand or change them: %w: %w", topic, errFinal, err)
	}
	return fmt.Errorf("topic %s: %w", topic, err)
}

// Field returns the field of Config that an error of this package is about: "TLS", "TLS.CAFile", "TLS.CertFile" (and
// its key), "TLS.ServerName", "SASL.Mechanism" or "SASL.Password". No waiting cures such an error. For any other error
// it returns "".
func Field(err error) string {
	var (
		file        fieldError
		record      tls.RecordHeaderError
		name        x509.HostnameError
		certificate *tls.CertificateVerificationError
	)
	switch {
	case errors.As(err, &file):
		return file.field
	case errors.Is(err, errExposed), errors.As(err, &record): // sent in clear, or TLS to a broker without it
		return "TLS"
	case errors.As(err, &name):
		return "TLS.ServerName"
	case errors.As(err, &certificate):
		return "TLS.CAFile"
	case errors.Is(err, kerr.UnsupportedSaslMechanism), errors.Is(err, kerr.IllegalSaslState): // the latter from a broker without SASL
		return "SASL.Mechanism"
	case errors.Is(err, kerr.SaslAuthenticationFailed):
		return "SASL.Password"
	}
	return ""
}
