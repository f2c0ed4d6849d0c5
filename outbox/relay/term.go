package relay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"pizzaflow/internal/crash"
	"pizzaflow/outbox"
	"pizzaflow/outbox/internal/handoff"
	"pizzaflow/outbox/internal/store"
	"pizzaflow/sqldb"
)

// A term is the time for which a relay holds the lease. What it knows it has
// from the tables as they were at its beginning and from what it did since, and
// all of it ends with the term.
//
// Reading, producing and marking overlap: while one round is on its way to the
// broker, the next is read and the one before is marked. Only one round is on
// its way at a time, so that what is refused is known before anything that
// must not overtake it is sent.
type term struct {
	*Relay
	lease    *lease
	reads    connection
	producer *kgo.Client
	rounds   chan *round     // read, in order
	landings chan landing    // acknowledged
	laneDue  chan struct{}   // a lane was opened, or a try is over
	suspect  chan struct{}   // the topics should be looked at
	offers   *handoff.Offers // of the transactions of this process
	asked    time.Time       // when the writers were listed last
	seen     versions        // by the reader
	skipped  publishedRange  // the last skipped event that was pruned, as a range

	mu         sync.Mutex
	cursor     *cursor
	flights    []*round         // read and not marked yet
	lanes      map[string]*lane // what was refused for now
	handsBusy  int              // with trying lanes
	blocked    map[string]int64 // queues that stand in outbox_blocked, and from which seq on
	partitions map[string]int32 // of each topic, as far as it is known

	// for the metrics:
	blockedRows int       // in outbox_blocked, and not skipped
	behind      bool      // the last read was cut off, or there was none yet
	handing     time.Time // since when the reader waits for a round to be taken; zero while it does not
}

// A round is what is sent together.
type round struct {
	rows []store.Row
	errs []error // what became of each
	left int     // how many are to be published, and do not wait in a lane
}

// errAbandoned says that records were on their way when the term had to end.
var errAbandoned = errors.New("stopped with records on their way: they will be sent again")

// run publishes until ctx ends or the lease is lost. The lease is kept, and
// what is acknowledged is marked, until the last round has landed.
func (t *term) run(ctx context.Context, floor int64) error {
	if t.db.Engine == sqldb.SQLite {
		t.reads = t.db.Read() // which does not wait for the writer
	}
	t.cursor = newCursor(floor, nil)
	tailCtx, stopTail := context.WithCancel(context.WithoutCancel(ctx))
	defer stopTail()
	g, leadCtx := errgroup.WithContext(ctx)
	g.Go(func() error { return t.lease.keep(tailCtx, t.floor) })
	g.Go(func() error {
		defer stopTail()
		return t.publishAll(leadCtx, tailCtx, ctx, floor)
	})
	return g.Wait()
}

// publishAll is run without the keeping of the lease.
func (t *term) publishAll(ctx, tailCtx, run context.Context, floor int64) (err error) {
	if t.producer, err = t.newProducer(); err != nil {
		return err
	}
	defer t.producer.Close()
	defer t.leads.Store(nil)
	if err := t.prepare(ctx, floor); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { defer close(t.rounds); return t.readLoop(ctx) })
	var senders sync.WaitGroup
	senders.Add(2)
	g.Go(func() error { defer senders.Done(); return t.publishLoop(ctx, run) })
	g.Go(func() error { defer senders.Done(); return t.laneLoop(ctx) })
	g.Go(func() error { senders.Wait(); close(t.landings); return nil })
	g.Go(func() error {
		err := t.markLoop(tailCtx)
		if err != nil { // nobody may be left waiting
			g.Go(func() error { t.refuseLandings(err); return nil })
		}
		return err
	})
	g.Go(func() error { t.listen(ctx); return nil })
	g.Go(func() error { return t.watchTopics(ctx) })
	g.Go(func() error { t.tidy(ctx); return nil })
	return g.Wait()
}

// prepare sets the session up, loads the cursor, and makes sure that the
// topics are those the events went to.
func (t *term) prepare(ctx context.Context, floor int64) error {
	if err := t.prepareReads(ctx); err != nil {
		return err
	}
	moved, err := outbox.RepairNumbering(ctx, t.db) // the database may have been exchanged under this process
	if err != nil {
		return err
	}
	if len(moved) > 0 {
		t.cfg.Log.Warn("sequences stood below their rows and were moved: was the database restored?", "service", t.cfg.Service, "tables", moved)
	}
	if err := t.load(ctx, floor); err != nil {
		return err
	}
	if err := t.forgetLanes(ctx); err != nil {
		return err
	}
	t.leads.Store(t)
	if err := t.checkTopics(ctx); err != nil {
		return err
	}
	return t.rewindSince(ctx)
}

// forgetLanes deletes what another term told of its lanes.
func (t *term) forgetLanes(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	done, err := t.lease.take(ctx)
	if err != nil {
		return fmt.Errorf("forget lanes: %w", err)
	}
	defer done()
	if _, err := t.lease.conn.ExecContext(ctx, `DELETE FROM outbox_lanes`); err != nil {
		return fmt.Errorf("forget lanes: %w", err)
	}
	return nil
}

// prepareReads has the session that reads go by numbers: a plan made while the
// table was nearly empty must not be kept.
func (t *term) prepareReads(ctx context.Context) error {
	if t.db.Engine != sqldb.Postgres {
		return nil
	}
	for _, set := range []string{"enable_seqscan = off", "enable_bitmapscan = off", "enable_sort = off"} {
		if _, err := t.reads.ExecContext(ctx, `SET `+set); err != nil {
			return fmt.Errorf("prepare session: %w", err)
		}
	}
	return nil
}

// floor is the highest seq up to which everything is published, blocked or dead.
func (t *term) floor() int64 { return t.floorWithout(nil) }

// floorWithout is the floor once the rounds are marked.
func (t *term) floorWithout(landed []*round) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.cursor.floor()
	for _, r := range t.flights {
		if !slices.Contains(landed, r) {
			f = min(f, r.rows[0].Seq-1)
		}
	}
	for _, l := range t.lanes {
		f = min(f, l.first()-1)
	}
	return f
}

// readLoop reads round after round, and waits when there is nothing.
func (t *term) readLoop(ctx context.Context) error {
	t.offers = t.cfg.Outbox.Local().Begin()
	defer t.cfg.Outbox.Local().End()
	poll := time.NewTicker(t.cfg.Poll)
	defer poll.Stop()
	for ctx.Err() == nil {
		rd, again, err := t.read(ctx)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			t.metrics.errors.Inc()
			return err
		}
		t.dispatch(ctx, rd)
		if !again {
			t.awaitCall(ctx, poll.C)
		}
	}
	return nil
}

// awaitCall waits until the table must be read, and passes on what is handed
// over meanwhile.
func (t *term) awaitCall(ctx context.Context, poll <-chan time.Time) {
	var gaps <-chan time.Time
	for {
		if gaps == nil && len(t.cursor.gaps) > 0 {
			timer := time.NewTimer(gapPause)
			defer timer.Stop()
			gaps = timer.C
		}
		select {
		case <-ctx.Done():
			return
		case <-poll:
			return
		case <-gaps:
			return
		case <-t.cfg.Outbox.Local().Woken():
			return
		case rows := <-*t.offers:
			rd := t.takeOffered(rows)
			if rd == nil {
				return
			}
			t.dispatch(ctx, rd)
		}
	}
}

func (t *term) dispatch(ctx context.Context, rd *round) {
	if rd == nil {
		return
	}
	crash.Point("relay: read")
	t.setHanding(time.Now())
	defer t.setHanding(time.Time{})
	select {
	case t.rounds <- rd:
	case <-ctx.Done():
	}
}

func (t *term) setHanding(since time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.handing = since
}

// publishLoop sends round after round. The end of ctx is a clean stop when run
// has ended too: then the round on its way may take a few seconds more.
func (t *term) publishLoop(ctx, run context.Context) error {
	sendCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		if run.Err() == nil {
			cancel() // the lease is gone
			return
		}
		time.AfterFunc(5*time.Second, cancel)
	})
	defer stop()
	for rd := range t.rounds {
		if ctx.Err() != nil {
			break
		}
		if !t.lease.fresh() { // this process may have slept through its own end: ask before anything is sent
			if err := t.lease.renew(ctx, t.floor()); err != nil {
				return err
			}
		}
		if err := t.publish(sendCtx, rd); err != nil {
			t.metrics.errors.Inc()
			return err
		}
	}
	if run.Err() == nil {
		return context.Cause(ctx) // told by another part of the term, whose error it is
	}
	return nil
}

// A landing is what is to be recorded: rows that were acknowledged, rows that
// are blocked.
type landing struct {
	round     *round // nil when the rows come from a lane
	published []*store.Row
	blocked   []blockedRow
	done      chan error // told when it is recorded, if not nil
}

// markPause lets acknowledgements gather: a mark that is lost to a crash only
// repeats a publish, but each costs a transaction, and on SQLite the writer.
var markPause = map[sqldb.Engine]time.Duration{sqldb.Postgres: 2 * time.Millisecond, sqldb.SQLite: 20 * time.Millisecond}

// markLoop records what has landed, all that has gathered at once.
func (t *term) markLoop(ctx context.Context) error {
	for l := range t.landings {
		batch := []landing{l}
		pause := time.NewTimer(markPause[t.db.Engine])
	gather:
		for len(batch) < 16 {
			select {
			case l, ok := <-t.landings:
				if !ok {
					break gather
				}
				batch = append(batch, l)
			case <-pause.C:
				break gather
			}
		}
		pause.Stop()
		err := t.mark(ctx, batch)
		for _, l := range batch {
			l.tell(err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// refuseLandings takes what can no longer be recorded.
func (t *term) refuseLandings(err error) {
	for l := range t.landings {
		l.tell(err)
	}
}

func (l landing) tell(err error) {
	if l.done != nil {
		l.done <- err
	}
}

// mark records landings. Only when that is committed are their rows out of
// flight: a floor stored meanwhile must not pass them.
func (t *term) mark(ctx context.Context, batch []landing) error {
	var seqs []int64
	var blocked []blockedRow
	var rounds []*round
	for _, l := range batch {
		for _, row := range l.published {
			seqs = append(seqs, row.Seq)
		}
		blocked = append(blocked, l.blocked...)
		if l.round != nil {
			rounds = append(rounds, l.round)
		}
	}
	slices.Sort(seqs)
	if len(seqs)+len(blocked) > 0 {
		if err := t.lease.mark(ctx, t.floorWithout(rounds), spans(seqs), blocked); err != nil {
			t.metrics.errors.Inc()
			return err
		}
		crash.Point("relay: marked")
	}
	t.mu.Lock()
	t.flights = slices.DeleteFunc(t.flights, func(r *round) bool { return slices.Contains(rounds, r) })
	t.blockedRows += len(blocked)
	t.mu.Unlock()
	at := sqldb.Now()
	for _, l := range batch {
		for _, row := range l.published {
			t.told(row, at)
		}
	}
	return nil
}

// told counts and logs an event that is published and recorded as such.
func (t *term) told(row *store.Row, at time.Time) {
	t.metrics.published.Inc()
	t.metrics.delay.Observe(at.Sub(row.CreatedAt).Seconds())
	t.cfg.Log.Info("Event published", "event_id", row.ID, "event_type", row.EventType,
		"aggregate_id", row.AggregateID, "topic", row.Topic, "timestamp", at)
}
