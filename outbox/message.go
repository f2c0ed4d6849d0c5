package outbox

import (
	"bytes"
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
func appendEnvelope(b []byte, id, eventType, aggregateID, data string, at time.Time) []byte {
	b = append(b, `{"event_id":"`...)
	b = append(b, id...)
	b = append(b, `","event_type":`...)
	b = appendJSON(b, eventType)
	b = append(b, `,"aggregate_id":`...)
	b = appendJSON(b, aggregateID)
	b = append(b, `,"event_data":`...)
	b = append(b, data...)
	b = append(b, `,"timestamp":"`...)
	b = at.AppendFormat(b, time.RFC3339Nano)
	return append(b, `"}`...)
}

// records builds the records of one round in one piece of memory each for
// themselves, their values and their headers.
type records struct {
	source  []byte
	all     []kgo.Record // of which none may move
	values  []byte
	headers []kgo.RecordHeader
}

// envelopeHeaders is how many headers an event gets beside those stored with it.
const envelopeHeaders = 8

var (
	cloudEvents = []byte("1.0")
	jsonContent = []byte("application/json")
)

func newRecords(source string, rows []row) *records {
	size, headers := 0, 0
	for i := range rows {
		size += 200 + len(rows[i].data.String) + 3*len(rows[i].key)
		headers += envelopeHeaders + len(rows[i].headers)
	}
	return &records{source: []byte(source), all: make([]kgo.Record, 0, len(rows)), values: make([]byte, 0, size), headers: make([]kgo.RecordHeader, 0, headers)}
}

// record is the row as it goes to the broker. Headers that repeat the envelope
// are the envelope's own bytes.
func (b *records) record(r *row) *kgo.Record {
	b.all = append(b.all, kgo.Record{Topic: r.topic, Key: r.key, Headers: r.headers, Value: r.value})
	rec := &b.all[len(b.all)-1]
	if !r.data.Valid { // a dead letter: the original's headers, its own value
		return rec
	}
	from := len(b.values)
	b.values = appendEnvelope(b.values, r.id, r.eventType, r.aggregateID, r.data.String, r.createdAt)
	end := len(b.values)
	rec.Value = b.values[from:end:end]
	b.values = strconv.AppendInt(b.values, r.version.Int64, 10)
	version := b.values[end:len(b.values):len(b.values)]
	rest := rec.Value
	quote := func(s string) []byte { // s where it stands in the envelope, behind what was quoted before
		i := bytes.Index(rest, []byte(s))
		if i < 0 { // it is escaped there
			return []byte(s)
		}
		found := rest[i : i+len(s) : i+len(s)]
		rest = rest[i+len(s):]
		return found
	}
	n := len(b.headers)
	b.headers = append(b.headers,
		kgo.RecordHeader{Key: headerSpecVersion, Value: cloudEvents},
		kgo.RecordHeader{Key: headerID, Value: quote(r.id)},
		kgo.RecordHeader{Key: headerType, Value: quote(r.eventType)},
		kgo.RecordHeader{Key: headerSource, Value: b.source},
		kgo.RecordHeader{Key: headerSubject, Value: quote(r.aggregateID)},
		kgo.RecordHeader{Key: headerTime, Value: stamp(rec.Value)},
		kgo.RecordHeader{Key: headerContentType, Value: jsonContent},
		kgo.RecordHeader{Key: headerAggregateVersion, Value: version},
	)
	b.headers = append(b.headers, r.headers...)
	rec.Headers = b.headers[n:len(b.headers):len(b.headers)]
	return rec
}

// stamp is the timestamp at the end of an envelope.
func stamp(envelope []byte) []byte {
	text := envelope[:len(envelope)-len(`"}`)]
	from := bytes.LastIndexByte(text, '"') + 1
	return text[from:len(text):len(text)]
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

// A headerReader reads stored lists. Most events of a round have the same one.
type headerReader struct {
	text string
	list headerList
}

func (h *headerReader) read(text string) (headerList, error) {
	if text == h.text {
		return h.list, nil
	}
	var list headerList
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, err
	}
	h.text, h.list = text, list
	return list, nil
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
