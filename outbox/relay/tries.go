package relay

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"pizzaflow/outbox/internal/store"
)

// Lanes are tried beside each other: a partition without a leader lets a try wait
// for seconds. What was refused the last time is tried together, many lanes with
// one client; what is taken again goes on by itself, and always finds a hand free.

const (
	laneHands = 4  // tries at once, one of which is left to lanes that are taken again
	laneGroup = 16 // lanes in a try of what was refused
)

// A try is the first rows of a lane on their way.
type try struct {
	lane   *lane
	seqs   []int64
	rows   []store.Row
	errs   []error
	single bool
}

// producers are clients that are not in use.
type producers struct {
	mu   sync.Mutex
	idle []*kgo.Client
}

func (p *producers) take(t *term) (*kgo.Client, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.idle); n > 0 {
		client := p.idle[n-1]
		p.idle = p.idle[:n-1]
		return client, nil
	}
	return t.newProducer()
}

// give takes a client back, unless it is spent: a client never adopts a topic that
// was created anew. One that only waited in vain knows where not to ask again.
func (p *producers) give(client *kgo.Client, spent bool) {
	if spent {
		client.Close()
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle = append(p.idle, client)
}

func (p *producers) close() {
	for _, client := range p.idle {
		client.Close()
	}
}

// laneLoop tries the lanes when they are due.
func (t *term) laneLoop(ctx context.Context) error {
	var clients producers
	defer clients.close()
	g, ctx := errgroup.WithContext(ctx)
	for ctx.Err() == nil {
		lanes, wait := t.dueLanes(time.Now())
		if len(lanes) == 0 {
			timer := time.NewTimer(wait)
			select {
			case <-ctx.Done():
			case <-t.laneDue:
			case <-timer.C:
			}
			timer.Stop()
			continue
		}
		g.Go(func() error {
			err := t.tryWith(ctx, &clients, lanes)
			t.freeHand()
			if ctx.Err() != nil { // what ended it is told by who ended it
				return nil
			}
			return err
		})
	}
	return g.Wait()
}

// dueLanes chooses the lanes for a try that begins now, and takes a hand for it:
// one that is taken again, or else those that were refused, the longest due
// first. Without any it tells how long to wait, unless a lane is opened or a
// hand becomes free before.
func (t *term) dueLanes(now time.Time) (lanes []*lane, wait time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	wait = time.Hour
	var refused []*lane
	for _, l := range t.lanes {
		switch {
		case l.busy:
		case l.due.After(now):
			wait = min(wait, l.due.Sub(now))
		case l.moving:
			lanes = []*lane{l}
		default:
			refused = append(refused, l)
		}
	}
	switch {
	case len(lanes) > 0 && t.handsBusy < laneHands:
	case len(refused) > 0 && t.handsBusy < laneHands-1:
		lanes = together(refused)
	default:
		return nil, wait
	}
	t.handsBusy++
	for _, l := range lanes {
		l.busy = true
	}
	return lanes, 0
}

// together chooses lanes for one try, the longest due first. A lane whose rows go
// one by one goes alone. Of a topic only partitions go together: with rows that
// may go to any partition theirs could become two batches, of which the second
// must not overtake the first.
func together(due []*lane) (chosen []*lane) {
	slices.SortFunc(due, func(a, b *lane) int { return cmp.Or(a.due.Compare(b.due), cmp.Compare(a.first(), b.first())) })
	if due[0].single {
		return due[:1]
	}
	mixed := map[string]bool{} // whether a topic's chosen lane has rows for any partition
	for _, l := range due {
		whole, known := mixed[l.topic]
		if l.single || known && (whole || !l.partition) {
			continue
		}
		mixed[l.topic] = !l.partition
		if chosen = append(chosen, l); len(chosen) == laneGroup {
			break
		}
	}
	return chosen
}

func (t *term) freeHand() {
	t.mu.Lock()
	t.handsBusy--
	t.mu.Unlock()
	t.callLaneLoop()
}

// callLaneLoop has laneLoop look for lanes that are due.
func (t *term) callLaneLoop() {
	select {
	case t.laneDue <- struct{}{}:
	default:
	}
}

func (t *term) tryWith(ctx context.Context, clients *producers, lanes []*lane) error {
	client, err := clients.take(t)
	if err != nil {
		return err
	}
	spent, err := t.tryLanes(ctx, client, lanes)
	clients.give(client, spent || err != nil)
	return err
}

// tryLanes sends the first rows of lanes and takes those out that have landed. The
// client is spent when a topic was refused as a whole.
func (t *term) tryLanes(ctx context.Context, client *kgo.Client, lanes []*lane) (spent bool, err error) {
	tries := make([]*try, len(lanes))
	for i, l := range lanes {
		if tries[i], err = t.readLane(ctx, l); err != nil {
			return false, err
		}
	}
	if err := t.sendTries(ctx, client, tries); err != nil {
		return true, err
	}
	landed := landing{done: make(chan error, 1)}
	stay, causes := make([]map[int64]bool, len(tries)), make([]error, len(tries))
	for i, y := range tries {
		var l landing
		l, stay[i], causes[i] = t.sortLane(y.rows, y.errs, y.single || len(tries) == 1 && len(y.rows) == 1)
		landed.published, landed.blocked = append(landed.published, l.published...), append(landed.blocked, l.blocked...)
		spent = spent || refusesTopic(causes[i])
	}
	if len(landed.published)+len(landed.blocked) > 0 {
		t.landings <- landed
		if err := <-landed.done; err != nil {
			return false, err
		}
	}
	for i, y := range tries {
		t.closeLane(y.lane, y.seqs, stay[i], causes[i])
		t.showLane(ctx, y.lane)
	}
	return spent, nil
}

// readLane reads the rows of a lane that are tried next.
func (t *term) readLane(ctx context.Context, l *lane) (*try, error) {
	t.mu.Lock()
	y := &try{lane: l, seqs: slices.Clone(l.seqs[:min(l.limit, len(l.seqs))]), single: l.single}
	t.mu.Unlock()
	var err error
	if y.rows, err = t.readRows(ctx, y.seqs); err != nil {
		return nil, err
	}
	t.dateLane(l, y.rows)
	t.showLane(ctx, l)
	if len(y.rows) < len(y.seqs) && len(y.rows) > 0 { // cut short, or some were deleted: what is not there any more has no claim
		last := y.rows[len(y.rows)-1].Seq
		y.seqs = slices.DeleteFunc(y.seqs, func(seq int64) bool { return seq > last })
	}
	y.errs = make([]error, len(y.rows))
	return y, nil
}

// sendTries sends the rows of all tries at once, or those of a single one after
// the other. What became of each row stands in errs.
func (t *term) sendTries(ctx context.Context, client *kgo.Client, tries []*try) error {
	refusals := map[string]error{}
	for _, y := range tries {
		refusal, known := refusals[y.lane.topic]
		if !known {
			var err error
			if refusal, err = t.learnTopic(ctx, client, y.lane.topic); err != nil {
				return err
			}
			refusals[y.lane.topic] = refusal
		}
		t.place(y.rows)
		t.refuse(y, refusal)
		if y.single && refusal == nil {
			return t.sendSingle(ctx, client, y)
		}
	}
	var rows []store.Row
	var errs []error
	for _, y := range tries {
		rows, errs = append(rows, y.rows...), append(errs, y.errs...)
	}
	err := t.send(ctx, client, rows, errs)
	for _, y := range tries {
		n := copy(y.errs, errs)
		errs = errs[n:]
	}
	return err
}

// refuse says of the rows that are not sent why.
func (t *term) refuse(y *try, refusal error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range y.rows {
		switch {
		case refusal != nil:
			y.errs[i] = refusal
		case t.isBlocked(&y.rows[i]):
			y.errs[i] = errBlocked
		}
	}
}

// sendSingle sends one row after the other until one is refused that may be
// taken later.
func (t *term) sendSingle(ctx context.Context, client *kgo.Client, y *try) error {
	for i := range y.rows {
		t.mu.Lock()
		if t.isBlocked(&y.rows[i]) {
			y.errs[i] = errBlocked
		}
		t.mu.Unlock()
		if err := t.send(ctx, client, y.rows[i:i+1], y.errs[i:i+1]); err != nil {
			return err
		}
		switch err := y.errs[i]; {
		case err == nil, errors.Is(err, errBlocked):
		case forEver(err):
			t.mu.Lock()
			t.block(&y.rows[i])
			t.mu.Unlock()
		default:
			for j := i + 1; j < len(y.rows); j++ {
				y.errs[j] = errWaits
			}
			return nil
		}
	}
	return nil
}

// sortLane decides the fate of each row: certain says that no other row was in its
// batch. Those that stay are tried again; the cause is why.
func (t *term) sortLane(rows []store.Row, errs []error, certain bool) (landed landing, stay map[int64]bool, cause error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	stay = map[int64]bool{}
	for i := range rows {
		row, err := &rows[i], errs[i]
		switch {
		case err == nil:
			landed.published = append(landed.published, row)
		case errors.Is(err, errBlocked):
			landed.blocked = append(landed.blocked, blockedRow{row, store.Reason(err)})
		case forEver(err) && certain:
			t.block(row)
			t.tellRefused(row, err)
			landed.blocked = append(landed.blocked, blockedRow{row, store.Reason(err)})
		default:
			stay[row.Seq] = true
			if cause == nil {
				cause = err
			}
		}
	}
	return landed, stay, cause
}
