package payment

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"pizzaflow/event"
)

const ttl = 15 * time.Minute

var t0 = time.Date(2024, 1, 15, 10, 30, 0, 0, time.UTC)

func open(s Status) Payment {
	return Payment{ID: "p", OrderID: "o", Amount: 120000, Currency: "RUB", Status: s, CreatedAt: t0}
}

func failedUnavailable() Payment {
	p, _ := chargedAt(ttl).Apply(Answer{Outcome: Absent}, t0.Add(ttl), ttl)
	return p
}

// chargedAt was charged last when it was that old.
func chargedAt(age time.Duration) Payment {
	p := open(Unknown)
	p.ChargedAt = t0.Add(age)
	return p
}

func captured() Answer {
	return Answer{Outcome: Captured, TransactionID: "ch_1", Amount: 120000, Currency: "RUB"}
}

func TestNext(t *testing.T) {
	for _, c := range []struct {
		status Status
		age    time.Duration
		want   Call
	}{
		{Pending, 0, CallCharge},
		{Pending, ttl - 1, CallCharge},
		{Pending, ttl, CallLookup}, // too old to be charged, and perhaps it was
		{Processing, 0, CallLookup},
		{Unknown, 0, CallLookup},
		{Failed, ttl, CallLookup},
	} {
		if got := open(c.status).Next(t0.Add(c.age), ttl); got != c.want {
			t.Errorf("%s after %s: next is %s, want %s", c.status, c.age, got, c.want)
		}
	}
}

func TestApply(t *testing.T) {
	declined := Answer{Outcome: Declined, Code: "insufficient_funds"}
	absent, lost := Answer{Outcome: Absent}, Answer{Outcome: Unanswered}
	late := failedUnavailable()
	failedByBank, _ := open(Processing).Apply(declined, t0, ttl)
	completed, _ := open(Processing).Apply(captured(), t0, ttl)
	for _, c := range []struct {
		name   string
		from   Payment
		answer Answer
		age    time.Duration
		status Status
		code   string
		step   Step
	}{
		{"charge taken", open(Processing), captured(), 0, Completed, "", StepComplete},
		{"charge declined", open(Processing), declined, 0, Failed, "insufficient_funds", StepFail},
		{"charge declined with nonsense", open(Processing), Answer{Outcome: Declined, Code: "Иван!"}, 0, Failed, CodeDeclined, StepFail},
		{"a decline cannot pretend to be an outage", open(Processing), Answer{Outcome: Declined, Code: CodeProviderUnavailable}, 0, Failed, CodeDeclined, StepFail},
		{"charge unanswered", open(Processing), lost, 0, Unknown, "", StepRetry},
		{"charge unanswered past the TTL", open(Processing), lost, ttl, Unknown, "", StepRetry},
		{"found taken", open(Unknown), captured(), 0, Completed, "", StepComplete},
		{"found taken past the TTL", open(Unknown), captured(), ttl + 1, Completed, "", StepComplete},
		{"found declined", open(Unknown), declined, 0, Failed, "insufficient_funds", StepFail},
		{"nothing found", open(Unknown), absent, ttl - 1, Unknown, "", StepCharge},
		{"nothing found past the TTL, charged before it", chargedAt(ttl - 1), absent, ttl, Unknown, "", StepCharge},
		{"nothing found past the TTL, charged after it", chargedAt(ttl), absent, ttl, Failed, CodeProviderUnavailable, StepFail},
		{"nothing found when the provider may have forgotten", chargedAt(0), absent, keysLast, Failed, CodeProviderUnavailable, StepFail},
		{"lookup unanswered past the TTL", open(Unknown), lost, 100 * ttl, Unknown, "", StepRetry},
		{"never tried, past the TTL", open(Pending), absent, 100 * ttl, Pending, "", StepCharge},
		{"never tried, lookup unanswered", open(Pending), lost, ttl, Pending, "", StepRetry},
		{"late capture", late, captured(), 2 * ttl, Failed, CodeProviderUnavailable, StepRefund},
		{"late decline", late, declined, 2 * ttl, Failed, CodeProviderUnavailable, StepRest},
		{"still nothing late", late, absent, 2 * ttl, Failed, CodeProviderUnavailable, StepCheck},
		{"no late answer", late, lost, 2 * ttl, Failed, CodeProviderUnavailable, StepRetry},
		{"a decline is final", failedByBank, captured(), 0, Failed, "insufficient_funds", StepRest},
		{"completed is final", completed, declined, 0, Completed, "", StepRest},
	} {
		got, step := c.from.Apply(c.answer, t0.Add(c.age), ttl)
		if got.Status != c.status || got.ErrorCode != c.code || step != c.step {
			t.Errorf("%s: %s %q, step %d; want %s %q, step %d", c.name, got.Status, got.ErrorCode, step, c.status, c.code, c.step)
		}
	}
	back := captured()
	back.Refunded = back.Amount
	if _, step := late.Apply(back, t0, ttl); step != StepRest {
		t.Errorf("a late capture that was refunded already leads to step %d", step)
	}
}

func TestBelieve(t *testing.T) {
	edit := func(fn func(*Answer)) Answer {
		a := captured()
		fn(&a)
		return a
	}
	for _, c := range []struct {
		name   string
		status Status
		call   Call
		answer Answer
		want   Outcome
	}{
		{"captured", Processing, CallCharge, captured(), Captured},
		{"other amount", Processing, CallCharge, edit(func(a *Answer) { a.Amount-- }), Unanswered},
		{"other currency", Unknown, CallLookup, edit(func(a *Answer) { a.Currency = "USD" }), Unanswered},
		{"no id", Unknown, CallLookup, edit(func(a *Answer) { a.TransactionID = "" }), Unanswered},
		{"other amount, late", Failed, CallLookup, edit(func(a *Answer) { a.Amount-- }), Captured},
		{"absent to a lookup", Unknown, CallLookup, Answer{Outcome: Absent}, Absent},
		{"absent to a charge", Processing, CallCharge, Answer{Outcome: Absent}, Unanswered},
		{"refunded to a charge", Processing, CallCharge, Answer{Outcome: Refunded}, Unanswered},
		{"nothing at all", Processing, CallCharge, Answer{}, Unanswered},
		{"declined", Processing, CallCharge, Answer{Outcome: Declined}, Declined},
	} {
		got := open(c.status).Believe(c.call, c.answer)
		if got.Outcome != c.want {
			t.Errorf("%s: %s, want %s", c.name, got.Outcome, c.want)
		}
		if got.Outcome == Unanswered && got.Detail == "" {
			t.Errorf("%s: the doubt is not explained", c.name)
		}
	}
}

func TestNextCheck(t *testing.T) {
	checks := []time.Duration{time.Minute, time.Hour}
	p := failedUnavailable()
	var got []time.Duration
	at := p.CompletedAt
	for pause := p.NextCheck(checks); pause != never; pause = p.NextCheck(checks) {
		at = at.Add(pause)
		got = append(got, at.Sub(p.CompletedAt))
		p, _ = p.Apply(Answer{Outcome: Absent}, at, ttl)
	}
	if len(got) != 2 || got[0] != time.Minute || got[1] != time.Hour {
		t.Errorf("checked at %v, want %v", got, checks)
	}
	if pause := open(Unknown).NextCheck(checks); pause != never {
		t.Errorf("an open payment is checked in %v", pause)
	}
}

func TestMessagesAreForPeople(t *testing.T) {
	for _, code := range []string{CodeDeclined, CodeProviderUnavailable, "insufficient_funds", "card_declined", "x"} {
		if m := message(code); !strings.HasSuffix(m, ".") || strings.Contains(m, "_") {
			t.Errorf("%s is said as %q", code, m)
		}
	}
}

// world is a provider with one key: the money it holds and its answers are the
// test's to draw. Money moves only here.
type world struct {
	declined bool
	taken    event.Money // charged for the key
	charges  int         // how often money was really taken
	inFlight bool        // a charge without an answer that may still take the money
	refunded event.Money
}

func (w *world) charge(t *rapid.T, p Payment) Answer {
	if w.taken == 0 && !w.declined {
		switch rapid.SampledFrom([]string{"capture", "decline", "late", "nothing"}).Draw(t, "charge") {
		case "capture":
			w.capture(p)
		case "decline":
			w.declined = true
		case "late":
			w.inFlight = true
			return Answer{Outcome: Unanswered}
		case "nothing":
			return Answer{Outcome: Unanswered}
		}
	}
	return w.state(t, p)
}

func (w *world) capture(p Payment) {
	w.taken = p.Amount
	w.charges++
	w.inFlight = false
}

func (w *world) state(t *rapid.T, p Payment) Answer {
	switch {
	case rapid.IntRange(0, 2).Draw(t, "lost") == 0:
		return Answer{Outcome: Unanswered}
	case w.taken > 0:
		return Answer{Outcome: Captured, TransactionID: "ch", Amount: w.taken, Currency: p.Currency, Refunded: w.refunded}
	case w.declined:
		return Answer{Outcome: Declined, Code: "card_declined"}
	}
	return Answer{Outcome: Absent}
}

// TestPaymentAgreesWithTheProvider runs a payment against a provider that
// loses answers and takes money late, with crashes between the steps, and
// compares what the payment says with where the money is.
func TestPaymentAgreesWithTheProvider(t *testing.T) {
	checks := []time.Duration{time.Minute, 5 * time.Minute, time.Hour}
	rapid.Check(t, func(t *rapid.T) {
		p, w, now := open(Pending), &world{}, t0
		var emitted []Step
		refunds, late, resting := 0, 0, false
		for i := 0; i < 60 && !resting; i++ {
			now = now.Add(time.Duration(rapid.IntRange(0, 300).Draw(t, "seconds")) * time.Second)
			if w.inFlight && !w.declined && rapid.Bool().Draw(t, "arrives") {
				w.capture(p)
			}
			before := p
			call, chargeAllowed := p.Next(now, ttl), p.Status == Pending && now.Sub(t0) < ttl
			for again := true; again; {
				again = false
				p = p.Begin(call, now)
				if call == CallCharge && !chargeAllowed {
					t.Fatalf("charged a payment that is %s, %s old, without asking first", before.Status, now.Sub(t0))
				}
				if call == CallCharge && now.Sub(t0) >= ttl {
					if late++; late > 1 {
						t.Fatalf("charged %d times after the TTL", late)
					}
				}
				var a Answer
				if call == CallCharge {
					a = w.charge(t, p)
				} else {
					a = w.state(t, p)
				}
				if rapid.IntRange(0, 4).Draw(t, "crash") == 0 {
					break // after the call, before the answer was recorded
				}
				a = p.Believe(call, a)
				next, step := p.Apply(a, now, ttl)
				p = next
				switch step {
				case StepComplete, StepFail:
					emitted = append(emitted, step)
				case StepRefund:
					refunds++
					w.refunded, resting = a.Amount, true
				case StepRest:
					resting = true
				case StepCharge:
					call, chargeAllowed, again = CallCharge, true, true
				case StepCheck:
				case StepRetry:
					if a.Outcome != Unanswered {
						t.Fatalf("%s was answered %s and asks again", before.Status, a.Outcome)
					}
				}
			}
			resting = resting || p.Status == Completed || (p.Status == Failed && p.NextCheck(checks) == never)
		}
		if w.charges > 1 || refunds > 1 || len(emitted) > 1 || int64(len(emitted)) != p.Version {
			t.Fatalf("%d charges, %d refunds; emitted %v, version %d", w.charges, refunds, emitted, p.Version)
		}
		kept := w.taken - w.refunded
		switch {
		case p.Status == Completed && kept != p.Amount:
			t.Fatalf("completed, but the provider holds %s", kept)
		case p.Status == Failed && p.ErrorCode != CodeProviderUnavailable && w.taken != 0:
			t.Fatalf("failed with %s, but %s was taken", p.ErrorCode, w.taken)
		case refunds > 0 && kept != 0:
			t.Fatalf("refunded, but the provider holds %s", kept)
		case (p.Status == Completed || p.Status == Failed) != (len(emitted) == 1):
			t.Fatalf("%s; emitted %v", p.Status, emitted)
		}
	})
}
