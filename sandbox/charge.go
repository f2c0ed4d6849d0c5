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
	maxAmount = 10_000_000_000 // minor units: no pizza costs more
)

var currencyCode = regexp.MustCompile(`^[A-Z]{3}$`)

// check says what is wrong with the request, if anything.
func (in chargeRequest) check() error {
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

// isAddress is as lenient as a provider is: something, an at sign, something.
func isAddress(s string) bool {
	at := strings.LastIndexByte(s, '@')
	return at > 0 && at < len(s)-1 && len(s) <= 320 && !strings.ContainsAny(s, " \t\r\n<>")
}

// checkKey says what is wrong with the Idempotency-Key of a POST, if anything.
func checkKey(key string) error {
	if key == "" || len(key) > maxKey {
		return badRequest("idempotency_key_required", "a header Idempotency-Key of 1 to 255 bytes is required")
	}
	return nil
}

func (p *payments) handleCreateCharge(x *exchange) error {
	var in chargeRequest
	bad := decode(x.w, x.r, &in)
	if err := x.begin(in.OrderReference); err != nil {
		return err
	}
	for _, err := range []error{bad, checkKey(x.key)} {
		if err != nil {
			return err
		}
	}
	if err := in.check(); err != nil {
		return err
	}
	if err := x.disturb(); err != nil {
		return err
	}
	first, err := p.claim(x.r.Context(), x.key)
	if err != nil {
		return err
	}
	f := faultOf(in.CustomerEmail)
	if first == nil {
		return x.charge(in, p.take(in.OrderReference, f))
	}
	if first.chargeRequest != in {
		return invalid("idempotency_key_reused", "this Idempotency-Key belongs to a request with another body")
	}
	if !f.always {
		f = fault{}
	}
	return x.deliver(*first, f, record{})
}

// charge makes the first result of the key, or what the fault has instead.
// The key is released by the charge itself, or here when none comes about.
func (x *exchange) charge(in chargeRequest, f fault) error {
	facts := record{Tag: f.use(in.OrderReference)}
	switch f.tag {
	case tagLate:
		return x.chargeLate(in, facts)
	case tagHang:
		err := x.p.append(facts)
		x.p.release(x.key)
		if err != nil {
			return err
		}
		return x.hold()
	case tagError:
		defer x.p.release(x.key)
		return &apiError{status: http.StatusInternalServerError, Code: "internal", Message: "nothing was charged", facts: facts}
	}
	defer x.p.release(x.key)
	facts.Charge = newCharge(x.key, in, x.p.declineCode(f))
	return x.deliver(*facts.Charge, f, facts)
}

// chargeLate promises the charge on disk and never answers; until it is
// charged the key stays occupied.
func (x *exchange) chargeLate(in chargeRequest, facts record) error {
	l := &lateCharge{IdempotencyKey: x.key, chargeRequest: in, DueAt: now().Add(lateAfter)}
	facts.Late = l
	if err := x.p.append(facts); err != nil {
		x.p.release(x.key)
		return err
	}
	x.p.mu.Lock()
	x.p.schedule(l)
	x.p.mu.Unlock()
	return x.hold()
}

// deliver keeps the facts and tells the client of the charge, unless the
// fault is that it learns nothing.
func (x *exchange) deliver(c charge, f fault, facts record) error {
	switch f.tag {
	case tagLost:
		x.lost = true
	case tagTimeout, tagLate:
		if err := x.p.append(facts); err != nil {
			return err
		}
		return x.hold()
	case tagSlow:
		if err := x.p.append(facts); err != nil {
			return err
		}
		facts = record{}
		if err := x.pause(slowFor); err != nil {
			return err
		}
	}
	status := http.StatusCreated
	if c.Status == statusDeclined {
		status = http.StatusPaymentRequired
	}
	return x.answer(status, c, facts)
}

// handleListCharges is the ledger, and with a filter the lookup of a client,
// which fares as all traffic does.
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
	if err := x.begin(query.Get("order_reference")); err != nil {
		return err
	}
	if key == nil && order == nil {
		return x.streamLedger()
	}
	if err := x.disturb(); err != nil {
		return err
	}
	return x.answer(http.StatusOK, p.find(key, order), record{})
}

// streamLedger tells the whole ledger, undisturbed: it is the evidence.
func (x *exchange) streamLedger() error {
	if err := x.keep(record{Answer: &answer{Seq: x.seq, Status: http.StatusOK}}, true); err != nil {
		return err
	}
	streamList(x.w, x.p.log, func(item func(any) error) error {
		for i := range x.p.count() {
			if err := item(x.p.chargeAt(i)); err != nil {
				return err
			}
		}
		return nil
	})
	return nil
}
