package relay

import (
	"bytes"
	"strconv"

	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/outbox/internal/store"
	"pizzaflow/outbox/internal/wire"
)

// records builds the records of one send in three pieces of memory: one for the
// records, one for their values and one for their headers.
type records struct {
	source  []byte
	all     []kgo.Record // never grows: the client has pointers to the elements
	values  []byte
	headers []kgo.RecordHeader
}

// envelopeHeaders is how many headers an event gets beside those stored with it.
const envelopeHeaders = 8

var (
	cloudEvents = []byte("1.0")
	jsonContent = []byte("application/json")
)

func newRecords(source string, rows []store.Row) *records {
	size, headers := 0, 0
	for i := range rows {
		size += 200 + len(rows[i].Data.String) + 3*len(rows[i].Key)
		headers += envelopeHeaders + len(rows[i].Headers)
	}
	return &records{source: []byte(source), all: make([]kgo.Record, 0, len(rows)), values: make([]byte, 0, size), headers: make([]kgo.RecordHeader, 0, headers)}
}

// record makes the row's record. Headers that repeat a part of the envelope share
// the envelope's bytes.
func (b *records) record(r *store.Row) *kgo.Record {
	b.all = append(b.all, kgo.Record{Topic: r.Topic, Key: r.Key, Headers: r.Headers, Value: r.Value})
	rec := &b.all[len(b.all)-1]
	if !r.Data.Valid { // a dead letter has the headers of its original, and a value of its own
		return rec
	}
	from := len(b.values)
	b.values = wire.AppendEnvelope(b.values, r.ID, r.EventType, r.AggregateID, r.Data.String, r.CreatedAt)
	end := len(b.values)
	rec.Value = b.values[from:end:end]
	b.values = strconv.AppendInt(b.values, r.Version.Int64, 10)
	version := b.values[end:len(b.values):len(b.values)]
	rest := rec.Value
	quote := func(s string) []byte { // s as it stands in the envelope, after the part that was quoted last
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
		kgo.RecordHeader{Key: wire.HeaderSpecVersion, Value: cloudEvents},
		kgo.RecordHeader{Key: wire.HeaderID, Value: quote(r.ID)},
		kgo.RecordHeader{Key: wire.HeaderType, Value: quote(r.EventType)},
		kgo.RecordHeader{Key: wire.HeaderSource, Value: b.source},
		kgo.RecordHeader{Key: wire.HeaderSubject, Value: quote(r.AggregateID)},
		kgo.RecordHeader{Key: wire.HeaderTime, Value: stamp(rec.Value)},
		kgo.RecordHeader{Key: wire.HeaderContentType, Value: jsonContent},
		kgo.RecordHeader{Key: wire.HeaderAggregateVersion, Value: version},
	)
	b.headers = append(b.headers, r.Headers...)
	rec.Headers = b.headers[n:len(b.headers):len(b.headers)]
	return rec
}

// stamp is the timestamp at the end of an envelope.
func stamp(envelope []byte) []byte {
	text := envelope[:len(envelope)-len(`"}`)]
	from := bytes.LastIndexByte(text, '"') + 1
	return text[from:len(text):len(text)]
}
