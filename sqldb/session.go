package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Session opens a connection to PostgreSQL beside the pool: one session of the
// server that does not change under its user's feet, with settings of its own,
// gone for good when it is closed. SQLite has no server that could be
// exchanged, and one writer that must be shared: it has no sessions.
func (db *DB) Session(ctx context.Context) (*sql.Conn, error) {
	if db.sessions == nil {
		return nil, errors.New("open session: SQLite has none")
	}
	conn, err := db.sessions.Conn(ctx)
	if err != nil {
		return nil, fmt.Errorf("open session: %w", err)
	}
	return conn, nil
}

// Notify wakes whoever listens on the channel in this schema, in any process.
// It is a transaction of its own: inside a business transaction it would make
// all commits wait for each other. SQLite has nobody to tell.
func (db *DB) Notify(ctx context.Context, channel string) error {
	if db.Engine != Postgres {
		return nil
	}
	if _, err := db.ExecContext(ctx, `SELECT pg_notify($1 || '@' || current_schema(), '')`, channel); err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	return nil
}

// Listen calls fn once it is listening and each time the channel is notified,
// until ctx ends or the session breaks, which is an error. On SQLite it only
// waits for ctx to end.
func (db *DB) Listen(ctx context.Context, channel string, fn func()) error {
	if db.Engine != Postgres {
		<-ctx.Done()
		return nil
	}
	err := db.listen(ctx, channel, fn)
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("listen: %w", err)
}

func (db *DB) listen(ctx context.Context, channel string, fn func()) (err error) {
	conn, err := db.Session(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	var schema string
	if err := conn.QueryRowContext(ctx, `SELECT quote_ident($1 || '@' || current_schema())`, channel).Scan(&schema); err != nil {
		return err
	}
	if _, err := conn.ExecContext(ctx, `LISTEN `+schema); err != nil {
		return err
	}
	return conn.Raw(func(c any) error {
		raw := c.(*connection).Conn() //nolint:forcetypeassert // this package opened it
		for {
			fn()
			if err := awaitNotification(ctx, raw); err != nil {
				return err
			}
		}
	})
}

// listenCheck is how often a session that hears nothing is asked whether it is
// still there: a firewall forgets connections that are idle.
const listenCheck = 30 * time.Second

func awaitNotification(ctx context.Context, conn *pgx.Conn) error {
	for {
		wait, done := context.WithTimeout(ctx, listenCheck)
		_, err := conn.WaitForNotification(wait)
		done()
		if err == nil || ctx.Err() != nil || conn.IsClosed() || !pgconn.Timeout(err) {
			return err
		}
		ask, done := handshake(ctx)
		err = conn.Ping(ask)
		done()
		if err != nil {
			return err
		}
	}
}
