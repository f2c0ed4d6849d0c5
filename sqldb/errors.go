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

// IsConflict reports whether the engine gave the transaction up for the sake
// of others (deadlock, serialization failure, a busy writer), so that running
// it again is the cure.
func IsConflict(err error) bool {
	code := sqliteCode(err) & 0xff
	return code == lite.SQLITE_BUSY || code == lite.SQLITE_LOCKED || slices.Contains([]string{"40001", "40P01"}, postgresCode(err))
}

// isRefused reports whether the engine said no to a commit, so that nothing of
// the transaction is stored.
func isRefused(err error) bool {
	code := postgresCode(err)
	return IsConflict(err) || strings.HasPrefix(code, "23") || errors.Is(err, pgx.ErrTxCommitRollback)
}

// IsAborted reports whether err only says that the transaction had failed
// before: PostgreSQL refuses every statement after the one that was to blame.
func IsAborted(err error) bool { return postgresCode(err) == "25P02" }

// IsDown reports whether err is the engine's own word that it cannot serve now:
// it is shutting down, full, read-only or failing.
func IsDown(err error) bool {
	switch sqliteCode(err) & 0xff {
	case lite.SQLITE_READONLY, lite.SQLITE_IOERR, lite.SQLITE_CORRUPT, lite.SQLITE_FULL, lite.SQLITE_CANTOPEN, lite.SQLITE_NOTADB, lite.SQLITE_NOMEM:
		return true
	}
	code := postgresCode(err)
	// 08 connection, 53 resources (disk full, too many connections), 58 system error,
	// 57P0x shutdown, 25006 a read-only server, 25P03 and 25P04 a session that slept
	return code != "" && (slices.Contains([]string{"08", "53", "58"}, code[:2]) || strings.HasPrefix(code, "57P") ||
		slices.Contains([]string{"25006", "25P03", "25P04"}, code))
}

// IsUnavailable reports whether err says that the database itself is away,
// full, read-only or failing, or does not get out of conflicts, as opposed to
// something being wrong with the request. Nothing is gained by counting it
// against the request. Unlike IsDown it takes every broken connection for the
// database's.
func IsUnavailable(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) {
		return false
	}
	if IsDown(err) || IsConflict(err) {
		return true
	}
	if postgresCode(err) != "" {
		return strings.HasPrefix(postgresCode(err), "40")
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
