package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	server "pizzaflow/e2e/servers"
	"pizzaflow/sqldb"
)

// TestFailover promotes a standby while the old primary stays alive and read-only:
// connections to it stay open, and new connections lead to the new primary, which at
// first is still a standby.
func TestFailover(t *testing.T) {
	t.Parallel()
	primary := server.Postgres(t, "default_transaction_isolation=serializable") // which a standby refuses with another error
	execute(t, primary.URL, `CREATE DATABASE pizza`)
	standby := primary.Standby()
	of := func(d *server.Database) string { return strings.Replace(d.URL, "/postgres?", "/pizza?", 1) }
	d := deploy(t, setup{
		engine: sqldb.Postgres, behind: true, processes: []string{"broker,sandbox", "order,payment,notification,frontend"},
		own: &ownServers{database: of(primary), brokers: []string{stableAddress(t)}},
	}.with("RETRY_DELAY=100ms"))
	s := d.startStream(t, 5)
	s.awaitServed(t, paidLimit)

	execute(t, primary.URL, `ALTER SYSTEM SET default_transaction_read_only = on`, `SELECT pg_reload_conf()`)
	d.db.Lead(hostOf(t, standby.URL))
	s.awaitRefused(t, 3)
	d.awaitNotReady(t, answerLimit)
	const committed = "&default_transaction_isolation=read%20committed"
	awaitSame(t, primary.URL, standby.URL+committed)
	execute(t, standby.URL+committed, `SELECT pg_promote()`)
	d.dbURL = of(standby)
	t.Logf("back %s after the promotion", s.awaitServed(t, backLimit).Round(100*time.Millisecond))
	s.finish(t)
}

// awaitSame waits until the standby has all data of the primary, which takes no more
// writes.
func awaitSame(t *testing.T, primary, standby string) {
	t.Helper()
	eventually(t, answerLimit, func() string {
		const writing = `SELECT COUNT(*)::text FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()`
		if n := textOf(t, primary, writing); n != "0" {
			return n + " transactions write to the old primary"
		}
		sent, replayed := textOf(t, primary, `SELECT pg_current_wal_flush_lsn()::text`), textOf(t, standby, `SELECT pg_last_wal_replay_lsn()::text`)
		if sent != replayed {
			return fmt.Sprintf("the standby is at %s, the primary at %s", replayed, sent)
		}
		return ""
	})
}
