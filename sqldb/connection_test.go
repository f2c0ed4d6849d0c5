package sqldb_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"pizzaflow/internal/testkit"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// After a firewall forgot all connections the first statement, whatever it is, takes
// seconds, and the later ones do not: all connections are replaced.
func TestSilentConnections(t *testing.T) {
	proxy, through := testkit.NewURLProxy(t, sqltest.URL(t, sqldb.Postgres))
	db := sqltest.Connect(t, through, schema)
	transaction := func(ctx context.Context) error {
		return db.Tx(ctx, func(tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, `INSERT INTO things (id, n) VALUES ('a', 1) ON CONFLICT DO NOTHING`)
			return err
		})
	}
	for what, ask := range map[string]func(context.Context) error{
		"a transaction": transaction,
		"a ping":        db.PingContext,
		"a query": func(ctx context.Context) error {
			var n int
			return db.QueryRowContext(ctx, `SELECT COUNT(*) FROM things`).Scan(&n)
		},
		"a notification": func(ctx context.Context) error { return db.Notify(ctx, "somebody") },
	} {
		t.Run(what, func(t *testing.T) {
			giveBack(t, borrow(t, db, 5))
			proxy.Silence(false)
			began := time.Now()
			if err := ask(t.Context()); err != nil && (!errors.Is(err, sqldb.ErrNoAnswer) || !sqldb.SaysUnavailable(err)) {
				t.Errorf("%v, want %v", err, sqldb.ErrNoAnswer)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("it took %s", took)
			}
			began = time.Now()
			for range 6 {
				if err := transaction(t.Context()); err != nil {
					t.Errorf("after it: %v", err)
				}
			}
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("the transactions after it took %s: silent connections are still used", took)
			}
		})
	}
}

// A statement that exceeds its deadline returns ErrNoAnswer, and
// WithStatementTimeout sets the deadline.
func TestStatementDeadline(t *testing.T) {
	db := sqltest.Open(t, sqldb.Postgres)
	soon, done := context.WithTimeout(t.Context(), 20*time.Second)
	defer done()
	short := sqldb.WithStatementTimeout(soon, 50*time.Millisecond)
	for what, run := range map[string]func() error{
		"exec": func() error { _, err := db.ExecContext(short, `SELECT pg_sleep(60)`); return err },
		"query": func() error {
			rows, err := db.QueryContext(short, `SELECT pg_sleep(0.02) FROM generate_series(1, 3000)`)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
			}
			return rows.Err()
		},
		"transaction": func() error {
			return db.Tx(short, func(tx *sql.Tx) error { _, err := tx.ExecContext(short, `SELECT pg_sleep(60)`); return err })
		},
		"in a transaction": func() error {
			return db.Tx(short, func(tx *sql.Tx) error { _, err := tx.ExecContext(soon, `SELECT pg_sleep(60)`); return err })
		},
	} {
		if err := run(); !errors.Is(err, sqldb.ErrNoAnswer) || !sqldb.IsTimeout(err) || sqldb.Classify(err) != sqldb.Unavailable {
			t.Errorf("%s: %v", what, err)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := db.ExecContext(ended, `SELECT 1`); !errors.Is(err, context.Canceled) || sqldb.IsUnavailable(err) {
		t.Errorf("a caller whose context has ended: %v", err)
	}
}

// After a fail-over that leaves the old server alive and read-only no restart is
// needed: the first statement that fails has all connections replaced.
func TestReadOnlyConnectionsAreReplaced(t *testing.T) {
	db := sqltest.Open(t, sqldb.Postgres, schema)
	old := borrow(t, db, 6)
	for _, conn := range old {
		if _, err := conn.ExecContext(t.Context(), `SET default_transaction_read_only = on`); err != nil {
			t.Fatal(err)
		}
	}
	giveBack(t, old)
	for range 12 {
		err := db.Tx(t.Context(), func(tx *sql.Tx) error {
			_, err := tx.ExecContext(t.Context(), `INSERT INTO things (id, n) VALUES ('a', 1) ON CONFLICT DO NOTHING`)
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// borrow takes n connections of the pool at the same time.
func borrow(t *testing.T, db *sqldb.DB, n int) (conns []*sql.Conn) {
	t.Helper()
	for range n {
		conn, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	return conns
}

func giveBack(t *testing.T, conns []*sql.Conn) {
	t.Helper()
	for _, conn := range conns {
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A session has our settings, whatever the role or the database has.
func TestSessionSettings(t *testing.T) {
	url := sqltest.Database(t, "")
	settings := []struct{ name, other, want string }{
		{"client_encoding", "WIN1251", "UTF8"},
		{"default_transaction_isolation", "serializable", "read committed"},
		{"idle_session_timeout", "7s", "0"},
		{"idle_in_transaction_session_timeout", "7min", "10s"},
		{"standard_conforming_strings", "off", "on"},
		{"synchronous_commit", "off", "on"},
	}
	admin := sqltest.Connect(t, url)
	var name string
	if err := admin.QueryRowContext(t.Context(), `SELECT quote_ident(current_database())`).Scan(&name); err != nil {
		t.Fatal(err)
	}
	for _, s := range settings {
		if _, err := admin.ExecContext(t.Context(), `ALTER DATABASE `+name+` SET `+s.name+` = '`+s.other+`'`); err != nil {
			t.Fatal(err)
		}
	}
	db := sqltest.Connect(t, url)
	for _, s := range settings {
		var got string
		if err := db.QueryRowContext(t.Context(), `SELECT current_setting($1)`, s.name).Scan(&got); err != nil || got != s.want {
			t.Errorf("%s is %q (%v), want %q", s.name, got, err, s.want)
		}
	}
}

// A database that cannot be used makes Open fail with a fatal error, for which
// nobody waits.
func TestUnfitDatabases(t *testing.T) {
	name := sqltest.Database(t, `ENCODING 'WIN1251' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0`)
	_, err := sqldb.Open(t.Context(), name)
	if !errors.Is(err, sqldb.ErrUnfit) || !sqldb.IsFatal(err) {
		t.Errorf("WIN1251: %v", err)
	}
}
