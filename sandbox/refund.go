package sandbox

import (
	"crypto/rand"
	"net/http"
)

// refundRequest asks to give back a part of a charge.
type refundRequest struct {
	ChargeID string `json:"charge_id"`
	Amount   int64  `json:"amount"` // minor units
}

func (p *payments) handleCreateRefund(x *exchange) error {
	var in refundRequest
	bad := decode(x.w, x.r, &in)
	if err := x.begin(p.orderOf(in.ChargeID)); err != nil {
		return err
	}
	for _, err := range []error{bad, checkKey(x.key)} {
		if err != nil {
			return err
		}
	}
	if in.Amount <= 0 || in.Amount > maxAmount {
		return invalid("invalid_amount", "amount must be a positive number of minor units")
	}
	if err := x.disturb(); err != nil {
		return err
	}
	return x.refund(in)
}

// refund makes or repeats the result of the key. One at a time: what is left
// of the charge must still be left when the refund is on disk.
func (x *exchange) refund(in refundRequest) error {
	x.p.refunding.Lock()
	defer x.p.refunding.Unlock()
	first, known, left, found := x.p.refundable(x.key, in.ChargeID)
	if known {
		if first.ChargeID != in.ChargeID || first.Amount != in.Amount {
			return invalid("idempotency_key_reused", "this Idempotency-Key belongs to a request with another body")
		}
		return x.answer(http.StatusCreated, first.refund, record{})
	}
	if !found {
		return &apiError{status: http.StatusNotFound, Code: "charge_not_found", Message: "there is no such charge"}
	}
	if in.Amount > left {
		return invalid("amount_exceeds_captured", "amount is above what was captured and not yet refunded")
	}
	made := refund{ID: "re_" + rand.Text(), ChargeID: in.ChargeID, Amount: in.Amount, Status: statusSucceeded}
	return x.answer(http.StatusCreated, made, record{Refund: &keptRefund{IdempotencyKey: x.key, refund: made}})
}

// refundable returns the first result of the key, and what can still be
// refunded of the charge.
func (p *payments) refundable(key, chargeID string) (first keptRefund, known bool, left int64, found bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	first, known = p.refunds[key]
	c := p.byID[chargeID]
	if c != nil && c.Status == statusSucceeded {
		left = c.Amount - c.RefundedAmount
	}
	return first, known, left, c != nil
}

// orderOf is what a charge was for; "" when there is no such charge.
func (p *payments) orderOf(chargeID string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.byID[chargeID]; c != nil {
		return c.OrderReference
	}
	return ""
}
