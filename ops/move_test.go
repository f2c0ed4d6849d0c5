package ops

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"

	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// Where the old file cannot be marked as moved, nothing is committed to PostgreSQL: else both sides could be started.
func TestNothingIsMovedWithoutItsMark(t *testing.T) {
	to := sqltest.URL(t, sqldb.Postgres)
	file := filepath.Join(t.TempDir(), "payment.db")
	old, err := sqldb.Open(t.Context(), "sqlite:"+file)
	if err != nil {
		t.Fatal(err)
	}
	target := Database{Service: "payment", URL: to, Schema: fstest.MapFS{
		"schema/sqlite/0001_init.sql":   {Data: []byte("-- +goose Up\nCREATE TABLE payments (id TEXT PRIMARY KEY);")},
		"schema/postgres/0001_init.sql": {Data: []byte("-- +goose Up\nCREATE TABLE payments (id TEXT PRIMARY KEY);")},
	}}
	if err := target.Migrate(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	_, err = old.Exec(`INSERT INTO inbox_events (consumer, event_id, handled_at) VALUES ('payment-service', '0198a7f0-0000-7000-8000-000000000001', $1)`, sqldb.Now())
	if err := errors.Join(err, old.Close()); err != nil {
		t.Fatal(err)
	}
	move := Move{From: "sqlite:" + file, To: []Database{target}, Services: []string{"payment"}}
	db := sqltest.Connect(t, to)
	for _, c := range []struct {
		marked bool
		rows   int
	}{{false, 0}, {true, 1}} {
		if !c.marked { // a folder is in the way
			err = os.Mkdir(file+movedFile, 0o700)
		} else {
			err = os.Remove(file + movedFile)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := move.Run(t.Context(), slog.New(slog.DiscardHandler)); (err == nil) != c.marked {
			t.Errorf("it can be marked: %v, and the move says %v", c.marked, err)
		}
		var rows int
		if err := db.QueryRow(`SELECT COUNT(*) FROM inbox_events`).Scan(&rows); err != nil || rows != c.rows {
			t.Errorf("it can be marked: %v, and %d rows are in PostgreSQL, want %d (%v)", c.marked, rows, c.rows, err)
		}
	}
	if CheckNotMoved(file) == nil {
		t.Error("a service may start on a file that was moved")
	}
}
