package job

import (
	"context"
	"crypto/rand"
	"database/sql"
	"time"

	"pizzaflow/sqldb"
)

// A Lease is what a transaction writes into the work columns of rows that it
// inserts: due_at is DueIn from now by the database's clock (DB.Later or a
// column of the type CLOCK). If Token is set, the rows are this process's from
// the start, and need not be taken from the table again; otherwise they are
// simply due.
type Lease struct {
	DueIn    time.Duration
	Token    sql.NullString
	Attempts int
	work     *Worker
	until    time.Time
}

// Due is no lease: the rows are due, for whoever takes them.
func (w *Worker) Due() Lease { return Lease{work: w} }

// Lease makes a lease for n new rows, which is taken if there is room for them.
func (w *Worker) Lease(n int) Lease {
	l := w.Due()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.open && !w.behind && len(w.held)+n <= workAhead*w.cfg.Limit {
		l.until = time.Now().Add(w.cfg.Lease)
		l.DueIn, l.Token, l.Attempts = w.cfg.Lease, sql.NullString{String: rand.Text(), Valid: true}, 1
	}
	return l
}

// A Committer is a transaction that calls functions once it is committed, such
// as one of an outbox.
type Committer interface{ AfterCommit(fn func()) }

// Begin has the row worked on once tx, which inserted it with l, is committed.
// The data is handed to Do.
func (l Lease) Begin(tx Committer, id string, data any) {
	if !l.Token.Valid {
		tx.AfterCommit(l.work.Wake)
		return
	}
	h := &holding{claim: Job{ID: id, Token: l.Token.String, Attempt: l.Attempts, Data: data}, until: l.until}
	tx.AfterCommit(func() {
		if !l.work.hold(h) {
			l.work.giveBack(context.Background(), []*holding{h}) // Run has ended meanwhile
		}
	})
}

// renewUntil moves the leases of the rows that are held on, until ended.
func (w *Worker) renewUntil(ended <-chan struct{}) {
	tick := time.NewTicker(w.cfg.Lease / 3)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			return
		case <-tick.C:
		}
		old := w.old()
		err := sqldb.Chunks(len(old), 256, func(from, to int) error { return w.renew(old[from:to]) })
		if err != nil {
			w.inContact(err)
			w.cfg.Log.Error("renew the lease of work", "table", w.cfg.Table, "rows", len(old), "err", err)
		}
	}
}

// old lists the rows whose lease has lost a third, except those that have been
// worked on for too long.
func (w *Worker) old() (old []*holding) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	for _, h := range w.held {
		if h.until.Sub(now) <= w.cfg.Lease*2/3 && (h.began.IsZero() || now.Sub(h.began) < w.cfg.Patience) {
			old = append(old, h)
		}
	}
	return old
}

func (w *Worker) renew(old []*holding) error {
	ctx, cancel := context.WithTimeout(w.ctx, workWrites)
	defer cancel()
	until := time.Now().Add(w.cfg.Lease)
	statement := w.update(`due_at = `+w.cfg.DB.Later("$1"), claimed(2, len(old))) + ` RETURNING id, lease_token`
	rows, err := w.cfg.DB.QueryContext(ctx, statement, append([]any{w.cfg.Lease.Microseconds()}, claims(old)...)...)
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
	for _, h := range old {
		switch {
		case tokens[h.claim.ID] == h.claim.Token:
			h.until, h.missed = until, false
		case h.missed && h.cancel != nil: // lost for certain: the first time it may just have been settled
			h.cancel()
		default:
			h.missed = true
		}
	}
	return nil
}

// claimed is the condition that rows are still their claims', for n claims whose
// ids and tokens are the arguments from $first on. Of the claims of a row that this
// process made only the last is held, so no row is found by another's token.
func claimed(first, n int) string {
	return `id IN (` + sqldb.List(first, n) + `) AND lease_token IN (` + sqldb.List(first+n, n) + `)`
}

func claims(held []*holding) []any {
	args := make([]any, 2*len(held))
	for i, h := range held {
		args[i], args[len(held)+i] = h.claim.ID, h.claim.Token
	}
	return args
}

// inContact notes whether the database has answered.
func (w *Worker) inContact(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err != nil:
		w.contact = time.Time{}
	case w.contact.IsZero():
		w.contact = time.Now()
	}
}

// inherit takes up to n rows whose holder is dead, and returns how many it took.
// Nobody is held for dead by a process that was away from the database within
// the length of a lease: the holder may have been away as well.
func (w *Worker) inherit(ctx context.Context, n int) (int, error) {
	w.mu.Lock()
	may := !w.contact.IsZero() && time.Since(w.contact) >= w.cfg.Lease && !time.Now().Before(w.askDead)
	w.mu.Unlock()
	if !may {
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), workWrites)
	defer cancel()
	began := time.Now()
	ids, err := w.orphans(ctx, n)
	w.mu.Lock()
	// it reads all that is due: after an hour's outage not four times a second
	w.askDead = time.Now().Add(max(workLook, min(20*time.Since(began), w.cfg.Lease)))
	w.mu.Unlock()
	if err != nil || len(ids) == 0 {
		return 0, err
	}
	return w.takeRows(ctx, `due_at <= `+sqldb.Clock+` AND lease_token IS NOT NULL AND id IN (`+sqldb.List(3, len(ids))+`)`, ids...)
}

// orphans lists rows whose lease ran out. Those that this process holds itself
// are not among them: their lease may have run out while the database was away,
// and they are still worked on here.
func (w *Worker) orphans(ctx context.Context, n int) (ids []any, err error) {
	since, args := w.since(2)
	rows, err := w.cfg.DB.Read().QueryContext(ctx, `
		SELECT id FROM `+w.cfg.Table+` WHERE `+since+` AND due_at <= `+sqldb.Clock+` AND lease_token IS NOT NULL`+w.cfg.Where+` ORDER BY due_at LIMIT $1`,
		append([]any{n}, args...)...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		if w.held[id] == nil {
			ids = append(ids, id)
		}
	}
	return ids, rows.Err()
}

// inheritAll makes due what dead processes left, where no other can be alive.
func (w *Worker) inheritAll(ctx context.Context) error {
	_, err := w.cfg.DB.ExecContext(ctx, `
		UPDATE `+w.cfg.Table+` SET due_at = `+sqldb.Clock+`, lease_token = NULL WHERE lease_token IS NOT NULL`+w.cfg.Where)
	if err != nil && ctx.Err() == nil { // then the leases run out by themselves
		w.cfg.Log.Error("take over work", "table", w.cfg.Table, "err", err)
	}
	return err
}

// giveBack makes rows due that were held and not begun.
func (w *Worker) giveBack(ctx context.Context, rest []*holding) {
	ctx, cancel := context.WithTimeout(ctx, workWrites)
	defer cancel()
	err := sqldb.Chunks(len(rest), 256, func(from, to int) error {
		part := rest[from:to]
		_, err := w.cfg.DB.ExecContext(ctx, `
			UPDATE `+w.cfg.Table+` SET due_at = `+sqldb.Clock+`, lease_token = NULL, attempts = attempts - 1
			WHERE `+claimed(1, len(part)), claims(part)...)
		return err
	})
	if err != nil { // then the leases run out by themselves
		w.cfg.Log.Error("give work back", "table", w.cfg.Table, "rows", len(rest), "err", err)
	}
}
