package inbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"time"
	"unicode/utf8"

	"pizzaflow/internal/crash"
	"pizzaflow/outbox"
	"pizzaflow/outbox/internal/store"
	"pizzaflow/outbox/internal/wire"
)

// A Dead is a record that was dead-lettered, as the function given to OnDead gets it.
type Dead struct {
	EventID     string // made from the position of a record that cannot be decoded
	EventType   string // "" when the record cannot be decoded
	AggregateID string
	Topic       string
	Partition   int32
	Offset      int64
	Attempts    int    // that failed
	Err         error  // of the last attempt
	Value       []byte // of the record, unchanged
}

// OnDead has c call fn in the transaction that dead-letters a record, so that the
// service can record that the event will have no effect. fn writes within tx only.
// When it returns an error or panics, the record is not dead-lettered: its last
// attempt is repeated after the usual delay. An error marked Unavailable pauses the
// consumer instead. OnDead must be called before Run.
func (c *Consumer) OnDead(fn func(ctx context.Context, tx *outbox.Tx, d Dead) error) {
	c.onDead = fn
}

// A deadLetter is the value of a record on a dead-letter topic.
type deadLetter struct {
	OriginalTopic       string          `json:"original_topic"`
	OriginalPartition   int32           `json:"original_partition"`
	OriginalOffset      int64           `json:"original_offset"`
	OriginalMessage     json.RawMessage `json:"original_message"` // null when it is not JSON
	ErrorReason         string          `json:"error_reason"`
	FailedAt            time.Time       `json:"failed_at"`
	RetryCount          int             `json:"retry_count"`
	ConsumerGroup       string          `json:"consumer_group"`
	OriginalValueBase64 []byte          `json:"original_value_base64,omitempty"`
}

// writeDeadLetter adds the dead letter of a message to the outbox and calls the
// function given to OnDead, both in tx.
func (c *Consumer) writeDeadLetter(ctx context.Context, tx *outbox.Tx, msg *message, s parkedState) error {
	body := deadLetter{
		OriginalTopic: msg.rec.Topic, OriginalPartition: msg.rec.Partition, OriginalOffset: msg.rec.Offset,
		OriginalMessage: msg.rec.Value, ErrorReason: store.Reason(s.err), FailedAt: s.failedAt, RetryCount: s.attempts, ConsumerGroup: c.cfg.Group,
	}
	if !json.Valid(msg.rec.Value) || !utf8.Valid(msg.rec.Value) {
		body.OriginalMessage, body.OriginalValueBase64 = nil, msg.rec.Value
	}
	value, err := wire.Marshal(body)
	if err == nil && len(value) > store.MaxDeadLetterBytes-store.MaxRecordBytes/2 { // leaves room for key and headers
		body.OriginalMessage, body.OriginalValueBase64 = nil, nil
		body.ErrorReason = store.Text(body.ErrorReason, 900) + " (the message is too large for this topic: it is in parked_records)"
		value, err = wire.Marshal(body)
	}
	if err != nil {
		return fmt.Errorf("write dead letter: %w", err)
	}
	aggregate := msg.envelope.AggregateID
	if aggregate == "" {
		aggregate = string(msg.rec.Key)
	}
	tx.AddRecord(outbox.Record{
		AggregateID: store.Text(aggregate, 200), EventType: store.Text(msg.envelope.EventType, 200), Topic: msg.rec.Topic + store.DeadLetterSuffix,
		Key: msg.rec.Key, Headers: msg.rec.Headers, Value: value,
	})
	crash.Point("dead letter: written")
	if c.onDead == nil {
		return nil
	}
	return c.callOnDead(ctx, tx, Dead{
		EventID: msg.id, EventType: msg.envelope.EventType, AggregateID: msg.envelope.AggregateID, Topic: msg.rec.Topic, Partition: msg.rec.Partition,
		Offset: msg.rec.Offset, Attempts: s.attempts, Err: s.err, Value: msg.rec.Value,
	})
}

// callOnDead calls the function given to OnDead. Its own failures become an
// onDeadError; conflicts and an unavailable database do not.
func (c *Consumer) callOnDead(ctx context.Context, tx *outbox.Tx, d Dead) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &onDeadError{fmt.Errorf("OnDead panicked: %v\n%s", p, debug.Stack())}
		}
	}()
	err = c.onDead(ctx, tx, d)
	if class := classify(err); err != nil && class != classUnavailable && class != classConflict {
		return &onDeadError{fmt.Errorf("OnDead: %w", err)}
	}
	return err
}

// An onDeadError is a failure of the function given to OnDead.
type onDeadError struct{ error }

func (e *onDeadError) Unwrap() error { return e.error }

// retryLastAttempt is the state of a record that could not be dead-lettered because
// the function given to OnDead failed: it retries its last attempt.
func (c *Consumer) retryLastAttempt(s parkedState, onDead error) parkedState {
	s.state, s.err, s.wait = store.Retrying, errors.Join(s.err, onDead), c.retryDelay(s.attempts)
	s.attempts--
	return s
}
