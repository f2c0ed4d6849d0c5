// Package sqldb opens the two engines the system runs on, PostgreSQL and
// SQLite, behind database/sql, so that every other package writes its SQL
// once: $1 for arguments, ON CONFLICT, RETURNING. What differs between the
// engines is here and in the schema files, nowhere else.
//
// Durability is what the promises of the other packages rest on: SQLite runs
// with write-ahead log and synchronous=FULL, PostgreSQL with the server's
// synchronous_commit, or on where that is off and the URL does not ask for it.
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
)

// An Engine names one of the two databases and the folder of its schema files.
type Engine string

// The engines.
const (
	Postgres Engine = "postgres"
	SQLite   Engine = "sqlite"
)

// busyTimeout is how long SQLite waits for a file that somebody else has locked.
const busyTimeout = 10 * time.Second

// ErrURL is returned by Open for a URL of neither engine.
var ErrURL = errors.New("database URL: want postgres://… or sqlite:PATH")

// DB is a database and the engine it speaks to. The embedded pool writes; on
// SQLite it is a single connection, because SQLite has a single writer. So a
// function that is inside a transaction must never ask the DB for anything.
type DB struct {
	*sql.DB
	Engine Engine

	read    *sql.DB
	flushes flushes
	// PostgreSQL:
	sessions *sql.DB // keeps no connection: see Session
	schema   string  // the first schema of search_path, "" for the default
}

// Open opens a postgres:// URL or a sqlite: path and checks that it answers.
// A search_path in a PostgreSQL URL names the schema to live in, which Migrate
// creates. The folder of a SQLite file is created, readable by its owner only.
// What Check refuses is not opened. On PostgreSQL version, encoding, settings
// and pooling are looked at, too: ErrUnfit.
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
	// SQLite gives its other files the mode of this one
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

// Read is the pool for reads outside of transactions. On SQLite they do not
// wait for the writer; on PostgreSQL it is the same pool.
func (db *DB) Read() *sql.DB { return db.read }

// Pools are the pools of connections by what they are for, to be told of: "" is
// the embedded one, "read" on SQLite that of Read, "sessions" on PostgreSQL
// what Session opens.
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

// Tx runs fn in a transaction, committed when fn returns nil and rolled back
// otherwise. A transaction that the engine ended to resolve a deadlock or a
// serialization conflict is run again, so fn must be repeatable; once also one
// that found its server shutting down or read-only, on a new connection. When the
// commit fails without a verdict of the engine, the error is ErrOutcomeUnknown
// too: look what is there before doing it again.
func (db *DB) Tx(ctx context.Context, fn func(*sql.Tx) error) error {
	for try, replaced := 1, false; ; try++ {
		err := db.txOnce(ctx, fn)
		if !replaced && slices.Contains(leadsNowhere, postgresCode(err)) && !errors.Is(err, ErrOutcomeUnknown) {
			replaced = true // the connections are: the new ones may lead to a server that serves
			continue
		}
		if err == nil || !IsConflict(err) || try == 10 {
			return err
		}
		pause := time.NewTimer(time.Duration(1+rand.IntN(5<<min(try, 6))) * time.Millisecond) //nolint:gosec // jitter
		select {
		case <-ctx.Done():
			pause.Stop()
			return err
		case <-pause.C:
		}
	}
}

func (db *DB) txOnce(ctx context.Context, fn func(*sql.Tx) error) (err error) {
	tx, err := db.begin(ctx)
	if err != nil {
		return err
	}
	defer func() {
		// after a commit this does nothing; after a panic it frees the connection
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

// begin begins a transaction. A pool that was in use when the server went away
// is full of connections that do not know it yet, so one that turns out to be
// broken is no news about the server: nothing was done on it, and the next is
// tried, until it is a new connection that cannot be made.
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
