package inbox

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"pizzaflow/outbox"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// TestProducedAgain produces dead records again, changed or not, as an operator may
// with a Kafka tool: they have no effect, and one warning each says what would have.
func TestProducedAgain(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		c, handled := newTestConsumer(t, db)
		var said bytes.Buffer
		c.cfg.Log, c.cfg.Replay = slog.New(slog.NewTextHandler(&said, nil)), "replay it"
		parkHotKey(t, c, "hot", 1) // event 1 is dead, event 2 waits behind it
		again := func(n int, offset int64, value string) string {
			t.Helper()
			said.Reset()
			msg := c.testMessage("hot", n)
			msg.rec.Offset = offset
			if value != "" {
				msg.rec.Value = bytes.Replace(msg.rec.Value, []byte(`{}`), []byte(value), 1)
			} else if err := db.QueryRow(`SELECT value FROM parked_records WHERE event_id = $1`, msg.id).Scan(&msg.rec.Value); err != nil {
				t.Fatal(err)
			}
			c.processBatch(t.Context(), []*message{msg})
			if !msg.processed {
				t.Error("it is not processed")
			}
			return said.String()
		}
		for _, e := range []struct {
			what   string
			n      int
			offset int64
			value  string
			want   []string // in the one line, none for no line
		}{
			{"read again", 1, 1, "", nil},
			{"dead", 1, 7, "", []string{"level=WARN", "offset=7", "replay it", "changed=false", "state=dead"}},
			{"dead, and repaired", 1, 8, `{"a":1}`, []string{"level=WARN", "offset=8", "replay it", "changed=true", "event id of its own"}},
			{"waiting", 2, 9, "", nil},
			{"waiting, and repaired", 2, 10, `{"a":1}`, []string{"level=WARN", "offset=10", "changed=true", "state=waiting"}},
		} {
			line := again(e.n, e.offset, e.value)
			if want := min(1, len(e.want)); strings.Count(line, "\n") != want {
				t.Errorf("%s: logged %q, want %d lines", e.what, line, want)
			}
			for _, want := range e.want {
				if !strings.Contains(line, want) {
					t.Errorf("%s: %q lacks %s", e.what, line, want)
				}
			}
		}
		if _, err := db.Exec(`UPDATE parked_records SET state = 'discarded' WHERE state = 'dead'`); err != nil {
			t.Fatal(err)
		}
		if line := again(1, 11, ""); !strings.Contains(line, "level=WARN") || !strings.Contains(line, "was discarded") {
			t.Errorf("discarded: %q", line)
		}
		counts := c.subscriptions[route{"new-topic", "Relocated"}].outcomes
		if n, d := testutil.ToFloat64(counts[outcome("again")]), testutil.ToFloat64(counts[duplicate]); n != 4 || d != 2 || len(*handled) > 0 {
			t.Errorf("%v counted as produced again and %v as duplicates, want 4 and 2; handled %v", n, d, *handled)
		}
	}, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
}

// TestDuplicatesAreRemembered rereads events that were handled long ago: their marks
// are refreshed and survive a prune, other old marks do not, and on SQLite the rows
// stay in the order of their time.
func TestDuplicatesAreRemembered(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		c, _ := newTestConsumer(t, db)
		now := sqldb.Now()
		ages := []time.Duration{-365 * 24 * time.Hour, 50 * time.Hour, 49 * time.Hour, 48 * time.Hour, time.Hour, 0} // the first when the clock was wrong
		for n, age := range ages {
			if _, err := db.Exec(`INSERT INTO inbox_events (consumer, event_id, handled_at) VALUES ('g', $1, $2)`, c.testMessage("a", n).id, now.Add(-age)); err != nil {
				t.Fatal(err)
			}
		}
		for _, n := range []int{2, 4} {
			c.processBatch(t.Context(), []*message{c.testMessage("a", n)})
		}
		handledAt := func(n int) (at time.Time) {
			t.Helper()
			if err := db.QueryRow(`SELECT handled_at FROM inbox_events WHERE event_id = $1`, c.testMessage("a", n).id).Scan(sqldb.Time(&at)); err != nil {
				t.Fatal(err)
			}
			return at
		}
		if at := handledAt(2); at.Before(now) {
			t.Errorf("the mark of a duplicate is from %v, want from now, %v", at, now)
		}
		if at := handledAt(4); !at.Equal(now.Add(-time.Hour)) {
			t.Errorf("a young mark was refreshed: %v", at)
		}
		if n, err := c.prune(t.Context(), now.Add(-24*time.Hour)); err != nil || n != 2 {
			t.Errorf("%d rows deleted, %v; want the two that are old", n, err)
		}
		if db.Engine == sqldb.Postgres {
			return
		}
		var disorder int
		if err := db.QueryRow(`SELECT COUNT(*) FROM inbox_events a JOIN inbox_events b ON a.rowid < b.rowid AND a.handled_at > b.handled_at AND a.handled_at <= $1`, sqldb.Now()).Scan(&disorder); err != nil || disorder > 0 {
			t.Errorf("%d rows are before older ones, %v", disorder, err)
		}
	}, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
}
