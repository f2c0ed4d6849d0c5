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
)

// Topic describes a topic to be created. Zero values of the last four leave the setting to the broker. Old
// records are deleted, never compacted (cleanup.policy), whatever the broker's default.
type Topic struct {
	Name       string
	Partitions int // at least 1
	Replicas   int // the number of copies, −1 for what the broker is set to
	// MinInsync is the number of copies that must have a write before it is acknowledged
	// (min.insync.replicas). Where Replicas is three or more, zero means two.
	MinInsync       int
	Retention       time.Duration // how long records stay, whole milliseconds
	RetentionBytes  int64         // how many bytes of records stay, for each partition
	MaxMessageBytes int           // the largest batch of records, as it travels (compressed)
}

const (
	// defaultMaxMessageBytes is what Apache Kafka takes when a topic says nothing.
	defaultMaxMessageBytes = 1<<20 + 12

	deadLetterRetention = 30 * 24 * time.Hour
)

// DeadLetters returns the topic that takes what consumers of t could not handle: "<topic>-dlq" with the same
// partitions and replicas. It has room for t's largest record inside an envelope, in base64 and as text, and
// keeps it for 30 days, or as long as t does if that is longer.
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
		return fmt.Errorf("topic %s: %d of %d replicas can never have a write", t.Name, t.MinInsync, t.Replicas)
	case t.Retention < 0 || t.RetentionBytes < 0 || t.MaxMessageBytes < 0:
		return fmt.Errorf("topic %s: a negative limit", t.Name)
	}
	return nil
}

// A setting is a topic's own configuration under the broker's name for it.
type setting struct{ name, value string }

// settings are those of t that are not left to the broker.
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

// request is t as the broker wants to hear it.
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
// While the brokers are away, or a topic is missing that we may not create, it tries again until ctx ends and
// logs why it waits; the error then says what was missing and what to do. What waiting cannot cure (a refused
// password or certificate, a setting the broker rejects) is returned at once.
func EnsureTopics(ctx context.Context, c Config, log *slog.Logger, topics ...Topic) error {
	return AwaitTopics(ctx, c, log, func(error) {}, topics...)
}

// AwaitTopics is EnsureTopics for whoever wants to be told each time why it waits.
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
	client, err := kgo.NewClient(append(opts, kgo.RetryTimeout(longPause))...) // we try again ourselves, and say why
	if err != nil {
		return fmt.Errorf("ensure topics: %w", err)
	}
	defer client.Close()

	e := &ensuring{client: client, config: c, brokers: strings.Join(c.Brokers, ","), log: log, topics: topics, tell: waiting, told: map[string]bool{}}
	if err := e.run(ctx); err != nil {
		return fmt.Errorf("ensure topics: %w", err)
	}
	return nil
}

// ensuring is one call of EnsureTopics.
type ensuring struct {
	client  *kgo.Client
	config  Config
	brokers string
	log     *slog.Logger
	topics  []Topic
	tell    func(reason error)

	waiting  error // why the last round was not enough
	loggedAt time.Time
	told     map[string]bool // topics whose other number of partitions was logged
}

// errFinal marks what another try cannot cure.
var errFinal = errors.New("cannot be cured by waiting")

const (
	firstPause = 20 * time.Millisecond // leaders are elected within some tens of them
	longPause  = time.Second
	remindEach = 30 * time.Second
)

func (e *ensuring) run(ctx context.Context) error {
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		reason := e.round(ctx)
		if reason == nil {
			return nil
		}
		if errors.Is(reason, errFinal) || Field(reason) != "" {
			return reason
		}
		// A request cut short by ctx tells less than the round before it did.
		if ctx.Err() == nil || e.waiting == nil {
			e.waiting = e.remind(reason, pause)
			e.tell(reason)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", e.waiting, context.Cause(ctx))
		case <-time.After(pause):
		}
	}
}

// remind logs why we wait: when that is new, and now and then after. The first rounds are silent, for a topic
// just created is without leaders for a moment.
func (e *ensuring) remind(reason error, pause time.Duration) error {
	fresh := e.waiting == nil || e.waiting.Error() != reason.Error()
	if pause >= 8*firstPause && (fresh || e.loggedAt.IsZero() || time.Since(e.loggedAt) >= remindEach) {
		e.loggedAt = time.Now()
		e.log.Warn("waiting for the topics", "brokers", e.brokers, "reason", reason.Error())
	}
	return reason
}

// round looks, creates what is missing, and returns nil when all topics have all their leaders.
func (e *ensuring) round(ctx context.Context) error {
	missing, reason := e.look(ctx)
	if len(missing) == 0 {
		return reason
	}
	if err := e.create(ctx, missing); err != nil {
		return err
	}
	missing, reason = e.look(ctx)
	if len(missing) > 0 {
		return fmt.Errorf("topic %s was created and is not visible yet", missing[0].Name)
	}
	return reason
}

// look returns the topics that do not exist, and why the others are not ready.
func (e *ensuring) look(ctx context.Context) (missing []Topic, reason error) {
	req := kmsg.NewPtrMetadataRequest() // not through the client's cache, and never creating topics by asking
	for _, t := range e.topics {
		rt := kmsg.NewMetadataRequestTopic()
		rt.Topic = new(t.Name)
		req.Topics = append(req.Topics, rt)
	}
	if len(req.Topics) == 0 {
		req.Topics = []kmsg.MetadataRequestTopic{} // nil would ask for all
	}
	resp, err := req.RequestWith(ctx, e.client)
	if err != nil {
		return nil, noAnswer(e.brokers, err)
	}
	for _, b := range resp.Brokers { // those a partition may be led by: better refused now than when it is
		if err := e.config.exposed(net.JoinHostPort(b.Host, strconv.Itoa(int(b.Port)))); err != nil {
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
			if err := e.leaders(t, found[t.Name].Partitions); err != nil {
				reason = err
			}
		}
	}
	return missing, reason
}

// noAnswer says what may be behind a request that came to nothing.
func noAnswer(brokers string, err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("the brokers %s hang up: are TLS and SASL set as they expect, and the password right? %w", brokers, err)
	}
	return fmt.Errorf("no answer from the brokers %s: %w", brokers, err)
}

// leaders returns nil when every partition has one.
func (e *ensuring) leaders(t Topic, partitions []kmsg.MetadataResponseTopicPartition) error {
	if len(partitions) == 0 {
		return fmt.Errorf("topic %s has no partitions yet", t.Name)
	}
	for _, p := range partitions {
		if p.Leader < 0 || p.ErrorCode == kerr.LeaderNotAvailable.Code {
			return fmt.Errorf("partition %d of topic %s has no leader: is one of the brokers down?", p.Partition, t.Name)
		}
	}
	if len(partitions) != t.Partitions && !e.told[t.Name] {
		e.told[t.Name] = true
		e.log.Warn("topic has another number of partitions than configured and stays as it is",
			"topic", t.Name, "partitions", len(partitions), "configured", t.Partitions)
	}
	return nil
}

func (e *ensuring) create(ctx context.Context, topics []Topic) error {
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
		case errors.Is(err, kerr.TopicAlreadyExists): // another process was faster
		default:
			return topicError(t.Topic, err, t.ErrorMessage)
		}
	}
	return nil
}

// topicError says what to do about the broker's refusal, and marks what waiting cannot cure.
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
// its key), "TLS.ServerName", "SASL.Mechanism" or "SASL.Password". No waiting cures such an error; for any other Field
// returns "".
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
	case errors.Is(err, errExposed), errors.As(err, &record): // in clear, or TLS with one who does not speak it
		return "TLS"
	case errors.As(err, &name):
		return "TLS.ServerName"
	case errors.As(err, &certificate):
		return "TLS.CAFile"
	case errors.Is(err, kerr.UnsupportedSaslMechanism), errors.Is(err, kerr.IllegalSaslState): // the latter from one who wants none
		return "SASL.Mechanism"
	case errors.Is(err, kerr.SaslAuthenticationFailed):
		return "SASL.Password"
	}
	return ""
}
