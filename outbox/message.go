package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
)

// The headers of a record: CloudEvents 1.0 in binary mode, and our own.
const (
	headerSpecVersion      = "ce_specversion"
	headerID               = "ce_id"
	headerType             = "ce_type"
	headerSource           = "ce_source"
	headerSubject          = "ce_subject"
	headerTime             = "ce_time"
	headerContentType      = "content-type"
	headerSchemaVersion    = "schema_version"
	headerAggregateVersion = "aggregate_version"
	headerCausationID      = "causation_id"
	headerTraceparent      = "traceparent"
)

// A message is a record's value: these five fields, in this order.
type message struct {
	EventID     string          `json:"event_id"`
	EventType   string          `json:"event_type"`
	AggregateID string          `json:"aggregate_id"`
	EventData   json.RawMessage `json:"event_data"`
	Timestamp   time.Time       `json:"timestamp"`
}

// appendEnvelope writes the value of a record. The event's data goes in as it
// was written, byte for byte.
func appendEnvelope(b []byte, id, eventType, aggregateID, data, at string) []byte {
	b = append(b, `{"event_id":"`...)
	b = append(b, id...)
	b = append(b, `","event_type":`...)
	b = appendJSON(b, eventType)
	b = append(b, `,"aggregate_id":`...)
	b = appendJSON(b, aggregateID)
	b = append(b, `,"event_data":`...)
	b = append(b, data...)
	b = append(b, `,"timestamp":"`...)
	b = append(b, at...)
	return append(b, `"}`...)
}

func appendJSON(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			q, _ := marshal(s)
			return append(b, q...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// openMessage decodes a record's value. What it refuses, no retry will cure.
func openMessage(value []byte) (message, error) {
	var m message
	if err := json.Unmarshal(value, &m); err != nil {
		return message{}, fmt.Errorf("open envelope: %w", err)
	}
	id, err := uuid.Parse(m.EventID)
	if err != nil {
		return message{}, errors.New("open envelope: event_id is not a UUID")
	}
	m.EventID = id.String()
	if m.EventType == "" {
		return message{}, errors.New("open envelope: event_type is missing")
	}
	return m, nil
}

// header is the value of the first header of that name, "" without one.
func header(r *kgo.Record, name string) string {
	for _, h := range r.Headers {
		if h.Key == name {
			return string(h.Value)
		}
	}
	return ""
}

// numberHeader is the header of that name as a number, or the default when it
// is missing or is none.
func numberHeader(r *kgo.Record, name string, missing int64) int64 {
	n, err := strconv.ParseInt(header(r, name), 10, 64)
	if err != nil {
		return missing
	}
	return n
}

// headerList stores headers as JSON: [{"key":…,"value":…}], with "base64" for
// what is not text. Order and repetition are kept.
type headerList []kgo.RecordHeader

type storedHeader struct {
	Key    string  `json:"key"`
	Value  *string `json:"value,omitempty"`
	Base64 []byte  `json:"base64,omitempty"`
}

// MarshalJSON writes the list as it is stored.
func (l headerList) MarshalJSON() ([]byte, error) {
	stored := make([]storedHeader, len(l))
	for i, h := range l {
		stored[i].Key = h.Key
		switch s := string(h.Value); {
		case h.Value == nil:
		case utf8.ValidString(s):
			stored[i].Value = &s
		default:
			stored[i].Base64 = h.Value
		}
	}
	return marshal(stored)
}

// UnmarshalJSON reads a stored list.
func (l *headerList) UnmarshalJSON(b []byte) error {
	var stored []storedHeader
	if err := json.Unmarshal(b, &stored); err != nil {
		return err
	}
	*l = make(headerList, len(stored))
	for i, s := range stored {
		(*l)[i] = kgo.RecordHeader{Key: s.Key, Value: s.Base64}
		if s.Value != nil {
			(*l)[i].Value = []byte(*s.Value)
		}
	}
	return nil
}

type traceKey struct{}

// WithTraceparent makes ctx carry a W3C traceparent, which goes into the
// headers of the events written under it. A handler's context carries that of
// the record it handles.
func WithTraceparent(ctx context.Context, traceparent string) context.Context {
	return context.WithValue(ctx, traceKey{}, traceparent)
}

// Traceparent is the traceparent that ctx carries, "" without one.
func Traceparent(ctx context.Context) string {
	tp, _ := ctx.Value(traceKey{}).(string)
	return tp
}
