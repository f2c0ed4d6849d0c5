package e2e

import (
	"path/filepath"
	"testing"
	"time"

	"pizzaflow/sqldb"
)

// TestLockedFiles has another process hold the SQLite files locked, as a backup
// or an open editor does: first those behind the consumers, then all.
func TestLockedFiles(t *testing.T) {
	t.Parallel()
	d := deploy(t, embedded.with("RETRY_DELAY=100ms"))
	s := d.startStream(t, 5)
	s.awaitServed(t, paidLimit)
	d.goThrough(t, s, trouble{felt: byConsumers, holds: time.Second, begin: func(t *testing.T) func() { return d.lockFiles(t, "payment", "notification") }})
	d.goThrough(t, s, trouble{felt: atIntake, holds: time.Second, begin: func(t *testing.T) func() { return d.lockFiles(t, domain...) }})
	s.finish(t)
}

// lockFiles locks them until the returned function is called. This process is
// another one than those that hold them open.
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
			if err := db.Close(); err != nil { // with the transaction
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
