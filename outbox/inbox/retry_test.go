package inbox

import (
	"context"
	"fmt"
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

// A record that an earlier version of the program parked, and whose topic has no
// handler in this one, is not retried.
func TestRetryWithoutHandler(t *testing.T) {
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

// TestClockJumps parks a record while the clock is an hour ahead: it is due as soon
// as the clock is set right, and other records at their time.
func TestClockJumps(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		c, _ := newTestConsumer(t, db)
		for n, wait := range []time.Duration{time.Hour, c.retryDelay(c.cfg.Attempts) - time.Second, 0} {
			if err := c.park(t.Context(), c.testMessage(fmt.Sprint(n), n), parkedState{state: store.Retrying, wait: wait}, new(outcome)); err != nil {
				t.Fatal(err)
			}
		}
		records, _, err := c.findDue(t.Context())
		if err != nil || len(records) != 2 {
			t.Errorf("%d records are due, %v; want the one from the future and that without a pause", len(records), err)
		}
		if _, err := db.Exec(`UPDATE parked_records SET state = 'handled' WHERE key <> $1`, []byte("1")); err != nil {
			t.Fatal(err)
		}
		records, next, err := c.findDue(t.Context())
		if err != nil || len(records) > 0 || next <= 0 || next > 2*time.Second {
			t.Errorf("%d records are due, the next in %v, %v", len(records), next, err)
		}
	}, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
}
