package sqldb

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// faultMemory is for how long CheckWrites returns the error of the last flush: once
// readiness is lost no more requests may come, and then only a write of its own
// shows that the database is back.
const faultMemory = 10 * time.Second

// spaceTried is how many bytes a disk must have room for: more than one flush of a
// Group needs.
const spaceTried = 256 << 10

// CheckWrites finds out whether the database takes writes. If the last flush of a
// Group failed less than ten seconds ago, because of the database, it returns that
// error, and else it does a real write. That write needs the locks and rights of
// all our tables in the schema, room on the disk, and a commit; it changes no row
// and leaves nothing behind. It waits a second for a lock, and no longer than ctx
// lasts, but ten seconds for a commit that PostgreSQL does not answer.
func (db *DB) CheckWrites(ctx context.Context) error {
	if err := db.flushes.recentFault(); err != nil {
		return fmt.Errorf("the last write failed: %w", err)
	}
	check := db.checkServer
	if db.Engine == SQLite {
		check = db.checkFile
	}
	err := check(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		return fmt.Errorf("try to write: %w: %w", ErrNoAnswer, err)
	case err != nil:
		return fmt.Errorf("try to write: %w", err)
	}
	return nil
}

// checkFile writes a file beside SQLite's, and then user_version, a number in the
// header of SQLite's own file that SQLite leaves to its users.
func (db *DB) checkFile(ctx context.Context) (err error) {
	var path string
	if err := db.read.QueryRowContext(ctx, `SELECT file FROM pragma_database_list WHERE name = 'main'`).Scan(&path); err != nil {
		return err
	}
	if err := checkSpace(path + "-space"); err != nil {
		return err
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("the writer waits, for a file that another process has locked or for the disk: %w", err)
	}
	steady := context.WithoutCancel(ctx) // the one connection that writes must get its setting back
	defer func() {
		_, e := conn.ExecContext(steady, busyPatience(busyTimeout))
		err = errors.Join(err, e, conn.Close())
	}()
	if _, err := conn.ExecContext(steady, busyPatience(time.Second)); err != nil {
		return err
	}
	_, err = conn.ExecContext(ctx, `PRAGMA user_version = 0`)
	return err
}

// busyPatience is a statement that says how long to wait for a locked file.
func busyPatience(d time.Duration) string {
	return fmt.Sprintf("PRAGMA busy_timeout(%d)", d.Milliseconds())
}

// checkSpace writes a file of that name and removes it.
func checkSpace(path string) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(path)) }()
	fill := make([]byte, spaceTried)
	_, _ = rand.Read(fill) // never fails; zeros need no room in a file system with sparse files
	_, err = f.Write(fill)
	return err
}

// checkServer inserts no row into each table, writes 256 KiB into a temporary file
// of the server, and an empty message into its write-ahead log.
func (db *DB) checkServer(ctx context.Context) error {
	return db.Tx(ctx, func(tx *sql.Tx) error {
		script, err := writeScript(ctx, tx)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, script, pgx.QueryExecModeSimpleProtocol) // which takes several statements
		return err
	})
}

// writeScript is a script for checkServer. It inserts no row into each table whose
// owner is that of the migrations' tables (the schema may hold an extension's, too);
// PostgreSQL asks for locks, rights and a primary all the same. It releases the lock
// of each table before it takes the next, so that a transaction that locks several
// tables waits for one of them at most. PostgreSQL keeps the result of
// generate_series in memory up to work_mem, and beyond that in a file on the disk of
// the tables.
func writeScript(ctx context.Context, tx *sql.Tx) (string, error) {
	rows, err := tx.QueryContext(ctx, `
		SELECT format('INSERT INTO %I (%I) OVERRIDING SYSTEM VALUE SELECT NULL WHERE false', c.relname, min(a.attname))
		FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
		WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND c.relname NOT LIKE '%\_migrations'
			AND c.relowner IN (SELECT relowner FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relname LIKE '%\_migrations')
		GROUP BY c.relname ORDER BY c.relname`)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	var script strings.Builder
	script.WriteString(`SET LOCAL lock_timeout = '1s'; SET LOCAL work_mem = '64kB'; SAVEPOINT nothing;`)
	for rows.Next() {
		var insert string
		if err := rows.Scan(&insert); err != nil {
			return "", err
		}
		fmt.Fprintf(&script, "%s; ROLLBACK TO nothing;", insert)
	}
	fmt.Fprintf(&script, "SELECT count(*) FROM generate_series(1, %d); SELECT pg_logical_emit_message(true, 'pizzaflow', '')", spaceTried/generatedRow)
	return script.String(), rows.Err()
}

// generatedRow is about how many bytes a row of generate_series takes in a file.
const generatedRow = 16

// A lastFlush is the outcome of the last flush of a Group.
type lastFlush struct {
	mu  sync.Mutex
	err error // nil when the flush failed through no fault of the database
	at  time.Time
}

// record keeps the outcome of a flush.
func (f *lastFlush) record(err error) {
	if !IsUnavailable(err) {
		err = nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err, f.at = err, time.Now()
}

// recentFault is the error of the last flush, if it is recent.
func (f *lastFlush) recentFault() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.at) > faultMemory {
		return nil
	}
	return f.err
}

// flushes has the last flush of each Group of a database.
type flushes struct {
	mu  sync.Mutex
	all []*lastFlush
}

func (f *flushes) add(g *lastFlush) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = append(f.all, g)
}

// recentFault is the first recent error of a group.
func (f *flushes) recentFault() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, g := range f.all {
		if err := g.recentFault(); err != nil {
			return err
		}
	}
	return nil
}
