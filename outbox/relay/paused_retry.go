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

// Tries run beside each other, because a partition without a leader lets a try
// wait for seconds. Many partitions whose last try failed are tried together by
// one client. A partition that is resuming is tried alone, and there is always
// room for its try.

const (
	maxTries    = 4  // at once, one of which is left to partitions that are resuming
	maxTogether = 16 // paused partitions in one try
)

// retryLoop tries the paused partitions that are due.
func (t *term) retryLoop(ctx context.Context) error {
	var clients producers
	defer clients.close()
	g, ctx := errgroup.WithContext(ctx)
	for ctx.Err() == nil {
		paused, wait := t.beginTry(time.Now())
		if len(paused) == 0 {
			timer := time.NewTimer(wait)
			select {
			case <-ctx.Done():
			case <-t.pausedDue:
			case <-timer.C:
			}
			timer.Stop()
			continue
		}
		g.Go(func() error {
			err := t.retry(ctx, &clients, paused)
			t.leaveTry()
			if ctx.Err() != nil { // the part of the term that ended ctx returns the error
				return nil
			}
			return err
		})
	}
	return g.Wait()
}

// beginTry chooses the paused partitions for a try that begins now, and counts it
// as running: one partition that is resuming, or else those that have been due for
// longest. Without any it returns how long to wait, unless a partition is paused
// or a try ends before.
func (t *term) beginTry(now time.Time) (chosen []*pausedPartition, wait time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	wait = time.Hour
	var failed []*pausedPartition
	for _, p := range t.paused {
		switch {
		case p.trying:
		case p.due.After(now):
			wait = min(wait, p.due.Sub(now))
		case p.resuming:
			chosen = []*pausedPartition{p}
		default:
			failed = append(failed, p)
		}
	}
	switch {
	case len(chosen) > 0 && t.runningTries < maxTries:
	case len(failed) > 0 && t.runningTries < maxTries-1:
		chosen = together(failed)
	default:
		return nil, wait
	}
	t.runningTries++
	for _, p := range chosen {
		p.trying = true
	}
	return chosen, 0
}

// together chooses paused partitions for one try, those that have been due for
// longest first. One whose rows go one by one is tried alone. Of one topic only
// single partitions are tried together: rows that may go to any partition could
// make a second record batch for one of these, which must not overtake the first.
func together(due []*pausedPartition) (chosen []*pausedPartition) {
	slices.SortFunc(due, func(a, b *pausedPartition) int {
		return cmp.Or(a.due.Compare(b.due), cmp.Compare(a.first(), b.first()))
	})
	if due[0].oneByOne {
		return due[:1]
	}
	spread := map[string]bool{} // whether rows for any partition of the topic are chosen
	for _, p := range due {
		anyPartition, known := spread[p.topic]
		if p.oneByOne || known && (anyPartition || !p.single) {
			continue
		}
		spread[p.topic] = !p.single
		if chosen = append(chosen, p); len(chosen) == maxTogether {
			break
		}
	}
	return chosen
}

func (t *term) leaveTry() {
	t.mu.Lock()
	t.runningTries--
	t.mu.Unlock()
	t.wakeRetryLoop()
}

// wakeRetryLoop has retryLoop look for paused partitions that are due.
func (t *term) wakeRetryLoop() {
	select {
	case t.pausedDue <- struct{}{}:
	default:
	}
}

// retry tries paused partitions with one client.
func (t *term) retry(ctx context.Context, clients *producers, paused []*pausedPartition) error {
	client, err := clients.get(t.Relay)
	if err != nil {
		return err
	}
	attempt := &try{t: t, client: client}
	err = attempt.run(ctx, paused)
	clients.put(client, err != nil || attempt.topicRefused)
	return err
}

// A try sends the first rows of paused partitions.
type try struct {
	t            *term
	client       *kgo.Client
	parts        []*part
	topicRefused bool // a topic was refused as a whole
}

// A part of a try is about one paused partition.
type part struct {
	paused   *pausedPartition
	oneByOne bool
	seqs     []int64
	rows     []store.Row
	errs     []error // the outcome of each row
	keep     map[int64]bool
	cause    error // why rows are kept in the paused partition
}

// run reads the rows, sends them, has the outcome recorded, and takes those that
// were published or blocked out of their paused partitions.
func (tr *try) run(ctx context.Context, paused []*pausedPartition) error {
	for _, p := range paused {
		part, err := tr.read(ctx, p)
		if err != nil {
			return err
		}
		tr.parts = append(tr.parts, part)
	}
	if err := tr.send(ctx); err != nil {
		return err
	}
	if err := tr.record(); err != nil {
		return err
	}
	for _, p := range tr.parts {
		tr.t.endTry(p.paused, p.seqs, p.keep, p.cause)
		tr.t.storePaused(ctx, p.paused)
	}
	return nil
}

// read reads the rows of a paused partition that are tried next.
func (tr *try) read(ctx context.Context, paused *pausedPartition) (*part, error) {
	tr.t.mu.Lock()
	p := &part{paused: paused, seqs: slices.Clone(paused.seqs[:min(paused.limit, len(paused.seqs))]), oneByOne: paused.oneByOne}
	tr.t.mu.Unlock()
	var err error
	if p.rows, err = tr.t.readRows(ctx, p.seqs); err != nil {
		return nil, err
	}
	tr.t.setOldest(paused, p.rows)
	tr.t.storePaused(ctx, paused)
	if len(p.rows) < len(p.seqs) && len(p.rows) > 0 { // cut off by the limit, or rows were deleted, which are not kept
		last := p.rows[len(p.rows)-1].Seq
		p.seqs = slices.DeleteFunc(p.seqs, func(seq int64) bool { return seq > last })
	}
	p.errs = make([]error, len(p.rows))
	return p, nil
}

// send sends the rows of all parts at once, or those of a single part one by one.
func (tr *try) send(ctx context.Context) error {
	refusals := map[string]error{} // of topics
	for _, p := range tr.parts {
		refusal, known := refusals[p.paused.topic]
		if !known {
			var err error
			if refusal, err = tr.t.resolveTopic(ctx, tr.client, p.paused.topic); err != nil {
				return err
			}
			refusals[p.paused.topic] = refusal
		}
		tr.t.assignPartitions(p.rows)
		tr.refuse(p, refusal)
		if p.oneByOne && refusal == nil {
			return tr.sendOneByOne(ctx, p)
		}
	}
	var rows []store.Row
	var errs []error
	for _, p := range tr.parts {
		rows, errs = append(rows, p.rows...), append(errs, p.errs...)
	}
	err := tr.t.send(ctx, tr.client, rows, errs)
	for _, p := range tr.parts {
		n := copy(p.errs, errs)
		errs = errs[n:]
	}
	return err
}

// refuse notes which rows of a part are not sent: those of blocked keys, or all if
// their topic is refused.
func (tr *try) refuse(p *part, refusal error) {
	tr.t.mu.Lock()
	defer tr.t.mu.Unlock()
	for i := range p.rows {
		switch {
		case refusal != nil:
			p.errs[i] = refusal
		case tr.t.isBlocked(&p.rows[i]):
			p.errs[i] = errBlocked
		}
	}
}

// sendOneByOne sends one row after the other until one is refused that may be taken
// later.
func (tr *try) sendOneByOne(ctx context.Context, p *part) error {
	for i := range p.rows {
		tr.t.mu.Lock()
		if tr.t.isBlocked(&p.rows[i]) {
			p.errs[i] = errBlocked
		}
		tr.t.mu.Unlock()
		if err := tr.t.send(ctx, tr.client, p.rows[i:i+1], p.errs[i:i+1]); err != nil {
			return err
		}
		switch err := p.errs[i]; {
		case err == nil, errors.Is(err, errBlocked):
		case permanentlyRefused(err):
			tr.t.mu.Lock()
			tr.t.block(&p.rows[i])
			tr.t.mu.Unlock()
		default:
			for j := i + 1; j < len(p.rows); j++ {
				p.errs[j] = errPaused
			}
			return nil
		}
	}
	return nil
}

// record decides what becomes of each row, and has the marker record those that
// are published or blocked.
func (tr *try) record() error {
	a := ack{recorded: make(chan error, 1)}
	for _, p := range tr.parts {
		tr.decide(p, &a)
		tr.topicRefused = tr.topicRefused || refusesTopic(p.cause)
	}
	if len(a.published)+len(a.blocked) == 0 {
		return nil
	}
	tr.t.acks <- a
	return <-a.recorded
}

// decide adds the rows of a part that are published or blocked to the ack, and
// keeps the others for the next try. A permanent refusal blocks the row only if no
// other row was in its record batch.
func (tr *try) decide(p *part, a *ack) {
	tr.t.mu.Lock()
	defer tr.t.mu.Unlock()
	certain := p.oneByOne || len(tr.parts) == 1 && len(p.rows) == 1
	p.keep = map[int64]bool{}
	for i := range p.rows {
		row, err := &p.rows[i], p.errs[i]
		switch {
		case err == nil:
			a.published = append(a.published, row)
		case errors.Is(err, errBlocked):
			a.blocked = append(a.blocked, blockedRow{row, store.Reason(err)})
		case permanentlyRefused(err) && certain:
			tr.t.block(row)
			tr.t.reportBlocked(row, err)
			a.blocked = append(a.blocked, blockedRow{row, store.Reason(err)})
		default:
			p.keep[row.Seq] = true
			if p.cause == nil {
				p.cause = err
			}
		}
	}
}

// producers are clients of tries that are not in use.
type producers struct {
	mu   sync.Mutex
	idle []*kgo.Client
}

func (p *producers) get(r *Relay) (*kgo.Client, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.idle); n > 0 {
		client := p.idle[n-1]
		p.idle = p.idle[:n-1]
		return client, nil
	}
	return r.newProducer()
}

// put takes a client back for the next try, or closes one that is spent: a client
// never adopts a topic that was created anew. One whose records were merely not
// acknowledged is kept, because it knows by now which brokers do not answer.
func (p *producers) put(client *kgo.Client, spent bool) {
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
