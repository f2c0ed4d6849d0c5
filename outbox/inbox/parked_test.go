package inbox

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/outbox"
	"pizzaflow/outbox/internal/store"
	"pizzaflow/outbox/internal/wire"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

type relocated struct{}

func (relocated) EventType() string   { return "Relocated" }
func (relocated) Topic() string       { return "new-topic" }
func (relocated) AggregateID() string { return "a" }

// A record was parked by a program that took its type from another topic.
func TestParkedRecordOfATopicNobodyTakesAnyMore(t *testing.T) {
	db := sqltest.Open(t, sqldb.SQLite, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
	c := New(Config{Outbox: outbox.New(db, "/t"), Group: "g", Log: slog.New(slog.DiscardHandler)})
	On(c, func(context.Context, *outbox.Tx, Delivery[relocated]) error { return nil })
	value := wire.AppendEnvelope(nil, "00000000-0000-7000-8000-000000000001", "Relocated", "a", `{}`, time.Now())
	msg := c.decode(&kgo.Record{Topic: "old-topic", Key: []byte("a"), Value: value}, [16]byte{})
	err := c.cfg.Outbox.Tx(t.Context(), func(tx *outbox.Tx) error {
		return c.insertParked(t.Context(), tx, msg, parkedState{state: store.Retrying})
	})
	if err != nil {
		t.Fatal(err)
	}
	records, _, err := c.findDue(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, record := range records {
		if _, err := c.retryRecord(t.Context(), record, func() bool { return true }); err != nil { // panicked
			t.Error(err)
		}
	}
}
