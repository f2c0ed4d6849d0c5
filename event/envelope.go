package event

import (
	"encoding/json"
	"fmt"
	"time"
)

// An Envelope is the value of every record on the topics: these five fields,
// in this order.
type Envelope struct {
	EventID     string          `json:"event_id"` // a UUIDv7
	EventType   string          `json:"event_type"`
	AggregateID string          `json:"aggregate_id"` // the record's key as well
	EventData   json.RawMessage `json:"event_data"`
	Timestamp   time.Time       `json:"timestamp"` // UTC, when the event was written
}

// Headers of a record: CloudEvents 1.0 in binary mode, and our own. A reader of the
// value needs HeaderSchemaVersion, which is 1 when it is missing; the others are
// optional.
const (
	HeaderSpecVersion      = "ce_specversion"
	HeaderID               = "ce_id"      // event_id
	HeaderType             = "ce_type"    // event_type
	HeaderSource           = "ce_source"  // the emitting service, such as /order-service
	HeaderSubject          = "ce_subject" // aggregate_id
	HeaderTime             = "ce_time"    // timestamp
	HeaderContentType      = "content-type"
	HeaderSchemaVersion    = "schema_version"
	HeaderAggregateVersion = "aggregate_version" // 1, 2, 3 without gaps for each aggregate
	HeaderCausationID      = "causation_id"      // the event that led to this one
	HeaderTraceparent      = "traceparent"       // W3C trace context
)

// Open decodes the value of a record. Unknown fields are ignored, so that newer
// writers can add some.
func Open(value []byte) (Envelope, error) {
	var e Envelope
	if err := json.Unmarshal(value, &e); err != nil {
		return Envelope{}, fmt.Errorf("open envelope: %w", err)
	}
	return e, nil
}
