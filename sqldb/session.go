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
// server, which is never exchanged for another, may have settings of its own, and
// ends when the connection is closed. On SQLite it is an error: there is one
// connection that writes, which all share.
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

// Notify wakes every Listen on the channel in this schema, in any process. It is a
// transaction of its own: inside a business transaction it would make all commits
// wait for each other. On SQLite, which has one process, it does nothing.
func (db *DB) Notify(ctx context.Context, channel string) error {
	if db.Engine != Postgres {
		return nil
	}
	if _, err := db.ExecContext(ctx, `SELECT pg_notify($1 || '@' || current_schema(), '')`, channel); err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	return nil
}

// Listen calls fn when it begins to listen and each time the channel is notified,
// until ctx ends, which is no error, or the session breaks, which is one. On
// SQLite it only waits for ctx to end.
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
	var quoted string
	if err := conn.QueryRowContext(ctx, `SELECT quote_ident($1 || '@' || current_schema())`, channel).Scan(&quoted); err != nil {
		return err
	}
	if _, err := conn.ExecContext(ctx, `LISTEN `+quoted); err != nil {
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

// listenCheck is how often a session without notifications is pinged: a firewall
// forgets connections that are idle.
const listenCheck = 30 * time.Second

func awaitNotification(ctx context.Context, conn *pgx.Conn) error {
	for {
		wait, done := context.WithTimeout(ctx, listenCheck)
		_, err := conn.WaitForNotification(wait)
		done()
		if err == nil || ctx.Err() != nil || conn.IsClosed() || !pgconn.Timeout(err) {
			return err
		}
		limited, done := withHandshakeDeadline(ctx)
		err = conn.Ping(limited)
		done()
		if err != nil {
			return err
		}
	}
}
