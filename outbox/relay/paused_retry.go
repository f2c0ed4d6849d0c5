package relay

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"
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
			t.endTry()
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

func (t *term) endTry() {
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
