// Package sqldb opens the two engines the system runs on, PostgreSQL and
// SQLite, behind database/sql, so that every other package writes its SQL
// once: $1 for arguments, ON CONFLICT, RETURNING. What differs between the
// engines is here and in the schema files, nowhere else.
//
// The promises of the other packages rest on durability: SQLite runs with a
// write-ahead log and synchronous=FULL, PostgreSQL with the server's
// synchronous_commit; where that is off and the URL does not ask for off, with on.
package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	_ "modernc.org/sqlite" // the driver "sqlite"

	"pizzaflow/internal/retry"
)

// An Engine names one of the two databases and the folder of its schema files.
type Engine string

// The engines.
const (
	Postgres Engine = "postgres"
	SQLite   Engine = "sqlite"
)

// busyTimeout is how long SQLite waits for a file that another process has locked.
const busyTimeout = 10 * time.Second

// ErrURL is returned by Open for a URL of neither engine.
var ErrURL = errors.New("database URL: want postgres://… or sqlite:PATH")

// DB is a database of either engine. The embedded pool writes; on SQLite it is a
// single connection, because SQLite has a single writer. So a function that is
// called in a transaction must run no statement on the DB: it would wait for the
// transaction for ever.
type DB struct {
	*sql.DB
	Engine Engine

	read    *sql.DB
	flushes flushes
	// PostgreSQL:
	sessions *sql.DB // keeps no idle connection, see Session
	schema   string  // the first schema of search_path, "" for the default
}

// Open opens a postgres:// URL or a sqlite: path and checks that the database
// answers. A search_path in a PostgreSQL URL names the schema of all tables, which
// Migrate creates. The folder of a SQLite file is created, readable by its owner
// only. The error wraps ErrURL or ErrClear as that of Check; ErrUnfit for a version,
// an encoding, settings or a pooler of PostgreSQL that cannot be used; or it is the
// engine's own, for Classify.
func Open(ctx context.Context, rawURL string) (*DB, error) { return OpenLimited(ctx, rawURL, Limits{}) }

// OpenLimited is Open with limits on the connections to PostgreSQL.
func OpenLimited(ctx context.Context, rawURL string, limits Limits) (*DB, error) {
	var db *DB
	var err error
	path, lite := strings.CutPrefix(rawURL, "sqlite:")
	switch {
	case lite && path != "":
		db, err = openSQLite(path)
	case strings.HasPrefix(rawURL, "postgres://"), strings.HasPrefix(rawURL, "postgresql://"):
		db, err = openPostgres(rawURL, limits)
	default:
		return nil, ErrURL
	}
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	check := db.PingContext
	if db.Engine == Postgres {
		check = db.checkPooling
	}
	if err := check(ctx); err != nil {
		return nil, fmt.Errorf("open database: %w", errors.Join(err, db.Close()))
	}
	return db, nil
}

func openSQLite(path string) (*DB, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(abs), 0o700); err != nil {
		return nil, err
	}
	// SQLite gives its other files the mode of this one.
	f, err := os.OpenFile(abs, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	dsn := func(txlock string, pragmas ...string) string {
		q := url.Values{"_txlock": {txlock}, "_time_format": {"sqlite"}, "_pragma": append([]string{
			fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds()), "journal_mode(wal)", "synchronous(full)", "foreign_keys(1)",
		}, pragmas...)}
		return (&url.URL{Scheme: "file", Path: abs, RawQuery: q.Encode()}).String()
	}
	write, err := openCached(dsn("immediate"))
	if err != nil {
		return nil, err
	}
	read, err := openCached(dsn("deferred", "query_only(1)"))
	if err != nil {
		return nil, errors.Join(err, write.Close())
	}
	write.SetMaxOpenConns(1)
	read.SetMaxOpenConns(max(4, runtime.NumCPU()))
	read.SetMaxIdleConns(max(4, runtime.NumCPU()))
	return &DB{DB: write, Engine: SQLite, read: read}, nil
}

// Read is the pool for reads outside of transactions. On SQLite its connections do
// not wait for the writer; on PostgreSQL it is the embedded pool.
func (db *DB) Read() *sql.DB { return db.read }

// Pools are the pools of connections by their use, for metrics: "" is the embedded
// one, "read" on SQLite that of Read, "sessions" on PostgreSQL that of Session.
func (db *DB) Pools() map[string]*sql.DB {
	pools := map[string]*sql.DB{"": db.DB}
	if db.read != db.DB {
		pools["read"] = db.read
	}
	if db.sessions != nil {
		pools["sessions"] = db.sessions
	}
	return pools
}

// Close closes all connections.
func (db *DB) Close() error {
	err := db.DB.Close()
	if db.read != db.DB {
		err = errors.Join(err, db.read.Close())
	}
	if db.sessions != nil {
		err = errors.Join(err, db.sessions.Close())
	}
	return err
}

// Tx runs fn in a transaction, which is committed when fn returns nil and rolled
// back otherwise. A transaction that the engine ended because of a deadlock or a
// serialization conflict is run again, up to ten times, so fn must be repeatable;
// one whose server shuts down or is read-only is run once more, on a new connection.
// The error is that of fn, of the database or of the context. When the engine does
// not say whether it committed, the error wraps ErrOutcomeUnknown: look what is
// stored before doing it again.
func (db *DB) Tx(ctx context.Context, fn func(*sql.Tx) error) error {
	for try, reconnected := 1, false; ; try++ {
		err := db.txOnce(ctx, fn)
		if !reconnected && slices.Contains(needsNewConnection, postgresCode(err)) && !errors.Is(err, ErrOutcomeUnknown) {
			reconnected = true // handleError has retired the connections: a new one may reach a server that serves
			continue
		}
		if err == nil || !IsConflict(err) || try == maxTries || !retry.Sleep(ctx, conflictPause(try)) {
			return err
		}
	}
}

// maxTries is how often a transaction that meets conflicts is run.
const maxTries = 10

// conflictPause is the pause after try 1, 2, … that met a conflict: up to 10 ms, 20 ms,
// … 320 ms. It is drawn from all of that time, unlike retry.Backoff: of two
// transactions that deadlocked one should go on at once.
func conflictPause(try int) time.Duration {
	return time.Millisecond + rand.N(5*time.Millisecond<<min(try, 6)) //nolint:gosec // jitter
}

func (db *DB) txOnce(ctx context.Context, fn func(*sql.Tx) error) (err error) {
	tx, err := db.begin(ctx)
	if err != nil {
		return err
	}
	defer func() {
		// After a commit this does nothing; after a panic it releases the connection.
		if e := tx.Rollback(); e != nil && !errors.Is(e, sql.ErrTxDone) && err == nil {
			err = e
		}
	}()
	if err := fn(tx); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		if isRefused(err) {
			return fmt.Errorf("commit: %w", err)
		}
		return fmt.Errorf("commit: %w: %w", ErrOutcomeUnknown, err)
	}
	return nil
}

// begin begins a transaction. After the server was away the pool is full of broken
// connections, so one that turns out to be broken says nothing about the server:
// the next one is tried, until a new connection cannot be made.
func (db *DB) begin(ctx context.Context) (*sql.Tx, error) {
	for stale := 0; ; stale++ {
		tx, err := db.BeginTx(ctx, nil)
		if err == nil {
			return tx, nil
		}
		_, connecting := errors.AsType[connectError](err)
		if connecting || ctx.Err() != nil || db.Engine != Postgres || stale > db.Stats().MaxOpenConnections || !IsUnavailable(err) {
			return nil, fmt.Errorf("begin: %w", err)
		}
	}
}
