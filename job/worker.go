package job

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"pizzaflow/sqldb"
)

const (
	aheadLimit       = 32               // times Config.Limit: how many rows are held at most, running or waiting for it
	statementTimeout = 10 * time.Second // for one statement about leases
)

// The pauses before a row whose Do returned an error is due again.
const (
	failedRetry     = 500 * time.Millisecond
	lastFailedRetry = 30 * time.Second
)

// A Worker makes calls to the outside for rows that are due. A call may be
// repeated, after a crash or a lost answer, so it must carry a key that makes
// the other side recognise it.
//
// A row is held by a lease: the job's token, and a due_at in the near future,
// which is moved on while the row is held. A process that dies renews nothing,
// and its rows are due again. A process that was away from its database, as all
// are when the database restarts, takes no row from others for the length of a
// lease, so that a living holder can renew and settle first. So does a process
// that saw the clock set forward, for then every lease looks as if it had run
// out. The clock is the database's (sqldb.Clock): those of the processes may
// differ.
type Worker struct {
	cfg  Config
	wake chan struct{}

	// of takeLoop alone
	clock        sqldb.ClockWatch
	nextPullIn   time.Time // when rows that are due too late are looked for again
	nextFullLook time.Time // when all due rows are looked at again, however long they have been due
	earliestDue  time.Time // by the database's clock: no row was due before; zero when that is not known

	mu             sync.Mutex
	open           bool                // Run accepts rows that are handed over
	held           map[string]*heldJob // the rows that this process has leased, by id
	waiting        []*heldJob          // of the held rows, those that have not started
	working        int                 // rows whose call is under way
	storing        int                 // rows whose call is over and whose result is being stored
	moreDue        bool                // more rows may be due than were taken: wake takeLoop when half of the waiting ones have started
	backlogged     bool                // rows in the table have been due for a while: no row is handed over before them
	answeringSince time.Time           // since when the database has answered every statement; zero when the last one failed
	nextTakeOver   time.Time           // when rows of dead processes are looked for again
	ctx            context.Context     // of the calls
	running        sync.WaitGroup
}

// A heldJob is a row that this process has leased.
type heldJob struct {
	job           Job
	leasedUntil   time.Time // by this process's own clock
	startedAt     time.Time // zero while it waits
	cancel        context.CancelFunc
	callDone      bool // its call is over
	renewalMissed bool // the last renewal did not find its lease
}

// New makes a Worker; Run starts it.
func New(cfg Config) *Worker {
	return &Worker{cfg: cfg.withDefaults(), wake: make(chan struct{}, 1), held: map[string]*heldJob{}}
}

// Wake says that a row became due. Without it the row is found by Run's own
// look, four times a second.
func (w *Worker) Wake() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Run takes and works on rows until ctx ends, then gives up the leases of rows
// that have not started and lets the running calls finish. It returns nil: a
// database that is away is waited for.
func (w *Worker) Run(ctx context.Context) error {
	var err error
	if w.cfg.Exclusive { // before this process holds a row
		err = w.releaseAll(ctx)
	}
	w.mu.Lock()
	w.open, w.ctx = true, context.WithoutCancel(ctx)
	w.mu.Unlock()
	w.noteAnswer(err)
	var renewing sync.WaitGroup
	ended := make(chan struct{})
	renewing.Go(func() { w.renewLoop(ended) })
	w.takeLoop(ctx)
	w.release(w.ctx, w.close())
	w.running.Wait()
	close(ended)
	renewing.Wait()
	return nil
}

// close has no further row started, and returns the held rows that have not.
func (w *Worker) close() (unstarted []*heldJob) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range w.waiting {
		if w.held[h.job.ID] == h { // else this process has leased the row again since
			unstarted = append(unstarted, h)
			w.drop(h)
		}
	}
	w.open, w.waiting = false, nil
	return unstarted
}

// accept adds a leased row to those held and starts it when a call is free. It
// returns false when Run does not run.
func (w *Worker) accept(h *heldJob) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.open {
		return false
	}
	if newer := w.held[h.job.ID]; newer != nil && newer.job.Attempt > h.job.Attempt {
		return true // its lease ran out before the commit, and this process has leased the row again since
	}
	w.held[h.job.ID] = h
	w.waiting = append(w.waiting, h)
	w.startWaiting()
	return true
}

// startWaiting starts waiting rows while calls are free, and wakes takeLoop when
// few rows are left and more may be due; the caller has locked mu. A row whose
// lease ran out while it waited may be another process's by now: it is dropped.
func (w *Worker) startWaiting() {
	for len(w.waiting) > 0 && w.working < w.cfg.Limit && w.working+w.storing < 2*w.cfg.Limit {
		h := w.waiting[0]
		w.waiting = w.waiting[1:]
		h.startedAt = time.Now()
		if !h.startedAt.Before(h.leasedUntil) {
			w.drop(h)
			continue
		}
		// a call that has begun is finished although Run is ending: breaking it
		// off would leave its outcome unknown
		ctx, cancel := context.WithTimeout(w.ctx, w.cfg.Timeout)
		h.cancel = cancel
		w.working++
		w.running.Go(func() {
			defer w.finish(h) // though Do ends its goroutine
			defer cancel()
			job := h.job
			job.callDone = func() { w.callDone(h) }
			w.do(ctx, job)
		})
	}
	if w.moreDue && len(w.waiting) <= w.cfg.Limit/2 {
		w.Wake()
	}
}

// drop takes a row off those held, unless it was leased again since; the caller
// has locked mu.
func (w *Worker) drop(h *heldJob) {
	if w.held[h.job.ID] == h {
		delete(w.held, h.job.ID)
	}
}

// callDone starts another row while the result of h's call is stored.
func (w *Worker) callDone(h *heldJob) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !h.callDone {
		h.callDone = true
		w.working--
		w.storing++
		w.startWaiting()
	}
}

// finish drops a row whose Do has returned, and starts another.
func (w *Worker) finish(h *heldJob) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if h.callDone {
		w.storing--
	} else {
		w.working--
		h.callDone = true // a CallDone that comes later counts nothing
	}
	w.drop(h)
	w.startWaiting()
}

// do runs Do, and makes the row due again after a pause when Do fails or panics.
func (w *Worker) do(ctx context.Context, j Job) {
	err := func() (err error) {
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			}
		}()
		return w.cfg.Do(ctx, j)
	}()
	if err == nil || errors.Is(err, ErrLeaseLost) {
		return
	}
	w.cfg.Log.Error("job failed", "table", w.cfg.Table, "id", j.ID, "attempt", j.Attempt, "err", err)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), statementTimeout)
	defer cancel()
	pause := Backoff(j.Attempt, failedRetry, lastFailedRetry)
	_, err = w.cfg.DB.ExecContext(ctx, `UPDATE `+w.cfg.Table+` SET due_at = `+w.cfg.DB.Later("$1")+`, lease_token = NULL WHERE id = $2 AND lease_token = $3`,
		pause.Microseconds(), j.ID, j.Token)
	if err != nil { // then the lease runs out by itself
		w.cfg.Log.Error("release job", "table", w.cfg.Table, "id", j.ID, "err", err)
	}
}
