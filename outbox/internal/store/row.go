// Package store has the rows of the outbox's tables, and the states and the SQL that
// more than one package of the library needs: row.go (an event), published.go (the
// low watermark, published ranges, the relay's term), parked.go (parked records),
// limits.go (retention, sizes) and values.go (how values are stored).
package store

import (
	"database/sql"
	"fmt"
	"time"

	"pizzaflow/outbox/internal/wire"
)

// A Row is an event as it stands in outbox_events.
type Row struct {
	Seq         int64
	ID          string
	AggregateID string
	Version     sql.NullInt64
	EventType   string
	Data        sql.NullString
	Topic       string
	Key         []byte
	Headers     wire.Headers
	Value       []byte
	CreatedAt   time.Time
	Partition   int32 // where it will go, -1 when that is not known
}

// OrderingKey identifies the records that must stay in order: those of one key on
// one topic. Each record without a key has its own.
func (r *Row) OrderingKey() string {
	if r.Key == nil {
		return fmt.Sprintf("%s\x00\x00%d", r.Topic, r.Seq)
	}
	return r.Topic + "\x00" + string(r.Key)
}

// Size estimates the bytes of the row as a record: beside key, data, value and
// headers, the envelope and the standard headers take less than 700.
func (r *Row) Size() int {
	n := 700 + 3*len(r.Key) + len(r.Data.String) + len(r.Value)
	for _, h := range r.Headers {
		n += len(h.Key) + len(h.Value) + 4
	}
	return n
}
