package outbox_test

import (
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"pizzaflow/internal/testkit"
	"pizzaflow/outbox"
	"pizzaflow/outbox/admin"
	"pizzaflow/outbox/relay"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// schemaUpTo is the outbox's schema as it was with the files up to the one of
// that number.
func schemaUpTo(t *testing.T, number string) fs.FS {
	t.Helper()
	old := fstest.MapFS{}
	err := fs.WalkDir(outbox.Schema, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() > number+"~" {
			return err
		}
		data, err := fs.ReadFile(outbox.Schema, path)
		old[path] = &fstest.MapFile{Data: data}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return old
}

// A database in use becomes one in which an order 1 and a customer 1 are two:
// with its rows, the numbers it ever gave, and what was unique otherwise.
func TestVersionsBelongToTopicsInAnOldDatabase(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		add := func(id, aggregate string, version any, topic string) (seq int64, err error) {
			return seq, db.QueryRow(`
				INSERT INTO outbox_events (id, aggregate_id, aggregate_version, event_type, event_data, topic, key, headers, created_at)
				VALUES ($1, $2, $3, 'Moved', '{}', $4, $5, '[{"key":"a"}]', $6) RETURNING seq`, id, aggregate, version, topic, []byte(aggregate), sqldb.Now()).Scan(&seq)
		}
		must := func(seq int64, err error) int64 {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
			return seq
		}
		first := newID()
		must(add(first, "1", 1, "orders"))
		must(add(newID(), "1", 2, "orders"))
		last := must(add(newID(), "1", 3, "orders"))
		for _, q := range []string{ // the last number was given and must not be again
			`DELETE FROM outbox_events WHERE seq = 3`,
			`INSERT INTO outbox_published VALUES (1, 1, CURRENT_TIMESTAMP)`,
			`UPDATE outbox_lease SET holder = 'me', epoch = 3, floor = 1`,
		} {
			if _, err := db.Exec(q); err != nil {
				t.Fatal(err)
			}
		}
		if err := db.Migrate(t.Context(), "outbox", outbox.Schema); err != nil {
			t.Fatal(err)
		}
		var rows string
		query := `SELECT CAST(id AS TEXT) || ' ' || aggregate_id || ' ' || aggregate_version || ' ' || CAST(headers AS TEXT) FROM outbox WHERE seq = 1 AND published_at IS NOT NULL AND key = $1`
		if err := db.QueryRow(query, []byte("1")).Scan(&rows); err != nil || rows != first+` 1 1 [{"key":"a"}]` {
			t.Errorf("row %q, %v", rows, err)
		}
		if n := sqltest.Count(t, db, `SELECT COUNT(*) FROM outbox WHERE published_at IS NULL`); n != 1 {
			t.Errorf("%d rows are unpublished, want 1", n)
		}
		if seq := must(add(newID(), "1", 1, "customers")); seq != last+1 {
			t.Errorf("the next event has number %d, want %d", seq, last+1)
		}
		for _, twice := range []struct {
			what string
			id   string
			v    any
		}{{"a version", newID(), 1}, {"an id", first, 9}} {
			if _, err := add(twice.id, "1", twice.v, "customers"); !sqldb.IsUnique(err) {
				t.Errorf("%s twice: %v", twice.what, err)
			}
		}
		must(add(newID(), "1", nil, "letters"))
		must(add(newID(), "1", nil, "letters"))
	}, sqltest.Schema{Name: "outbox", FS: schemaUpTo(t, "0004")})
}

// An empty database that was pruned gives no number again either.
func TestNumbersOutliveTheMigration(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		for _, q := range []string{
			`INSERT INTO outbox_events (id, aggregate_id, event_type, topic, value, headers, created_at) VALUES ('` + newID() + `', 'a', 'Moved', 'moves', 'x', '[]', CURRENT_TIMESTAMP)`,
			`DELETE FROM outbox_events`,
		} {
			if _, err := db.Exec(q); err != nil {
				t.Fatal(err)
			}
		}
		if err := db.Migrate(t.Context(), "outbox", outbox.Schema); err != nil {
			t.Fatal(err)
		}
		var seq int64
		err := db.QueryRow(`INSERT INTO outbox_events (id, aggregate_id, event_type, topic, value, headers, created_at)
			VALUES ('` + newID() + `', 'a', 'Moved', 'moves', 'x', '[]', CURRENT_TIMESTAMP) RETURNING seq`).Scan(&seq)
		if err != nil || seq != 2 {
			t.Errorf("number %d, %v; want 2", seq, err)
		}
	}, sqltest.Schema{Name: "outbox", FS: schemaUpTo(t, "0004")})
}

// While somebody reads the events for long, the migration does not keep all who
// write waiting: it gives way, and is for the next try.
func TestMigrationGivesWay(t *testing.T) {
	db := sqltest.Open(t, sqldb.Postgres, sqltest.Schema{Name: "outbox", FS: schemaUpTo(t, "0004")})
	reader, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Rollback() //nolint:errcheck // it has changed nothing
	if _, err := reader.Exec(`SELECT COUNT(*) FROM outbox_events`); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := db.Migrate(t.Context(), "outbox", outbox.Schema); !sqldb.SaysUnavailable(err) || sqldb.IsFatal(err) {
		t.Errorf("the migration ended after %v with %v, classified %q", time.Since(began), err, sqldb.Classify(err))
	}
	if err := reader.Commit(); err != nil { // gone if it was idle for ten seconds
		t.Error(err)
	}
	if err := db.Migrate(t.Context(), "outbox", outbox.Schema); err != nil {
		t.Error(err)
	}
}

// elsewhere is an event of another aggregate with the same id, on another topic.
type elsewhere struct{ Moved }

func (elsewhere) Topic() string { return "moves-dlq" }

// Two topics number the events of one id each for themselves, offered from
// memory as well as read.
func TestOneIDOnTwoTopics(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		add := func(v int) {
			t.Helper()
			err := f.out.Tx(t.Context(), func(tx *outbox.Tx) error {
				tx.Add(int64(v), Moved{Account: "1", To: v})
				tx.Add(int64(v), elsewhere{Moved{Account: "1", To: v}})
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		add(1)
		testkit.Run(t, f.relay().Run)
		f.consume("moves", 1)
		for v := 2; v <= 9; v++ {
			add(v)
		}
		for _, topic := range []string{"moves", "moves-dlq"} {
			if v := versionsOf(f.consume(topic, 9), "1"); v != "123456789" {
				t.Errorf("%s has the versions %s", topic, v)
			}
		}
	})
}

// A relay that is alone does not wait for the one that was killed.
func TestAloneWaitsForNobody(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		if _, err := f.db.Exec(`UPDATE outbox_lease SET holder = 'dead', epoch = 7, renewal = 40`); err != nil {
			t.Fatal(err)
		}
		f.move("a", 1)
		relay := relay.New(relay.Config{Outbox: f.out, Service: "accounts", Kafka: f.kafka, TTL: time.Hour, Exclusive: true, Log: f.log})
		testkit.Run(t, relay.Run)
		f.consume("moves", 1)
		if holder := f.count(`SELECT COUNT(*) FROM outbox_lease WHERE epoch = 8 AND holder <> 'dead'`); holder != 1 {
			t.Error("the lease was not taken")
		}
	})
}

// A refused event is told from the events that wait behind it by its place, not by
// the text of the reasons.
func TestReasonsDecideNothing(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		f.move("big", 3)
		f.move("small", 1)
		for seq, reason := range []string{2: "zu groß", 3: "сообщение слишком велико", 4: "its key is blocked"} {
			if reason == "" {
				continue
			}
			key := "big"
			if seq == 4 {
				key = "small"
			}
			if _, err := f.db.Exec(`INSERT INTO outbox_blocked (seq, topic, key, reason, since) VALUES ($1, 'moves', $2, $3, $4)`, seq, []byte(key), reason, sqldb.Now()); err != nil {
				t.Fatal(err)
			}
		}
		op := admin.New(f.db)
		if done, err := op.Skip(t.Context(), admin.BlockedFilter{Seq: 3}, deed); err != nil || len(done) != 0 {
			t.Errorf("what only waits was given up: %v, %v", done, err)
		}
		done, err := op.Skip(t.Context(), admin.BlockedFilter{Topic: "moves"}, deed)
		var given []string
		for _, e := range done {
			given = append(given, e.Key)
		}
		if got := strings.Join(given, " "); err != nil || got != "big small" || done[0].Seq != 2 {
			t.Errorf("given up: %+v, %v", done, err)
		}
		if left, err := op.Blocked(t.Context(), admin.BlockedFilter{}, 10); err != nil || len(left) != 2 || left[0].SkippedAt.IsZero() || left[1].SkippedAt.IsZero() {
			t.Errorf("left: %+v, %v", left, err)
		}
	})
}
