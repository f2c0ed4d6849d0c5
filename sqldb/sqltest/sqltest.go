// Package sqltest gives tests an empty database of each engine.
package sqltest

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pizzaflow/sqldb"
)

// A Schema is a set of migrations to apply: its name and its files.
type Schema struct {
	Name string
	FS   fs.FS
}

// Each runs fn as the subtests "sqlite" and "postgres", each on an empty
// database of its own with the schemas applied. PostgreSQL is the server of
// DATABASE_URL; without it that half is skipped, or fails where
// PIZZA_TEST_REQUIRE promises postgres.
func Each(t *testing.T, fn func(t *testing.T, db *sqldb.DB), schemas ...Schema) {
	t.Helper()
	for _, engine := range []sqldb.Engine{sqldb.SQLite, sqldb.Postgres} {
		t.Run(string(engine), func(t *testing.T) {
			fn(t, Open(t, engine, schemas...))
		})
	}
}

// Open is an empty database of the engine with the schemas applied. It is
// closed, and its data dropped, when the test ends.
func Open(t testing.TB, engine sqldb.Engine, schemas ...Schema) *sqldb.DB {
	t.Helper()
	return Connect(t, URL(t, engine), schemas...)
}

// Connect is one more connection pool to the database of a URL.
func Connect(t testing.TB, rawURL string, schemas ...Schema) *sqldb.DB {
	t.Helper()
	db, err := sqldb.Open(context.Background(), rawURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, s := range schemas {
		if err := db.Migrate(context.Background(), s.Name, s.FS); err != nil {
			t.Fatal(err)
		}
	}
	return db
}

// URL is the URL of an empty database of the engine, gone when the test ends.
func URL(t testing.TB, engine sqldb.Engine) string {
	t.Helper()
	if engine == sqldb.SQLite {
		return "sqlite:" + filepath.Join(t.TempDir(), "test.db")
	}
	server, u := serverURL(t)
	schema := newName()
	q := u.Query()
	q.Set("search_path", schema)
	q.Set("application_name", schema) // so that a test can tell its own sessions from others'
	u.RawQuery = q.Encode()
	admin(t, server, `CREATE SCHEMA `+schema)
	t.Cleanup(func() { admin(t, server, `DROP SCHEMA `+schema+` CASCADE`) })
	return u.String()
}

// Database is the URL of a new database of PostgreSQL with those options of
// CREATE DATABASE, gone when the test ends.
func Database(t testing.TB, options string) string {
	t.Helper()
	server, u := serverURL(t)
	u.Path = "/" + newName()
	admin(t, server, `CREATE DATABASE `+u.Path[1:]+` `+options)
	t.Cleanup(func() { admin(t, server, `DROP DATABASE `+u.Path[1:]+` WITH (FORCE)`) })
	return u.String()
}

func newName() string { return "t_" + strings.ToLower(rand.Text()) }

// serverURL is that of the PostgreSQL to test on; without one the test is
// skipped, or fails.
func serverURL(t testing.TB) (server string, u *url.URL) {
	t.Helper()
	server = os.Getenv("DATABASE_URL")
	if server == "" {
		if strings.Contains(os.Getenv("PIZZA_TEST_REQUIRE"), "postgres") {
			t.Fatal("PIZZA_TEST_REQUIRE promises postgres, but DATABASE_URL is not set")
		}
		t.Skip("DATABASE_URL is not set: `make test` starts a PostgreSQL")
	}
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	return server, u
}

func admin(t testing.TB, server, statement string) {
	t.Helper()
	db, err := sqldb.Open(context.Background(), server)
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.ExecContext(sqldb.WithStatementTimeout(context.Background(), time.Minute), statement)
	if err := errors.Join(err, db.Close()); err != nil {
		t.Error(err)
	}
}

// Count is the number that a query selects.
func Count(t testing.TB, db *sqldb.DB, query string, args ...any) (n int) {
	t.Helper()
	if err := db.Read().QueryRow(query, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
