package sqldb_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"

	"pizzaflow/internal/testkit"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// TestPostgresErrorClasses has a real server return each code that is classified: by
// a statement that causes it where there is one, else by RAISE.
func TestPostgresErrorClasses(t *testing.T) {
	db := sqltest.Open(t, sqldb.Postgres, schema)
	mustExec(t, db, `INSERT INTO things (id, n) VALUES ('a', 1)`)
	for _, c := range []struct {
		code string
		want sqldb.ErrorClass
		say  func(t *testing.T, db *sqldb.DB) error
	}{
		{"55P03", sqldb.Unavailable, func(t *testing.T, db *sqldb.DB) error {
			return whileLocked(t, db, `SET lock_timeout = '20ms'`, `UPDATE things SET n = 2`)
		}},
		{"57014", sqldb.Unavailable, statements(`SET statement_timeout = '20ms'`, `SELECT pg_sleep(60)`)},
		{"25P03", sqldb.Unavailable, waitedInTransaction(`SET idle_in_transaction_session_timeout = '20ms'`)},
		{"25P04", sqldb.Unavailable, statements(`SET transaction_timeout = '20ms'`, `BEGIN`, `SELECT pg_sleep(60)`)},
		{"25006", sqldb.Unavailable, statements(`SET default_transaction_read_only = on`, `DELETE FROM things`)},
		{"57P01", sqldb.Unavailable, statements(`SELECT pg_terminate_backend(pg_backend_pid(), 0)`, `SELECT 1`)},
		{"53400", sqldb.Unavailable, statements(`SET temp_file_limit = '1kB'`, `SET work_mem = '64kB'`, `SELECT count(*) FROM (SELECT n FROM generate_series(1, 100000) n ORDER BY md5(n::text)) s`)},
		{"53300", sqldb.Unavailable, asRole(`LOGIN CONNECTION LIMIT 0`)},
		{"58P01", sqldb.Unavailable, statements(`COPY things FROM '/nowhere/at/all'`)},
		{"55006", sqldb.Unavailable, statements(`BEGIN`, `DECLARE c CURSOR FOR SELECT * FROM things`, `FETCH c`, `DROP TABLE things`)},
		{"40001", sqldb.Conflict, serializationFailure},
		{"28000", sqldb.Fatal, asRole(`NOLOGIN`)},
		{"3D000", sqldb.Fatal, func(t *testing.T, _ *sqldb.DB) error { return open(t, func(u *url.URL) { u.Path = "/nowhere" }) }},
		{"3F000", sqldb.Fatal, statements(`CREATE TABLE nowhere.things (id INT)`)},
		{"42501", sqldb.Fatal, statements(
			`DO $$ BEGIN EXECUTE format('GRANT USAGE ON SCHEMA %I TO pg_monitor', current_schema()); END $$`, `SET ROLE pg_monitor`, `SELECT * FROM things`)},
		{"42P01", sqldb.Fatal, statements(`SELECT * FROM nothings`)},
		{"42703", sqldb.Fatal, statements(`SELECT colour FROM things`)},
		{"42704", sqldb.Fatal, statements(`SELECT 'a'::colour`)},
		{"42883", sqldb.Fatal, statements(`SELECT paint(1)`)},
		{"42P10", sqldb.Fatal, statements(`INSERT INTO things (id, n) VALUES ('a', 1) ON CONFLICT (n) DO NOTHING`)},
		{"26000", sqldb.Fatal, statements(`EXECUTE nothing`)},
		{"42P05", sqldb.Fatal, statements(`PREPARE it AS SELECT 1`, `PREPARE it AS SELECT 1`)},
		{"23505", sqldb.Permanent, statements(`INSERT INTO things (id, n) VALUES ('a', 1)`)},
		{"23502", sqldb.Permanent, statements(`INSERT INTO things (id) VALUES ('b')`)},
		{"22P02", sqldb.Permanent, statements(`SELECT 'x'::int`)},
		{"22021", sqldb.Permanent, statements(`SELECT chr(0)`, `SELECT convert_from('\xff', 'UTF8')`)},
		{"22P05", sqldb.Permanent, statements(`SELECT convert('пицца'::bytea, 'UTF8', 'LATIN1')`)},
		{"42601", sqldb.Permanent, statements(`SELEKT 1`)},
		{"25P02", sqldb.Permanent, statements(`BEGIN`, `SELECT 1/0`, `SELECT 1`)},
		{"0A000", sqldb.Conflict, statements(`PREPARE it AS SELECT * FROM things`, `EXECUTE it`, `ALTER TABLE things ADD COLUMN more TEXT`, `EXECUTE it`)},
		// by RAISE
		{"40P01", sqldb.Conflict, raised("40P01")},
		{"40003", sqldb.Unavailable, raised("40003")},
		{"40002", sqldb.Permanent, raised("40002")},
		{"08006", sqldb.Unavailable, raised("08006")},
		{"08P01", sqldb.Unavailable, raised("08P01")},
		{"53100", sqldb.Unavailable, raised("53100")},
		{"53200", sqldb.Unavailable, raised("53200")},
		{"57P02", sqldb.Unavailable, raised("57P02")},
		{"57P03", sqldb.Unavailable, raised("57P03")},
		{"57P05", sqldb.Unavailable, raised("57P05")},
		{"57P04", sqldb.Fatal, raised("57P04")},
		{"28P01", sqldb.Fatal, raised("28P01")},
		{"58030", sqldb.Unavailable, raised("58030")},
		{"XX000", sqldb.Unavailable, raised("XX000")},
		{"XX001", sqldb.Unavailable, raised("XX001")},
		{"XX002", sqldb.Unavailable, raised("XX002")},
		{"F0000", sqldb.Unavailable, raised("F0000")},
		{"55000", sqldb.Unavailable, raised("55000")},
		{"72000", sqldb.Conflict, raised("72000")},
		{"0L000", sqldb.Fatal, raised("0L000")},
		{"0P000", sqldb.Fatal, raised("0P000")},
		{"55P02", sqldb.Fatal, raised("55P02")},
		{"P0001", sqldb.Permanent, raised("P0001")},
		{"54001", sqldb.Permanent, raised("54001")},
	} {
		t.Run(c.code, func(t *testing.T) {
			err := c.say(t, db)
			e, ok := errors.AsType[*pgconn.PgError](err)
			if !ok || e.Code != c.code {
				t.Fatalf("the server said %v, want %s", err, c.code)
			}
			wantClass(t, err, c.want)
		})
	}
}

// wantClass wants an error of that class, and IsConflict and the others to agree.
func wantClass(t *testing.T, err error, want sqldb.ErrorClass) {
	t.Helper()
	err = fmt.Errorf("place order: %w", err)
	if got := sqldb.Classify(err); got != want {
		t.Errorf("%v is classified %q, want %q", err, got, want)
	}
	says := want == sqldb.Unavailable || want == sqldb.Fatal
	for what, answer := range map[string][2]bool{
		"IsConflict":      {sqldb.IsConflict(err), want == sqldb.Conflict},
		"SaysUnavailable": {sqldb.SaysUnavailable(err), says},
		"IsFatal":         {sqldb.IsFatal(err), want == sqldb.Fatal},
		"IsUnavailable":   {sqldb.IsUnavailable(err), says || want == sqldb.Conflict},
	} {
		if answer[0] != answer[1] {
			t.Errorf("%v: %s is %t", err, what, answer[0])
		}
	}
}

// statements runs statements on one session until one fails.
func statements(all ...string) func(*testing.T, *sqldb.DB) error {
	return func(t *testing.T, db *sqldb.DB) error {
		conn, err := db.Session(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close() // some are gone already
		var code *pgconn.PgError
		for i, s := range all {
			_, err = conn.ExecContext(t.Context(), s)
			if err != nil && (i == len(all)-1 || !errors.As(err, &code) || code.Code == "57P01") {
				return err
			}
		}
		return err
	}
}

// raised has the server return a code by RAISE.
func raised(code string) func(*testing.T, *sqldb.DB) error {
	return statements(`DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '` + code + `', MESSAGE = 'raised'; END $$`)
}

// waitedInTransaction waits in a transaction until the server ends the session.
func waitedInTransaction(set string) func(*testing.T, *sqldb.DB) error {
	return func(t *testing.T, db *sqldb.DB) error {
		conn, err := db.Session(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for _, s := range []string{set, `BEGIN`} {
			if _, err := conn.ExecContext(t.Context(), s); err != nil {
				t.Fatal(err)
			}
		}
		var pid int
		if err := conn.QueryRowContext(t.Context(), `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, "the server ends the session that waits in a transaction", func() bool {
			var n int
			if err := db.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM pg_stat_activity WHERE pid = $1`, pid).Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n == 0
		})
		_, err = conn.ExecContext(t.Context(), `SELECT 1`)
		return err
	}
}

// whileLocked runs statements while another transaction has the table locked.
func whileLocked(t *testing.T, db *sqldb.DB, all ...string) (err error) {
	undo := errors.New("undo")
	e := db.Tx(t.Context(), func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(t.Context(), `LOCK TABLE things`); err != nil {
			return err
		}
		err = statements(all...)(t, db)
		return undo
	})
	if !errors.Is(e, undo) {
		t.Fatal(e)
	}
	return err
}

// serializationFailure changes a row that another transaction has changed since
// this one began.
func serializationFailure(t *testing.T, db *sqldb.DB) (err error) {
	tx, err := db.BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }() // it has failed
	var n int
	if err := tx.QueryRowContext(t.Context(), `SELECT n FROM things WHERE id = 'a'`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	mustExec(t, db, `UPDATE things SET n = n + 1 WHERE id = 'a'`)
	_, err = tx.ExecContext(t.Context(), `UPDATE things SET n = n + 1 WHERE id = 'a'`)
	return err
}

// asRole opens the database as a new role with these attributes.
func asRole(attributes string) func(*testing.T, *sqldb.DB) error {
	return func(t *testing.T, db *sqldb.DB) error {
		name := "r_" + strings.ToLower(strings.ReplaceAll(t.Name()[strings.LastIndex(t.Name(), "/")+1:], "#", "")) + fmt.Sprint(os.Getpid())
		mustExec(t, db, `CREATE ROLE `+name+` `+attributes)
		defer mustExec(t, db, `DROP ROLE `+name)
		return open(t, func(u *url.URL) { u.User = url.User(name) })
	}
}

// open opens the test server by a URL that is changed.
func open(t *testing.T, change func(*url.URL)) error {
	u, err := url.Parse(sqltest.URL(t, sqldb.Postgres))
	if err != nil {
		t.Fatal(err)
	}
	change(u)
	db, err := sqldb.Open(t.Context(), u.String())
	if err == nil {
		err = db.Close()
		t.Error("it was opened")
	}
	return err
}

// TestPoolerErrorClasses has messages of PgBouncer, which gives all of them one code.
func TestPoolerErrorClasses(t *testing.T) {
	for message, want := range map[string]sqldb.ErrorClass{
		"unsupported startup parameter: search_path":               sqldb.Fatal,
		"no such database: pizza":                                  sqldb.Fatal,
		"transaction blocks not allowed in statement pooling mode": sqldb.Fatal,
		"no more connections allowed (max_client_conn)":            sqldb.Unavailable,
		"query_wait_timeout":                                       sqldb.Unavailable,
		"server login has been failing, try again later":           sqldb.Unavailable,
		"pgbouncer cannot connect to server":                       sqldb.Unavailable,
		"client_idle_timeout":                                      sqldb.Unavailable,
	} {
		wantClass(t, &pgconn.PgError{Code: "08P01", Message: message}, want)
	}
}

// TestSQLiteErrorClasses provokes the result codes.
func TestSQLiteErrorClasses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "test.db")
	db := sqltest.Connect(t, "sqlite:"+file, schema)
	mustExec(t, db, `INSERT INTO things (id, n) VALUES ('a', 1)`)
	raw := func(t *testing.T, path, query string) *sql.DB {
		t.Helper()
		other, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(1)"+query)
		if err != nil {
			t.Fatal(err)
		}
		other.SetMaxOpenConns(1)
		t.Cleanup(func() { other.Close() })
		return other
	}
	garbage := filepath.Join(t.TempDir(), "garbage.db")
	if err := os.WriteFile(garbage, []byte(strings.Repeat("no database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	exec := func(db *sql.DB, query string) error { _, err := db.ExecContext(t.Context(), query); return err }
	for name, c := range map[string]struct {
		want sqldb.ErrorClass
		say  func(t *testing.T) error
	}{
		"busy": {sqldb.Unavailable, func(t *testing.T) (err error) {
			e := db.Tx(t.Context(), func(*sql.Tx) error { err = exec(raw(t, file, ""), `DELETE FROM things`); return nil })
			return errors.Join(e, err)
		}},
		"busy snapshot": {sqldb.Conflict, func(t *testing.T) error {
			other := raw(t, file, "")
			tx, err := other.BeginTx(t.Context(), nil)
			if err != nil {
				return err
			}
			defer func() { _ = tx.Rollback() }()
			var n int
			if err := tx.QueryRow(`SELECT COUNT(*) FROM things`).Scan(&n); err != nil {
				return err
			}
			mustExec(t, db, `UPDATE things SET n = n + 1`)
			_, err = tx.Exec(`UPDATE things SET n = n + 1`)
			return err
		}},
		"full": {sqldb.Unavailable, func(t *testing.T) error {
			return errors.Join(exec(raw(t, file, "&_pragma=max_page_count(1)"), `INSERT INTO things (id, n, note) VALUES ('big', 1, hex(zeroblob(1000000)))`))
		}},
		"read-only": {sqldb.Unavailable, func(t *testing.T) error { return exec(raw(t, file, "&mode=ro"), `DELETE FROM things`) }},
		"cannot open": {sqldb.Unavailable, func(t *testing.T) error {
			return exec(raw(t, filepath.Join(t.TempDir(), "no", "such.db"), ""), `SELECT 1`)
		}},
		"no database": {sqldb.Fatal, func(t *testing.T) error { return exec(raw(t, garbage, ""), `SELECT * FROM things`) }},
		"no table":    {sqldb.Fatal, func(*testing.T) error { return exec(db.DB, `SELECT * FROM nothings`) }},
		"no column":   {sqldb.Fatal, func(*testing.T) error { return exec(db.DB, `INSERT INTO things (colour) VALUES (1)`) }},
		"syntax":      {sqldb.Permanent, func(*testing.T) error { return exec(db.DB, `SELEKT 1`) }},
		"unique":      {sqldb.Permanent, func(*testing.T) error { return exec(db.DB, `INSERT INTO things (id, n) VALUES ('a', 1)`) }},
		"not null":    {sqldb.Permanent, func(*testing.T) error { return exec(db.DB, `INSERT INTO things (id) VALUES ('b')`) }},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.say(t)
			if _, ok := errors.AsType[*sqlite.Error](err); !ok {
				t.Fatalf("SQLite said %v", err)
			}
			wantClass(t, err, c.want)
		})
	}
}

// TestConnectionErrorClasses is about errors that no database returned.
func TestConnectionErrorClasses(t *testing.T) {
	for _, c := range []struct {
		err         error
		want        sqldb.ErrorClass
		unavailable bool
	}{
		{nil, "", false},
		{errors.New("bad"), "", false},
		{context.Canceled, "", false},
		{context.DeadlineExceeded, "", true},
		{sqldb.ErrFull, sqldb.Unavailable, true},
		{sqldb.ErrNoAnswer, sqldb.Unavailable, true},
		{sqldb.ErrPooled, sqldb.Fatal, true},
	} {
		if got := sqldb.Classify(c.err); got != c.want || sqldb.IsUnavailable(c.err) != c.unavailable {
			t.Errorf("%v: %q, unavailable %t", c.err, got, sqldb.IsUnavailable(c.err))
		}
	}
	proxy, through := testkit.NewURLProxy(t, sqltest.URL(t, sqldb.Postgres))
	proxy.Cut()
	if _, err := sqldb.Open(t.Context(), through); !sqldb.IsUnavailable(err) || sqldb.IsFatal(err) {
		t.Errorf("a server that hangs up: %v", err)
	}
	if err := open(t, func(u *url.URL) { u.RawQuery = "sslmode=require" }); !sqldb.IsFatal(err) {
		t.Errorf("a server without TLS: %v", err)
	}
	for _, role := range []string{"standby", "read-only"} { // as to a client that asks for the primary during a fail-over
		if err := open(t, func(u *url.URL) { u.RawQuery = "target_session_attrs=" + role }); sqldb.Classify(err) != sqldb.Unavailable {
			t.Errorf("no server that is %s: %v, classified %q", role, err, sqldb.Classify(err))
		}
	}
	if _, err := sqldb.Open(t.Context(), "postgres://u@nowhere.invalid/pizza?sslmode=disable"); !sqldb.IsUnavailable(err) || sqldb.IsFatal(err) {
		t.Errorf("a name that is not found: %v", err)
	}
}
