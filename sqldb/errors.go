package sqldb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	lite "modernc.org/sqlite/lib"
)

// ErrOutcomeUnknown stands in an error beside its cause when what was to be
// stored may be stored or not, because the answer was lost. Only a look at the
// database tells.
var ErrOutcomeUnknown = errors.New("outcome unknown")

// IsUnique reports whether err is the violation of a unique constraint.
func IsUnique(err error) bool {
	switch code := sqliteCode(err); code {
	case lite.SQLITE_CONSTRAINT_UNIQUE, lite.SQLITE_CONSTRAINT_PRIMARYKEY:
		return true
	}
	return postgresCode(err) == "23505"
}

// isConflict reports whether the engine gave the transaction up for the sake
// of others, so that running it again is the cure.
func isConflict(err error) bool {
	return sqliteCode(err)&0xff == lite.SQLITE_BUSY || slices.Contains([]string{"40001", "40P01"}, postgresCode(err))
}

// isRefused reports whether the engine said no to a commit, so that nothing of
// the transaction is stored.
func isRefused(err error) bool {
	code := postgresCode(err)
	return isConflict(err) || strings.HasPrefix(code, "23") || errors.Is(err, pgx.ErrTxCommitRollback)
}

// IsAborted reports whether err only says that the transaction had failed
// before: PostgreSQL refuses every statement after the one that was to blame.
func IsAborted(err error) bool { return postgresCode(err) == "25P02" }

// IsUnavailable reports whether err says that the database itself is away,
// full, read-only or failing, as opposed to something being wrong with the
// request. Nothing is gained by counting it against the request.
func IsUnavailable(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) {
		return false
	}
	switch sqliteCode(err) & 0xff {
	case lite.SQLITE_BUSY, lite.SQLITE_LOCKED, lite.SQLITE_READONLY, lite.SQLITE_IOERR, lite.SQLITE_CORRUPT,
		lite.SQLITE_FULL, lite.SQLITE_CANTOPEN, lite.SQLITE_NOTADB, lite.SQLITE_NOMEM:
		return true
	}
	if code := postgresCode(err); code != "" {
		// 08 connection, 53 resources (disk full, too many connections), 58 system error,
		// 57P0x shutdown, 25006 a read-only server, 25P03 and 25P04 a session that slept, 40xxx conflicts that did not go away
		return slices.Contains([]string{"08", "53", "58", "40"}, code[:2]) || strings.HasPrefix(code, "57P") || slices.Contains([]string{"25006", "25P03", "25P04"}, code)
	}
	var netErr net.Error
	var connect *pgconn.ConnectError
	return errors.As(err, &netErr) || errors.As(err, &connect) || pgconn.SafeToRetry(err) || pgconn.Timeout(err) ||
		errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, io.EOF) || errors.Is(err, ErrFull) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func postgresCode(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok && len(e.Code) == 5 {
		return e.Code
	}
	return ""
}

func sqliteCode(err error) int {
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return e.Code()
	}
	return 0
}
