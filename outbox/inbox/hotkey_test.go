package inbox

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"pizzaflow/outbox"
	"pizzaflow/outbox/admin"
	"pizzaflow/outbox/internal/store"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// TestHotKey has 20,000 records wait behind a dead one of their key: no operation on
// one record, and none that runs periodically, may read them all.
func TestHotKey(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		testHotKey(t, db)
	}, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
	t.Run("analyzed", func(t *testing.T) { // PostgreSQL knows then that nearly all have one key
		testHotKey(t, sqltest.Open(t, sqldb.Postgres, sqltest.Schema{Name: "outbox", FS: outbox.Schema}), `ANALYZE parked_records`)
	})
}

func testHotKey(t *testing.T, db *sqldb.DB, prepare ...string) {
	const waiting, most = 20_000, 1000
	db.SetMaxOpenConns(1) // whose counters are read
	ctx := t.Context()
	c, got := newTestConsumer(t, db)
	op := admin.New(db)
	parkHotKey(t, c, "hot", waiting)
	cold := func(n int) (msgs []*message) {
		for i := range n {
			msgs = append(msgs, c.testMessage(fmt.Sprint("cold ", i), waiting+100+i))
		}
		return msgs
	}
	for _, msg := range cold(50) {
		if err := c.park(ctx, msg, parkedState{state: store.Dead, failedAt: sqldb.Now()}, new(outcome)); err != nil {
			t.Fatal(err)
		}
	}
	for _, statement := range prepare {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	due := func(want int) (records []dueRecord) {
		t.Helper()
		records, _, err := c.findDue(ctx)
		if err != nil || len(records) != want {
			t.Fatalf("%d records are due, %v; want %d", len(records), err, want)
		}
		return records
	}
	handle := func() {
		t.Helper()
		if claimed, err := c.retryRecord(ctx, due(1)[0], func() bool { return true }); err != nil || !claimed {
			t.Fatalf("retried: %t, %v", claimed, err)
		}
	}
	steps := []struct {
		what string
		step func()
	}{
		{"a record of the key", func() { c.processBatch(ctx, []*message{c.testMessage("hot", waiting+2)}) }},
		{"a record of another key", func() { c.processBatch(ctx, []*message{c.testMessage("cold", waiting+3)}) }},
		{"a look for what is due", func() { due(0) }},
		{"a repair", func() {
			if err := c.repair(ctx); err != nil {
				t.Error(err)
			}
		}},
		{"a look for what is old", func() {
			if _, err := c.prune(ctx, sqldb.Now().Add(-time.Hour)); err != nil {
				t.Error(err)
			}
		}},
		{"a list of the dead of other keys", func() {
			for n := range 20 {
				if rows, err := op.Parked(ctx, admin.ParkedFilter{EventID: cold(n + 1)[n].id}, 20); err != nil || len(rows) != 1 || rows[0].Followers != 0 {
					t.Errorf("%+v, %v", rows, err)
				}
			}
		}},
		{"to discard one of another key", func() {
			if rows, err := op.Discard(ctx, admin.ParkedFilter{EventID: cold(1)[0].id}, admin.Action{By: "o", Why: "r"}); err != nil || len(rows) != 1 {
				t.Errorf("%+v, %v", rows, err)
			}
		}},
		{"to replay many of other keys", func() {
			for n := range 10 {
				if rows, err := op.Replay(ctx, admin.ParkedFilter{EventID: cold(n + 10)[n+9].id}, admin.Action{By: "o", Why: "r"}); err != nil || len(rows) != 1 {
					t.Errorf("%+v, %v", rows, err)
				}
			}
		}},
		{"retries of other keys", func() {
			for _, record := range due(10) {
				if claimed, err := c.retryRecord(ctx, record, func() bool { return true }); err != nil || !claimed {
					t.Errorf("retried: %t, %v", claimed, err)
				}
			}
		}},
		{"the follower of one that was discarded", func() {
			if _, err := db.Exec(`UPDATE parked_records SET state = 'discarded' WHERE state = 'dead' AND seq = (SELECT MIN(seq) FROM parked_records)`); err != nil {
				t.Error(err)
			}
			err := c.cfg.Outbox.Tx(ctx, func(tx *outbox.Tx) error {
				return store.ReleaseNext(ctx, db, tx, []store.ParkedKey{{Group: "g", Topic: "new-topic", Key: []byte("hot"), After: 1}})
			})
			if err != nil {
				t.Error(err)
			}
		}},
		{"a retry", handle},
		{"the retry of a follower", handle},
	}
	for _, s := range steps {
		before := rowsRead(t, db)
		began := time.Now()
		s.step()
		took := time.Since(began)
		if n := rowsRead(t, db) - before; n > most {
			t.Errorf("%s reads %d rows, want at most %d", s.what, n, most)
		} else {
			t.Logf("%s: %d rows, %v", s.what, n, took)
		}
	}
	if n := len(*got); n != 13 {
		t.Errorf("%d handled, want 11 of other keys and two of this: %v", n, *got)
	}
}

// TestHotKeyCostsNoMore compares the time for one more record behind 100 and behind
// 20,000 waiting ones, because SQLite does not count the rows it reads.
func TestHotKeyCostsNoMore(t *testing.T) {
	quickest := func(waiting int) time.Duration {
		db := sqltest.Open(t, sqldb.SQLite, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
		c, _ := newTestConsumer(t, db)
		c.cfg.Log = slog.New(slog.DiscardHandler)
		parkHotKey(t, c, "hot", waiting)
		took := time.Hour
		for n := range 20 {
			began := time.Now()
			c.processBatch(t.Context(), []*message{c.testMessage("hot", waiting+10+n)})
			if records, _, err := c.findDue(t.Context()); err != nil || len(records) > 0 {
				t.Fatalf("%d records are due, %v", len(records), err)
			}
			if err := c.repair(t.Context()); err != nil {
				t.Fatal(err)
			}
			took = min(took, time.Since(began))
		}
		return took
	}
	few, many := quickest(100), quickest(20_000)
	if many > 15*few {
		t.Errorf("a record takes %v behind 20,000 and %v behind 100", many, few)
	}
}

// parkHotKey parks a dead record of a key and n records that wait behind it: events 1
// to n + 1.
func parkHotKey(t *testing.T, c *Consumer, key string, n int) {
	t.Helper()
	msg := c.testMessage(key, 1)
	if err := c.park(t.Context(), msg, parkedState{state: store.Dead, attempts: 3, err: context.Canceled, failedAt: sqldb.Now()}, new(outcome)); err != nil {
		t.Fatal(err)
	}
	numbers, id := `generate_series(2, $1) AS n`, `CAST('00000000-0000-7000-8000-' || lpad(n::TEXT, 12, '0') AS UUID)`
	if c.db.Engine == sqldb.SQLite {
		numbers = `(WITH RECURSIVE all_of(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM all_of WHERE n < $1) SELECT n FROM all_of)`
		id = `'00000000-0000-7000-8000-' || printf('%012d', n)`
	}
	_, err := c.db.ExecContext(t.Context(), `
		INSERT INTO parked_records (consumer, state, topic, partition, record_offset, key, key_hash, value, headers, event_id, event_type, attempts, error_class, error)
		SELECT consumer, 'waiting', topic, partition, n, key, key_hash, value, headers, `+id+`, event_type, 0, '', '' FROM parked_records, `+numbers, n+1)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.db.ExecContext(t.Context(), `INSERT INTO inbox_events (consumer, event_id, handled_at) SELECT consumer, event_id, $1 FROM parked_records WHERE state = 'waiting'`, sqldb.Now())
	if err != nil {
		t.Fatal(err)
	}
}

// rowsRead is how many rows and index entries of parked_records were read until now;
// 0 on SQLite, which does not count them.
func rowsRead(t *testing.T, db *sqldb.DB) (n int) {
	t.Helper()
	if db.Engine == sqldb.SQLite {
		return 0
	}
	if _, err := db.Exec(`SELECT pg_stat_force_next_flush()`); err != nil {
		t.Fatal(err)
	}
	err := db.QueryRow(`SELECT (SELECT seq_tup_read + COALESCE(idx_tup_fetch, 0) FROM pg_stat_user_tables WHERE relid = 'parked_records'::REGCLASS)
		+ (SELECT SUM(idx_tup_read) FROM pg_stat_user_indexes WHERE relid = 'parked_records'::REGCLASS)`).Scan(&n)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
