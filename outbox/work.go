package outbox

import (
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"runtime/debug"
	"sync"
	"time"

	"pizzaflow/sqldb"
)

const (
	workLook     = 250 * time.Millisecond // for rows that became due by themselves
	workPause    = 3 * time.Millisecond   // between two takes, so that a busy Work takes many rows at once
	workLookSoon = 20 * time.Millisecond  // after a take that found less than it could have
	workAhead    = 32                     // times Limit: how many rows are held at most, worked on or waiting for it
	workWrites   = 10 * time.Second       // for one statement about leases
)

// WorkConfig says which rows a Work takes and what is done for each. The table
// has the columns id (primary key), due_at (null: nothing to do), lease_token
// (text, null) and attempts (integer), and an index on due_at.
type WorkConfig struct {
	DB    *sqldb.DB
	Table string
	Where string // which of its rows, as an SQL condition; all when empty
	Limit int    // how many calls at once; 64 when zero

	// Lease is how long a row stays a dead process's; 5 s when zero. A living
	// one renews it for as long as it holds the row.
	Lease time.Duration
	// Patience is how long Do may take; 2 minutes when zero. Then its context
	// ends and the lease is not renewed any more.
	Patience time.Duration
	// Alone says that no other process works on these rows: whatever is leased
	// when Run begins was left by a dead one and is due at once.
	Alone bool

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
	Token   string // stands in the row for as long as it is this process's
	Attempt int    // how often the row was taken: 1, 2, …
	Data    any    // what Lease.Begin was given; nil for a row that was found in the table

	called func()
}

// Called says that the call is over and what came of it remains to be stored.
// Meanwhile another row may be begun: up to twice the limit are in hand then.
func (c Claim) Called() {
	if c.called != nil {
		c.called()
	}
}

// A Work makes calls to the outside for rows that are due. The rows are the
// queue: they outlive the process, and any number of processes may take them.
// A call may be repeated, after a crash or a lost answer, so it must carry a
// key that makes the other side recognise it.
//
// A row is held by a lease: the process's token, and due_at in the near future,
// which is moved on while the row is held. A process that dies moves nothing,
// and its rows are due again. One that was away from its database, as all are
// when the database restarts, takes no row from others for the length of a
// lease, so that whoever lives can renew and settle first.
type Work struct {
	cfg   WorkConfig
	token string
	wake  chan struct{}

	mu      sync.Mutex
	open    bool                // Run takes what is handed over
	held    map[string]*holding // the rows that are this process's, by id
	waiting []*holding          // of those, the ones nobody works on yet
	working int                 // calls
	storing int                 // what came of calls
	hungry  bool                // there may be more due rows than there was room for
	behind  bool                // there are, and they have waited for a while: nothing is handed over before them
	contact time.Time           // since when the database has answered every question
	askDead time.Time           // when rows of the dead are looked for again
	ctx     context.Context     // of the calls
	running sync.WaitGroup
}

// A holding is a row that is this process's, until others may take it.
type holding struct {
	claim  Claim
	until  time.Time // by this process's own clock
	began  time.Time // zero while it waits
	cancel context.CancelFunc
	called bool // and what came of it is stored
	missed bool // the last renewal did not find it
}

// NewWork makes a Work; Run starts it.
func NewWork(cfg WorkConfig) *Work {
	if cfg.Limit == 0 {
		cfg.Limit = 64
	}
	if cfg.Lease == 0 {
		cfg.Lease = 5 * time.Second
	}
	if cfg.Patience == 0 {
		cfg.Patience = 2 * time.Minute
	}
	if cfg.Where != "" {
		cfg.Where = " AND " + cfg.Where
	}
	return &Work{cfg: cfg, token: rand.Text(), wake: make(chan struct{}, 1), held: map[string]*holding{}}
}

// Wake says that a row became due. Without it the row is found by Run's own
// look, four times a second.
func (w *Work) Wake() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Run works until ctx ends, gives back what it has not begun, and lets the
// running calls finish.
func (w *Work) Run(ctx context.Context) error {
	w.mu.Lock()
	w.open, w.ctx, w.contact = true, context.WithoutCancel(ctx), time.Now()
	w.mu.Unlock()
	var renewing sync.WaitGroup
	ended := make(chan struct{})
	renewing.Go(func() { w.renewUntil(ended) })
	if w.cfg.Alone {
		w.inContact(w.inheritAll(ctx))
	}
	w.takeUntil(ctx)

	w.mu.Lock()
	rest := w.waiting
	w.open, w.waiting = false, nil
	for _, h := range rest {
		w.drop(h)
	}
	w.mu.Unlock()
	w.giveBack(w.ctx, rest)
	w.running.Wait()
	close(ended)
	renewing.Wait()
	return nil
}

// hold adds a row to those held and has it worked on. It reports false when
// Run has ended.
func (w *Work) hold(h *holding) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.open {
		return false
	}
	if newer := w.held[h.claim.ID]; newer != nil && newer.claim.Attempt > h.claim.Attempt {
		return true // its lease ran out before the commit, and the row was taken since
	}
	w.held[h.claim.ID] = h
	w.waiting = append(w.waiting, h)
	w.begin()
	return true
}

// begin gives waiting rows to free hands, and has more taken when few are left;
// the caller has locked mu. One whose lease ran out while it waited may be
// another's by now.
func (w *Work) begin() {
	for len(w.waiting) > 0 && w.working < w.cfg.Limit && w.working+w.storing < 2*w.cfg.Limit {
		h := w.waiting[0]
		w.waiting = w.waiting[1:]
		h.began = time.Now()
		if !h.began.Before(h.until) {
			w.drop(h)
			continue
		}
		// a call that has begun is finished although Run is ending: breaking it
		// off would leave its outcome unknown
		ctx, cancel := context.WithTimeout(w.ctx, w.cfg.Patience)
		h.cancel = cancel
		w.working++
		w.running.Go(func() {
			claim := h.claim
			claim.called = func() { w.called(h) }
			w.do(ctx, claim)
			cancel()
			w.finish(h)
		})
	}
	if w.hungry && len(w.waiting) <= w.cfg.Limit/2 {
		w.Wake()
	}
}

// drop lets a row go, unless it was taken again since; the caller has locked mu.
func (w *Work) drop(h *holding) {
	if w.held[h.claim.ID] == h {
		delete(w.held, h.claim.ID)
	}
}

// called has another row begun while what came of this one is stored.
func (w *Work) called(h *holding) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !h.called {
		h.called = true
		w.working--
		w.storing++
		w.begin()
	}
}

func (w *Work) finish(h *holding) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if h.called {
		w.storing--
	} else {
		w.working--
		h.called = true // too late to say so
	}
	w.drop(h)
	w.begin()
}

// room is how many rows are taken now, so that as many wait as are worked on:
// then no hand is idle while more are taken. What storing holds up is left to
// others. If it is none, Run is woken when half of those that wait are begun.
func (w *Work) room() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 2*w.cfg.Limit - w.working - len(w.waiting) - max(0, w.storing-w.cfg.Limit)
	w.hungry = n <= 0
	return n
}

// takeUntil takes due rows from the table until ctx ends.
func (w *Work) takeUntil(ctx context.Context) {
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
func (w *Work) take(ctx context.Context, woken bool) (next time.Duration, err error) {
	room := w.room()
	if room <= 0 {
		if !woken {
			return workLook, w.fallBehind(ctx)
		}
		return workLook, nil
	}
	if !woken {
		if wait, err := w.look(ctx); wait > 0 || err != nil {
			w.mu.Lock()
			w.behind = w.behind && err != nil
			w.mu.Unlock()
			return wait, err
		}
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

// fallBehind finds out whether rows in the table wait for those that are handed
// over.
func (w *Work) fallBehind(ctx context.Context) error {
	var first time.Time
	err := w.cfg.DB.Read().QueryRowContext(ctx, `SELECT MIN(due_at) FROM `+w.cfg.Table+` WHERE due_at IS NOT NULL`+w.cfg.Where).Scan(sqldb.Time(&first))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.behind = w.behind || err == nil && !first.IsZero() && time.Since(first) > workLook
	return err
}

// look says how long nothing is due.
func (w *Work) look(ctx context.Context) (time.Duration, error) {
	var first time.Time
	err := w.cfg.DB.Read().QueryRowContext(ctx, `SELECT MIN(due_at) FROM `+w.cfg.Table+` WHERE due_at IS NOT NULL`+w.cfg.Where).Scan(sqldb.Time(&first))
	if err != nil {
		return 0, err
	}
	if first.IsZero() {
		return workLook, nil
	}
	return min(workLook, max(0, time.Until(first))), nil
}

// claim takes up to n due rows that nobody holds, and returns how many it took.
func (w *Work) claim(ctx context.Context, n int) (int, error) {
	// what is claimed must be known: broken off, the statement may have taken
	// rows that nobody works on until their lease runs out
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), workWrites)
	defer cancel()
	return w.takeRows(ctx, `due_at <= $3 AND lease_token IS NULL`+w.cfg.Where+` ORDER BY due_at LIMIT $4`, n)
}

// takeRows leases the rows that are chosen and has them worked on: in what
// chooses them $3 is the time and more follows from $4.
func (w *Work) takeRows(ctx context.Context, chosen string, more ...any) (n int, err error) {
	until, now := time.Now().Add(w.cfg.Lease), sqldb.Now()
	statement := w.update(`due_at = $1, lease_token = $2, attempts = attempts + 1`, chosen) + ` RETURNING id, attempts`
	rows, err := w.cfg.DB.QueryContext(ctx, statement, append([]any{now.Add(w.cfg.Lease), w.token, now}, more...)...)
	taken, err := all(rows, err, func(rows *sql.Rows) (*holding, error) {
		h := &holding{claim: Claim{Token: w.token}, until: until}
		return h, rows.Scan(&h.claim.ID, &h.claim.Attempt)
	}, "take due rows")
	for _, h := range taken { // now that the statement has ended, whoever reads the row sees the token
		crash("work: claimed")
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
func (w *Work) update(set, chosen string) string {
	if w.cfg.DB.Engine == sqldb.Postgres {
		chosen += ` FOR UPDATE SKIP LOCKED`
	}
	return `
		WITH mine AS MATERIALIZED (SELECT id FROM ` + w.cfg.Table + ` WHERE ` + chosen + `)
		UPDATE ` + w.cfg.Table + ` SET ` + set + ` WHERE id IN (SELECT id FROM mine)`
}

func (w *Work) do(ctx context.Context, c Claim) {
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
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), workWrites)
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
