package outbox_test

import (
	"database/sql"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"pizzaflow/outbox"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

const anAction = `
	INSERT INTO operator_actions (at, operator, action, target, reason, affected)
	VALUES ('2026-01-01 00:00:00+00:00', 'ann', 'skip', 'x', '', 1)`

// A database whose rows came from elsewhere without their sequences gives no
// number again, neither one that a row has nor one that the relay is done with.
func TestRepairNumbering(t *testing.T) {
	restart := map[sqldb.Engine][]string{
		sqldb.Postgres: {
			`ALTER TABLE outbox_events ALTER COLUMN seq RESTART`, `ALTER TABLE parked_records ALTER COLUMN seq RESTART`,
			`ALTER TABLE operator_actions ALTER COLUMN id RESTART`,
		},
		sqldb.SQLite: {`DELETE FROM sqlite_sequence`},
	}
	for _, c := range []struct {
		name   string
		before []string
		least  int64 // of the next event's number
		moved  []string
	}{
		{"new", nil, 1, nil},
		{"pruned", []string{`UPDATE outbox_lease SET floor = 700`}, 701, []string{"outbox_events"}},
		{"published above the low watermark", []string{
			`UPDATE outbox_lease SET floor = 5`, `INSERT INTO outbox_published (first_seq, last_seq, published_at) VALUES (1, 6, '2026-01-01 00:00:00+00:00'), (8, 900, '2026-01-01 00:00:00+00:00')`,
		}, 901, []string{"outbox_events"}},
		{"an action", []string{anAction}, 1, []string{"operator_actions"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
				for _, statement := range slices.Concat(c.before, restart[db.Engine]) {
					if _, err := db.ExecContext(t.Context(), statement); err != nil {
						t.Fatal(err)
					}
				}
				moved, err := outbox.RepairNumbering(t.Context(), db)
				if err != nil || !slices.Equal(moved, c.moved) {
					t.Errorf("moved %v (%v), want %v", moved, err, c.moved)
				}
				if moved, err := outbox.RepairNumbering(t.Context(), db); err != nil || len(moved) > 0 {
					t.Errorf("the second time it moved %v (%v)", moved, err)
				}
				if seq := nextSeq(t, db); seq < c.least || seq > c.least+1 {
					t.Errorf("the next event has number %d, want %d or the one after it", seq, c.least)
				}
				if _, err := db.ExecContext(t.Context(), anAction); err != nil {
					t.Error(err)
				}
			}, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
		})
	}
}

// Events that were written with numbers of a sequence that had begun anew get
// new ones, in their order. Published and blocked events keep their
// numbers.
func TestRepairNumberingOfWhatIsThere(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		for range 6 { // the first stand in a range that is older than they are, or in none
			nextSeq(t, db)
		}
		for _, statement := range []string{
			`UPDATE outbox_lease SET floor = 700`,
			`INSERT INTO outbox_published (first_seq, last_seq, published_at) VALUES (1, 2, '2025-12-31 00:00:00+00:00'), (4, 4, '2026-01-02 00:00:00+00:00')`,
			`INSERT INTO outbox_blocked (seq, topic, reason, since) VALUES (6, 'things', '', '2026-01-02 00:00:00+00:00')`,
		} {
			if _, err := db.ExecContext(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		}
		if moved, err := outbox.RepairNumbering(t.Context(), db); err != nil || !slices.Equal(moved, []string{"outbox_events"}) {
			t.Fatalf("moved %v: %v", moved, err)
		}
		var got []int64
		rows, err := db.QueryContext(t.Context(), `SELECT aggregate_version FROM outbox_events ORDER BY seq`)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var version int64
			if err := rows.Scan(&version); err != nil {
				t.Fatal(err)
			}
			got = append(got, version)
		}
		if want := []int64{4, 6, 1, 2, 3, 5}; !slices.Equal(got, want) || rows.Err() != nil {
			t.Errorf("in the order of their numbers the events are %v, want %v (%v)", got, want, rows.Err())
		}
		if seq := nextSeq(t, db); seq != 705 {
			t.Errorf("the next event has number %d, want 705", seq)
		}
	}, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
}

// A sequence that falls behind under a running process fails nobody.
func TestNumberingFallsBehind(t *testing.T) {
	db := sqltest.Open(t, sqldb.Postgres, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
	out := outbox.New(db, "/things")
	add := func(id string) {
		err := out.Tx(t.Context(), func(tx *outbox.Tx) error {
			tx.Add(1, Moved{Account: id, To: 1})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 5 {
		add(fmt.Sprint("a", i))
	}
	if _, err := db.ExecContext(t.Context(), `ALTER TABLE outbox_events ALTER COLUMN seq RESTART`); err != nil {
		t.Fatal(err)
	}
	add("b")
	if seq := nextSeq(t, db); seq != 7 {
		t.Errorf("the next event has number %d, want 7", seq)
	}
}

// A sequence that stands only a little below the rows of a busy week is moved
// in no time: which of them were written since is looked up in the index.
func TestRepairNumberingOfManyEvents(t *testing.T) {
	db := sqltest.Open(t, sqldb.Postgres, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
	ctx := sqldb.WithStatementTimeout(t.Context(), time.Minute)
	for _, statement := range []string{
		`INSERT INTO outbox_events (id, aggregate_id, aggregate_version, event_type, event_data, topic, headers, created_at)
			SELECT gen_random_uuid(), n, 1, 'T', '{}', 'things', '[]', '2026-01-01 00:00:00+00:00' FROM generate_series(1, 50000) n`,
		`INSERT INTO outbox_published SELECT n, n + 4, '2026-01-01 00:00:01+00:00' FROM generate_series(1, 49996, 5) n`,
		`UPDATE outbox_lease SET floor = 50000`,
		`SELECT setval(pg_get_serial_sequence('outbox_events', 'seq'), 49000)`,
	} {
		if _, err := db.ExecContext(ctx, statement); err != nil {
			t.Fatal(err)
		}
	}
	before := rangesRead(t, db)
	if moved, err := outbox.RepairNumbering(ctx, db); err != nil || !slices.Equal(moved, []string{"outbox_events"}) {
		t.Fatalf("moved %v: %v", moved, err)
	}
	if n := rangesRead(t, db) - before; n > 3*50000 {
		t.Errorf("%d ranges were read for 50000 events", n)
	}
	if seq := nextSeq(t, db); seq != 50001 {
		t.Errorf("the next event has number %d, want 50001", seq)
	}
}

// rangesRead is how many published ranges were read until now.
func rangesRead(t *testing.T, db *sqldb.DB) (n int) {
	t.Helper()
	if _, err := db.Exec(`SELECT pg_stat_force_next_flush()`); err != nil {
		t.Fatal(err)
	}
	err := db.QueryRow(`SELECT (SELECT seq_tup_read FROM pg_stat_user_tables WHERE relid = 'outbox_published'::REGCLASS)
		+ (SELECT SUM(idx_tup_read) FROM pg_stat_user_indexes WHERE relid = 'outbox_published'::REGCLASS)`).Scan(&n)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// nextSeq is the number that the next event gets.
func nextSeq(t *testing.T, db *sqldb.DB) (seq int64) {
	t.Helper()
	err := db.Tx(t.Context(), func(tx *sql.Tx) error {
		return tx.QueryRowContext(t.Context(), `
			INSERT INTO outbox_events (id, aggregate_id, aggregate_version, event_type, event_data, topic, headers, created_at)
			SELECT $1, 'a', 1 + COUNT(*), 'T', '{}', 'things', '[]', '2026-01-01 00:00:00+00:00' FROM outbox_events RETURNING seq`, uuid.NewString()).Scan(&seq)
	})
	if err != nil {
		t.Fatal(err)
	}
	return seq
}
