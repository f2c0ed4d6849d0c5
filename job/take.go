package job

import (
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"time"

	"pizzaflow/internal/crash"
	"pizzaflow/sqldb"
)

// room is how many rows are taken now, so that as many wait as are worked on:
// then no hand is idle while more are taken. What storing holds up is left to
// others. If it is none, Run is woken when half of those that wait are begun.
func (w *Worker) room() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 2*w.cfg.Limit - w.working - len(w.waiting) - max(0, w.storing-w.cfg.Limit)
	w.hungry = n <= 0
	return n
}

// takeUntil takes due rows from the table until ctx ends.
func (w *Worker) takeUntil(ctx context.Context) {
	lookAt := time.Now()
	due := time.NewTimer(0)
	defer due.Stop()
	for {
		woken := false
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
			woken = true
		case <-due.C:
		}
		next, err := w.take(ctx, woken)
		w.inContact(err)
		if err != nil && ctx.Err() == nil {
			w.cfg.Log.Error("take due work", "table", w.cfg.Table, "err", err)
			next = time.Second
		}
		if at := time.Now().Add(next); !woken || at.Before(lookAt) {
			lookAt = at
		}
		pause := time.NewTimer(workPause)
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		pause.Stop()
		due.Reset(time.Until(lookAt))
	}
}

// take takes as many due rows as can be worked on and says when to look again.
// Unless somebody said that there is something, it looks first, without a lock:
// mostly there is nothing to do.
func (w *Worker) take(ctx context.Context, woken bool) (next time.Duration, err error) {
	room := w.room()
	if !woken {
		late, err := w.look(ctx)
		w.fallBehind(room, late, err)
		if err != nil || late < 0 {
			return -late, err
		}
	}
	if room <= 0 {
		return workLook, nil
	}
	if !woken {
		n, err := w.inherit(ctx, room)
		if room -= n; err != nil || room == 0 {
			return workLook, err
		}
	}
	n, err := w.claim(ctx, room)
	switch {
	case err != nil:
		return 0, err
	case n == room: // there may be more
		w.mu.Lock()
		w.hungry = true
		w.mu.Unlock()
		return workLook, nil
	default:
		w.mu.Lock()
		w.behind = false
		w.mu.Unlock()
	}
	if woken || n > 0 {
		return workLookSoon, nil
	}
	return workLook, nil
}

// fallBehind notes whether rows in the table wait for those that are handed
// over: there is no room for them, and the first has been due for so long.
func (w *Worker) fallBehind(room int, late time.Duration, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err != nil:
	case room <= 0:
		w.behind = w.behind || late > workLook
	case late < 0:
		w.behind = false
	}
}

// look says for how long the first of the due rows has been due, and if none
// is, less than zero: for how long not to look again. Now and then it sees to
// rows that are due too late as well.
func (w *Worker) look(ctx context.Context) (late time.Duration, err error) {
	var first, now time.Time
	asked := time.Now()
	all := !asked.Before(w.lookAllAt)
	if all {
		w.from = time.Time{}
	}
	since, args := w.since(1)
	err = w.cfg.DB.Read().QueryRowContext(ctx, `SELECT MIN(due_at), `+sqldb.Clock+` FROM `+w.cfg.Table+` WHERE `+since+w.cfg.Where, args...).
		Scan(sqldb.Time(&first), sqldb.Time(&now))
	if err != nil {
		return 0, err
	}
	if all {
		w.lookAllAt, w.from = asked.Add(workLookAll), now.Add(-workOverlap)
		if !first.IsZero() && first.Before(w.from) {
			w.from = first
		}
	}
	if w.clock.Steady(now, asked, w.cfg.Lease/8) == 0 {
		w.clockSet()
	}
	if !asked.Before(w.pullInAt) {
		if err := w.pullIn(ctx); err != nil {
			return 0, err
		}
		w.pullInAt = asked.Add(workPullIn)
	}
	if first.IsZero() {
		return -workLook, nil
	}
	return max(-workLook, now.Sub(first)), nil
}

// since is the condition that a row has a due time, not before the first that
// there can be, and its argument, numbered n. While somebody reads the database
// for long, PostgreSQL keeps the index entries of all that was due since: without
// a bound each look would step over every one of them.
func (w *Worker) since(n int) (condition string, args []any) {
	if w.from.IsZero() {
		return `due_at IS NOT NULL`, nil
	}
	return fmt.Sprintf(`due_at >= $%d`, n), []any{w.from}
}

// claim takes up to n due rows that nobody holds, and returns how many it took.
func (w *Worker) claim(ctx context.Context, n int) (int, error) {
	// what is claimed must be known: broken off, the statement may have taken
	// rows that nobody works on until their lease runs out
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), workWrites)
	defer cancel()
	since, args := w.since(4)
	return w.takeRows(ctx, since+` AND due_at <= `+sqldb.Clock+` AND lease_token IS NULL`+w.cfg.Where+` ORDER BY due_at LIMIT $3`, append([]any{n}, args...)...)
}

// takeRows leases the rows that are chosen and has them worked on: in what
// chooses them more is numbered from $3. The lease has a token of its own, so
// that whoever held a row before, in this process as well, cannot settle it.
func (w *Worker) takeRows(ctx context.Context, chosen string, more ...any) (n int, err error) {
	until, token := time.Now().Add(w.cfg.Lease), rand.Text()
	statement := w.update(`due_at = `+w.cfg.DB.Later("$1")+`, lease_token = $2, attempts = attempts + 1`, chosen) + ` RETURNING id, attempts`
	rows, err := w.cfg.DB.QueryContext(ctx, statement, append([]any{w.cfg.Lease.Microseconds(), token}, more...)...)
	taken, err := sqldb.ReadAll(rows, err, func(rows *sql.Rows) (*holding, error) {
		h := &holding{claim: Job{Token: token}, until: until}
		return h, rows.Scan(&h.claim.ID, &h.claim.Attempt)
	}, "take due rows")
	for _, h := range taken { // now that the statement has ended, whoever reads the row sees the token
		crash.Point("work: claimed")
		w.hold(h)
	}
	return len(taken), err
}

// update is a statement that changes the rows that are chosen, on PostgreSQL
// without those that another transaction has locked: one row must not hold up
// the others, and another process takes other rows instead.
//
// The rows are chosen once and then found by nothing but their keys. A limit in
// the UPDATE itself may limit nothing, since a planner may choose anew for every
// row. And whatever else it asked for, PostgreSQL could begin with: going by
// statistics from a quiet hour hardly a row is due or leased, so it read all
// that were, and for each of them what was chosen. With 10,000 due rows it took
// most of a second to renew 200 leases.
func (w *Worker) update(set, chosen string) string {
	if w.cfg.DB.Engine == sqldb.Postgres {
		chosen += ` FOR UPDATE SKIP LOCKED`
	}
	return `
		WITH mine AS MATERIALIZED (SELECT id FROM ` + w.cfg.Table + ` WHERE ` + chosen + `)
		UPDATE ` + w.cfg.Table + ` SET ` + set + ` WHERE id IN (SELECT id FROM mine)`
}

// clockSet notes that the database's clock was set, or is another one's: every
// lease may look as if it had run out, or as if it never would.
func (w *Worker) clockSet() {
	w.mu.Lock()
	w.contact = time.Now()
	w.mu.Unlock()
	w.pullInAt, w.lookAllAt, w.from = time.Time{}, time.Time{}, time.Time{}
}

// pullIn has rows come soon that are due later than they can be: the clock was
// set back after their time was written.
func (w *Worker) pullIn(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, workWrites)
	defer cancel()
	db, args := w.cfg.DB, []any{w.cfg.Lease.Microseconds()}
	late := `lease_token IS NOT NULL AND due_at > ` + db.Later("$1")
	if w.cfg.Longest != "" {
		late += ` OR lease_token IS NULL AND due_at > ` + db.Later("$2") + ` AND due_at > ` + db.Later(w.cfg.Longest)
		args = append(args, lastFailedRetry.Microseconds())
	}
	res, err := db.ExecContext(ctx, w.update(`due_at = `+db.Later("$1"), `due_at > `+sqldb.Clock+` AND (`+late+`)`+w.cfg.Where), args...)
	if err != nil {
		return err
	}
	n, err := res.RowsAffected()
	if n > 0 {
		w.cfg.Log.Warn("work was due too late: the clock was set back", "table", w.cfg.Table, "rows", n)
	}
	return err
}
