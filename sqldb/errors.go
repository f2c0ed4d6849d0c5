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

// A Verdict is what an error of a database asks of whoever ran the statement.
type Verdict string

// The verdicts. Verdict "" stands for an error that is not the database's.
const (
	Retry Verdict = "retry" // the transaction made way for another one: run it again now
	Wait  Verdict = "wait"  // the database cannot serve now: nothing is wrong with the statement, run it again later
	Fault Verdict = "fault" // the statement or its data is at fault: it will fail again
	Fatal Verdict = "fatal" // the database is not what the program needs (schema, rights, password, pooler): a person must act
)

// ErrOutcomeUnknown stands in an error beside its cause when what was to be
// stored may be stored or not, because the answer was lost. Only a look at the
// database tells.
var ErrOutcomeUnknown = errors.New("outcome unknown")

// ErrNoAnswer stands in the error of a statement whose answer did not come
// within its time, see WithStatementTimeout: the server, or what stands before
// it, is silent, or somebody else's lock is in the way.
var ErrNoAnswer = errors.New("the database did not answer in time")

// ErrUnfit stands in the error of Open and Migrate when the server answers and
// cannot be used as it is: its version, its encoding, a pooler that mixes
// sessions. Its verdict is Fatal.
var ErrUnfit = errors.New("the database cannot be used as it is")

// Judge says what an error asks for, by the codes of either engine.
func Judge(err error) Verdict {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		verdict := judgePostgres(e)
		if _, connecting := errors.AsType[connectError](err); connecting && verdict == Fault {
			return Fatal // nobody has asked anything of the server yet
		}
		return verdict
	}
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return judgeSQLite(e)
	}
	switch {
	case errors.Is(err, ErrUnfit):
		return Fatal
	case errors.Is(err, ErrNoAnswer), errors.Is(err, ErrFull), isOtherRole(err):
		return Wait
	case isRefusedConnection(err):
		return Fatal
	}
	return ""
}

// postgresVerdicts has the verdict of every SQLSTATE that is not Fault: by the
// whole code, or by its class, the first two characters. The codes are those of
// appendix A of PostgreSQL's manual.
var postgresVerdicts = map[string]Verdict{
	"40":    Retry, // transaction rollback: serialization_failure, deadlock_detected
	"40002": Fault, // transaction_integrity_constraint_violation
	"40003": Wait,  // statement_completion_unknown
	"72000": Retry, // snapshot_too_old

	"08":    Wait, // connection exceptions; a pooler's own words come as 08P01
	"53":    Wait, // insufficient resources: disk_full, out_of_memory, too_many_connections, configuration_limit_exceeded
	"57":    Wait, // operator intervention: query_canceled (statement_timeout), the shutdowns, cannot_connect_now, idle_session_timeout
	"58":    Wait, // system errors: io_error
	"F0":    Wait, // configuration file errors
	"XX":    Wait, // internal errors, corrupted data or index: the server's fault
	"25006": Wait, // read_only_sql_transaction: a standby, or a primary that was demoted
	"25P03": Wait, // idle_in_transaction_session_timeout
	"25P04": Wait, // transaction_timeout
	"55":    Wait, // object not in the state that it takes: a database that lets nobody in, a server in recovery, lock_not_available (lock_timeout)

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

// poolerRefusals are PgBouncer's words for what it will refuse again and again.
// All that it says by itself has the code 08P01, what passes by as well: a full
// pool, a server that is away.
var poolerRefusals = []string{
	"unsupported startup parameter", "no such database", "no such user", "authentication failed", "login rejected",
	"SSL required", "certificate", "config error", "not allowed",
}

// Some more messages that tell what their code does not.
const (
	onStandby    = "hot standby"                             // 0A000: serializable is the server's default, and it is no primary
	stalePlan    = "cached plan must not change result type" // 0A000: the table was altered since the statement was prepared
	missingTable = "no such "                                // SQLITE_ERROR: table, column
	noColumn     = "has no column named "                    // SQLITE_ERROR
)

func judgePostgres(e *pgconn.PgError) Verdict {
	said := func(words string) bool { return strings.Contains(e.Message, words) }
	switch {
	case e.Code == "08P01" && slices.ContainsFunc(poolerRefusals, said):
		return Fatal
	case e.Code == "0A000" && said(stalePlan):
		return Retry
	case e.Code == "0A000" && said(onStandby):
		return Wait
	}
	if v, ok := postgresVerdicts[e.Code]; ok {
		return v
	}
	if v, ok := postgresVerdicts[e.Code[:min(2, len(e.Code))]]; ok {
		return v
	}
	return Fault
}

// sqliteVerdicts has the verdict of every result code that is not Fault: by the
// extended code, or by the primary one, its lowest byte. The codes are those of
// https://sqlite.org/rescode.html. SQLITE_BUSY comes after ten seconds of
// waiting (busy_timeout): somebody outside of this process holds the file.
var sqliteVerdicts = map[int]Verdict{
	lite.SQLITE_BUSY_SNAPSHOT: Retry,
	lite.SQLITE_LOCKED:        Retry,
	lite.SQLITE_SCHEMA:        Retry,

	lite.SQLITE_BUSY:      Wait,
	lite.SQLITE_FULL:      Wait,
	lite.SQLITE_IOERR:     Wait,
	lite.SQLITE_READONLY:  Wait,
	lite.SQLITE_CANTOPEN:  Wait,
	lite.SQLITE_NOMEM:     Wait,
	lite.SQLITE_PROTOCOL:  Wait,
	lite.SQLITE_INTERRUPT: Wait,

	lite.SQLITE_CORRUPT: Fatal,
	lite.SQLITE_NOTADB:  Fatal,
	lite.SQLITE_PERM:    Fatal,
	lite.SQLITE_AUTH:    Fatal,
	lite.SQLITE_NOLFS:   Fatal,
}

func judgeSQLite(e *sqlite.Error) Verdict {
	if v, ok := sqliteVerdicts[e.Code()]; ok {
		return v
	}
	if v, ok := sqliteVerdicts[e.Code()&0xff]; ok {
		return v
	}
	if e.Code() == lite.SQLITE_ERROR && (strings.Contains(e.Error(), missingTable) || strings.Contains(e.Error(), noColumn)) {
		return Fatal
	}
	return Fault
}

// isRefusedConnection reports whether a connection was made and then refused by
// either side, which no waiting cures: a certificate that does not verify, no
// TLS, an authentication that this program does not know. What the network says
// is not among these: a name that is not found may be found later.
func isRefusedConnection(err error) bool {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err) // what sslmode=verify-ca finds by itself
	_, invalid := errors.AsType[x509.CertificateInvalidError](err)
	if unknown || invalid {
		return true
	}
	_, connecting := errors.AsType[*pgconn.ConnectError](err)
	return connecting && !isBroken(err)
}

// isOtherRole reports whether no server is there that has the role which the
// URL asks for by target_session_attrs, as when none has been made the primary
// yet.
func isOtherRole(err error) bool {
	return slices.ContainsFunc([]error{
		pgconn.ErrStandbyConnection, pgconn.ErrPrimaryConnection, pgconn.ErrReadOnlyConnection, pgconn.ErrReadWriteConnection,
	}, func(role error) bool { return errors.Is(err, role) })
}

// isBroken reports whether err is what becomes of a statement when its
// connection breaks or is never made, or its context ends.
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
// when it says none, as on SQLite.
func ViolatedConstraint(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.ConstraintName
	}
	return ""
}

// IsConflict reports whether the engine gave the transaction up for the sake
// of others (deadlock, serialization failure), so that running it again is the
// cure.
func IsConflict(err error) bool { return Judge(err) == Retry }

// isRefused reports whether the engine said no to a commit, so that nothing of
// the transaction is stored.
func isRefused(err error) bool {
	code := postgresCode(err)
	return IsConflict(err) || strings.HasPrefix(code, "23") || code == "25006" || errors.Is(err, pgx.ErrTxCommitRollback)
}

// IsAborted reports whether err only says that the transaction had failed
// before: PostgreSQL refuses every statement after the one that was to blame.
func IsAborted(err error) bool { return postgresCode(err) == "25P02" }

// IsDown reports whether err is the engine's own word that it cannot serve now,
// or cannot serve this program until a person acts (Wait, Fatal). Nothing is
// wrong with what was asked of it.
func IsDown(err error) bool {
	v := Judge(err)
	return v == Wait || v == Fatal
}

// IsTimeout reports whether a limit on time ended the statement, ours or one
// that the server has (statement_timeout, lock_timeout, transaction_timeout):
// less work at once may fit into it.
func IsTimeout(err error) bool {
	return errors.Is(err, ErrNoAnswer) || slices.Contains([]string{"57014", "55P03", "25P04"}, postgresCode(err))
}

// IsFatal reports whether waiting will not cure err: a person must change the
// configuration or the server.
func IsFatal(err error) bool { return Judge(err) == Fatal }

// IsUnavailable reports whether err says that the database itself is away,
// full, read-only, locked or failing, or does not get out of conflicts, as
// opposed to something being wrong with the request. Nothing is gained by
// counting it against the request. Unlike IsDown it takes every broken
// connection for the database's.
func IsUnavailable(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) {
		return false
	}
	if v := Judge(err); v != "" {
		return v != Fault
	}
	return isBroken(err)
}

func postgresCode(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code
	}
	return ""
}
