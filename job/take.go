package job

import (
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"time"

	"pizzaflow/internal/crash"
	"pizzaflow/internal/retry"
	"pizzaflow/sqldb"
)

const (
	lookEvery     = 250 * time.Millisecond // for rows that became due by themselves
	lookAgainSoon = 20 * time.Millisecond  // after a take that found fewer rows than it could have taken
	takePause     = 3 * time.Millisecond   // between two takes, so that a busy Worker takes many rows at once
	fullLookEvery = time.Minute            // for all due rows, however long they have been due
	lateCommit    = 2 * time.Minute        // a transaction that writes a due time is committed by then
)

// takeLoop takes due rows from the table until ctx ends.
func (w *Worker) takeLoop(ctx context.Context) {
	nextLook := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		woken := false
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
			woken = true
		case <-timer.C:
		}
		pause, err := w.take(ctx, woken)
		w.noteAnswer(err)
		if err != nil && ctx.Err() == nil {
			w.cfg.Log.Error("take due jobs", "table", w.cfg.Table, "err", err)
			pause = time.Second
		}
		if at := time.Now().Add(pause); !woken || at.Before(nextLook) {
			nextLook = at
		}
		retry.Sleep(ctx, takePause)
		timer.Reset(time.Until(nextLook))
	}
}

// take takes as many due rows as there is capacity for and returns the pause
// until the next look. Unless Wake was called, it looks first, without a lock:
// mostly no row is due.
func (w *Worker) take(ctx context.Context, woken bool) (pause time.Duration, err error) {
	w.mu.Lock()
	capacity := w.capacity()
	w.moreDue = capacity <= 0
	w.mu.Unlock()
	if !woken {
		overdue, err := w.look(ctx)
		w.noteBacklog(capacity, overdue, err)
		if err != nil || overdue < 0 {
			return -overdue, err
		}
	}
	if capacity <= 0 {
		return lookEvery, nil
	}
	if !woken {
		n, err := w.takeOver(ctx, capacity)
		if capacity -= n; err != nil || capacity == 0 {
			return lookEvery, err
		}
	}
	n, err := w.takeUnleased(ctx, capacity)
	if err != nil {
		return 0, err
	}
	w.mu.Lock()
	if n == capacity {
		w.moreDue = true
	} else {
		w.backlogged = false
	}
	w.mu.Unlock()
	if n < capacity && (woken || n > 0) {
		return lookAgainSoon, nil
	}
	return lookEvery, nil
}

// capacity is how many rows may be taken now, so that as many wait as are
// running: then no call stays free while more rows are taken. Rows whose results
// cannot be stored are left to other processes. The caller has locked mu.
func (w *Worker) capacity() int {
	return 2*w.cfg.Limit - w.working - len(w.waiting) - max(0, w.storing-w.cfg.Limit)
}

// noteBacklog records whether rows in the table wait for rows that are handed
// over: there is no capacity for them, and the first has been due for a while.
func (w *Worker) noteBacklog(capacity int, overdue time.Duration, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err != nil:
	case capacity <= 0:
		w.backlogged = w.backlogged || overdue > lookEvery
	case overdue < 0:
		w.backlogged = false
	}
}

// look returns for how long the first of the due rows has been due, and below
// zero, when none is due, for how long not to look again. It also notices that
// the clock was set, and from time to time has rows come that are due too late.
func (w *Worker) look(ctx context.Context) (overdue time.Duration, err error) {
	asked := time.Now()
	first, now, err := w.readFirstDue(ctx, asked)
	if err != nil {
		return 0, err
	}
	if w.clock.Observe(now, asked, w.cfg.Lease/8) == 0 {
		w.distrustClock()
	}
	if !asked.Before(w.nextPullIn) {
		if err := w.pullIn(ctx); err != nil {
			return 0, err
		}
		w.nextPullIn = asked.Add(pullInEvery)
	}
	if first.IsZero() {
		return -lookEvery, nil
	}
	return max(-lookEvery, now.Sub(first)), nil
}

// readFirstDue reads the first due time, zero without one, and the database's
// time. Once in a while it looks at all due times, and moves earliestDue on.
func (w *Worker) readFirstDue(ctx context.Context, asked time.Time) (first, now time.Time, err error) {
	full := !asked.Before(w.nextFullLook)
	if full {
		w.earliestDue = time.Time{}
	}
	isDue, args := w.dueCondition(1)
	err = w.cfg.DB.Read().QueryRowContext(ctx, `SELECT MIN(due_at), `+sqldb.Clock+` FROM `+w.cfg.Table+` WHERE `+isDue+w.cfg.Where, args...).
		Scan(sqldb.Time(&first), sqldb.Time(&now))
	if err == nil && full {
		w.nextFullLook, w.earliestDue = asked.Add(fullLookEvery), now.Add(-lateCommit)
		if !first.IsZero() && first.Before(w.earliestDue) {
			w.earliestDue = first
		}
	}
	return first, now, err
}

// dueCondition is the condition that a row has a due time, not before
// earliestDue, and its argument, numbered n. While a transaction reads the
// database for long, PostgreSQL keeps the index entries of all rows that were
// due since: without a bound each look would step over every one of them.
func (w *Worker) dueCondition(n int) (condition string, args []any) {
	if w.earliestDue.IsZero() {
		return `due_at IS NOT NULL`, nil
	}
	return fmt.Sprintf(`due_at >= $%d`, n), []any{w.earliestDue}
}

// takeUnleased takes up to n due rows without a lease, and returns how many it
// took.
func (w *Worker) takeUnleased(ctx context.Context, n int) (int, error) {
	// the result must be known: broken off, the statement may have leased rows
	// that no process works on until their lease runs out
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), statementTimeout)
	defer cancel()
	isDue, args := w.dueCondition(4)
	return w.leaseRows(ctx, isDue+` AND due_at <= `+sqldb.Clock+` AND lease_token IS NULL`+w.cfg.Where+` ORDER BY due_at LIMIT $3`, append([]any{n}, args...)...)
}

// leaseRows leases the rows that the condition chosen finds, and starts them;
// the condition's arguments, more, are numbered from $3. The lease has a token of
// its own, so that no earlier holder of the row, be it in this process, can
// settle it.
func (w *Worker) leaseRows(ctx context.Context, chosen string, more ...any) (n int, err error) {
	until, token := time.Now().Add(w.cfg.Lease), rand.Text()
	statement := w.update(`due_at = `+w.cfg.DB.Later("$1")+`, lease_token = $2, attempts = attempts + 1`, chosen) + ` RETURNING id, attempts`
	rows, err := w.cfg.DB.QueryContext(ctx, statement, append([]any{w.cfg.Lease.Microseconds(), token}, more...)...)
	leased, err := sqldb.ReadAll(rows, err, func(rows *sql.Rows) (*heldJob, error) {
		h := &heldJob{job: Job{Token: token}, leasedUntil: until}
		return h, rows.Scan(&h.job.ID, &h.job.Attempt)
	}, "lease due rows")
	for _, h := range leased { // the statement has ended: a reader of the row sees the token
		crash.Point("job: leased")
		w.accept(h)
	}
	return len(leased), err
}

// update is a statement that changes the rows that the condition chosen finds, on
// PostgreSQL without those that another transaction has locked: one row must not
// hold up the others, and another process takes other rows instead.
//
// The rows are chosen once and then found by nothing but their keys. A limit in
// the UPDATE itself may limit nothing, since a planner may choose anew for every
// row. And PostgreSQL could begin with any further condition of the UPDATE: going
// by statistics from a quiet hour hardly a row is due or leased, so it read all
// rows that were, and for each of them those chosen. With 10,000 due rows it took
// most of a second to renew 200 leases.
func (w *Worker) update(set, chosen string) string {
	if w.cfg.DB.Engine == sqldb.Postgres {
		chosen += ` FOR UPDATE SKIP LOCKED`
	}
	return `
		WITH mine AS MATERIALIZED (SELECT id FROM ` + w.cfg.Table + ` WHERE ` + chosen + `)
		UPDATE ` + w.cfg.Table + ` SET ` + set + ` WHERE id IN (SELECT id FROM mine)`
}
