package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// leastVersion is the oldest PostgreSQL that is supported: it was the first with
// idle_session_timeout.
const leastVersion = 14

// sessionSettings are the parameters of every session, unless the URL has its
// own. They are set after connecting, because a pooler such as PgBouncer refuses
// most of them in the connection's first message.
var sessionSettings = map[string]string{
	"client_encoding":               "UTF8",
	"default_transaction_isolation": "read committed", // what all statements are written for
	"standard_conforming_strings":   "on",             // what the driver needs
	// A client that vanished in mid-transaction must not hold row locks for longer
	// than others wait for them. Our transactions wait only for the server.
	"idle_in_transaction_session_timeout": "10000",
	// The sessions of a pool and of Listen are idle on purpose.
	"idle_session_timeout": "0",
}

const syncCommit = "synchronous_commit"

func openPostgres(rawURL string, limits Limits) (*DB, error) {
	cfg, err := parsePostgres(rawURL)
	if err != nil {
		return nil, err
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 5 * time.Second
	}
	settings := maps.Clone(sessionSettings)
	for name, value := range cfg.RuntimeParams {
		switch name {
		case "application_name", "options": // sent in the first message
		default:
			settings[name] = value
			delete(cfg.RuntimeParams, name)
		}
	}
	if cfg.RuntimeParams["application_name"] == "" {
		cfg.RuntimeParams["application_name"] = "pizzaflow"
	}
	schema, _, _ := strings.Cut(settings["search_path"], ",")
	schema = strings.Trim(strings.TrimSpace(schema), `"`)
	prepare := stdlib.OptionAfterConnect(func(ctx context.Context, conn *pgx.Conn) error {
		ctx, done := context.WithTimeoutCause(ctx, cfg.ConnectTimeout, ErrNoAnswer)
		defer done()
		if err := prepareSession(ctx, conn.PgConn(), settings, schema); err != nil {
			return errors.Join(fmt.Errorf("prepare session: %w", err), conn.Close(ctx))
		}
		return nil
	})
	from := connector{stdlib.GetConnector(*cfg, prepare), new(generation)}
	limits = limits.withDefaults()
	pool := sql.OpenDB(from)
	pool.SetMaxOpenConns(max(1, limits.Connections-limits.Sessions))
	pool.SetMaxIdleConns(max(1, limits.Connections-limits.Sessions))
	pool.SetConnMaxIdleTime(limits.IdleTime)
	pool.SetConnMaxLifetime(limits.Lifetime)
	sessions := sql.OpenDB(from)
	sessions.SetMaxIdleConns(-1)
	return &DB{DB: pool, Engine: Postgres, read: pool, sessions: sessions, schema: schema}, nil
}

// Limits says how many connections to PostgreSQL a DB may have, and for how
// long. The zero value has the defaults. SQLite needs none of it.
type Limits struct {
	// Connections is how many there are at most, those of Session included. Zero
	// means four for each processor, at least eight, plus Sessions: more connections
	// cost the server more than they bring.
	Connections int
	// Sessions is how many of these are reserved for Session.
	Sessions int
	// IdleTime is after how long an idle connection is closed, so that a server with
	// few connections has them for others: 5 s when zero.
	IdleTime time.Duration
	// Lifetime is after how long a connection is closed once it is idle, so that
	// a balancer in front of the server can move it: 30 min when zero.
	Lifetime time.Duration
}

func (l Limits) withDefaults() Limits {
	if l.Connections == 0 {
		l.Connections = max(8, 4*runtime.NumCPU()) + l.Sessions
	}
	if l.IdleTime == 0 {
		l.IdleTime = 5 * time.Second
	}
	if l.Lifetime == 0 {
		l.Lifetime = 30 * time.Minute
	}
	return l
}

// prepareSession checks that the server can be used, gives a new session its
// settings in one round trip, and checks that they hold: a pooler before the server
// may have swallowed them or given them to another session.
func prepareSession(ctx context.Context, conn *pgconn.PgConn, settings map[string]string, schema string) error {
	if version, err := strconv.Atoi(serverVersion(conn)); err == nil && version < leastVersion {
		return fmt.Errorf("%w: it is PostgreSQL %s, and must be %d or newer", ErrUnfit, conn.ParameterStatus("server_version"), leastVersion)
	}
	if enc := conn.ParameterStatus("server_encoding"); enc != "" && enc != "UTF8" {
		return fmt.Errorf("%w: its encoding is %s, and must be UTF8: create it with ENCODING 'UTF8' TEMPLATE template0", ErrUnfit, enc)
	}
	names := slices.Sorted(maps.Keys(settings))
	var set, get []string
	for _, name := range names {
		set = append(set, "set_config("+literal(name)+","+literal(settings[name])+",false)")
		get = append(get, "current_setting("+literal(name)+")")
	}
	if settings[syncCommit] == "" { // a commit must be durable, even for a role that has it off for speed
		set = append(set, "set_config('"+syncCommit+"', COALESCE(NULLIF(current_setting('"+syncCommit+"'), 'off'), 'on'), false)")
	}
	// If the schema exists and the session has another, the role has no right to it.
	get = append(get, "COALESCE(current_schema(), '')", "EXISTS (SELECT FROM pg_namespace WHERE nspname = "+literal(schema)+")::text")
	results, err := conn.Exec(ctx, "SELECT "+strings.Join(set, ",")+"; SELECT "+strings.Join(get, ",")).ReadAll()
	if err != nil {
		return err
	}
	if len(results) != 2 || len(results[0].Rows) != 1 || len(results[1].Rows) != 1 {
		return errors.New("the server does not return its settings")
	}
	wanted, actual := results[0].Rows[0], results[1].Rows[0]
	for i, name := range names {
		if string(wanted[i]) != string(actual[i]) {
			return fmt.Errorf("%w: %s is %q in its session although it was set to %q: is there a pooler that shares sessions?", ErrUnfit, name, actual[i], wanted[i])
		}
	}
	if current, exists := string(actual[len(names)]), string(actual[len(names)+1]) == "true"; schema != "" && exists && current != schema {
		return checkSchema(ctx, conn, schema)
	}
	return nil
}

// checkSchema checks that the session is in its schema, which exists. A statement
// during which another process creates the schema may see the schema and not be in
// it yet; the next statement is.
func checkSchema(ctx context.Context, conn *pgconn.PgConn, schema string) error {
	results, err := conn.Exec(ctx, "SELECT COALESCE(current_schema(), '')").ReadAll()
	if err != nil {
		return err
	}
	if len(results) != 1 || len(results[0].Rows) != 1 {
		return errors.New("the server does not return its schema")
	}
	if current := string(results[0].Rows[0][0]); current != schema {
		return fmt.Errorf("%w: the session is in schema %q instead of %q: has the role USAGE on it?", ErrUnfit, current, schema)
	}
	return nil
}

// serverVersion is the first number of server_version, such as 18.
func serverVersion(conn *pgconn.PgConn) string {
	v := conn.ParameterStatus("server_version")
	if i := strings.IndexFunc(v, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		return v[:i]
	}
	return v
}

// literal is s as an SQL literal.
func literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// ErrPooled is wrapped by the error of Open for a pooler that gives a session to
// several clients in turn: a client would lose the state of its session (settings,
// LISTEN, prepared statements) to another.
var ErrPooled = fmt.Errorf("%w: a pooler before it shares sessions between clients (pool_mode=transaction or statement)"+
	" and must not (pool_mode=session), or be passed by", ErrUnfit)

// checkPooling checks that a session stays with its client between two transactions.
// A pooler that shares sessions gives the session that one client has just used to
// the next client that begins a transaction, or it gives the first client another
// one.
func (db *DB) checkPooling(ctx context.Context) error {
	err := db.compareSessions(ctx)
	if code := postgresCode(err); code == "26000" || code == "42P05" || err != nil && strings.Contains(err.Error(), "statement pooling") {
		return fmt.Errorf("%w: %w", ErrPooled, err)
	}
	return err
}

// compareSessions returns ErrPooled if two sessions meet the same process of the
// server, or one session meets two.
func (db *DB) compareSessions(ctx context.Context) (err error) {
	first, err := db.Session(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, first.Close()) }()
	own, err := backend(ctx, first)
	if err != nil {
		return err
	}
	second, err := db.Session(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, second.Close()) }()
	tx, err := second.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tx.Rollback()) }()
	other, err := backend(ctx, tx)
	for again, n := own, 0; err == nil && n < 3; n++ { // some poolers assign their sessions in turn
		if other == own || again != own {
			return ErrPooled
		}
		again, err = backend(ctx, first)
	}
	return err
}

// backend is the process of the server behind a session. It uses no prepared
// statement, which some poolers lose.
func backend(ctx context.Context, s interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
},
) (pid int, err error) {
	err = s.QueryRowContext(ctx, `SELECT pg_backend_pid()`, pgx.QueryExecModeSimpleProtocol).Scan(&pid)
	return pid, err
}
