package sandbox

import (
	"net/http"
	"regexp"
	"strings"
	"time"
)

const (
	slowFor   = 2 * time.Second
	lateAfter = 20 * time.Second

	maxKey    = 255            // bytes of an Idempotency-Key or a reference
	maxAmount = 10_000_000_000 // minor units
)

var currencyCode = regexp.MustCompile(`^[A-Z]{3}$`)

// validate returns the error of an unacceptable request.
func (in chargeRequest) validate() error {
	switch {
	case in.Amount <= 0 || in.Amount > maxAmount:
		return invalid("invalid_amount", "amount must be a positive number of minor units")
	case !currencyCode.MatchString(in.Currency):
		return invalid("invalid_currency", "currency must be three capital letters")
	case !isAddress(in.CustomerEmail):
		return invalid("invalid_customer_email", "customer_email must be an e-mail address")
	case in.OrderReference == "" || len(in.OrderReference) > maxKey:
		return invalid("invalid_order_reference", "order_reference must have 1 to 255 bytes")
	}
	return nil
}

// isAddress is as lenient as a provider: it wants an @ between two other characters.
func isAddress(s string) bool {
	at := strings.LastIndexByte(s, '@')
	return at > 0 && at < len(s)-1 && len(s) <= 320 && !strings.ContainsAny(s, " \t\r\n<>")
}

// checkKey returns the error of a missing or too long Idempotency-Key.
func checkKey(key string) error {
	if key == "" || len(key) > maxKey {
		return badRequest("idempotency_key_required", "a header Idempotency-Key of 1 to 255 bytes is required")
	}
	return nil
}

func (p *payments) handleCreateCharge(x *exchange) error {
	var in chargeRequest
	bad := decode(x.w, x.r, &in)
	if err := x.logRequest(in.OrderReference); err != nil {
		return err
	}
	for _, err := range []error{bad, checkKey(x.key)} {
		if err != nil {
			return err
		}
	}
	if err := in.validate(); err != nil {
		return err
	}
	if err := x.applyBehaviour(); err != nil {
		return err
	}
	first, err := p.claimKey(x.r.Context(), x.key)
	if err != nil {
		return err
	}
	f := parseFault(in.CustomerEmail)
	if first == nil {
		return x.charge(in, p.useTag(in.OrderReference, f))
	}
	if first.chargeRequest != in {
		return invalid("idempotency_key_reused", "this Idempotency-Key belongs to a request with another body")
	}
	if !f.always {
		f = fault{}
	}
	return x.answerCharge(*first, f, record{})
}

// charge makes the first result of the key, or injects the fault. The claim of the key
// ends with the charge, or here if there is none.
func (x *exchange) charge(in chargeRequest, f fault) error {
	facts := record{Tag: f.tagFor(in.OrderReference)}
	switch f.tag {
	case tagLate:
		return x.chargeLate(in, facts)
	case tagHang:
		err := x.p.append(facts)
		x.p.releaseKey(x.key)
		if err != nil {
			return err
		}
		return x.hang()
	case tagError:
		defer x.p.releaseKey(x.key)
		return &apiError{status: http.StatusInternalServerError, Code: "internal", Message: "nothing was charged", facts: facts}
	}
	defer x.p.releaseKey(x.key)
	facts.Charge = newCharge(x.key, in, x.p.declineCode(f))
	return x.answerCharge(*facts.Charge, f, facts)
}

// chargeLate stores a late charge and never answers. The key stays claimed until the
// charge is made.
func (x *exchange) chargeLate(in chargeRequest, facts record) error {
	l := &lateCharge{IdempotencyKey: x.key, chargeRequest: in, DueAt: now().Add(lateAfter)}
	facts.Late = l
	if err := x.p.append(facts); err != nil {
		x.p.releaseKey(x.key)
		return err
	}
	x.p.mu.Lock()
	x.p.scheduleCharge(l)
	x.p.mu.Unlock()
	return x.hang()
}

// answerCharge stores the facts and answers with the charge, unless the fault is that
// there is no answer.
func (x *exchange) answerCharge(c charge, f fault, facts record) error {
	switch f.tag {
	case tagLost:
		x.lost = true
	case tagTimeout, tagLate:
		if err := x.p.append(facts); err != nil {
			return err
		}
		return x.hang()
	case tagSlow:
		if err := x.p.append(facts); err != nil {
			return err
		}
		facts = record{}
		if err := x.delay(slowFor); err != nil {
			return err
		}
	}
	status := http.StatusCreated
	if c.Status == statusDeclined {
		status = http.StatusPaymentRequired
	}
	return x.answer(status, c, facts)
}

// handleListCharges answers with the ledger. With a filter it is a client's lookup,
// to which the behaviour applies as to all traffic.
func (p *payments) handleListCharges(x *exchange) error {
	query := x.r.URL.Query()
	filter := func(name string) *string {
		if !query.Has(name) {
			return nil
		}
		value := query.Get(name)
		return &value
	}
	key, order := filter("idempotency_key"), filter("order_reference")
	if key != nil {
		x.key = *key
	}
	if err := x.logRequest(query.Get("order_reference")); err != nil {
		return err
	}
	if key == nil && order == nil {
		return x.streamLedger()
	}
	if err := x.applyBehaviour(); err != nil {
		return err
	}
	return x.answer(http.StatusOK, p.findCharges(key, order), record{})
}

// streamLedger answers with the whole ledger. It is evidence, so no fault applies.
func (x *exchange) streamLedger() error {
	if err := x.appendFacts(record{Answer: &answer{Seq: x.seq, Status: http.StatusOK}}, true); err != nil {
		return err
	}
	streamList(x.w, x.p.log, func(item func(any) error) error {
		for i := range x.p.countCharges() {
			if err := item(x.p.chargeAt(i)); err != nil {
				return err
			}
		}
		return nil
	})
	return nil
}
