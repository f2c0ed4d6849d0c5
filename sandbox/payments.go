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

// chargeRequest is the body of a charge.
type chargeRequest struct {
	Amount         int64  `json:"amount"` // minor units
	Currency       string `json:"currency"`
	CustomerEmail  string `json:"customer_email"`
	OrderReference string `json:"order_reference"`
}

// charge is one line of the ledger: a charge, or an attempt that was declined.
type charge struct {
	ID             string `json:"id"`
	IdempotencyKey string `json:"idempotency_key"`
	chargeRequest
	Status         string    `json:"status"`
	Code           string    `json:"code"`            // why it was declined
	RefundedAmount int64     `json:"refunded_amount"` // minor units, the sum of its refunds
	CreatedAt      time.Time `json:"created_at"`
}

// refund is a refund of a part of a charge.
type refund struct {
	ID       string `json:"id"`
	ChargeID string `json:"charge_id"`
	Amount   int64  `json:"amount"` // minor units
	Status   string `json:"status"`
}

// storedRefund is a refund as it is in the file.
type storedRefund struct {
	IdempotencyKey string `json:"idempotency_key"`
	refund
}

// lateCharge is a charge that will be made at DueAt, and that got no answer.
type lateCharge struct {
	IdempotencyKey string `json:"idempotency_key"`
	chargeRequest
	DueAt time.Time `json:"due_at"`
}

// usedTag is a tag that an order has used and cannot use again.
type usedTag struct {
	OrderReference string `json:"order_reference"`
	Tag            string `json:"tag"`
}

// record is one line of payments.jsonl: facts that are stored together.
type record struct {
	Request   *request      `json:"request,omitempty"` // the first field: handleListRequests finds its lines by that
	Tag       *usedTag      `json:"tag,omitempty"`
	Late      *lateCharge   `json:"late,omitempty"`
	Charge    *charge       `json:"charge,omitempty"`
	Refund    *storedRefund `json:"refund,omitempty"`
	Behaviour *behaviour    `json:"behaviour,omitempty"`
	Answer    *answer       `json:"answer,omitempty"`
}

// payments is the payment provider. Its state is the result of applying the lines of
// its journal in order. Memory has about half a kilobyte for each charge and two bytes
// for each request.
type payments struct {
	log      *slog.Logger
	journal  *journal
	requests requestLog
	stop     <-chan struct{}

	refunding sync.Mutex // one refund at a time, so that their sum cannot exceed the charge

	mu        sync.Mutex // guards the fields below; never held while the journal is written
	charges   []*charge  // oldest first
	byID      map[string]*charge
	byKey     map[string]*charge
	byOrder   map[string][]*charge
	refunds   map[string]storedRefund // by key
	usedTags  map[usedTag]bool
	claims    map[string]chan struct{} // keys whose first result is being made; closed at its end
	late      map[string]*lateCharge   // by key
	timers    map[string]*time.Timer   // of late, by key
	charging  sync.WaitGroup
	closed    bool
	behaviour behaviour
	changes   int // counts the changes that the page shows
}

func openPayments(path string, log *slog.Logger, stop <-chan struct{}) (*payments, error) {
	p := &payments{
		log: log, stop: stop,
		byID: map[string]*charge{}, byKey: map[string]*charge{}, byOrder: map[string][]*charge{},
		refunds: map[string]storedRefund{}, usedTags: map[usedTag]bool{}, claims: map[string]chan struct{}{},
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
		log.Warn("payment provider injects faults into all traffic", "behaviour", p.behaviour)
	}
	return p, nil
}

// append stores the facts, if there are any, and applies them when they are synced.
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

// apply changes the state by the facts of one line, a new one or one of the file.
func (p *payments) apply(rec record) {
	if rec.Request != nil {
		p.requests.extendTo(rec.Request.Seq)
	}
	if rec.Answer != nil {
		p.requests.setStatus(*rec.Answer)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if rec.Tag != nil {
		p.usedTags[*rec.Tag] = true
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
		p.endClaim(c.IdempotencyKey)
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

// claimKey returns the first result of the key, or nil with a claim to make it. The
// claim ends with the charge or with releaseKey. While another request has the claim,
// claimKey waits.
func (p *payments) claimKey(ctx context.Context, key string) (first *charge, err error) {
	for {
		p.mu.Lock()
		if c := p.byKey[key]; c != nil {
			known := *c
			p.mu.Unlock()
			return &known, nil
		}
		done := p.claims[key]
		if done == nil {
			p.claims[key] = make(chan struct{})
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

// releaseKey lets the next request claim the key.
func (p *payments) releaseKey(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endClaim(key)
}

// endClaim wakes the requests that wait for the key, if it is claimed; the caller holds
// mu.
func (p *payments) endClaim(key string) {
	if done := p.claims[key]; done != nil {
		delete(p.claims, key)
		close(done)
	}
}

// findCharges returns copies of the charges with the key and the order; nil means any.
// One of both must be given.
func (p *payments) findCharges(key, order *string) []charge {
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

// countCharges returns the number of lines of the ledger.
func (p *payments) countCharges() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.charges)
}

// chargeAt returns line i of the ledger.
func (p *payments) chargeAt(i int) charge {
	p.mu.Lock()
	defer p.mu.Unlock()
	return *p.charges[i]
}

// scheduleAll schedules the late charges of the file.
func (p *payments) scheduleAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, l := range p.late {
		p.claims[key] = make(chan struct{})
		p.scheduleCharge(l)
	}
}

// scheduleCharge sets a timer that makes the charge l when it is due; the caller holds
// mu.
func (p *payments) scheduleCharge(l *lateCharge) {
	if p.closed {
		return
	}
	p.charging.Add(1)
	p.timers[l.IdempotencyKey] = time.AfterFunc(time.Until(l.DueAt), func() {
		defer p.charging.Done()
		p.chargeDue(l)
	})
}

func (p *payments) chargeDue(l *lateCharge) {
	err := p.append(record{Charge: newCharge(l.IdempotencyKey, l.chargeRequest, "")})
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.timers, l.IdempotencyKey)
	if err != nil {
		p.log.Error("late charge postponed", "error", err)
		again := *l
		again.DueAt = now().Add(time.Second)
		p.scheduleCharge(&again)
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

// close stops the timers, whose late charges stay in the file, and closes the file.
func (p *payments) close() error {
	p.mu.Lock()
	p.closed = true
	for _, t := range p.timers {
		if t.Stop() {
			p.charging.Done()
		}
	}
	p.mu.Unlock()
	p.charging.Wait()
	if err := p.journal.close(); err != nil {
		return fmt.Errorf("payments: %w", err)
	}
	return nil
}
