// Package job makes durable calls to the outside for rows of one's own tables.
// The rows are the queue: they outlive the process, and any number of processes
// may take them, each row under a lease.
package job

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"pizzaflow/internal/retry"
	"pizzaflow/sqldb"
)

const (
	workLook     = 250 * time.Millisecond // for rows that became due by themselves
	workPause    = 3 * time.Millisecond   // between two takes, so that a busy Work takes many rows at once
	workLookSoon = 20 * time.Millisecond  // after a take that found less than it could have
	workAhead    = 32                     // times Limit: how many rows are held at most, worked on or waiting for it
	workWrites   = 10 * time.Second       // for one statement about leases
	workPullIn   = time.Minute            // between two looks for what is due too late
	workLookAll  = time.Minute            // between two looks at all that is due, however long it has been
	workOverlap  = 2 * time.Minute        // a transaction that writes a due time is committed by then
)

// The pauses before a row whose Do returned an error.
const (
	failedRetry     = 500 * time.Millisecond
	lastFailedRetry = 30 * time.Second
)

// Config says which rows a Work takes and what is done for each. The table
// has the columns id (primary key), due_at (null: nothing to do), lease_token
// (text, null) and attempts (integer), and an index on due_at.
type Config struct {
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
	// Longest is the longest pause that Do makes before a row is due again, in
	// microseconds, as an SQL expression over the row; see LongestBackoff. A row
	// that is due later got its time before the clock was set back, and comes
	// soon instead. Empty, a row may be due at any time.
	Longest string
	// Alone says that no other process works on these rows: whatever is leased
	// when Run begins was left by a dead one and is due at once.
	Alone bool

	// Do makes the call and settles the row in a transaction of its own, with
	// lease_token = Claim.Token among the conditions: no row changed means that
	// the lease was lost and the row is another's. An error says that nothing
	// was settled; the row comes back after a pause.
	Do  func(ctx context.Context, c Job) error
	Log *slog.Logger
}

// A Job is one row taken to be worked on.
type Job struct {
	ID      string
	Token   string // stands in the row for as long as it is this claim's; no other has the same
	Attempt int    // how often the row was taken: 1, 2, …
	Data    any    // what Lease.Begin was given; nil for a row that was found in the table

	called func()
}

// Called says that the call is over and what came of it remains to be stored.
// Meanwhile another row may be begun: up to twice the limit are in hand then.
func (c Job) Called() {
	if c.called != nil {
		c.called()
	}
}

// A Worker makes calls to the outside for rows that are due. The rows are the
// queue: they outlive the process, and any number of processes may take them.
// A call may be repeated, after a crash or a lost answer, so it must carry a
// key that makes the other side recognise it.
//
// A row is held by a lease: the claim's token, and due_at in the near future,
// which is moved on while the row is held. A process that dies moves nothing,
// and its rows are due again. One that was away from its database, as all are
// when the database restarts, takes no row from others for the length of a
// lease, so that whoever lives can renew and settle first. So does one that saw
// the clock set forward, for then every lease looks as if it had run out. The
// clock is the database's (sqldb.Clock): those of the processes may differ.
type Worker struct {
	cfg  Config
	wake chan struct{}

	clock     sqldb.ClockWatch // these are takeUntil's
	pullInAt  time.Time
	lookAllAt time.Time
	from      time.Time // by the database's clock: nothing is due that was due before; zero when that is not known

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
	claim  Job
	until  time.Time // by this process's own clock
	began  time.Time // zero while it waits
	cancel context.CancelFunc
	called bool // and what came of it is stored
	missed bool // the last renewal did not find it
}

// New makes a Work; Run starts it.
func New(cfg Config) *Worker {
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
	return &Worker{cfg: cfg, wake: make(chan struct{}, 1), held: map[string]*holding{}}
}

// Wake says that a row became due. Without it the row is found by Run's own
// look, four times a second.
func (w *Worker) Wake() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Run works until ctx ends, gives back what it has not begun, and lets the
// running calls finish.
func (w *Worker) Run(ctx context.Context) error {
	var err error
	if w.cfg.Alone { // before anything is held here
		err = w.inheritAll(ctx)
	}
	w.mu.Lock()
	w.open, w.ctx = true, context.WithoutCancel(ctx)
	w.mu.Unlock()
	w.inContact(err)
	var renewing sync.WaitGroup
	ended := make(chan struct{})
	renewing.Go(func() { w.renewUntil(ended) })
	w.takeUntil(ctx)
	w.giveBack(w.ctx, w.close())
	w.running.Wait()
	close(ended)
	renewing.Wait()
	return nil
}

// close has nothing more begun, and returns the rows that are held for nothing.
func (w *Worker) close() (rest []*holding) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range w.waiting {
		if w.held[h.claim.ID] == h { // else it was taken again since
			rest = append(rest, h)
			w.drop(h)
		}
	}
	w.open, w.waiting = false, nil
	return rest
}

// hold adds a row to those held and has it worked on. It reports false when
// Run has ended.
func (w *Worker) hold(h *holding) bool {
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
func (w *Worker) begin() {
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
			defer w.finish(h) // whatever Do does
			defer cancel()
			claim := h.claim
			claim.called = func() { w.called(h) }
			w.do(ctx, claim)
		})
	}
	if w.hungry && len(w.waiting) <= w.cfg.Limit/2 {
		w.Wake()
	}
}

// drop lets a row go, unless it was taken again since; the caller has locked mu.
func (w *Worker) drop(h *holding) {
	if w.held[h.claim.ID] == h {
		delete(w.held, h.claim.ID)
	}
}

// called has another row begun while what came of this one is stored.
func (w *Worker) called(h *holding) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !h.called {
		h.called = true
		w.working--
		w.storing++
		w.begin()
	}
}

func (w *Worker) finish(h *holding) {
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

func (w *Worker) do(ctx context.Context, c Job) {
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
	pause := retry.Backoff(c.Attempt, failedRetry, lastFailedRetry)
	_, err = w.cfg.DB.ExecContext(ctx, `UPDATE `+w.cfg.Table+` SET due_at = `+w.cfg.DB.Later("$1")+`, lease_token = NULL WHERE id = $2 AND lease_token = $3`,
		pause.Microseconds(), c.ID, c.Token)
	if err != nil { // then the lease runs out by itself
		w.cfg.Log.Error("give work back", "table", w.cfg.Table, "id", c.ID, "err", err)
	}
}

// LongestBackoff is the longest pause that Backoff makes for a row after its
// attempts, as WorkConfig.Longest wants it.
func LongestBackoff(base, limit time.Duration) string {
	var b strings.Builder
	b.WriteString("CASE")
	for attempt := 1; base < limit; attempt++ {
		fmt.Fprintf(&b, " WHEN attempts <= %d THEN %d", attempt, base.Microseconds())
		base *= 2
	}
	fmt.Fprintf(&b, " WHEN true THEN %d END", limit.Microseconds())
	return b.String()
}
