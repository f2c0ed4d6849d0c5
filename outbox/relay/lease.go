package relay

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"pizzaflow/internal/crash"
	"pizzaflow/outbox/internal/store"
	"pizzaflow/sqldb"
)

// errLeaseLost says that another relay has taken over.
var errLeaseLost = errors.New("lease lost")

// A lease is the right to publish from one database. It is a row that its
// holder renews by counting up. A standby takes over when the count has stood
// still for the TTL on the standby's own clock: no two clocks are compared.
// Each take-over bumps the epoch, and everything the holder writes asks for
// its epoch, so that a holder who slept through his own end changes nothing.
// Whoever changes what is to be published bumps it too: the holder's term
// ends, and the next one begins from the tables.
type lease struct {
	db    *sqldb.DB
	epoch int64
	ttl   time.Duration

	turn    chan struct{} // to use conn: one at a time, and whoever waits may give up
	conn    connection    // of renewals, marks and the reads of paused partitions
	renewed atomic.Pointer[time.Time]

	// of the floors that marks store
	floors     int
	floorsFrom time.Time
}

// acquireLease waits until the lease is free or its holder silent, and takes
// it: at once if no other process can be at work. It returns the floor as well:
// every seq up to it is done with.
func acquireLease(ctx context.Context, db *sqldb.DB, holder string, ttl time.Duration, alone bool, onError func(error)) (*lease, int64, error) {
	type state struct{ epoch, renewal int64 }
	var seen state
	var since time.Time
	tick := time.NewTicker(ttl / 8)
	defer tick.Stop()
	for {
		var s state
		var by string
		var floor int64
		err := db.Read().QueryRowContext(ctx, `SELECT holder, epoch, renewal, floor FROM outbox_lease WHERE id = 1`).Scan(&by, &s.epoch, &s.renewal, &floor)
		now := time.Now()
		switch {
		case err != nil:
			onError(fmt.Errorf("read lease: %w", err))
		case !alone && by != "" && by != holder && (s != seen || now.Sub(since) < ttl):
			if s != seen {
				seen, since = s, now
			}
		default:
			err := db.QueryRowContext(ctx, `
				UPDATE outbox_lease SET holder = $1, epoch = epoch + 1, renewal = renewal + 1
				WHERE id = 1 AND epoch = $2 AND renewal = $3 RETURNING epoch, floor`,
				holder, s.epoch, s.renewal).Scan(&s.epoch, &floor)
			if err == nil {
				l := &lease{db: db, epoch: s.epoch, ttl: ttl, turn: make(chan struct{}, 1)}
				l.renewed.Store(&now)
				return l, floor, nil
			}
			if !errors.Is(err, sql.ErrNoRows) { // no row: somebody was faster
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

// keep renews the lease on a connection of its own, until ctx ends or the
// lease is lost. A SQLite that is slow loses nobody the lease: then nobody else
// gets it either. A connection to PostgreSQL that broke ends the term: behind
// the next one there may be a standby that lacks what this term remembers.
func (l *lease) keep(ctx context.Context, floor func() int64) error {
	tick := time.NewTicker(l.ttl / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := l.renew(ctx, floor())
		if ctx.Err() == nil && err != nil && (errors.Is(err, errLeaseLost) || l.db.Engine == sqldb.Postgres) {
			return err
		}
	}
}

// statementTimeout is for one statement of the relay: a server that fell silent
// must not be waited for.
const statementTimeout = 10 * time.Second

// A connection is what the relay speaks to for one term: always the same
// session on PostgreSQL, the database that all share on SQLite.
type connection interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	BeginTx(ctx context.Context, opts *sql.TxOptions) (*sql.Tx, error)
}

// connect opens n connections for one term.
func connect(ctx context.Context, db *sqldb.DB, n int) (conns []connection, done func(), err error) {
	var opened []*sql.Conn
	done = func() {
		for _, c := range opened {
			_ = c.Close() // gone already, or gone now
		}
	}
	for range n {
		if db.Engine != sqldb.Postgres {
			conns = append(conns, db)
			continue
		}
		c, err := db.Session(ctx)
		if err != nil {
			done()
			return nil, nil, err
		}
		opened, conns = append(opened, c), append(conns, c)
	}
	return conns, done, nil
}

// take waits for the turn to use the session of the lease, until done is called.
func (l *lease) take(ctx context.Context) (done func(), err error) {
	select {
	case l.turn <- struct{}{}:
		return func() { <-l.turn }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// renew counts the lease up and stores the floor with it, so that a successor
// need not search from far back.
func (l *lease) renew(ctx context.Context, floor int64) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	done, err := l.take(ctx)
	if err != nil {
		return fmt.Errorf("renew lease: %w", err)
	}
	defer done()
	began := time.Now()
	res, err := l.conn.ExecContext(ctx, `UPDATE outbox_lease SET renewal = renewal + 1, floor = $1 WHERE id = 1 AND epoch = $2`, floor, l.epoch)
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
// have taken over, as far as this process's clock can tell.
func (l *lease) fresh() bool { return time.Since(*l.renewed.Load()) < l.ttl }

// mark records the ranges as published, the rows that are blocked, and the
// floor, if the lease is still this holder's.
func (l *lease) mark(ctx context.Context, floor int64, ranges []span, blocked []blockedRow) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	done, err := l.take(ctx)
	if err != nil {
		return fmt.Errorf("mark published: %w", err)
	}
	defer done()
	if l.db.Engine == sqldb.Postgres && len(blocked) == 0 {
		return l.markAtOnce(ctx, floor, ranges)
	}
	tx, err := l.conn.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("mark published: %w", err)
	}
	if err := l.markIn(ctx, tx, floor, ranges, blocked); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("mark published: %w", err)
	}
	return nil
}

// markSQL records ranges if the lease is this holder's, and keeps its row locked
// until that is committed. Each floor that is stored leaves a dead version of the
// row behind, which PostgreSQL passes by at every look as long as there is an
// older snapshot: with one that was open for half an hour, and a floor stored
// with each mark, a mark had to pass by some hundred thousand.
const (
	markSQL      = `WITH l AS (SELECT 1 FROM outbox_lease WHERE id = 1 AND epoch = $1 FOR NO KEY UPDATE)` + markedSQL
	markFloorSQL = `WITH l AS (UPDATE outbox_lease SET floor = $5 WHERE id = 1 AND epoch = $1 RETURNING 1)` + markedSQL
	markedSQL    = `, p AS (INSERT INTO outbox_published (first_seq, last_seq, published_at)
			SELECT lo, hi, $2::timestamptz FROM l, unnest($3::bigint[], $4::bigint[]) u (lo, hi))
		SELECT (SELECT COUNT(*) FROM l) + 0 * length(set_config('synchronous_commit', 'off', true))`
)

// markAtOnce is mark as one statement: a holder that is stopped in the middle
// of a transaction would keep the lease's row locked, and its standby out. It
// does not wait for the disk: a mark that is lost only repeats a publish.
func (l *lease) markAtOnce(ctx context.Context, floor int64, ranges []span) error {
	los, his := make([]int64, len(ranges)), make([]int64, len(ranges))
	for i, s := range ranges {
		los[i], his[i] = s.lo, s.hi
	}
	query, args := markSQL, []any{l.epoch, sqldb.Now(), los, his}
	if l.mayStoreFloor() {
		query, args = markFloorSQL, append(args, floor)
	}
	var held int
	if err := l.conn.QueryRowContext(ctx, query, args...).Scan(&held); err != nil {
		return fmt.Errorf("mark published: %w", err)
	}
	if held == 0 {
		return errLeaseLost
	}
	return nil
}

// mayStoreFloor reports whether the next mark stores the floor: nearly always
// while there are few marks, and under load as often as a renewal does.
func (l *lease) mayStoreFloor() bool {
	const most = 50
	every := l.ttl / 4
	if more := time.Since(l.floorsFrom) / every; more > 0 {
		l.floors = int(min(most, time.Duration(l.floors)+more))
		l.floorsFrom = time.Now()
	}
	if l.floors == 0 {
		return false
	}
	l.floors--
	return true
}

// intoBlocked takes the rows of outbox_blocked.
var intoBlocked = sqldb.Insert{
	Into:  `INSERT INTO outbox_blocked (seq, topic, key, reason, since)`,
	Types: `BIGINT, TEXT, BYTEA, TEXT, TIMESTAMPTZ`,
}

func (l *lease) markIn(ctx context.Context, tx *sql.Tx, floor int64, ranges []span, blocked []blockedRow) error {
	res, err := tx.ExecContext(ctx, `UPDATE outbox_lease SET floor = $1 WHERE id = 1 AND epoch = $2`, floor, l.epoch)
	if err != nil {
		return fmt.Errorf("mark published: %w", err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return errors.Join(errLeaseLost, err)
	}
	at := sqldb.Now()
	rows := make([][]any, len(blocked))
	for i, b := range blocked {
		rows[i] = []any{b.Seq, b.Topic, store.NullBytes(b.Key), b.reason, at}
	}
	if _, err := intoBlocked.Exec(ctx, l.db, tx, rows); err != nil {
		return fmt.Errorf("mark blocked: %w", err)
	}
	return sqldb.Chunks(len(ranges), 512, func(from, to int) error {
		args := make([]any, 0, 3*(to-from))
		for _, s := range ranges[from:to] {
			args = append(args, s.lo, s.hi, at)
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO outbox_published (first_seq, last_seq, published_at) VALUES `+sqldb.Values(3, to-from), args...)
		if err != nil {
			return fmt.Errorf("mark published: %w", err)
		}
		return nil
	})
}

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

// holds makes sure, in a transaction, that the term goes on.
func (l *lease) holds(ctx context.Context, tx *sql.Tx) error {
	res, err := tx.ExecContext(ctx, `UPDATE outbox_lease SET epoch = epoch WHERE id = 1 AND epoch = $1`, l.epoch)
	if err != nil {
		return fmt.Errorf("hold lease: %w", err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return errors.Join(errLeaseLost, err)
	}
	return nil
}
