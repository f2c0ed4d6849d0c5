package relay

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"pizzaflow/internal/crash"
	"pizzaflow/sqldb"
)

// errLeaseLost says that the epoch has been raised: another relay has taken over, or
// an operator has ended the term.
var errLeaseLost = errors.New("lease lost")

// A lease is the right to publish from one database. It is a row that its holder
// renews by counting up. A standby takes over when the count has stood still for
// the TTL on the standby's own clock: no two clocks are compared.
//
// The epoch is the fencing token. Each take-over raises it, and every write of the
// holder asks for it, so that a holder that was suspended while another took over
// changes nothing. An operator's command that has events published again raises it,
// too: the holder's term ends, and the next one begins from the tables.
type lease struct {
	db    *sqldb.DB
	epoch int64
	ttl   time.Duration

	connLock chan struct{} // held while conn is used; the wait for it can be given up
	conn     connection    // of renewals, marks and the reads of paused partitions
	renewed  atomic.Pointer[time.Time]

	// See takeToken.
	tokens     int
	tokensFrom time.Time
}

// acquireLease waits until the lease is free or its holder silent, and takes it: at
// once if no other process can be at work. It also returns the low watermark that
// is stored with the lease.
func acquireLease(ctx context.Context, db *sqldb.DB, holder string, ttl time.Duration, exclusive bool, onError func(error)) (*lease, int64, error) {
	type state struct{ epoch, renewal int64 }
	var last state
	var since time.Time // when last was first seen
	tick := time.NewTicker(ttl / 8)
	defer tick.Stop()
	for {
		var s state
		var by string
		var lowWatermark int64
		err := db.Read().QueryRowContext(ctx, `SELECT holder, epoch, renewal, floor FROM outbox_lease WHERE id = 1`).Scan(&by, &s.epoch, &s.renewal, &lowWatermark)
		now := time.Now()
		switch {
		case err != nil:
			onError(fmt.Errorf("read lease: %w", err))
		case !exclusive && by != "" && by != holder && (s != last || now.Sub(since) < ttl):
			if s != last {
				last, since = s, now
			}
		default:
			err := db.QueryRowContext(ctx, `
				UPDATE outbox_lease SET holder = $1, epoch = epoch + 1, renewal = renewal + 1
				WHERE id = 1 AND epoch = $2 AND renewal = $3 RETURNING epoch, floor`,
				holder, s.epoch, s.renewal).Scan(&s.epoch, &lowWatermark)
			if err == nil {
				l := &lease{db: db, epoch: s.epoch, ttl: ttl, connLock: make(chan struct{}, 1)}
				l.renewed.Store(&now)
				return l, lowWatermark, nil
			}
			if !errors.Is(err, sql.ErrNoRows) { // no row: another relay was faster
				onError(fmt.Errorf("take lease: %w", err))
			}
		}
		select {
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		case <-tick.C:
		}
	}
}

// keep renews the lease until ctx ends or the lease is lost. A failed renewal on
// SQLite ends nothing: while the database is busy, no other relay takes the lease
// either. A broken connection to PostgreSQL ends the term: the next connection may
// lead to a replica that was promoted without the last commits of this term.
func (l *lease) keep(ctx context.Context, lowWatermark func() int64) error {
	tick := time.NewTicker(l.ttl / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := l.renew(ctx, lowWatermark())
		if ctx.Err() == nil && err != nil && (errors.Is(err, errLeaseLost) || l.db.Engine == sqldb.Postgres) {
			return err
		}
	}
}

// statementTimeout limits one statement of the relay, because a server may fall
// silent.
const statementTimeout = 10 * time.Second

// A connection lasts for one term: it is one session on PostgreSQL, and the shared
// database on SQLite.
type connection interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	BeginTx(ctx context.Context, opts *sql.TxOptions) (*sql.Tx, error)
}

// connect opens n connections for one term.
func connect(ctx context.Context, db *sqldb.DB, n int) (conns []connection, closeConns func(), err error) {
	var opened []*sql.Conn
	closeConns = func() {
		for _, c := range opened {
			_ = c.Close() // it is not used again, whatever the error
		}
	}
	for range n {
		if db.Engine != sqldb.Postgres {
			conns = append(conns, db)
			continue
		}
		c, err := db.Session(ctx)
		if err != nil {
			closeConns()
			return nil, nil, err
		}
		opened, conns = append(opened, c), append(conns, c)
	}
	return conns, closeConns, nil
}

// lockConn waits until conn is free, and keeps it until unlock is called.
func (l *lease) lockConn(ctx context.Context) (unlock func(), err error) {
	select {
	case l.connLock <- struct{}{}:
		return func() { <-l.connLock }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// borrowConn lends a connection for reads that are rare, until giveBack is called:
// on PostgreSQL the session of the lease, because one more session would mostly be
// idle, and the pool may be without a free connection for long.
func (t *term) borrowConn(ctx context.Context) (conn connection, giveBack func(), err error) {
	if t.db.Engine == sqldb.SQLite {
		return t.db.Read(), func() {}, nil
	}
	giveBack, err = t.lease.lockConn(ctx)
	return t.lease.conn, giveBack, err
}

// renew counts the lease up and stores the low watermark with it, so that the next
// term has little to read.
func (l *lease) renew(ctx context.Context, lowWatermark int64) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	unlock, err := l.lockConn(ctx)
	if err != nil {
		return fmt.Errorf("renew lease: %w", err)
	}
	defer unlock()
	began := time.Now()
	res, err := l.conn.ExecContext(ctx, `UPDATE outbox_lease SET renewal = renewal + 1, floor = $1 WHERE id = 1 AND epoch = $2`, lowWatermark, l.epoch)
	if err != nil {
		return fmt.Errorf("renew lease: %w", err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return errors.Join(errLeaseLost, err)
	}
	l.renewed.Store(&began)
	crash.Point("lease: renewed")
	return nil
}

// fresh reports whether the lease was renewed so lately that no other relay can
// have taken over, by the clock of this process.
func (l *lease) fresh() bool { return time.Since(*l.renewed.Load()) < l.ttl }

// release gives the lease back, so that a standby need not wait for the TTL.
func (l *lease) release(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.ttl)
	defer cancel()
	_, err := l.db.ExecContext(ctx, `UPDATE outbox_lease SET holder = '', renewal = renewal + 1 WHERE id = 1 AND epoch = $1`, l.epoch)
	if err != nil {
		return fmt.Errorf("release lease: %w", err)
	}
	return nil
}

// fence fails the transaction of a term that is over, and keeps the next term from
// beginning before the transaction ends.
func (l *lease) fence(ctx context.Context, tx *sql.Tx) error {
	res, err := tx.ExecContext(ctx, `UPDATE outbox_lease SET epoch = epoch WHERE id = 1 AND epoch = $1`, l.epoch)
	if err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return errors.Join(errLeaseLost, err)
	}
	return nil
}
