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
	Pending    Status = "pending"    // no call was begun yet
	Processing Status = "processing" // a charge was begun, and its outcome is not recorded
	Unknown    Status = "unknown"    // a charge was made, and whether it took the money is not known
	Completed  Status = "completed"  // the money was taken
	Failed     Status = "failed"     // PaymentFailed was emitted: no money is taken
)

// Codes of a failure that the provider does not name itself.
const (
	CodeDeclined            = "declined"             // refused without a reason
	CodeProviderUnavailable = "provider_unavailable" // no charge was made before the TTL, nor once after it
)

// A Call is a kind of call to the provider for a payment.
type Call string

// The calls.
const (
	CallCharge Call = "charge" // take the money
	CallLookup Call = "lookup" // look up what became of the charge
)

// An Outcome is how a call to the provider ended.
type Outcome string

// The outcomes. A call without a believable answer is Unanswered: time-outs, cut
// connections, server errors, nonsense.
const (
	Captured   Outcome = "captured" // the money was taken
	Declined   Outcome = "declined" // no money is ever taken under this key
	Absent     Outcome = "absent"   // of a lookup: there is no charge under this key
	Unanswered Outcome = "unknown"
	Refunded   Outcome = "refunded" // of a refund: the money is on its way back
	Refused    Outcome = "refused"  // of a refund: the provider does not refund the charge
)

// An Answer is what the provider answered to a call, or Unanswered.
type Answer struct {
	Outcome       Outcome
	TransactionID string      // the provider's id of the charge
	Amount        event.Money // captured
	Currency      string
	Refunded      event.Money // the part of Amount that was refunded already
	Code          string      // the reason of a declined charge
	Detail        string      // the fault in the answer, for operators; without personal data
}

// A Payment is the one payment of one order.
type Payment struct {
	ID            string // the idempotency key as well
	OrderID       string
	Amount        event.Money
	Currency      string
	CustomerEmail string
	CausationID   string // the id of the OrderCreated
	Traceparent   string // of that event, "" without one
	Status        Status
	TransactionID string
	ErrorCode     string
	Version       int64 // events emitted so far
	Calls         int   // calls begun so far, the number of the last attempt
	Checks        int   // lookups after the failure that found no charge
	CreatedAt     time.Time
	ChargedAt     time.Time // when the last charge was begun, zero without one
	CompletedAt   time.Time // when the payment became final
}

// A Step is what has to be done after an answer.
type Step int

// The steps.
const (
	StepRest     Step = iota // nothing
	StepRetry                // ask again after a pause
	StepCharge               // the provider has no charge: charge now, under the same key
	StepComplete             // emit that the money was taken
	StepFail                 // emit that no money is taken
	StepCheck                // still no charge after the failure: look it up again at the next of the late checks
	StepRefund               // the money was taken after the failure was emitted: refund it
)

// keysLast is how long a provider is relied on to know the key of a charge: under a
// key it has forgotten it may take the money a second time. Providers usually keep
// keys for a day.
const keysLast = 23 * time.Hour

// Next is the call to make for p now: a charge when there was no attempt yet, and
// else a lookup. A payment that has waited longer than ttl is looked up in any case.
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

// Believe is the answer a, or Unanswered when a does not fit the call and the
// payment.
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
		// money found after a failure is refunded, however much it is
		if p.Status != Failed && (a.Amount != p.Amount || a.Currency != p.Currency) {
			return doubt("captured %s %q, asked for %s %s", a.Amount, a.Currency, p.Amount, p.Currency)
		}
		return a
	}
	return doubt("%q is no answer to a %s", a.Outcome, c)
}

// Apply is p after a believable answer, and the step that follows. A final status
// stays as it is.
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

// applyLate is Apply for a payment that failed without an answer.
func (p Payment) applyLate(a Answer) (Payment, Step) {
	switch a.Outcome {
	case Captured:
		p.TransactionID = a.TransactionID
		if a.Amount <= a.Refunded {
			return p, StepRest
		}
		return p, StepRefund
	case Declined: // no money can be taken under the key any more
		return p, StepRest
	case Absent:
		p.Checks++
		return p, StepCheck
	}
	return p, StepRetry
}

// never is the pause before a row that is not due again.
const never time.Duration = -1

// NextCheck is the pause before a failed payment is looked up again, or never when
// no check is left or none is needed. Each pause is counted from the check before,
// so that a clock that was set makes none be skipped.
func (p Payment) NextCheck(checks []time.Duration) time.Duration {
	if p.Status != Failed || p.ErrorCode != CodeProviderUnavailable || p.Checks >= len(checks) {
		return never
	}
	if p.Checks == 0 {
		return checks[0]
	}
	return max(0, checks[p.Checks]-checks[p.Checks-1])
}

// mayCharge reports whether p, of which the provider has no charge, is charged now:
// until it is older than ttl, and once after that. It may be old because a clock was
// set, or because of an outage of ours in which no attempt was made.
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

// declineCode is a provider's code, or CodeDeclined when it is not of the format.
func declineCode(code string) string {
	if !codeFormat.MatchString(code) || code == CodeProviderUnavailable {
		return CodeDeclined
	}
	return code
}

// message is the code in words for people.
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
