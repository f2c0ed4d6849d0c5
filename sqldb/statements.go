package sqldb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
)

// cachedStatements is how many statements a SQLite connection keeps prepared.
const cachedStatements = 200

// openCached is sql.Open for SQLite with connections that keep their statements
// prepared: to parse one takes several times as long as to run it.
func openCached(dsn string) (*sql.DB, error) {
	if err := registerClock(); err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite", dsn) // database/sql gives the driver in no other way
	if err != nil {
		return nil, err
	}
	c := cachingConnector{db.Driver(), dsn}
	if err := db.Close(); err != nil {
		return nil, err
	}
	return sql.OpenDB(c), nil
}

type cachingConnector struct {
	driver driver.Driver
	dsn    string
}

func (c cachingConnector) Driver() driver.Driver { return c.driver }

func (c cachingConnector) Connect(context.Context) (driver.Conn, error) {
	conn, err := c.driver.Open(c.dsn)
	if err != nil {
		return nil, err
	}
	inner, ok := conn.(sqliteConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("connect: %T is not the driver's connection as it was", conn), conn.Close())
	}
	return &cachingConn{sqliteConn: inner, prepared: map[string]*statement{}}, nil
}

// A sqliteConn has the methods of the driver's connection.
type sqliteConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.Pinger
	driver.SessionResetter
	driver.Validator
}

// A cachingConn is a connection with its prepared statements. Like every
// connection it is used by one goroutine at a time.
type cachingConn struct {
	sqliteConn
	prepared map[string]*statement
}

// A statement is a prepared statement.
type statement struct {
	stmt  preparedStmt
	inUse bool // its rows are being read
}

type preparedStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

// prepare returns the prepared statement of a text, or nil when that is in use.
func (c *cachingConn) prepare(ctx context.Context, query string) (*statement, error) {
	if s := c.prepared[query]; s != nil {
		if s.inUse {
			return nil, nil
		}
		return s, nil
	}
	stmt, err := c.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	p, ok := stmt.(preparedStmt)
	if !ok {
		return nil, errors.Join(fmt.Errorf("prepare: %T is not the driver's statement as it was", stmt), stmt.Close())
	}
	for text, old := range c.prepared { // in random order: there are few statements, or each is used once
		if len(c.prepared) < cachedStatements {
			break
		}
		if !old.inUse {
			delete(c.prepared, text)
			if err := old.stmt.Close(); err != nil {
				return nil, errors.Join(err, p.Close())
			}
		}
	}
	s := &statement{stmt: p}
	c.prepared[query] = s
	return s, nil
}

// ExecContext runs a statement that returns no rows.
func (c *cachingConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	s, err := c.prepare(ctx, query)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return c.sqliteConn.ExecContext(ctx, query, args)
	}
	return s.stmt.ExecContext(ctx, args)
}

// QueryContext runs a statement that returns rows.
func (c *cachingConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	s, err := c.prepare(ctx, query)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return c.sqliteConn.QueryContext(ctx, query, args)
	}
	rows, err := s.stmt.QueryContext(ctx, args)
	if err != nil {
		return nil, err
	}
	s.inUse = true
	return &cachedRows{rows, s}, nil
}

// Close closes the statements and the connection.
func (c *cachingConn) Close() error {
	var errs []error
	for _, s := range c.prepared {
		errs = append(errs, s.stmt.Close())
	}
	c.prepared = nil
	return errors.Join(errors.Join(errs...), c.sqliteConn.Close())
}

type cachedRows struct {
	driver.Rows
	statement *statement
}

// Close releases the statement.
func (r *cachedRows) Close() error {
	r.statement.inUse = false
	return r.Rows.Close()
}
