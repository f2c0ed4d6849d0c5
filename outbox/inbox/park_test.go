package inbox

import (
	"testing"

	"pizzaflow/outbox"
	"pizzaflow/outbox/internal/store"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// A record that was parked and finished comes again after the inbox forgot its event,
// and fails again: it is parked like any other.
func TestParkedTwice(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		c, _ := newTestConsumer(t, db)
		for _, state := range []string{"handled", "discarded"} {
			for range 2 {
				o := outcome("")
				if err := c.park(t.Context(), c.testMessage("a", 1), parkedState{state: store.Retrying, attempts: 1}, &o); err != nil || o != retrying {
					t.Fatalf("parked: %s, %v", o, err)
				}
				if _, err := db.Exec(`UPDATE parked_records SET state = $1`, state); err != nil {
					t.Fatal(err)
				}
				if _, err := db.Exec(`DELETE FROM inbox_events`); err != nil {
					t.Fatal(err)
				}
			}
		}
	}, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
}
