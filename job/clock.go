package job

import (
	"context"
	"time"

	"pizzaflow/sqldb"
)

const pullInEvery = time.Minute // for rows that are due too late

// distrustClock starts over with all that rests on the database's clock: it was
// set, or is another server's, so that every lease may look as if it had run
// out, or as if it never would.
func (w *Worker) distrustClock() {
	w.mu.Lock()
	w.answeringSince = time.Now()
	w.mu.Unlock()
	w.nextPullIn, w.nextFullLook, w.earliestDue = time.Time{}, time.Time{}, time.Time{}
}

// pullIn makes rows due soon that are due later than they can be: the clock was
// set back after their time was written.
func (w *Worker) pullIn(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	db, args := w.cfg.DB, []any{w.cfg.Lease.Microseconds()}
	tooLate := `lease_token IS NOT NULL AND due_at > ` + db.Later("$1")
	if w.cfg.LongestPause != "" {
		tooLate += ` OR lease_token IS NULL AND due_at > ` + db.Later("$2") + ` AND due_at > ` + db.Later(w.cfg.LongestPause)
		args = append(args, lastFailedRetry.Microseconds())
	}
	res, err := db.ExecContext(ctx, w.update(`due_at = `+db.Later("$1"), `due_at > `+sqldb.Clock+` AND (`+tooLate+`)`+w.cfg.Where), args...)
	if err != nil {
		return err
	}
	n, err := res.RowsAffected()
	if n > 0 {
		w.cfg.Log.Warn("jobs were due too late: the clock was set back", "table", w.cfg.Table, "rows", n)
	}
	return err
}
