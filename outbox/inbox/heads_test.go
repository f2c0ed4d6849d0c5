package inbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/outbox"
	"pizzaflow/outbox/admin"
	"pizzaflow/outbox/internal/store"
	"pizzaflow/outbox/internal/wire"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// relocations is a consumer of a database of its own, and says what it handled.
func relocations(t *testing.T, db *sqldb.DB) (c *Consumer, handled *[]string) {
	t.Helper()
	handled = &[]string{}
	c = New(Config{Outbox: outbox.New(db, "/t"), Group: "g", Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	On(c, func(_ context.Context, _ *outbox.Tx, d Delivery[relocated]) error {
		*handled = append(*handled, d.EventID)
		return nil
	})
	return c, handled
}

// relocation is event number n of a key as it is fetched.
func (c *Consumer) relocation(key string, n int) *message {
	id := fmt.Sprintf("00000000-0000-7000-8000-%012d", n)
	value := wire.AppendEnvelope(nil, id, "Relocated", key, `{}`, time.Now())
	msg := c.decode(&kgo.Record{Topic: "new-topic", Key: []byte(key), Value: value, Offset: int64(n)}, [16]byte{})
	msg.part = &partition{}
	return msg
}

// hotKey parks a dead record of a key and n that wait behind it, events 1 to
// n + 1.
func hotKey(t *testing.T, c *Consumer, key string, n int) {
	t.Helper()
	msg := c.relocation(key, 1)
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

// TestHotKey has very many records wait behind a dead one: what is done about
// one record, or is done again and again, must not read them all.
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
	c, got := relocations(t, db)
	op := admin.New(db)
	hotKey(t, c, "hot", waiting)
	cold := func(n int) (msgs []*message) {
		for i := range n {
			msgs = append(msgs, c.relocation(fmt.Sprint("cold ", i), waiting+100+i))
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
			t.Fatalf("%d heads are due, %v; want %d", len(records), err, want)
		}
		return records
	}
	handle := func() {
		t.Helper()
		if claimed, err := c.retryRecord(ctx, due(1)[0], func() bool { return true }); err != nil || !claimed {
			t.Fatalf("tried again: %t, %v", claimed, err)
		}
	}
	steps := []struct {
		what string
		step func()
	}{
		{"a record of the key", func() { c.processBatch(ctx, []*message{c.relocation("hot", waiting+2)}) }},
		{"a record of another key", func() { c.processBatch(ctx, []*message{c.relocation("cold", waiting+3)}) }},
		{"a look for what is due", func() { due(0) }},
		{"a look for heads that wait", func() {
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
					t.Errorf("tried again: %t, %v", claimed, err)
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

// TestHotKeyCostsNoMore compares what one record more takes behind a hundred and
// behind twenty thousand: SQLite does not count what it reads.
func TestHotKeyCostsNoMore(t *testing.T) {
	quickest := func(waiting int) time.Duration {
		db := sqltest.Open(t, sqldb.SQLite, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
		c, _ := relocations(t, db)
		c.cfg.Log = slog.New(slog.DiscardHandler)
		hotKey(t, c, "hot", waiting)
		took := time.Hour
		for n := range 20 {
			began := time.Now()
			c.processBatch(t.Context(), []*message{c.relocation("hot", waiting+10+n)})
			if records, _, err := c.findDue(t.Context()); err != nil || len(records) > 0 {
				t.Fatalf("%d heads are due, %v", len(records), err)
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

// Heads that wait are found among more keys than one statement skips over.
func TestMendManyKeys(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		c, _ := relocations(t, db)
		hotKey(t, c, "hot", 2*repairKeys+10)
		// each of them the head of a key of its own
		if _, err := db.ExecContext(t.Context(), `UPDATE parked_records SET key_hash = 7919 * (seq - 1000), key = CAST(CAST(seq AS TEXT) AS `+
			map[sqldb.Engine]string{sqldb.Postgres: "BYTEA", sqldb.SQLite: "BLOB"}[db.Engine]+`) WHERE state = 'waiting'`); err != nil {
			t.Fatal(err)
		}
		if err := c.repair(t.Context()); err != nil {
			t.Fatal(err)
		}
		var waiting int
		if err := db.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM parked_records WHERE state = 'waiting'`).Scan(&waiting); err != nil || waiting > 0 {
			t.Errorf("%d heads still wait (%v)", waiting, err)
		}
	}, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
}

// rowsRead is how many rows and index entries of the parked records were read
// until now; on SQLite, which counts nothing, it is 0.
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

// TestTurns has a record parked behind another by one process while another
// finishes that: whoever commits last, somebody lets it go on.
func TestTurns(t *testing.T) {
	db := sqltest.Open(t, sqldb.Postgres, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
	ctx := t.Context()
	c, got := relocations(t, db)
	parkHead := func(n int) {
		t.Helper()
		if err := c.park(ctx, c.relocation("a", n), parkedState{state: store.Retrying, failedAt: sqldb.Now()}, new(outcome)); err != nil {
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
		parkHead(1)
		finished := make(chan error, 1)
		err := c.cfg.Outbox.Tx(ctx, func(tx *outbox.Tx) error {
			if err := c.parkInKeyOrder(ctx, tx, []*message{c.relocation("a", 2)}, parkedState{state: store.Waiting}); err != nil {
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
		parkHead(3)
		parked := make(chan error, 1)
		err := c.cfg.Outbox.Tx(ctx, func(tx *outbox.Tx) error {
			records, _, err := c.findDue(ctx)
			if err != nil || len(records) != 1 {
				return fmt.Errorf("%d heads, %w", len(records), err)
			}
			if _, err := tx.ExecContext(ctx, `UPDATE parked_records SET state = 'handled' WHERE seq = $1`, records[0].seq); err != nil {
				return err
			}
			if err := store.ReleaseNext(ctx, db, tx, []store.ParkedKey{{Group: "g", Topic: "new-topic", Key: []byte("a"), After: records[0].seq}}); err != nil {
				return err
			}
			go func() {
				parked <- c.cfg.Outbox.Tx(ctx, func(tx *outbox.Tx) error {
					return c.parkInKeyOrder(ctx, tx, []*message{c.relocation("a", 4)}, parkedState{state: store.Waiting})
				})
			}()
			somebodyWaits()
			return nil
		})
		if late := <-parked; err != nil || classify(late) != classConflict {
			t.Errorf("parked behind what was finished meanwhile: %v; want to be told to look again (%v)", late, err)
		}
	})
}

// TestMend has heads wait, as a program of an earlier version left them, and
// followers retry, as nobody should have said.
func TestMend(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		c, got := relocations(t, db)
		hotKey(t, c, "a", 3)
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
				t.Fatalf("%d heads are due, %v; want one of a key", len(records), err)
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

// TestClockJumps parks a record while the clock is an hour early: it is due
// when the clock is right again, and others are when it is their time.
func TestClockJumps(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		c, _ := relocations(t, db)
		for n, wait := range []time.Duration{time.Hour, c.retryDelay(c.cfg.Attempts) - time.Second, 0} {
			if err := c.park(t.Context(), c.relocation(fmt.Sprint(n), n), parkedState{state: store.Retrying, wait: wait}, new(outcome)); err != nil {
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
