package order

import (
	"crypto/rand"
	"errors"
	"time"

	"pizzaflow/event"
)

// A Status is how far an order has come. An order starts pending and ends in
// one of the other two, which are final.
type Status string

// The statuses.
const (
	Pending       Status = "pending"        // placed, awaits its payment
	Paid          Status = "paid"           // the payment was completed
	PaymentFailed Status = "payment_failed" // the order will not be paid, and is over
)

// The marks of an order that needs a human. A mark is set beside the status,
// never instead of it.
const (
	// AttentionMismatch marks an order that a payment of another amount or
	// currency arrived for. The mark stays for good: the customer was charged
	// something else than the order's total.
	AttentionMismatch = "payment_amount_mismatch"
	// AttentionOverdue marks an order that was pending when its deadline passed.
	// A final status takes the mark away.
	AttentionOverdue = "payment_overdue"
)

// ErrAmountMismatch is returned for a payment of another amount or in another
// currency than the order's total.
var ErrAmountMismatch = errors.New("payment does not match the order's total")

// An Order is a customer's order, at the prices of the moment it was placed.
type Order struct {
	ID            string // a UUID, fixed before the first try to store it
	Number        string // for the telephone, such as K7M-42PX
	Status        Status
	Version       int64       // the order's events so far: 1 when placed
	Total         event.Money // in minor units of Currency
	Currency      string      // ISO 4217
	Customer      Customer
	Items         []event.Item
	Address       string
	Comment       string
	Locale        string // ru or en
	CreatedAt     time.Time
	PaidAt        time.Time // zero unless Paid
	PaymentID     string    // of the payment that decided the order, "" before
	FailureReason string    // the payment's error code, "" unless PaymentFailed
	History       []Step    // oldest first
}

// A Customer is who placed an order.
type Customer struct {
	Name  string
	Email string // a bare address
	Phone string // E.164
}

// A Step is one status an order took.
type Step struct {
	Version int64
	Status  Status
	At      time.Time
}

// pay applies a completed payment to the order, and reports whether the order
// changed. A final status absorbs every payment: a repeated payment changes
// nothing, and a payment that comes after a failure is the payment service's to
// refund.
func (o *Order) pay(p event.PaymentCompleted, at time.Time) (bool, error) {
	if p.Amount != o.Total || p.Currency != o.Currency {
		return false, ErrAmountMismatch
	}
	if o.Status != Pending {
		return false, nil
	}
	o.PaidAt, o.PaymentID = at, p.PaymentID
	o.enter(Paid, at)
	return true, nil
}

// fail applies a failed payment to the order, and reports whether the order
// changed.
func (o *Order) fail(p event.PaymentFailed, at time.Time) bool {
	if o.Status != Pending {
		return false
	}
	o.FailureReason, o.PaymentID = p.ErrorCode, p.PaymentID
	o.enter(PaymentFailed, at)
	return true
}

// enter gives the order a status. Each status is a new version and a step of the
// history.
func (o *Order) enter(s Status, at time.Time) {
	o.Status = s
	o.Version++
	o.History = append(o.History, Step{Version: o.Version, Status: s, At: at})
}

// created is the event of a new order.
func (o *Order) created() event.OrderCreated {
	return event.OrderCreated{
		OrderID: o.ID, OrderNumber: o.Number,
		CustomerName: o.Customer.Name, CustomerEmail: o.Customer.Email, CustomerPhone: o.Customer.Phone,
		TotalAmount: o.Total, Currency: o.Currency, Items: o.Items,
		DeliveryAddress: o.Address, Locale: o.Locale, CreatedAt: o.CreatedAt,
	}
}

// numberAlphabet holds digits and consonants that neither look nor sound like
// each other, on a Latin or a Cyrillic keyboard. Without vowels no number
// spells a word.
const numberAlphabet = "23456789CFHKMPRTX"

// newNumber draws an order number such as K7M-42PX, one of 17^7 or 410 million. The
// database sees to it that no two orders have the same number.
func newNumber() string {
	const size, digits = len(numberAlphabet), 7
	number := make([]byte, 0, digits+1)
	for len(number) < digits+1 {
		var random [16]byte
		rand.Read(random[:])
		for _, b := range random {
			if len(number) == 3 {
				number = append(number, '-')
			}
			// bytes beyond the last whole multiple of size would favour some characters
			if int(b) < 256/size*size && len(number) < digits+1 {
				number = append(number, numberAlphabet[int(b)%size])
			}
		}
	}
	return string(number)
}
