package job

import (
	"context"
	"time"

	"pizzaflow/sqldb"
)

// noteAnswer records whether the database has answered.
func (w *Worker) noteAnswer(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err != nil:
		w.answeringSince = time.Time{}
	case w.answeringSince.IsZero():
		w.answeringSince = time.Now()
	}
}

// takeOver takes up to n rows whose lease ran out, and returns how many it took.
// A process that was away from the database within the length of a lease takes
// none: the holder may have been away as well, and live.
func (w *Worker) takeOver(ctx context.Context, n int) (int, error) {
	w.mu.Lock()
	may := !w.answeringSince.IsZero() && time.Since(w.answeringSince) >= w.cfg.Lease && !time.Now().Before(w.nextTakeOver)
	w.mu.Unlock()
	if !may {
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), statementTimeout)
	defer cancel()
	began := time.Now()
	ids, err := w.expired(ctx, n)
	w.mu.Lock()
	// the query reads all due rows: after an hour's outage not four times a second
	w.nextTakeOver = time.Now().Add(max(lookEvery, min(20*time.Since(began), w.cfg.Lease)))
	w.mu.Unlock()
	if err != nil || len(ids) == 0 {
		return 0, err
	}
	return w.leaseRows(ctx, `due_at <= `+sqldb.Clock+` AND lease_token IS NOT NULL AND id IN (`+sqldb.List(3, len(ids))+`)`, ids...)
}

// expired lists up to n rows whose lease ran out, without those that this process
// holds: their lease may have run out while the database was away, and they are
// still worked on here.
func (w *Worker) expired(ctx context.Context, n int) (ids []any, err error) {
	isDue, args := w.dueCondition(2)
	rows, err := w.cfg.DB.Read().QueryContext(ctx, `
		SELECT id FROM `+w.cfg.Table+` WHERE `+isDue+` AND due_at <= `+sqldb.Clock+` AND lease_token IS NOT NULL`+w.cfg.Where+` ORDER BY due_at LIMIT $1`,
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

// releaseAll ends every lease that stands in the table, where no other process
// can be alive to hold one.
func (w *Worker) releaseAll(ctx context.Context) error {
	_, err := w.cfg.DB.ExecContext(ctx, `
		UPDATE `+w.cfg.Table+` SET due_at = `+sqldb.Clock+`, lease_token = NULL WHERE lease_token IS NOT NULL`+w.cfg.Where)
	if err != nil && ctx.Err() == nil { // then the leases run out by themselves
		w.cfg.Log.Error("release jobs of a dead process", "table", w.cfg.Table, "err", err)
	}
	return err
}
