package sqldb

import (
	"context"
	"crypto/tls"
	"crypto/x509"
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

// An ErrorClass says what the caller can do about an error of a database.
type ErrorClass string

// The classes. ErrorClass "" stands for an error that is not the database's.
const (
	Conflict    ErrorClass = "conflict"    // the transaction made way for another one: run it again now
	Unavailable ErrorClass = "unavailable" // the database cannot serve now: nothing is wrong with the statement, run it again later
	Permanent   ErrorClass = "permanent"   // the statement or its data is at fault: it will fail again
	Fatal       ErrorClass = "fatal"       // the database is not what the program needs (schema, rights, password, pooler): a person must act
)

// ErrOutcomeUnknown is wrapped, beside the cause, by the error of a commit whose
// answer was lost: the transaction may be stored or not. Only a look at the
// database tells.
var ErrOutcomeUnknown = errors.New("outcome unknown")

// ErrNoAnswer is wrapped by the error of a statement that did not end within its
// time, see WithStatementTimeout: the server, or a proxy before it, is silent, or
// the statement waits for a lock.
var ErrNoAnswer = errors.New("the database did not answer in time")

// ErrUnfit is wrapped by the error of Open and Migrate when the server answers and
// cannot be used as it is: its version, its encoding, a pooler that mixes
// sessions. Its class is Fatal.
var ErrUnfit = errors.New("the database cannot be used as it is")

// Classify gives an error its class, by the codes of either engine; nil has none.
func Classify(err error) ErrorClass {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		class := classifyPostgres(e)
		if _, connecting := errors.AsType[connectError](err); connecting && class == Permanent {
			return Fatal // there was no statement yet that could be at fault
		}
		return class
	}
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return classifySQLite(e)
	}
	switch {
	case errors.Is(err, ErrUnfit):
		return Fatal
	case errors.Is(err, ErrNoAnswer), errors.Is(err, ErrFull), isOtherRole(err):
		return Unavailable
	case isRefusedConnection(err):
		return Fatal
	}
	return ""
}

// postgresClasses has the class of every SQLSTATE that is not Permanent: by the
// whole code, or by its first two characters. The codes are those of appendix A
// of PostgreSQL's manual.
var postgresClasses = map[string]ErrorClass{
	"40":    Conflict,    // transaction rollback: serialization_failure, deadlock_detected
	"40002": Permanent,   // transaction_integrity_constraint_violation
	"40003": Unavailable, // statement_completion_unknown
	"72000": Conflict,    // snapshot_too_old

	"08":    Unavailable, // connection exceptions; a pooler's own messages come as 08P01
	"53":    Unavailable, // insufficient resources: disk_full, out_of_memory, too_many_connections, configuration_limit_exceeded
	"57":    Unavailable, // operator intervention: query_canceled (statement_timeout), the shutdowns, cannot_connect_now, idle_session_timeout
	"58":    Unavailable, // system errors: io_error
	"F0":    Unavailable, // configuration file errors
	"XX":    Unavailable, // internal errors, corrupted data or index: the server is at fault
	"25006": Unavailable, // read_only_sql_transaction: a standby, or a primary that was demoted
	"25P03": Unavailable, // idle_in_transaction_session_timeout
	"25P04": Unavailable, // transaction_timeout
	"55":    Unavailable, // object not in the state that it takes: a database that lets nobody in, a server in recovery, lock_not_available (lock_timeout)

	"28":    Fatal, // invalid authorization: role, password, pg_hba.conf
	"0L":    Fatal, // invalid grantor
	"0P":    Fatal, // invalid role
	"3D":    Fatal, // invalid_catalog_name: no such database
	"3F":    Fatal, // invalid_schema_name
	"57P04": Fatal, // database_dropped
	"55P02": Fatal, // cant_change_runtime_param
	"26":    Fatal, // invalid_sql_statement_name: a pooler gave the session to somebody else
	"42P05": Fatal, // duplicate_prepared_statement: the same
	"42501": Fatal, // insufficient_privilege
	"42P01": Fatal, // undefined_table
	"42703": Fatal, // undefined_column
	"42704": Fatal, // undefined_object
	"42883": Fatal, // undefined_function
	"42P10": Fatal, // invalid_column_reference: ON CONFLICT without its constraint
}

// poolerRefusals are parts of PgBouncer's messages about what it will refuse again
// and again. All its own messages have the code 08P01, those about a passing state
// as well: a full pool, a server that is away.
var poolerRefusals = []string{
	"unsupported startup parameter", "no such database", "no such user", "authentication failed", "login rejected",
	"SSL required", "certificate", "config error", "not allowed",
}

// Parts of messages that decide where the code does not.
const (
	onStandby    = "hot standby"                             // 0A000: serializable is the server's default, and it is no primary
	stalePlan    = "cached plan must not change result type" // 0A000: the table was altered since the statement was prepared
	missingTable = "no such "                                // SQLITE_ERROR: table, column
	noColumn     = "has no column named "                    // SQLITE_ERROR
)

func classifyPostgres(e *pgconn.PgError) ErrorClass {
	says := func(part string) bool { return strings.Contains(e.Message, part) }
	switch {
	case e.Code == "08P01" && slices.ContainsFunc(poolerRefusals, says):
		return Fatal
	case e.Code == "0A000" && says(stalePlan):
		return Conflict
	case e.Code == "0A000" && says(onStandby):
		return Unavailable
	}
	if class, ok := postgresClasses[e.Code]; ok {
		return class
	}
	if class, ok := postgresClasses[e.Code[:min(2, len(e.Code))]]; ok {
		return class
	}
	return Permanent
}

// sqliteClasses has the class of every result code that is not Permanent: by the
// extended code, or by the primary one, its lowest byte. The codes are those of
// https://sqlite.org/rescode.html. SQLITE_BUSY comes after ten seconds of
// waiting (busy_timeout): another process holds the file.
var sqliteClasses = map[int]ErrorClass{
	lite.SQLITE_BUSY_SNAPSHOT: Conflict,
	lite.SQLITE_LOCKED:        Conflict,
	lite.SQLITE_SCHEMA:        Conflict,

	lite.SQLITE_BUSY:      Unavailable,
	lite.SQLITE_FULL:      Unavailable,
	lite.SQLITE_IOERR:     Unavailable,
	lite.SQLITE_READONLY:  Unavailable,
	lite.SQLITE_CANTOPEN:  Unavailable,
	lite.SQLITE_NOMEM:     Unavailable,
	lite.SQLITE_PROTOCOL:  Unavailable,
	lite.SQLITE_INTERRUPT: Unavailable,

	lite.SQLITE_CORRUPT: Fatal,
	lite.SQLITE_NOTADB:  Fatal,
	lite.SQLITE_PERM:    Fatal,
	lite.SQLITE_AUTH:    Fatal,
	lite.SQLITE_NOLFS:   Fatal,
}

func classifySQLite(e *sqlite.Error) ErrorClass {
	if class, ok := sqliteClasses[e.Code()]; ok {
		return class
	}
	if class, ok := sqliteClasses[e.Code()&0xff]; ok {
		return class
	}
	if e.Code() == lite.SQLITE_ERROR && (strings.Contains(e.Error(), missingTable) || strings.Contains(e.Error(), noColumn)) {
		return Fatal
	}
	return Permanent
}

// isRefusedConnection reports whether a connection was made and then refused by
// either side, which no waiting cures: a certificate that does not verify, no
// TLS, an authentication that this program does not know. Errors of the network
// are not among these: a name that is not found may be found later.
func isRefusedConnection(err error) bool {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err) // pgx's own check for sslmode=verify-ca
	_, invalid := errors.AsType[x509.CertificateInvalidError](err)
	if unknown || invalid {
		return true
	}
	_, connecting := errors.AsType[*pgconn.ConnectError](err)
	return connecting && !isBroken(err)
}

// isOtherRole reports whether no server has the role that the URL asks for by
// target_session_attrs, as when none has been promoted to primary yet.
func isOtherRole(err error) bool {
	return slices.ContainsFunc([]error{
		pgconn.ErrStandbyConnection, pgconn.ErrPrimaryConnection, pgconn.ErrReadOnlyConnection, pgconn.ErrReadWriteConnection,
	}, func(role error) bool { return errors.Is(err, role) })
}

// isBroken reports whether err is that of a connection that broke or could not be
// made, or of a context that ended.
func isBroken(err error) bool {
	var netErr net.Error
	return errors.As(err, &netErr) || pgconn.SafeToRetry(err) || pgconn.Timeout(err) ||
		errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// IsUnique reports whether err is the violation of a unique constraint.
func IsUnique(err error) bool {
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return e.Code() == lite.SQLITE_CONSTRAINT_UNIQUE || e.Code() == lite.SQLITE_CONSTRAINT_PRIMARYKEY
	}
	return postgresCode(err) == "23505"
}

// ViolatedConstraint is the name of the constraint that err says is violated; ""
// when it names none, as on SQLite.
func ViolatedConstraint(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.ConstraintName
	}
	return ""
}

// IsConflict reports whether the engine rolled the transaction back in favour of
// another one (deadlock, serialization failure), so that it should be run again.
func IsConflict(err error) bool { return Classify(err) == Conflict }

// isRefused reports whether err is the engine's refusal of a commit, after which
// nothing of the transaction is stored.
func isRefused(err error) bool {
	code := postgresCode(err)
	return IsConflict(err) || strings.HasPrefix(code, "23") || code == "25006" || errors.Is(err, pgx.ErrTxCommitRollback)
}

// IsAborted reports whether err only says that the transaction had failed before:
// PostgreSQL refuses every statement after one that failed.
func IsAborted(err error) bool { return postgresCode(err) == "25P02" }

// SaysUnavailable reports whether the engine itself says that it cannot serve now,
// or cannot serve this program until a person acts (Unavailable, Fatal). Nothing
// is wrong with the statement.
func SaysUnavailable(err error) bool {
	class := Classify(err)
	return class == Unavailable || class == Fatal
}

// IsTimeout reports whether a limit on time ended the statement, ours or one
// that the server has (statement_timeout, lock_timeout, transaction_timeout):
// a smaller statement may fit into it.
func IsTimeout(err error) bool {
	return errors.Is(err, ErrNoAnswer) || slices.Contains([]string{"57014", "55P03", "25P04"}, postgresCode(err))
}

// IsFatal reports whether waiting will not cure err: a person must change the
// configuration or the server.
func IsFatal(err error) bool { return Classify(err) == Fatal }

// IsUnavailable reports whether err says that the database itself is away,
// full, read-only, locked or failing, or does not get out of conflicts, as
// opposed to something being wrong with the request, against which such an error
// must not be counted. Unlike SaysUnavailable it takes every broken connection
// for the database's.
func IsUnavailable(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) {
		return false
	}
	if class := Classify(err); class != "" {
		return class != Permanent
	}
	return isBroken(err)
}

func postgresCode(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code
	}
	return ""
}
