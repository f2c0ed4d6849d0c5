package inbox

import (
	"slices"
	"testing"
	"time"

	"pizzaflow/outbox"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// TestRepair has the first records of keys wait, as an earlier version left them, and
// has later records retry before it is their turn.
func TestRepair(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		c, got := newTestConsumer(t, db)
		parkHotKey(t, c, "a", 3)
		if _, err := db.Exec(`UPDATE parked_records SET state = 'handled' WHERE state = 'dead'`); err != nil {
			t.Fatal(err)
		}
		if err := c.repair(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec(`UPDATE parked_records SET state = 'retrying', due_at = `+db.Later("$1")+` WHERE state = 'waiting'`, -time.Minute.Microseconds()); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			records, _, err := c.findDue(t.Context())
			if err != nil || len(records) != 1 {
				t.Fatalf("%d records are due, %v; want one of a key", len(records), err)
			}
			if _, err := c.retryRecord(t.Context(), records[0], func() bool { return true }); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.IsSorted(*got) || len(*got) != 3 {
			t.Errorf("handled in this order: %v", *got)
		}
	}, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
}

// Waiting first records are found among more keys than one query looks at.
func TestRepairManyKeys(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		c, _ := newTestConsumer(t, db)
		parkHotKey(t, c, "hot", 2*repairKeys+10)
		// each with a key of its own
		if _, err := db.ExecContext(t.Context(), `UPDATE parked_records SET key_hash = 7919 * (seq - 1000), key = CAST(CAST(seq AS TEXT) AS `+
			map[sqldb.Engine]string{sqldb.Postgres: "BYTEA", sqldb.SQLite: "BLOB"}[db.Engine]+`) WHERE state = 'waiting'`); err != nil {
			t.Fatal(err)
		}
		if err := c.repair(t.Context()); err != nil {
			t.Fatal(err)
		}
		var waiting int
		if err := db.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM parked_records WHERE state = 'waiting'`).Scan(&waiting); err != nil || waiting > 0 {
			t.Errorf("%d first records still wait (%v)", waiting, err)
		}
	}, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
}
