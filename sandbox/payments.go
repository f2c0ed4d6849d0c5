package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

const (
	statusSucceeded = "succeeded"
	statusDeclined  = "declined"
)

// chargeRequest is what a client asks to be charged.
type chargeRequest struct {
	Amount         int64  `json:"amount"` // minor units
	Currency       string `json:"currency"`
	CustomerEmail  string `json:"customer_email"`
	OrderReference string `json:"order_reference"`
}

// charge is one line of the ledger, a declined attempt included.
type charge struct {
	ID             string `json:"id"`
	IdempotencyKey string `json:"idempotency_key"`
	chargeRequest
	Status         string    `json:"status"`
	Code           string    `json:"code"`            // why it was declined
	RefundedAmount int64     `json:"refunded_amount"` // minor units, of all its refunds
	CreatedAt      time.Time `json:"created_at"`
}

// refund gives back a part of a charge.
type refund struct {
	ID       string `json:"id"`
	ChargeID string `json:"charge_id"`
	Amount   int64  `json:"amount"` // minor units
	Status   string `json:"status"`
}

// keptRefund is a refund as the file keeps it.
type keptRefund struct {
	IdempotencyKey string `json:"idempotency_key"`
	refund
}

// lateCharge is a promise to charge at DueAt what nobody was answered.
type lateCharge struct {
	IdempotencyKey string `json:"idempotency_key"`
	chargeRequest
	DueAt time.Time `json:"due_at"`
}

// usedTag says that a tag has worked for an order and will not again.
type usedTag struct {
	OrderReference string `json:"order_reference"`
	Tag            string `json:"tag"`
}

// record is one line of payments.jsonl: facts that become true together.
type record struct {
	Request   *request    `json:"request,omitempty"` // the first member, so that the log finds its lines
	Tag       *usedTag    `json:"tag,omitempty"`
	Late      *lateCharge `json:"late,omitempty"`
	Charge    *charge     `json:"charge,omitempty"`
	Refund    *keptRefund `json:"refund,omitempty"`
	Behaviour *behaviour  `json:"behaviour,omitempty"`
	Answer    *answer     `json:"answer,omitempty"`
}

// payments is the payment provider. Its state is what applying each line of
// its journal in order gives; about half a kilobyte stays in memory for each
// charge and two bytes for each request.
type payments struct {
	log      *slog.Logger
	journal  *journal
	requests requestLog
	stop     <-chan struct{}

	refunding sync.Mutex // one refund at a time, so that their sum is known

	mu        sync.Mutex // guards what follows; never held while the journal is written
	charges   []*charge  // oldest first
	byID      map[string]*charge
	byKey     map[string]*charge
	byOrder   map[string][]*charge
	refunds   map[string]keptRefund // by key
	used      map[usedTag]bool
	busy      map[string]chan struct{} // keys whose first result is being made
	late      map[string]*lateCharge   // by key
	timers    map[string]*time.Timer   // of late
	settling  sync.WaitGroup
	closed    bool
	behaviour behaviour
	changes   int // counts what the page may show differently
}

func openPayments(path string, log *slog.Logger, stop <-chan struct{}) (*payments, error) {
	p := &payments{
		log: log, stop: stop,
		byID: map[string]*charge{}, byKey: map[string]*charge{}, byOrder: map[string][]*charge{},
		refunds: map[string]keptRefund{}, used: map[usedTag]bool{}, busy: map[string]chan struct{}{},
		late: map[string]*lateCharge{}, timers: map[string]*time.Timer{},
	}
	j, err := openJournal(path, log, func(line []byte, _ int64) error {
		var rec record
		if err := json.Unmarshal(line, &rec); err != nil {
			return err
		}
		p.apply(rec)
		return nil
	})
	if err != nil {
		return nil, err
	}
	p.journal = j
	if p.behaviour != (behaviour{}) {
		log.Warn("the payment provider is still disturbed", "behaviour", p.behaviour)
	}
	return p, nil
}

// append makes the facts, if there are any, durable and then true.
func (p *payments) append(rec record) error {
	if rec == (record{}) {
		return nil
	}
	line, err := encodeLine(rec)
	if err != nil {
		return err
	}
	return p.journal.append(line, func(int64) { p.apply(rec) })
}

// apply makes the facts of one line true, when it is loaded as when it is new.
func (p *payments) apply(rec record) {
	if rec.Request != nil {
		p.requests.seen(rec.Request.Seq)
	}
	if rec.Answer != nil {
		p.requests.answered(*rec.Answer)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if rec.Tag != nil {
		p.used[*rec.Tag] = true
	}
	if rec.Late != nil {
		p.late[rec.Late.IdempotencyKey] = rec.Late
	}
	if c := rec.Charge; c != nil {
		p.charges = append(p.charges, c)
		p.byID[c.ID] = c
		p.byKey[c.IdempotencyKey] = c
		p.byOrder[c.OrderReference] = append(p.byOrder[c.OrderReference], c)
		delete(p.late, c.IdempotencyKey)
		p.free(c.IdempotencyKey)
		p.changes++
	}
	if f := rec.Refund; f != nil {
		p.refunds[f.IdempotencyKey] = *f
		if c := p.byID[f.ChargeID]; c != nil {
			c.RefundedAmount += f.Amount
		}
		p.changes++
	}
	if rec.Behaviour != nil {
		p.behaviour = *rec.Behaviour
		p.changes++
	}
}

// claim returns the first result of the key, or nil and with it the right to
// make it, which ends with the charge or with release. It waits while another
// request has that right.
func (p *payments) claim(ctx context.Context, key string) (first *charge, err error) {
	for {
		p.mu.Lock()
		if c := p.byKey[key]; c != nil {
			known := *c
			p.mu.Unlock()
			return &known, nil
		}
		done := p.busy[key]
		if done == nil {
			p.busy[key] = make(chan struct{})
			p.mu.Unlock()
			return nil, nil
		}
		p.mu.Unlock()
		select {
		case <-done:
		case <-ctx.Done():
			return nil, errNoAnswer
		case <-p.stop:
			return nil, errNoAnswer
		}
	}
}

// release lets the next request claim the key.
func (p *payments) release(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free(key)
}

// free wakes those who wait for the key, if it is claimed; the caller holds mu.
func (p *payments) free(key string) {
	if done := p.busy[key]; done != nil {
		delete(p.busy, key)
		close(done)
	}
}

// find returns copies of the charges of a key or an order, or of both.
func (p *payments) find(key, order *string) []charge {
	p.mu.Lock()
	defer p.mu.Unlock()
	var from []*charge
	if key == nil {
		from = p.byOrder[*order]
	} else if c := p.byKey[*key]; c != nil && (order == nil || c.OrderReference == *order) {
		from = []*charge{c}
	}
	found := make([]charge, len(from))
	for i, c := range from {
		found[i] = *c
	}
	return found
}

// count is how many lines the ledger has.
func (p *payments) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.charges)
}

// chargeAt is a line of the ledger.
func (p *payments) chargeAt(i int) charge {
	p.mu.Lock()
	defer p.mu.Unlock()
	return *p.charges[i]
}

// scheduleLate sets a timer for each promise that the file holds.
func (p *payments) scheduleLate() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, l := range p.late {
		p.busy[key] = make(chan struct{})
		p.schedule(l)
	}
}

// schedule charges l when it is due; the caller holds mu.
func (p *payments) schedule(l *lateCharge) {
	if p.closed {
		return
	}
	p.settling.Add(1)
	p.timers[l.IdempotencyKey] = time.AfterFunc(time.Until(l.DueAt), func() {
		defer p.settling.Done()
		p.settle(l)
	})
}

func (p *payments) settle(l *lateCharge) {
	err := p.append(record{Charge: newCharge(l.IdempotencyKey, l.chargeRequest, "")})
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.timers, l.IdempotencyKey)
	if err != nil {
		p.log.Error("late charge postponed", "error", err)
		again := *l
		again.DueAt = now().Add(time.Second)
		p.schedule(&again)
	}
}

func newCharge(key string, in chargeRequest, code string) *charge {
	status := statusSucceeded
	if code != "" {
		status = statusDeclined
	}
	return &charge{
		ID: "ch_" + rand.Text(), IdempotencyKey: key, chargeRequest: in,
		Status: status, Code: code, CreatedAt: now(),
	}
}

// close stops the timers, whose promises stay in the file, and closes it.
func (p *payments) close() error {
	p.mu.Lock()
	p.closed = true
	for _, t := range p.timers {
		if t.Stop() {
			p.settling.Done()
		}
	}
	p.mu.Unlock()
	p.settling.Wait()
	if err := p.journal.close(); err != nil {
		return fmt.Errorf("payments: %w", err)
	}
	return nil
}
