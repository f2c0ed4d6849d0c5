package notification

import (
	"time"

	"pizzaflow/event"
)

// A Type is the kind of a notification.
type Type string

// The types. An order has at most one notification of each.
const (
	OrderConfirmation   Type = "order_confirmation"   // the order is placed and awaits its payment
	PaymentConfirmation Type = "payment_confirmation" // the money was taken
	PaymentFailed       Type = "payment_failed"       // no money was taken and none will be
)

// Types lists all types.
func Types() []Type { return []Type{OrderConfirmation, PaymentConfirmation, PaymentFailed} }

// A Channel is a way to send messages to the customer.
type Channel string

// The channels.
const (
	Email Channel = "email"
	SMS   Channel = "sms"
)

// A Status says how far a delivery has come.
type Status string

// The statuses of a delivery. Sent means that the mail server or the gateway has
// accepted the message. Sent and Failed are final.
const (
	Pending Status = "pending"
	Sent    Status = "sent"
	Failed  Status = "failed"
)

// The schedule of a delivery whose attempts fail: the pause starts at retryBase and
// doubles up to retryLimit; at giveUpAfter the last attempt is made. A clock that was
// set may make a delivery old at once, so giving up also takes as many attempts as fit
// into a day.
const (
	retryBase   = time.Second
	retryLimit  = 15 * time.Minute
	giveUpAfter = 24 * time.Hour
	dayOfTries  = int(giveUpAfter / retryLimit)
)

// unknownAttemptsLimit is how many attempts at a delivery may be Unknown: each of them
// may have sent the message. After the last one the delivery is failed, for the
// operator to look at. An SMS costs money, and disturbs more than a mail.
var unknownAttemptsLimit = map[Channel]int{Email: 3, SMS: 2}

// never is the pause before a delivery that is not due again.
const never time.Duration = -1

// retryIn is the pause before the next attempt at a delivery of that age, after so many
// attempts: the given pause, a shorter one, or never.
func retryIn(age time.Duration, attempts int, pause time.Duration) time.Duration {
	switch {
	case age < giveUpAfter:
		return min(pause, giveUpAfter-age)
	case attempts < dayOfTries:
		return pause
	}
	return never
}

// An order is the part of OrderCreated that the order's notifications need.
type order struct {
	ID, Number   string
	Name         string
	Email, Phone string
	Locale       string
	Total        event.Money
	Currency     string
	Items        []event.Item
	Address      string
}

// A payment is the part of a payment event that its notification needs. It is stored
// as JSON with the notification.
type payment struct {
	ID        string      `json:"payment_id,omitempty"`
	Amount    event.Money `json:"amount,omitempty"`
	Currency  string      `json:"currency,omitempty"`
	ErrorCode string      `json:"error_code,omitempty"`
}

// A notification tells a customer one thing about an order, once. It waits while the
// order's contacts are not known.
type notification struct {
	id      string
	orderID string
	typ     Type
	payment payment
	waiting bool
}

// A delivery is one message of a notification by one channel, with all data that its
// text needs.
type delivery struct {
	ID        string
	Type      Type
	Channel   Channel
	CreatedAt time.Time
	Order     order
	Payment   payment

	notification    string // its id; "" where it does not matter
	unknownAttempts int    // attempts before this one that were Unknown
}

// to is the customer's address on the delivery's channel.
func (d delivery) to() string {
	if d.Channel == SMS {
		return d.Order.Phone
	}
	return d.Order.Email
}
