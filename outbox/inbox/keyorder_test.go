package inbox

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"pizzaflow/outbox"
	"pizzaflow/outbox/internal/store"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// TestKeyOrder has one process park a record behind another while a second process
// finishes that other record: in whatever order they commit, the record becomes due.
func TestKeyOrder(t *testing.T) {
	db := sqltest.Open(t, sqldb.Postgres, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
	ctx := t.Context()
	c, got := newTestConsumer(t, db)
	parkFirst := func(n int) {
		t.Helper()
		if err := c.park(ctx, c.testMessage("a", n), parkedState{state: store.Retrying, failedAt: sqldb.Now()}, new(outcome)); err != nil {
			t.Fatal(err)
		}
	}
	finish := func() error {
		records, _, err := c.findDue(ctx)
		if err == nil && len(records) == 1 {
			_, err = c.retryRecord(ctx, records[0], func() bool { return true })
		}
		return err
	}
	somebodyWaits := func() {
		t.Helper()
		deadline := time.Now().Add(30 * time.Second)
		for n := 0; n == 0; {
			err := db.QueryRow(`SELECT COUNT(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND classid::BIGINT = $1
				AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`, store.KeyLockClass).Scan(&n)
			if err != nil || time.Now().After(deadline) {
				t.Fatalf("nobody waits: %v", err)
			}
		}
	}
	t.Run("parked, then finished", func(t *testing.T) {
		parkFirst(1)
		finished := make(chan error, 1)
		err := c.cfg.Outbox.Tx(ctx, func(tx *outbox.Tx) error {
			if err := c.parkInKeyOrder(ctx, tx, []*message{c.testMessage("a", 2)}, parkedState{state: store.Waiting}); err != nil {
				return err
			}
			go func() { finished <- finish() }()
			somebodyWaits()
			return nil
		})
		if err := errors.Join(err, <-finished, finish()); err != nil || len(*got) != 2 {
			t.Errorf("handled %v, %v", *got, err)
		}
	})
	t.Run("finished, then parked", func(t *testing.T) {
		parkFirst(3)
		parked := make(chan error, 1)
		err := c.cfg.Outbox.Tx(ctx, func(tx *outbox.Tx) error {
			records, _, err := c.findDue(ctx)
			if err != nil || len(records) != 1 {
				return fmt.Errorf("%d due records, %w", len(records), err)
			}
			if _, err := tx.ExecContext(ctx, `UPDATE parked_records SET state = 'handled' WHERE seq = $1`, records[0].seq); err != nil {
				return err
			}
			if err := store.ReleaseNext(ctx, db, tx, []store.ParkedKey{{Group: "g", Topic: "new-topic", Key: []byte("a"), After: records[0].seq}}); err != nil {
				return err
			}
			go func() {
				parked <- c.cfg.Outbox.Tx(ctx, func(tx *outbox.Tx) error {
					return c.parkInKeyOrder(ctx, tx, []*message{c.testMessage("a", 4)}, parkedState{state: store.Waiting})
				})
			}()
			somebodyWaits()
			return nil
		})
		if late := <-parked; err != nil || classify(late) != classConflict {
			t.Errorf("parked behind a finished record: %v; want a conflict (%v)", late, err)
		}
	})
}
