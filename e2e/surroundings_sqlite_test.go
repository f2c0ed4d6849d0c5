package e2e

import (
	"path/filepath"
	"testing"
	"time"

	"pizzaflow/sqldb"
)

// TestLockedFiles locks the SQLite files from another process, as a backup or an open
// editor does: first those of two consumers, then all.
func TestLockedFiles(t *testing.T) {
	t.Parallel()
	d := deploy(t, embedded.with("RETRY_DELAY=100ms"))
	s := d.startStream(t, 5)
	s.awaitServed(t, paidLimit)
	d.runIncident(t, s, incident{effect: byConsumers, lasts: time.Second, begin: func(t *testing.T) func() { return d.lockFiles(t, "payment", "notification") }})
	d.runIncident(t, s, incident{effect: atIntake, lasts: time.Second, begin: func(t *testing.T) func() { return d.lockFiles(t, domain...) }})
	s.finish(t)
}

// lockFiles locks the files of services, which other processes have open, until end is
// called.
func (d *deployment) lockFiles(t *testing.T, services ...string) (end func()) {
	t.Helper()
	var ends []func()
	for _, service := range services {
		db, err := sqldb.Open(t.Context(), "sqlite:"+filepath.Join(d.dir, service+".db"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.ExecContext(t.Context(), `BEGIN EXCLUSIVE`); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, func() {
			if err := db.Close(); err != nil { // which ends the transaction
				t.Error(err)
			}
		})
	}
	return func() {
		for _, end := range ends {
			end()
		}
	}
}
