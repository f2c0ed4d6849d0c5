package job

import (
	"context"
	"crypto/rand"
	"database/sql"
	"time"

	"pizzaflow/sqldb"
)

// A Lease is what a transaction writes into the columns due_at, lease_token and
// attempts of rows that it inserts: due_at is DueIn from now by the database's
// clock (DB.Later or a column of the type CLOCK). If Token is set, this process
// holds the rows from the start, and need not take them from the table;
// otherwise they are simply due.
type Lease struct {
	DueIn    time.Duration
	Token    sql.NullString
	Attempts int
	worker   *Worker
	until    time.Time
}

// Due is no lease: rows inserted with it are due, and any process takes them.
func (w *Worker) Due() Lease { return Lease{worker: w} }

// Lease makes a lease for n new rows, or Due where this process has no capacity
// for them, does not run, or has older rows due in the table.
func (w *Worker) Lease(n int) Lease {
	l := w.Due()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.open && !w.backlogged && len(w.held)+n <= aheadLimit*w.cfg.Limit {
		l.until = time.Now().Add(w.cfg.Lease)
		l.DueIn, l.Token, l.Attempts = w.cfg.Lease, sql.NullString{String: rand.Text(), Valid: true}, 1
	}
	return l
}

// A Committer is a transaction that calls functions once it is committed, such
// as one of an outbox.
type Committer interface{ AfterCommit(fn func()) }

// Begin starts the row once tx, which inserts it with l, is committed. Do gets
// data as Job.Data.
func (l Lease) Begin(tx Committer, id string, data any) {
	if !l.Token.Valid {
		tx.AfterCommit(l.worker.Wake)
		return
	}
	h := &heldJob{job: Job{ID: id, Token: l.Token.String, Attempt: l.Attempts, Data: data}, leasedUntil: l.until}
	tx.AfterCommit(func() {
		if !l.worker.accept(h) {
			l.worker.release(context.Background(), []*heldJob{h}) // Run has ended meanwhile
		}
	})
}

// renewLoop renews the leases of the held rows, until ended is closed.
func (w *Worker) renewLoop(ended <-chan struct{}) {
	tick := time.NewTicker(w.cfg.Lease / 3)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			return
		case <-tick.C:
		}
		due := w.renewable()
		err := sqldb.Chunks(len(due), 256, func(from, to int) error { return w.renew(due[from:to]) })
		if err != nil {
			w.noteAnswer(err)
			w.cfg.Log.Error("renew job leases", "table", w.cfg.Table, "rows", len(due), "err", err)
		}
	}
}

// renewable lists the held rows whose lease has lost a third, except those that
// have run for longer than the timeout.
func (w *Worker) renewable() (due []*heldJob) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	for _, h := range w.held {
		if h.leasedUntil.Sub(now) <= w.cfg.Lease*2/3 && (h.startedAt.IsZero() || now.Sub(h.startedAt) < w.cfg.Timeout) {
			due = append(due, h)
		}
	}
	return due
}

// renew moves the leases of the rows on, and cancels the call of a row whose
// lease is lost.
func (w *Worker) renew(held []*heldJob) error {
	ctx, cancel := context.WithTimeout(w.ctx, statementTimeout)
	defer cancel()
	until := time.Now().Add(w.cfg.Lease)
	statement := w.update(`due_at = `+w.cfg.DB.Later("$1"), leaseCondition(2, len(held))) + ` RETURNING id, lease_token`
	rows, err := w.cfg.DB.QueryContext(ctx, statement, append([]any{w.cfg.Lease.Microseconds()}, leaseArgs(held)...)...)
	if err != nil {
		return err
	}
	defer rows.Close()
	tokens := map[string]string{}
	for rows.Next() {
		var id, token string
		if err := rows.Scan(&id, &token); err != nil {
			return err
		}
		tokens[id] = token
	}
	if err := rows.Err(); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range held {
		switch {
		case tokens[h.job.ID] == h.job.Token:
			h.leasedUntil, h.renewalMissed = until, false
		case h.renewalMissed && h.cancel != nil: // the lease is lost for certain: the first time Do may just have settled the row
			h.cancel()
		default:
			h.renewalMissed = true
		}
	}
	return nil
}

// leaseCondition is the condition that rows still have their leases, for n leases
// whose ids and tokens are the arguments from $first on. Of the leases that this
// process took of one row only the last is held, so no row is found by another
// row's token.
func leaseCondition(first, n int) string {
	return `id IN (` + sqldb.List(first, n) + `) AND lease_token IN (` + sqldb.List(first+n, n) + `)`
}

func leaseArgs(held []*heldJob) []any {
	args := make([]any, 2*len(held))
	for i, h := range held {
		args[i], args[len(held)+i] = h.job.ID, h.job.Token
	}
	return args
}

// release makes held rows due that have not started, as if they had never been
// taken.
func (w *Worker) release(ctx context.Context, unstarted []*heldJob) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	err := sqldb.Chunks(len(unstarted), 256, func(from, to int) error {
		part := unstarted[from:to]
		_, err := w.cfg.DB.ExecContext(ctx, `
			UPDATE `+w.cfg.Table+` SET due_at = `+sqldb.Clock+`, lease_token = NULL, attempts = attempts - 1
			WHERE `+leaseCondition(1, len(part)), leaseArgs(part)...)
		return err
	})
	if err != nil { // then the leases run out by themselves
		w.cfg.Log.Error("release jobs", "table", w.cfg.Table, "rows", len(unstarted), "err", err)
	}
}
