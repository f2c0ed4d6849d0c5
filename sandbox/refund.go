package sandbox

import (
	"crypto/rand"
	"net/http"
)

// refundRequest is the body of a refund.
type refundRequest struct {
	ChargeID string `json:"charge_id"`
	Amount   int64  `json:"amount"` // minor units
}

func (p *payments) handleCreateRefund(x *exchange) error {
	var in refundRequest
	bad := decode(x.w, x.r, &in)
	if err := x.logRequest(p.findOrder(in.ChargeID)); err != nil {
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
	if err := x.applyBehaviour(); err != nil {
		return err
	}
	return x.refund(in)
}

// refund makes the first result of the key or repeats it. Only one refund is made at a
// time: the rest of the charge must not shrink before the refund is on disk.
func (x *exchange) refund(in refundRequest) error {
	x.p.refunding.Lock()
	defer x.p.refunding.Unlock()
	first, known, left, found := x.p.findRefund(x.key, in.ChargeID)
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
	return x.answer(http.StatusCreated, made, record{Refund: &storedRefund{IdempotencyKey: x.key, refund: made}})
}

// findRefund returns the first result of the key, if known, and the rest of the charge
// that can be refunded, if the charge is found.
func (p *payments) findRefund(key, chargeID string) (first storedRefund, known bool, left int64, found bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	first, known = p.refunds[key]
	c := p.byID[chargeID]
	if c != nil && c.Status == statusSucceeded {
		left = c.Amount - c.RefundedAmount
	}
	return first, known, left, c != nil
}

// findOrder returns the order of a charge, "" if there is no such charge.
func (p *payments) findOrder(chargeID string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.byID[chargeID]; c != nil {
		return c.OrderReference
	}
	return ""
}
