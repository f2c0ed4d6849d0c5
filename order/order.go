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
	Paid          Status = "paid"           // the money is there
	PaymentFailed Status = "payment_failed" // it will not be paid, and is over
)

// Why an order needs a human. The mark is set beside the status, never
// instead of it.
const (
	// AttentionMismatch: a payment arrived whose amount or currency is not the
	// order's. It stays for good, because money was taken for something else
	// than what was ordered.
	AttentionMismatch = "payment_amount_mismatch"
	// AttentionOverdue: the order was still pending when its deadline passed.
	// A final status takes the mark away.
	AttentionOverdue = "payment_overdue"
)

// ErrAmountMismatch is returned for a payment of another amount or in another
// currency than the order's total.
var ErrAmountMismatch = errors.New("payment does not match the order's total")

// An Order is what a customer asked for, at the prices of that moment, and
// what has become of it.
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

// A Customer is whom to tell.
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

// pay is what a completed payment makes of the order. It reports whether
// anything changed: a final status absorbs every payment, so a repeated one
// does nothing, and one that comes after a failure is left to the payment
// service, which gives the money back.
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

// fail is what a failed payment makes of the order. It reports whether
// anything changed.
func (o *Order) fail(p event.PaymentFailed, at time.Time) bool {
	if o.Status != Pending {
		return false
	}
	o.FailureReason, o.PaymentID = p.ErrorCode, p.PaymentID
	o.enter(PaymentFailed, at)
	return true
}

// enter is the only way into a status; each is a version of its own.
func (o *Order) enter(s Status, at time.Time) {
	o.Status = s
	o.Version++
	o.History = append(o.History, Step{Version: o.Version, Status: s, At: at})
}

// created is the event that tells the others of a new order.
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

// newNumber draws an order number such as K7M-42PX: 17^7, 410 million of
// them. That no two orders share one is the database's care.
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
			// a byte beyond the last whole multiple would favour some characters
			if int(b) < 256/size*size && len(number) < digits+1 {
				number = append(number, numberAlphabet[int(b)%size])
			}
		}
	}
	return string(number)
}
