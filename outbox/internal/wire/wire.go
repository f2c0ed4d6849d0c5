// Package wire has the form of a record: its envelope, its headers, and how an
// outbox stores headers. Producer and consumer agree here and nowhere else.
package wire

import (
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
	HeaderSpecVersion      = "ce_specversion"
	HeaderID               = "ce_id"
	HeaderType             = "ce_type"
	HeaderSource           = "ce_source"
	HeaderSubject          = "ce_subject"
	HeaderTime             = "ce_time"
	HeaderContentType      = "content-type"
	HeaderSchemaVersion    = "schema_version"
	HeaderAggregateVersion = "aggregate_version"
	HeaderCausationID      = "causation_id"
	HeaderTraceparent      = "traceparent"
)

// An Envelope is a record's value: these five fields, in this order.
type Envelope struct {
	EventID     string          `json:"event_id"`
	EventType   string          `json:"event_type"`
	AggregateID string          `json:"aggregate_id"`
	EventData   json.RawMessage `json:"event_data"`
	Timestamp   time.Time       `json:"timestamp"`
}

// AppendEnvelope writes the value of a record. The event's data goes in as it
// was written, byte for byte.
func AppendEnvelope(b []byte, id, eventType, aggregateID, data string, at time.Time) []byte {
	b = append(b, `{"event_id":"`...)
	b = append(b, id...)
	b = append(b, `","event_type":`...)
	b = AppendJSON(b, eventType)
	b = append(b, `,"aggregate_id":`...)
	b = AppendJSON(b, aggregateID)
	b = append(b, `,"event_data":`...)
	b = append(b, data...)
	b = append(b, `,"timestamp":"`...)
	b = at.AppendFormat(b, time.RFC3339Nano)
	return append(b, `"}`...)
}

// AppendJSON appends s as a JSON string.
func AppendJSON(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			q, _ := Marshal(s)
			return append(b, q...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// DecodeEnvelope decodes a record's value. No retry will cure its error: it is no envelope.
func DecodeEnvelope(value []byte) (Envelope, error) {
	var m Envelope
	if err := json.Unmarshal(value, &m); err != nil {
		return Envelope{}, fmt.Errorf("decode envelope: %w", err)
	}
	id, err := uuid.Parse(m.EventID)
	if err != nil {
		return Envelope{}, errors.New("decode envelope: event_id is not a UUID")
	}
	m.EventID = id.String()
	if m.EventType == "" {
		return Envelope{}, errors.New("decode envelope: event_type is missing")
	}
	return m, nil
}

// Header is the value of the first header of that name, "" without one.
func Header(r *kgo.Record, name string) string {
	for _, h := range r.Headers {
		if h.Key == name {
			return string(h.Value)
		}
	}
	return ""
}

// Int64Header is the header of that name as a number; missing, when there is no
// such header or it is no number.
func Int64Header(r *kgo.Record, name string, missing int64) int64 {
	n, err := strconv.ParseInt(Header(r, name), 10, 64)
	if err != nil {
		return missing
	}
	return n
}

// Headers are a record's headers, stored as JSON: [{"key":…,"value":…}], with
// "base64" for a value that is not text. Order and repetition are kept.
type Headers []kgo.RecordHeader

type storedHeader struct {
	Key    string  `json:"key"`
	Value  *string `json:"value,omitempty"`
	Base64 []byte  `json:"base64,omitempty"`
}

// MarshalJSON writes the list as it is stored.
func (l Headers) MarshalJSON() ([]byte, error) {
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
	return Marshal(stored)
}

// UnmarshalJSON reads a stored list.
func (l *Headers) UnmarshalJSON(b []byte) error {
	var stored []storedHeader
	if err := json.Unmarshal(b, &stored); err != nil {
		return err
	}
	*l = make(Headers, len(stored))
	for i, s := range stored {
		(*l)[i] = kgo.RecordHeader{Key: s.Key, Value: s.Base64}
		if s.Value != nil {
			(*l)[i].Value = []byte(*s.Value)
		}
	}
	return nil
}

// A HeaderReader reads stored headers. It keeps the last list it parsed: most events
// of a batch have the same headers.
type HeaderReader struct {
	text string
	list Headers
}

// Read parses stored headers. The caller must not change the list.
func (h *HeaderReader) Read(text string) (Headers, error) {
	if text == h.text {
		return h.list, nil
	}
	var list Headers
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, err
	}
	h.text, h.list = text, list
	return list, nil
}

// SchemaVersion is the result of the event's method of that name, 1 without one.
func SchemaVersion(e any) int {
	if v, ok := e.(interface{ SchemaVersion() int }); ok {
		return v.SchemaVersion()
	}
	return 1
}
