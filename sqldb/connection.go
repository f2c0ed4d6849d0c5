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
	// included, unless WithStatementTimeout says otherwise. A server that fell
	// silent, or a firewall that forgot the connection, must not be waited for:
	// without it TCP gives up after a quarter of an hour.
	statementTimeout = 10 * time.Second
	// handshakeTimeout is for what gives the server nothing to do: a ping, the
	// beginning of a transaction. Silence then says that the connection is dead.
	handshakeTimeout = 3 * time.Second
	// suspicionPause is the least time between two decisions to replace all
	// connections: a server that refuses everything is not to be connected to
	// again for each statement.
	suspicionPause = time.Second
)

type statementTimeoutKey struct{}

// WithStatementTimeout has each statement that is run with the context, or in a
// transaction that was begun with it, take up to d instead of ten seconds. It is
// for those that read or write whole tables. The context's own deadline holds
// beside it.
func WithStatementTimeout(ctx context.Context, d time.Duration) context.Context {
	return context.WithValue(ctx, statementTimeoutKey{}, d)
}

// statementLimit is what WithStatementTimeout gave a context; 0 is nothing.
func statementLimit(ctx context.Context) time.Duration {
	d, _ := ctx.Value(statementTimeoutKey{}).(time.Duration)
	return d
}

// A generation says which connections of a pool are to be replaced: those that
// are older than its newest reason for it. A server that was demoted, or a
// proxy that forgot the connections it had, tells only those who use them.
type generation struct{ replace atomic.Pointer[time.Time] }

// suspect has the connections replaced that were made before now. Those of the
// last second are left alone: they show the server as it is.
func (g *generation) suspect() {
	now := time.Now()
	if last := g.replace.Load(); last == nil || now.Sub(*last) > suspicionPause {
		g.replace.CompareAndSwap(last, &now)
	}
}

// keeps reports whether a connection of that age need not be replaced.
func (g *generation) keeps(made time.Time) bool {
	last := g.replace.Load()
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

// A connectError says that no new connection could be had.
type connectError struct{ error }

func (e connectError) Unwrap() error { return e.error }

// pgxConn is pgx's connection for database/sql.
type pgxConn = stdlib.Conn

// A connection is one to PostgreSQL on which each statement has a deadline, and
// which is thrown away once it is known to lead nowhere: to a server that has
// become read-only, that shuts down, that does not answer.
type connection struct {
	*pgxConn
	generation *generation
	made       time.Time
	limit      time.Duration // for each statement of the transaction under way; 0 outside of one
}

// bound gives a statement its deadline.
func (c *connection) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, cmp.Or(statementLimit(ctx), c.limit, statementTimeout), ErrNoAnswer)
}

// handshake gives its deadline to what the server has nothing to do for.
func handshake(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, handshakeTimeout, ErrNoAnswer)
}

// leadsNowhere are the SQLSTATEs after which a new connection may find a server
// that serves: read_only_sql_transaction, admin_shutdown, crash_shutdown,
// cannot_connect_now, idle_session_timeout.
var leadsNowhere = []string{"25006", "57P01", "57P02", "57P03", "57P05"}

// seen takes note of an error and says what it was when it was the deadline.
func (c *connection) seen(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case slices.Contains(leadsNowhere, postgresCode(err)):
		c.generation.suspect()
	case ctx.Err() != nil && errors.Is(context.Cause(ctx), ErrNoAnswer):
		c.generation.suspect()
		return fmt.Errorf("%w: %w", ErrNoAnswer, err)
	}
	return err
}

// IsValid implements driver.Validator: database/sql asks when it takes the
// connection back.
func (c *connection) IsValid() bool {
	return !c.Conn().IsClosed() && c.generation.keeps(c.made)
}

// ResetSession implements driver.SessionResetter: database/sql calls it before
// it hands the connection out.
func (c *connection) ResetSession(ctx context.Context) error {
	if !c.IsValid() {
		return driver.ErrBadConn
	}
	ctx, done := handshake(ctx)
	defer done()
	if err := c.pgxConn.ResetSession(ctx); err != nil {
		_ = c.seen(ctx, err) // database/sql takes another connection
		return err
	}
	return nil
}

// Ping implements driver.Pinger.
func (c *connection) Ping(ctx context.Context) error {
	ctx, done := handshake(ctx)
	defer done()
	return c.seen(ctx, c.pgxConn.Ping(ctx))
}

// ExecContext runs a statement that returns no rows.
func (c *connection) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	ctx, done := c.bound(ctx)
	defer done()
	res, err := c.pgxConn.ExecContext(ctx, query, args)
	return res, c.seen(ctx, err)
}

// QueryContext runs a statement that returns rows; they must have come before
// its deadline, too.
func (c *connection) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	ctx, done := c.bound(ctx)
	rows, err := c.pgxConn.QueryContext(ctx, query, args)
	if err != nil {
		defer done()
		return nil, c.seen(ctx, err)
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

// BeginTx begins a transaction. Its context is of the beginning only: what ends
// the transaction has a time of its own.
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
	ask, done := handshake(ctx)
	defer done()
	tx, err := c.Conn().BeginTx(ask, pgx.TxOptions{IsoLevel: level, AccessMode: access})
	if err != nil {
		return nil, c.seen(ask, err)
	}
	c.limit = statementLimit(ctx)
	return boundTx{c, tx, context.WithoutCancel(ctx)}, nil
}

// boundTx is a transaction whose end has a deadline.
type boundTx struct {
	conn *connection
	tx   pgx.Tx
	ctx  context.Context // of the beginning, without its end
}

// Commit commits.
func (t boundTx) Commit() error { return t.end(t.tx.Commit) }

// Rollback rolls back.
func (t boundTx) Rollback() error { return t.end(t.tx.Rollback) }

func (t boundTx) end(how func(context.Context) error) error {
	ctx, done := t.conn.bound(t.ctx)
	defer done()
	t.conn.limit = 0
	return t.conn.seen(ctx, how(ctx))
}

// boundRows are rows that come before a deadline.
type boundRows struct {
	*stdlib.Rows
	conn *connection
	ctx  context.Context
	done context.CancelFunc
}

// Next takes the next row.
func (r *boundRows) Next(dest []driver.Value) error { return r.conn.seen(r.ctx, r.Rows.Next(dest)) }

// Close ends the statement.
func (r *boundRows) Close() error {
	defer r.done()
	return r.Rows.Close()
}

// boundStmt is a statement by its text.
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

// Exec is what database/sql does not call any more.
func (boundStmt) Exec([]driver.Value) (driver.Result, error) { return nil, driver.ErrSkip }

// Query is what database/sql does not call any more.
func (boundStmt) Query([]driver.Value) (driver.Rows, error) { return nil, driver.ErrSkip }
