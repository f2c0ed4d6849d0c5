package outbox

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"runtime/debug"
	"sync"
	"time"

	"pizzaflow/sqldb"
)

// WorkConfig says which rows a Work takes and what is done for each. The table
// has the columns id (primary key), due_at (null: nothing to do), lease_token
// (text, null) and attempts (integer), and an index on due_at.
type WorkConfig struct {
	DB    *sqldb.DB
	Table string
	Limit int           // how many at once; 64 when zero
	Lease time.Duration // longer than Do ever takes, 30 s when zero: what a crash left undone is taken again after it

	// Do makes the call and settles the row in a transaction of its own, with
	// lease_token = Claim.Token among the conditions: no row changed means that
	// the lease was lost and the row is another's. An error says that nothing
	// was settled; the row comes back after a pause.
	Do  func(ctx context.Context, c Claim) error
	Log *slog.Logger
}

// A Claim is one row taken to be worked on.
type Claim struct {
	ID      string
	Token   string // stands in the row for as long as it is this claim's
	Attempt int    // how often the row was taken: 1, 2, …
	until   time.Time
}

// A Work makes calls to the outside for rows that are due. The rows are the
// queue: they outlive the process, and any number of processes may take them.
// A call may be repeated, after a crash or a lost answer, so it must carry a
// key that makes the other side recognise it.
type Work struct {
	cfg  WorkConfig
	wake chan struct{}
}

// NewWork makes a Work; Run starts it.
func NewWork(cfg WorkConfig) *Work {
	if cfg.Limit == 0 {
		cfg.Limit = 64
	}
	if cfg.Lease == 0 {
		cfg.Lease = 30 * time.Second
	}
	return &Work{cfg: cfg, wake: make(chan struct{}, 1)}
}

// Wake says that a row became due. Without it the row is found by Run's own
// look, once a second.
func (w *Work) Wake() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Run works until ctx ends, then lets the running calls finish.
func (w *Work) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	slots := make(chan struct{}, w.cfg.Limit)
	for ctx.Err() == nil {
		claims, next, err := w.claim(ctx, cap(slots)-len(slots))
		if err != nil && ctx.Err() == nil {
			w.cfg.Log.Error("take due work", "table", w.cfg.Table, "err", err)
		}
		for _, c := range claims {
			slots <- struct{}{}
			crash("work: claimed")
			running.Go(func() {
				w.do(ctx, c)
				<-slots
				w.Wake() // a slot is free
			})
		}
		wait := time.NewTimer(min(max(next, time.Millisecond), time.Second))
		select {
		case <-ctx.Done():
		case <-w.wake:
		case <-wait.C:
		}
		wait.Stop()
	}
	return nil
}

// claim takes up to n due rows. When there are none it says how long until the
// next one is due.
func (w *Work) claim(ctx context.Context, n int) (claims []Claim, next time.Duration, err error) {
	if n == 0 {
		return nil, time.Second, nil
	}
	now := sqldb.Now()
	var first time.Time
	// a look that takes no lock: mostly there is nothing to do
	err = w.cfg.DB.Read().QueryRowContext(ctx, `SELECT MIN(due_at) FROM `+w.cfg.Table+` WHERE due_at IS NOT NULL`).Scan(sqldb.Time(&first))
	if err != nil || first.IsZero() || first.After(now) {
		if first.After(now) {
			return nil, first.Sub(now), err
		}
		return nil, time.Second, err
	}
	// what is claimed must be known: broken off, the statement may have taken
	// rows that nobody works on until their lease runs out
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	token := rand.Text()
	locking := ""
	if w.cfg.DB.Engine == sqldb.Postgres {
		locking = ` FOR UPDATE SKIP LOCKED` // others take other rows instead of waiting for these
	}
	// MATERIALIZED: the choice is made once. Inside the UPDATE a planner may make
	// it again for every row, and then the limit limits nothing.
	rows, err := w.cfg.DB.QueryContext(ctx, `
		WITH mine AS MATERIALIZED (SELECT id FROM `+w.cfg.Table+` WHERE due_at <= $3 ORDER BY due_at LIMIT $4`+locking+`)
		UPDATE `+w.cfg.Table+` SET due_at = $1, lease_token = $2, attempts = attempts + 1
		WHERE due_at <= $3 AND id IN (SELECT id FROM mine)
		RETURNING id, attempts`, now.Add(w.cfg.Lease), token, now, n)
	if err != nil {
		return nil, time.Second, err
	}
	defer rows.Close()
	for rows.Next() {
		c := Claim{Token: token, until: now.Add(w.cfg.Lease)}
		if err := rows.Scan(&c.ID, &c.Attempt); err != nil {
			return claims, time.Second, err
		}
		claims = append(claims, c)
	}
	if len(claims) == n { // there may be more, but a slot must become free first: that wakes
		return claims, time.Second, rows.Err()
	}
	return claims, 0, rows.Err()
}

func (w *Work) do(ctx context.Context, c Claim) {
	// a call that has begun is finished although Run is ending: breaking it off
	// would leave its outcome unknown
	ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), c.until)
	defer cancel()
	err := func() (err error) {
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			}
		}()
		return w.cfg.Do(ctx, c)
	}()
	if err == nil {
		return
	}
	w.cfg.Log.Error("work", "table", w.cfg.Table, "id", c.ID, "attempt", c.Attempt, "err", err)
	ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	due := sqldb.Now().Add(Backoff(c.Attempt, 500*time.Millisecond, 30*time.Second))
	_, err = w.cfg.DB.ExecContext(ctx, `UPDATE `+w.cfg.Table+` SET due_at = $1, lease_token = NULL WHERE id = $2 AND lease_token = $3`, due, c.ID, c.Token)
	if err != nil { // then the lease runs out by itself
		w.cfg.Log.Error("give work back", "table", w.cfg.Table, "id", c.ID, "err", err)
	}
}

// Backoff is the pause after attempt 1, 2, …: base doubled each time, up to
// limit, of which the upper half is drawn at random so that many rows do not
// come back at once.
func Backoff(attempt int, base, limit time.Duration) time.Duration {
	d := base
	for i := 1; i < attempt && d < limit; i++ {
		d *= 2
	}
	d = min(d, limit)
	return d/2 + mathrand.N(d/2+1) //nolint:gosec // jitter
}
