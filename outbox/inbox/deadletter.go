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

// A Dead is a record that will not be handled, as OnDead is told of it.
type Dead struct {
	EventID     string
	EventType   string // "" when the record could not be opened
	AggregateID string
	Topic       string
	Partition   int32
	Offset      int64
	Attempts    int
	Err         error
	Value       []byte // the record's value as it came
}

// OnDead has fn called in the transaction that dead-letters a record, so that
// the service can note what will not happen.
func (c *Consumer) OnDead(fn func(ctx context.Context, tx *outbox.Tx, d Dead) error) { c.onDead = fn }

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

// bury writes the dead letter of a record that has died, and lets the service
// note it.
func (c *Consumer) writeDeadLetter(ctx context.Context, tx *outbox.Tx, msg *message, s parkedState) error {
	body := deadLetter{
		OriginalTopic: msg.rec.Topic, OriginalPartition: msg.rec.Partition, OriginalOffset: msg.rec.Offset,
		OriginalMessage: msg.rec.Value, ErrorReason: store.Reason(s.err), FailedAt: s.failedAt, RetryCount: s.attempts, ConsumerGroup: c.cfg.Group,
	}
	if !json.Valid(msg.rec.Value) || !utf8.Valid(msg.rec.Value) {
		body.OriginalMessage, body.OriginalValueBase64 = nil, msg.rec.Value
	}
	value, err := wire.Marshal(body)
	if err == nil && len(value) > store.MaxDeadLetterBytes-store.MaxRecordBytes/2 { // room for key and headers
		body.OriginalMessage, body.OriginalValueBase64 = nil, nil
		body.ErrorReason = store.Text(body.ErrorReason, 900) + " (the message is too large for this topic: it stands in parked_records)"
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

// noteDeath calls OnDead's function. What is its own fault is a hookError.
func (c *Consumer) callOnDead(ctx context.Context, tx *outbox.Tx, d Dead) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &onDeadError{fmt.Errorf("note the death: panic: %v\n%s", p, debug.Stack())}
		}
	}()
	err = c.onDead(ctx, tx, d)
	if class := classify(err); err != nil && class != classUnavailable && class != classConflict {
		return &onDeadError{fmt.Errorf("note the death: %w", err)}
	}
	return err
}

// A hookError comes from OnDead's function.
type onDeadError struct{ error }

func (e *onDeadError) Unwrap() error { return e.error }

// undecided is what becomes of a record that should die while the hook cannot
// note it: its last attempt will be made again.
func (c *Consumer) retryLastAttempt(s parkedState, hook error) parkedState {
	s.state, s.err, s.wait = store.Retrying, errors.Join(s.err, hook), c.retryDelay(s.attempts)
	s.attempts--
	return s
}
