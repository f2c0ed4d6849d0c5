package notification

import (
	"time"

	"pizzaflow/event"
)

// A Type is what a notification tells.
type Type string

// The types. An order has at most one notification of each.
const (
	OrderConfirmation   Type = "order_confirmation"   // the order is taken and awaits payment
	PaymentConfirmation Type = "payment_confirmation" // the money has arrived
	PaymentFailed       Type = "payment_failed"       // no money was taken and none will be
)

// Types lists all types.
func Types() []Type { return []Type{OrderConfirmation, PaymentConfirmation, PaymentFailed} }

// A Channel is a way to the customer.
type Channel string

// The channels.
const (
	Email Channel = "email"
	SMS   Channel = "sms"
)

// A Status says how far a delivery is.
type Status string

// The statuses of a delivery. Sent means that the mail server or the gateway
// has taken the message; sent and failed are final.
const (
	Pending Status = "pending"
	Sent    Status = "sent"
	Failed  Status = "failed"
)

// The schedule of a delivery that fails for now: the pause starts at retryBase
// and doubles up to retryLimit; at giveUpAfter the last attempt is made. A clock
// that was set makes no day: it takes as many attempts as well as fit into one.
const (
	retryBase   = time.Second
	retryLimit  = 15 * time.Minute
	giveUpAfter = 24 * time.Hour
	dayOfTries  = int(giveUpAfter / retryLimit)
)

// never is the pause before what is not done again.
const never time.Duration = -1

// retryIn is the pause before a delivery is tried again that is so old and had
// so many attempts, the proposed one or a shorter, or never.
func retryIn(age time.Duration, attempts int, pause time.Duration) time.Duration {
	switch {
	case age < giveUpAfter:
		return min(pause, giveUpAfter-age)
	case attempts < dayOfTries:
		return pause
	}
	return never
}

// An order is what the notifications of an order need to know of it, as its
// OrderCreated told.
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

// A payment is what a notification of type payment_confirmation or
// payment_failed tells of the payment; it stands as JSON in the notification.
type payment struct {
	ID        string      `json:"payment_id,omitempty"`
	Amount    event.Money `json:"amount,omitempty"`
	Currency  string      `json:"currency,omitempty"`
	ErrorCode string      `json:"error_code,omitempty"`
}

// A notification is what one order is told once. It waits as long as nobody
// knows whom to tell.
type notification struct {
	id      string
	orderID string
	typ     Type
	payment payment
	waiting bool
}

// A delivery is one message of one notification by one channel, with all that
// is needed to write it.
type delivery struct {
	ID        string
	Type      Type
	Channel   Channel
	CreatedAt time.Time
	Order     order
	Payment   payment

	notification string // its id; "" where it does not matter
}

// to is the customer's address on the delivery's channel.
func (d delivery) to() string {
	if d.Channel == SMS {
		return d.Order.Phone
	}
	return d.Order.Email
}
