package sqldb

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

const (
	// statementTimeout is how long a statement may take on PostgreSQL, its rows
	// included, unless WithStatementTimeout says otherwise. Without it a silent
	// server, or a firewall that forgot the connection, is waited for until TCP
	// gives up, after a quarter of an hour.
	statementTimeout = 10 * time.Second
	// handshakeTimeout is for requests that give the server nothing to do: a ping,
	// the beginning of a transaction. No answer means that the connection is dead.
	handshakeTimeout = 3 * time.Second
	// replacePause is the least time between two decisions to replace all
	// connections: a server that refuses everything must not get a new connection
	// for each statement.
	replacePause = time.Second
)

type statementTimeoutKey struct{}

// WithStatementTimeout lets each statement that is run with the context, or in a
// transaction that was begun with it, take up to d instead of ten seconds. It is
// for statements that read or write whole tables. The context's own deadline
// holds, too.
func WithStatementTimeout(ctx context.Context, d time.Duration) context.Context {
	return context.WithValue(ctx, statementTimeoutKey{}, d)
}

// timeoutOf is what WithStatementTimeout gave a context; 0 is nothing.
func timeoutOf(ctx context.Context) time.Duration {
	d, _ := ctx.Value(statementTimeoutKey{}).(time.Duration)
	return d
}

// A generation says which connections of a pool are outdated: those that were made
// before it was last retired. A server that was demoted, or a proxy that forgot its
// connections, shows that only on the connections that are used, so that one of
// them speaks for all.
type generation struct{ retired atomic.Pointer[time.Time] }

// retire has all connections replaced that were made before now, at most once a
// second.
func (g *generation) retire() {
	now := time.Now()
	if last := g.retired.Load(); last == nil || now.Sub(*last) > replacePause {
		g.retired.CompareAndSwap(last, &now)
	}
}

// isCurrent reports whether a connection that was made then need not be replaced.
func (g *generation) isCurrent(made time.Time) bool {
	last := g.retired.Load()
	return last == nil || made.After(*last)
}

// A connector makes the connections of a pool.
type connector struct {
	driver.Connector
	generation *generation
}

// Connect makes a connection and prepares its session.
func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	made := time.Now()
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, connectError{err}
	}
	inner, ok := conn.(*stdlib.Conn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("connect: %T is not the driver's connection as it was", conn), conn.Close())
	}
	return &connection{pgxConn: inner, generation: c.generation, made: made}, nil
}

// A connectError is the error of a new connection that could not be made.
type connectError struct{ error }

func (e connectError) Unwrap() error { return e.error }

// pgxConn is pgx's connection for database/sql.
type pgxConn = stdlib.Conn

// A connection is a connection to PostgreSQL on which each statement has a deadline.
// It is closed once its server is known to have become read-only, to shut down, or
// not to answer.
type connection struct {
	*pgxConn
	generation *generation
	made       time.Time
	txTimeout  time.Duration // for each statement of the transaction under way; 0 outside of one
}

// withDeadline gives a statement its deadline.
func (c *connection) withDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, cmp.Or(timeoutOf(ctx), c.txTimeout, statementTimeout), ErrNoAnswer)
}

// withHandshakeDeadline gives a request its deadline for which the server has
// nothing to do.
func withHandshakeDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, handshakeTimeout, ErrNoAnswer)
}

// needsNewConnection are the SQLSTATEs after which a new connection may reach a
// server that serves: read_only_sql_transaction, admin_shutdown, crash_shutdown,
// cannot_connect_now, idle_session_timeout.
var needsNewConnection = []string{"25006", "57P01", "57P02", "57P03", "57P05"}

// handleError retires the connections after an error that speaks against all of
// them. It returns the error, with ErrNoAnswer if the deadline of ctx caused it.
func (c *connection) handleError(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case slices.Contains(needsNewConnection, postgresCode(err)):
		c.generation.retire()
	case ctx.Err() != nil && errors.Is(context.Cause(ctx), ErrNoAnswer):
		c.generation.retire()
		return fmt.Errorf("%w: %w", ErrNoAnswer, err)
	}
	return err
}

// IsValid implements driver.Validator: database/sql asks when it takes the
// connection back.
func (c *connection) IsValid() bool {
	return !c.Conn().IsClosed() && c.generation.isCurrent(c.made)
}

// ResetSession implements driver.SessionResetter: database/sql calls it before
// it hands the connection out.
func (c *connection) ResetSession(ctx context.Context) error {
	if !c.IsValid() {
		return driver.ErrBadConn
	}
	ctx, done := withHandshakeDeadline(ctx)
	defer done()
	if err := c.pgxConn.ResetSession(ctx); err != nil {
		_ = c.handleError(ctx, err) // database/sql takes another connection
		return err
	}
	return nil
}

// Ping implements driver.Pinger.
func (c *connection) Ping(ctx context.Context) error {
	ctx, done := withHandshakeDeadline(ctx)
	defer done()
	return c.handleError(ctx, c.pgxConn.Ping(ctx))
}

// ExecContext runs a statement that returns no rows.
func (c *connection) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	ctx, done := c.withDeadline(ctx)
	defer done()
	res, err := c.pgxConn.ExecContext(ctx, query, args)
	return res, c.handleError(ctx, err)
}

// QueryContext runs a statement that returns rows; they must arrive before its
// deadline, too.
func (c *connection) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	ctx, done := c.withDeadline(ctx)
	rows, err := c.pgxConn.QueryContext(ctx, query, args)
	if err != nil {
		defer done()
		return nil, c.handleError(ctx, err)
	}
	inner, ok := rows.(*stdlib.Rows)
	if !ok {
		defer done()
		return nil, errors.Join(fmt.Errorf("query: %T are not the driver's rows as they were", rows), rows.Close())
	}
	return &boundRows{Rows: inner, conn: c, ctx: ctx, done: done}, nil
}

// Prepare is PrepareContext without a context.
func (c *connection) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

// PrepareContext prepares nothing by itself: pgx keeps the statements of a
// connection prepared by their text.
func (c *connection) PrepareContext(_ context.Context, query string) (driver.Stmt, error) {
	return boundStmt{c, query}, nil
}

// Begin is BeginTx without options.
func (c *connection) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

// isolation has pgx's names.
var isolation = map[sql.IsolationLevel]pgx.TxIsoLevel{
	sql.LevelDefault: "", sql.LevelReadUncommitted: pgx.ReadUncommitted, sql.LevelReadCommitted: pgx.ReadCommitted,
	sql.LevelRepeatableRead: pgx.RepeatableRead, sql.LevelSnapshot: pgx.RepeatableRead, sql.LevelSerializable: pgx.Serializable,
}

// BeginTx begins a transaction. The deadline of its context holds for the beginning
// only: the statement that ends the transaction has a deadline of its own.
func (c *connection) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if c.Conn().IsClosed() {
		return nil, driver.ErrBadConn
	}
	level, ok := isolation[sql.IsolationLevel(opts.Isolation)]
	if !ok {
		return nil, fmt.Errorf("begin: isolation level %d is not PostgreSQL's", opts.Isolation)
	}
	access := pgx.TxAccessMode("")
	if opts.ReadOnly {
		access = pgx.ReadOnly
	}
	limited, done := withHandshakeDeadline(ctx)
	defer done()
	tx, err := c.Conn().BeginTx(limited, pgx.TxOptions{IsoLevel: level, AccessMode: access})
	if err != nil {
		return nil, c.handleError(limited, err)
	}
	c.txTimeout = timeoutOf(ctx)
	return boundTx{c, tx, context.WithoutCancel(ctx)}, nil
}

// boundTx is a transaction whose end has a deadline.
type boundTx struct {
	conn *connection
	tx   pgx.Tx
	ctx  context.Context // of BeginTx, without its deadline
}

// Commit commits.
func (t boundTx) Commit() error { return t.end(t.tx.Commit) }

// Rollback rolls back.
func (t boundTx) Rollback() error { return t.end(t.tx.Rollback) }

func (t boundTx) end(statement func(context.Context) error) error {
	ctx, done := t.conn.withDeadline(t.ctx)
	defer done()
	t.conn.txTimeout = 0
	return t.conn.handleError(ctx, statement(ctx))
}

// boundRows are rows that must arrive before a deadline.
type boundRows struct {
	*stdlib.Rows
	conn *connection
	ctx  context.Context
	done context.CancelFunc
}

// Next reads the next row.
func (r *boundRows) Next(dest []driver.Value) error {
	return r.conn.handleError(r.ctx, r.Rows.Next(dest))
}

// Close ends the statement.
func (r *boundRows) Close() error {
	defer r.done()
	return r.Rows.Close()
}

// boundStmt is a statement that pgx prepares when it is first run.
type boundStmt struct {
	conn  *connection
	query string
}

// Close does nothing.
func (boundStmt) Close() error { return nil }

// NumInput leaves it to the server to count the arguments.
func (boundStmt) NumInput() int { return -1 }

// ExecContext runs the statement.
func (s boundStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return s.conn.ExecContext(ctx, s.query, args)
}

// QueryContext runs the statement.
func (s boundStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return s.conn.QueryContext(ctx, s.query, args)
}

// Exec implements driver.Stmt; database/sql calls ExecContext.
func (boundStmt) Exec([]driver.Value) (driver.Result, error) { return nil, driver.ErrSkip }

// Query implements driver.Stmt; database/sql calls QueryContext.
func (boundStmt) Query([]driver.Value) (driver.Rows, error) { return nil, driver.ErrSkip }
