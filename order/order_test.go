package order

import (
	"errors"
	"regexp"
	"testing"
	"time"

	"pizzaflow/event"
)

const orderID = "0190b7a5-2f6e-7c3a-9d35-1f1f3b6f0a01"

func TestTransitions(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	completed := event.PaymentCompleted{PaymentID: "p2", OrderID: orderID, Amount: 1200_00, Currency: "RUB"}
	wrongAmount, wrongCurrency := completed, completed
	wrongAmount.Amount--
	wrongCurrency.Currency = "USD"
	failed := event.PaymentFailed{PaymentID: "p2", OrderID: orderID, ErrorCode: "declined"}

	pay := func(p event.PaymentCompleted) func(*Order) (bool, error) {
		return func(o *Order) (bool, error) { return o.pay(p, at) }
	}
	fail := func(o *Order) (bool, error) { return o.fail(failed, at), nil }

	for _, tc := range []struct {
		name    string
		from    Status
		event   func(*Order) (bool, error)
		to      Status
		changed bool
		err     error
	}{
		{"pending, completed", Pending, pay(completed), Paid, true, nil},
		{"pending, failed", Pending, fail, PaymentFailed, true, nil},
		{"pending, wrong amount", Pending, pay(wrongAmount), Pending, false, ErrAmountMismatch},
		{"pending, wrong currency", Pending, pay(wrongCurrency), Pending, false, ErrAmountMismatch},
		{"paid, completed", Paid, pay(completed), Paid, false, nil},
		{"paid, failed", Paid, fail, Paid, false, nil},
		{"paid, wrong amount", Paid, pay(wrongAmount), Paid, false, ErrAmountMismatch},
		{"payment_failed, completed", PaymentFailed, pay(completed), PaymentFailed, false, nil},
		{"payment_failed, failed", PaymentFailed, fail, PaymentFailed, false, nil},
		{"payment_failed, wrong amount", PaymentFailed, pay(wrongAmount), PaymentFailed, false, ErrAmountMismatch},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := Order{ID: orderID, Total: 1200_00, Currency: "RUB"}
			o.enter(Pending, at)
			if tc.from != Pending {
				o.PaymentID = "p1"
				o.enter(tc.from, at)
			}
			before := o
			changed, err := tc.event(&o)
			if changed != tc.changed || !errors.Is(err, tc.err) || o.Status != tc.to {
				t.Fatalf("changed %v, err %v, status %s; want %v, %v, %s", changed, err, o.Status, tc.changed, tc.err, tc.to)
			}
			if !changed {
				if o.Version != before.Version || o.PaymentID != before.PaymentID || len(o.History) != len(before.History) {
					t.Fatalf("an absorbed event left a trace: %+v", o)
				}
				return
			}
			want := Step{Version: 2, Status: tc.to, At: at}
			if o.Version != 2 || len(o.History) != 2 || o.History[1] != want || o.PaymentID != "p2" {
				t.Fatalf("got %+v, want step %+v", o, want)
			}
			if (tc.to == Paid) != o.PaidAt.Equal(at) || (tc.to == PaymentFailed) != (o.FailureReason == "declined") {
				t.Fatalf("paid at %s, failure %q", o.PaidAt, o.FailureReason)
			}
		})
	}
}

func TestNumber(t *testing.T) {
	shape := regexp.MustCompile(`^[23456789CFHKMPRTX]{3}-[23456789CFHKMPRTX]{4}$`)
	seen, letters := map[string]bool{}, map[rune]bool{}
	for range 2000 {
		n := newNumber()
		if !shape.MatchString(n) {
			t.Fatalf("number %q has another shape", n)
		}
		seen[n] = true
		for _, r := range n {
			letters[r] = true
		}
	}
	// 2,000 out of 410 million: a second collision is a broken generator
	if len(seen) < 1999 || len(letters) != len(numberAlphabet)+1 {
		t.Fatalf("%d different numbers of %d characters", len(seen), len(letters))
	}
}
