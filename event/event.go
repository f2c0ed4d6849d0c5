// Package event is the contract between the services: every event, the topic
// it travels on, the aggregate it belongs to, and the envelope around it. It
// imports none of the other packages, and a program that reads the topics needs no
// other.
//
// A record's value is an [Envelope]; its key is the aggregate's id. All else travels
// in headers (see the Header constants).
// Records of one aggregate keep their order; records of two topics have no
// mutual order, so a consumer must cope with either arriving first.
package event

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// The topics. A record that cannot be handled goes to the topic of the same
// name with [DeadLetterSuffix].
const (
	OrderTopic       = "order-events"
	PaymentTopic     = "payment-events"
	DeadLetterSuffix = "-dlq"
)

// Topics lists the topics that carry events, dead letters apart.
func Topics() []string { return []string{OrderTopic, PaymentTopic} }

// An Item is one line of an order.
type Item struct {
	PizzaID  string `json:"pizza_id"`
	Name     string `json:"name"` // as on the menu, in the order's locale
	Size     string `json:"size"` // small, medium or large
	Quantity int    `json:"quantity"`
	Price    Money  `json:"price"` // of one piece
}

// OrderCreated says that a customer placed an order that now awaits payment.
// Emitted by the order service as version 1 of the order; consumed by payment,
// notification and frontend.
type OrderCreated struct {
	OrderID         string    `json:"order_id"`
	OrderNumber     string    `json:"order_number"`
	CustomerName    string    `json:"customer_name"`
	CustomerEmail   string    `json:"customer_email"`
	CustomerPhone   string    `json:"customer_phone"` // E.164
	TotalAmount     Money     `json:"total_amount"`
	Currency        string    `json:"currency"` // ISO 4217
	Items           []Item    `json:"items"`
	DeliveryAddress string    `json:"delivery_address"`
	Locale          string    `json:"locale"` // ru or en
	CreatedAt       time.Time `json:"created_at"`
}

// EventType is the event's name on the wire.
func (OrderCreated) EventType() string { return "OrderCreated" }

// Topic is where the event travels.
func (OrderCreated) Topic() string { return OrderTopic }

// AggregateID is the order's id.
func (e OrderCreated) AggregateID() string { return e.OrderID }

// Validate reports why a decoded event cannot be handled.
func (e OrderCreated) Validate() error {
	var lines []error
	if len(e.Items) == 0 {
		lines = append(lines, errors.New("items is empty"))
	}
	var sum Money
	for i, it := range e.Items {
		sum += it.Price * Money(it.Quantity)
		if it.Quantity < 1 || it.Price <= 0 {
			lines = append(lines, fmt.Errorf("items[%d] has quantity %d, price %s", i, it.Quantity, it.Price))
		}
	}
	if len(lines) == 0 && sum != e.TotalAmount {
		lines = append(lines, fmt.Errorf("total_amount is %s, items come to %s", e.TotalAmount, sum))
	}
	return errors.Join(required(map[string]string{
		"order_id": e.OrderID, "order_number": e.OrderNumber, "currency": e.Currency,
		"customer_email": e.CustomerEmail, "customer_phone": e.CustomerPhone,
	}), positive("total_amount", e.TotalAmount), errors.Join(lines...))
}

// OrderPaid says that the order's payment arrived and the kitchen may start.
// Emitted by the order service; consumed by frontend, and meant for the kitchen.
type OrderPaid struct {
	OrderID   string    `json:"order_id"`
	PaymentID string    `json:"payment_id"`
	Amount    Money     `json:"amount"`
	Currency  string    `json:"currency"`
	PaidAt    time.Time `json:"paid_at"`
}

// EventType is the event's name on the wire.
func (OrderPaid) EventType() string { return "OrderPaid" }

// Topic is where the event travels.
func (OrderPaid) Topic() string { return OrderTopic }

// AggregateID is the order's id.
func (e OrderPaid) AggregateID() string { return e.OrderID }

// Validate reports why a decoded event cannot be handled.
func (e OrderPaid) Validate() error {
	return errors.Join(required(map[string]string{
		"order_id": e.OrderID, "payment_id": e.PaymentID, "currency": e.Currency,
	}), positive("amount", e.Amount))
}

// OrderPaymentFailed says that the order will not be paid and is over.
// Emitted by the order service; consumed by frontend.
type OrderPaymentFailed struct {
	OrderID   string    `json:"order_id"`
	PaymentID string    `json:"payment_id"`
	Reason    string    `json:"reason"` // the payment's error_code
	FailedAt  time.Time `json:"failed_at"`
}

// EventType is the event's name on the wire.
func (OrderPaymentFailed) EventType() string { return "OrderPaymentFailed" }

// Topic is where the event travels.
func (OrderPaymentFailed) Topic() string { return OrderTopic }

// AggregateID is the order's id.
func (e OrderPaymentFailed) AggregateID() string { return e.OrderID }

// Validate reports why a decoded event cannot be handled.
func (e OrderPaymentFailed) Validate() error {
	return required(map[string]string{"order_id": e.OrderID, "payment_id": e.PaymentID, "reason": e.Reason})
}

// PaymentCompleted says that the provider took the money. Emitted by the
// payment service; consumed by order and notification.
type PaymentCompleted struct {
	PaymentID     string    `json:"payment_id"`
	OrderID       string    `json:"order_id"`
	Amount        Money     `json:"amount"`
	Currency      string    `json:"currency"`
	TransactionID string    `json:"transaction_id"` // the provider's id of the charge
	CompletedAt   time.Time `json:"completed_at"`
}

// EventType is the event's name on the wire.
func (PaymentCompleted) EventType() string { return "PaymentCompleted" }

// Topic is where the event travels.
func (PaymentCompleted) Topic() string { return PaymentTopic }

// AggregateID is the payment's id.
func (e PaymentCompleted) AggregateID() string { return e.PaymentID }

// Validate reports why a decoded event cannot be handled.
func (e PaymentCompleted) Validate() error {
	return errors.Join(required(map[string]string{
		"payment_id": e.PaymentID, "order_id": e.OrderID, "currency": e.Currency, "transaction_id": e.TransactionID,
	}), positive("amount", e.Amount))
}

// PaymentFailed says that no money was taken and none will be. Emitted by the
// payment service; consumed by order and notification.
type PaymentFailed struct {
	PaymentID    string    `json:"payment_id"`
	OrderID      string    `json:"order_id"`
	Amount       Money     `json:"amount"`
	Currency     string    `json:"currency"`
	ErrorCode    string    `json:"error_code"` // declined, insufficient_funds, provider_unavailable, …
	ErrorMessage string    `json:"error_message"`
	FailedAt     time.Time `json:"failed_at"`
}

// EventType is the event's name on the wire.
func (PaymentFailed) EventType() string { return "PaymentFailed" }

// Topic is where the event travels.
func (PaymentFailed) Topic() string { return PaymentTopic }

// AggregateID is the payment's id.
func (e PaymentFailed) AggregateID() string { return e.PaymentID }

// Validate reports why a decoded event cannot be handled.
func (e PaymentFailed) Validate() error {
	return required(map[string]string{"payment_id": e.PaymentID, "order_id": e.OrderID, "error_code": e.ErrorCode})
}

// required names the fields that are empty, in alphabetical order.
func required(fields map[string]string) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if fields[name] == "" {
			errs = append(errs, fmt.Errorf("%s is missing", name))
		}
	}
	return errors.Join(errs...)
}

// positive reports an amount that is not more than zero.
func positive(field string, m Money) error {
	if m <= 0 {
		return fmt.Errorf("%s is %s, want more than zero", field, m)
	}
	return nil
}
