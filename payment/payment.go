package payment

import (
	"fmt"
	"regexp"
	"time"

	"pizzaflow/event"
)

// A Status says how far a payment has come. Completed and Failed are final.
type Status string

// The statuses.
const (
	Pending    Status = "pending"    // nothing was asked of the provider yet
	Processing Status = "processing" // a charge was begun, and what came of it is not recorded
	Unknown    Status = "unknown"    // a charge was made, and whether it took the money is not known
	Completed  Status = "completed"  // the money was taken
	Failed     Status = "failed"     // the order was told that no money is taken
)

// Codes of a failure that the provider does not name itself.
const (
	CodeDeclined            = "declined"             // refused without a reason
	CodeProviderUnavailable = "provider_unavailable" // no charge came about before the TTL, nor after it
)

// A Call is what the provider is asked for a payment.
type Call string

// The calls.
const (
	CallCharge Call = "charge" // take the money
	CallLookup Call = "lookup" // say what became of the charge
)

// An Outcome is what a call to the provider came to.
type Outcome string

// The outcomes. Everything that is not a believable answer is Unanswered:
// time-outs, cut connections, server errors, nonsense.
const (
	Captured   Outcome = "captured" // the money was taken
	Declined   Outcome = "declined" // for ever, for this key
	Absent     Outcome = "absent"   // a lookup's: there is no charge under this key
	Unanswered Outcome = "unknown"
	Refunded   Outcome = "refunded" // a refund's: the money is on its way back
	Refused    Outcome = "refused"  // a refund's: the provider will not do it
)

// An Answer is what the provider said, or that it did not.
type Answer struct {
	Outcome       Outcome
	TransactionID string      // the provider's id of the charge
	Amount        event.Money // what was captured
	Currency      string
	Refunded      event.Money // how much of it went back already
	Code          string      // why it was declined
	Detail        string      // what was wrong with the answer, for operators; without personal data
}

// A Payment is the one payment of one order.
type Payment struct {
	ID            string // the idempotency key as well
	OrderID       string
	Amount        event.Money
	Currency      string
	CustomerEmail string
	CausationID   string // the event that asked for the payment
	Traceparent   string // of that event, "" without one
	Status        Status
	TransactionID string
	ErrorCode     string
	Version       int64 // events emitted so far
	Calls         int   // calls begun so far, the number of the last attempt
	Checks        int   // lookups after the failure that found nothing
	CreatedAt     time.Time
	ChargedAt     time.Time // when the last charge was begun, zero when none was
	CompletedAt   time.Time // when it became final
}

// A Step is what an answer leads to.
type Step int

// The steps.
const (
	StepRest     Step = iota // nothing is left to do
	StepRetry                // ask again after a pause
	StepCharge               // the provider has nothing: charge now, under the same key
	StepComplete             // tell that the money was taken
	StepFail                 // tell that no money is taken
	StepCheck                // still nothing after the failure: look again at the next set time
	StepRefund               // money was taken after the failure was told: give it back
)

// keysLast is how long a provider is relied on to know the key of a charge: one
// that asks for it again later may take the money a second time. Usual is a day.
const keysLast = 23 * time.Hour

// Next is the call to make for p now. A charge without a lookup before it is
// only for a payment for which nothing was tried; one that waited longer than
// ttl is looked up first, whatever is known of it.
func (p Payment) Next(now time.Time, ttl time.Duration) Call {
	if p.Status == Pending && !p.expired(now, ttl) {
		return CallCharge
	}
	return CallLookup
}

// Begin is p as it is recorded before the call is made.
func (p Payment) Begin(c Call, now time.Time) Payment {
	switch {
	case c == CallCharge:
		p.Status, p.ChargedAt = Processing, now
	case p.Status == Processing: // found again after a crash
		p.Status = Unknown
	}
	p.Calls++
	return p
}

// Believe is a as it can be relied on: whatever does not fit the call and the
// payment is no answer.
func (p Payment) Believe(c Call, a Answer) Answer {
	doubt := func(format string, args ...any) Answer {
		return Answer{Outcome: Unanswered, Detail: fmt.Sprintf(format, args...)}
	}
	switch a.Outcome {
	case Declined, Unanswered:
		return a
	case Absent:
		if c == CallLookup {
			return a
		}
	case Captured:
		if a.TransactionID == "" {
			return doubt("captured without an id")
		}
		// money found after a failure goes back, however much it is
		if p.Status != Failed && (a.Amount != p.Amount || a.Currency != p.Currency) {
			return doubt("captured %s %q, asked for %s %s", a.Amount, a.Currency, p.Amount, p.Currency)
		}
		return a
	}
	return doubt("%q is no answer to a %s", a.Outcome, c)
}

// Apply is p after a believable answer, and what follows from it. A final
// status absorbs everything.
func (p Payment) Apply(a Answer, now time.Time, ttl time.Duration) (Payment, Step) {
	switch {
	case p.Status == Failed && p.ErrorCode == CodeProviderUnavailable:
		return p.applyLate(a)
	case p.Status == Failed, p.Status == Completed:
		return p, StepRest
	}
	switch a.Outcome {
	case Captured:
		p.TransactionID = a.TransactionID
		return p.finish(Completed, now), StepComplete
	case Declined:
		p.ErrorCode = declineCode(a.Code)
		return p.finish(Failed, now), StepFail
	case Absent:
		if p.mayCharge(now, ttl) {
			return p, StepCharge
		}
		p.ErrorCode = CodeProviderUnavailable
		return p.finish(Failed, now), StepFail
	}
	if p.Status == Processing {
		p.Status = Unknown
	}
	return p, StepRetry
}

// applyLate looks at what was found after the failure was told.
func (p Payment) applyLate(a Answer) (Payment, Step) {
	switch a.Outcome {
	case Captured:
		p.TransactionID = a.TransactionID
		if a.Amount <= a.Refunded {
			return p, StepRest
		}
		return p, StepRefund
	case Declined: // settles the key: no money can come under it any more
		return p, StepRest
	case Absent:
		p.Checks++
		return p, StepCheck
	}
	return p, StepRetry
}

// never is the pause before what is not done again.
const never time.Duration = -1

// NextCheck is the pause before a failed payment is looked up again, or never
// when that is over or was not needed. The checks are counted from the failure,
// each from the one before, so that none is skipped for a clock that was set.
func (p Payment) NextCheck(checks []time.Duration) time.Duration {
	if p.Status != Failed || p.ErrorCode != CodeProviderUnavailable || p.Checks >= len(checks) {
		return never
	}
	if p.Checks == 0 {
		return checks[0]
	}
	return max(0, checks[p.Checks]-checks[p.Checks-1])
}

// mayCharge reports whether p, of which the provider has nothing, is charged at
// now: until it is older than ttl, and once after that. What makes it old may be
// a clock that was set, or an outage of ours, in which nobody tried.
func (p Payment) mayCharge(now time.Time, ttl time.Duration) bool {
	switch {
	case !p.expired(now, ttl), p.ChargedAt.IsZero():
		return true
	case now.Sub(p.CreatedAt) >= keysLast:
		return false
	}
	return p.ChargedAt.Before(p.CreatedAt.Add(ttl))
}

func (p Payment) expired(now time.Time, ttl time.Duration) bool {
	return !now.Before(p.CreatedAt.Add(ttl))
}

func (p Payment) finish(s Status, now time.Time) Payment {
	p.Status, p.CompletedAt, p.Version = s, now, p.Version+1
	return p
}

var codeFormat = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)

// declineCode keeps a provider's code from carrying anything but a code.
func declineCode(code string) string {
	if !codeFormat.MatchString(code) || code == CodeProviderUnavailable {
		return CodeDeclined
	}
	return code
}

// message is the code said to people.
func message(code string) string {
	switch code {
	case "":
		return ""
	case "insufficient_funds":
		return "There is not enough money on the card."
	case CodeProviderUnavailable:
		return "The payment provider could not be reached in time."
	default:
		return "The bank declined the payment."
	}
}
