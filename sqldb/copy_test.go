package sqldb_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/fstest"
	"time"

	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// shop is a schema with every type that the services store, a reference to a table
// whose name comes later, numbered rows, and an initial row.
var shop = sqltest.Schema{Name: "shop", FS: fstest.MapFS{
	"schema/sqlite/0001_shop.sql": {Data: []byte(`-- +goose Up
CREATE TABLE orders (id TEXT PRIMARY KEY, total INTEGER NOT NULL, at TIMESTAMP, note TEXT, items TEXT, "key" BLOB);
CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, order_id TEXT NOT NULL REFERENCES orders (id));
CREATE TABLE lease (id INTEGER PRIMARY KEY, holder TEXT NOT NULL);
INSERT INTO lease (id, holder) VALUES (1, '');
CREATE VIEW everything AS SELECT * FROM orders;`)},
	"schema/postgres/0001_shop.sql": {Data: []byte(`-- +goose Up
CREATE TABLE orders (id UUID PRIMARY KEY, total BIGINT NOT NULL, at TIMESTAMPTZ, note TEXT, items JSON, "key" BYTEA);
CREATE TABLE events (seq BIGINT GENERATED ALWAYS AS IDENTITY (CACHE 1) PRIMARY KEY, order_id UUID NOT NULL REFERENCES orders (id));
CREATE TABLE lease (id SMALLINT PRIMARY KEY, holder TEXT NOT NULL);
INSERT INTO lease (id, holder) VALUES (1, '');
CREATE VIEW everything AS SELECT * FROM orders;`)},
}}

var shopInitialRows = map[string]string{"lease": `holder = ''`}

const shopOrders = 300

func openShop(t *testing.T) (from, to *sqldb.DB) {
	t.Helper()
	from, to = sqltest.Open(t, sqldb.SQLite, shop), sqltest.Open(t, sqldb.Postgres, shop)
	base := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i := range shopOrders {
		id := fmt.Sprintf("0198a7f0-0000-7000-8000-%012d", i)
		mustExec(t, from, `INSERT INTO orders (id, total, at, note, items, "key") VALUES ($1, $2, $3, $4, $5, $6)`,
			id, int64(i)<<40, base.Add(time.Duration(i)*time.Microsecond), "Пицца\t\\N\n", `{"b": 1,  "a":"\u0001 ÿ"}`, []byte{0, byte(i), 255})
		mustExec(t, from, `INSERT INTO events (order_id) VALUES ($1)`, id)
	}
	mustExec(t, from, `INSERT INTO orders (id, total) VALUES ('0198a7f0-0000-7000-9000-000000000000', 0)`)
	mustExec(t, from, `UPDATE lease SET holder = 'kitchen'`)
	mustExec(t, from, `DELETE FROM events WHERE seq > $1`, shopOrders-50) // and are not given again
	return from, to
}

func noProgress(sqldb.Copied) {}

func commit() error { return nil }

func TestCopy(t *testing.T) {
	from, to := openShop(t)
	var progress []sqldb.Copied
	got, done, err := sqldb.Copy(t.Context(), from, to, shopInitialRows, func(c sqldb.Copied) { progress = append(progress, c) }, commit)
	want := []sqldb.Copied{{Table: "lease", Rows: 1}, {Table: "orders", Rows: shopOrders + 1}, {Table: "events", Rows: shopOrders - 50}}
	if err != nil || done || !slices.Equal(got, want) || !slices.Equal(progress, want) {
		t.Fatalf("copied %v, progress %v, done before: %v (%v)", got, progress, done, err)
	}
	for query, want := range map[string]string{
		`SELECT holder FROM lease`: "kitchen",
		`SELECT at = '2026-01-02T03:04:05.000007Z' FROM orders WHERE total = 7::bigint << 40`:                                   "true",
		`SELECT note = E'Пицца\t\\N\n' AND items::text = '{"b": 1,  "a":"\u0001 ÿ"}' FROM orders WHERE total = 7::bigint << 40`: "true",
		`SELECT encode("key", 'hex') FROM orders WHERE total = 7::bigint << 40`:                                                 "0007ff",
		`SELECT COUNT(*) FROM orders WHERE at IS NULL AND note IS NULL AND items IS NULL AND "key" IS NULL`:                     "1",
		`INSERT INTO events (order_id) SELECT id FROM orders WHERE total > 0 ORDER BY id LIMIT 1 RETURNING seq`:                 fmt.Sprint(shopOrders + 1),
		`SELECT COUNT(*) FROM events e JOIN orders o ON o.id = e.order_id WHERE o.total = (e.seq - 1) << 40`:                    fmt.Sprint(shopOrders - 50),
	} {
		var got string
		if err := to.QueryRow(query).Scan(&got); err != nil || got != want {
			t.Errorf("%s: %q, want %q (%v)", query, got, want, err)
		}
	}
}

func TestCopyAgain(t *testing.T) {
	from, to := openShop(t)
	for _, want := range []bool{false, true, true} {
		if _, done, err := sqldb.Copy(t.Context(), from, to, shopInitialRows, noProgress, commit); err != nil || done != want {
			t.Fatalf("done before: %v, want %v (%v)", done, want, err)
		}
	}
	for _, change := range []struct {
		db               *sqldb.DB
		statement, again string
	}{
		{to, `UPDATE lease SET holder = 'oven'`, `UPDATE lease SET holder = 'kitchen'`},
		{to, `UPDATE orders SET total = 1 WHERE total = 0 AND at IS NULL`, `UPDATE orders SET total = 0 WHERE total = 1`},
		{from, `INSERT INTO orders (id, total) VALUES ('0198a7f0-0000-7000-9000-000000000001', 0)`, `DELETE FROM orders WHERE id = '0198a7f0-0000-7000-9000-000000000001'`},
	} {
		mustExec(t, change.db, change.statement)
		if _, _, err := sqldb.Copy(t.Context(), from, to, shopInitialRows, noProgress, commit); !errors.Is(err, sqldb.ErrNotEmpty) {
			t.Errorf("after %s: %v, want %v", change.statement, err, sqldb.ErrNotEmpty)
		}
		mustExec(t, change.db, change.again)
		if _, done, err := sqldb.Copy(t.Context(), from, to, shopInitialRows, noProgress, commit); err != nil || !done {
			t.Errorf("after %s: done before: %v (%v)", change.again, done, err)
		}
	}
}

func TestCopyIsRolledBack(t *testing.T) {
	from, to := openShop(t)
	no := errors.New("no")
	if _, _, err := sqldb.Copy(t.Context(), from, to, shopInitialRows, noProgress, func() error { return no }); !errors.Is(err, no) {
		t.Errorf("copied: %v, want %v", err, no)
	}
	var orders int
	if err := to.QueryRow(`SELECT COUNT(*) FROM orders`).Scan(&orders); err != nil || orders > 0 {
		t.Errorf("%d orders are there all the same (%v)", orders, err)
	}
	if _, done, err := sqldb.Copy(t.Context(), from, to, shopInitialRows, noProgress, commit); err != nil || done {
		t.Errorf("after that: done before: %v (%v)", done, err)
	}
}

// TestCopyIsAllOrNothing copies rows that PostgreSQL refuses, and into a target that
// is used.
func TestCopyIsAllOrNothing(t *testing.T) {
	for name, spoil := range map[string]struct{ fromSQL, toSQL string }{
		"no uuid":       {fromSQL: `INSERT INTO orders (id, total) VALUES ('margherita', 1)`},
		"no number":     {fromSQL: `UPDATE orders SET total = 'many' WHERE total = 0`},
		"no time":       {fromSQL: `UPDATE orders SET at = 'soon' WHERE total = 0`},
		"no JSON":       {fromSQL: `UPDATE orders SET items = '{' WHERE total = 0`},
		"other columns": {fromSQL: `ALTER TABLE events ADD COLUMN more TEXT`},
		"a row":         {toSQL: `INSERT INTO orders (id, total) VALUES ('0198a7f0-0000-7000-9000-000000000009', 1)`},
		"a used lease":  {toSQL: `UPDATE lease SET holder = 'oven'`},
	} {
		t.Run(name, func(t *testing.T) {
			from, to := openShop(t)
			if spoil.fromSQL != "" {
				mustExec(t, from, spoil.fromSQL)
			} else {
				mustExec(t, to, spoil.toSQL)
			}
			_, _, err := sqldb.Copy(t.Context(), from, to, shopInitialRows, noProgress, commit)
			if err == nil || errors.Is(err, sqldb.ErrNotEmpty) != (spoil.toSQL != "") {
				t.Fatalf("copied: %v", err)
			}
			var events, orders int
			if err := to.QueryRow(`SELECT (SELECT COUNT(*) FROM events), (SELECT COUNT(*) FROM orders WHERE total <> 1)`).Scan(&events, &orders); err != nil || events+orders > 0 {
				t.Errorf("%d orders and %d events are there all the same (%v)", orders, events, err)
			}
		})
	}
}
