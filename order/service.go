package order

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"pizzaflow/event"
	"pizzaflow/outbox"
	"pizzaflow/sqldb"
)

// Schema is the set of the service's tables; its name is "order".
//
//go:embed schema
var Schema embed.FS

const (
	keyLifetime  = 24 * time.Hour   // how long an Idempotency-Key stands for its order at least
	placeTimeout = 10 * time.Second // for an order to wait until it is stored
)

// Errors of the service, besides InvalidError and ErrAmountMismatch.
var (
	// ErrNotFound is returned for an id that no order has.
	ErrNotFound = errors.New("no such order")
	// ErrKeyReused is returned for an idempotency key that came with another body before.
	ErrKeyReused = errors.New("idempotency key was used with another body")
	// ErrKeyInProgress is returned while another request with the same key is under way.
	ErrKeyInProgress = errors.New("idempotency key is in use")

	errKeyTaken   = errors.New("idempotency key is taken")
	errStillOpen  = errors.New("order changed and is pending still")
	errMalformed  = errors.New("order id is not a UUID")
	currencyShape = regexp.MustCompile(`^[A-Z]{3}$`)
)

// Config is what the service needs.
type Config struct {
	Outbox   *outbox.Outbox        // where the orders are and their events go
	Currency string                // of the menu's prices, ISO 4217; RUB when empty
	Deadline time.Duration         // how long an order may be pending unmarked; 30 min when zero
	Log      *slog.Logger          // none when nil
	Metrics  prometheus.Registerer // none when nil
}

// A Service is one replica of the order service.
type Service struct {
	outbox   *outbox.Outbox
	db       *sqldb.DB
	log      *slog.Logger
	menu     *menu
	currency string
	deadline time.Duration
	metrics  metrics
	put      func(context.Context, *newOrder) (refused, err error) // stores an order, with others if there are any
	number   func() string                                         // draws order numbers; called by many at a time
}

// New makes the service and registers its metrics. The tables must be migrated
// before it is used.
func New(cfg Config) (*Service, error) {
	s := &Service{
		outbox: cfg.Outbox, log: cfg.Log, menu: ourMenu(), currency: cfg.Currency, deadline: cfg.Deadline,
		number: newNumber,
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.currency == "" {
		s.currency = "RUB"
	}
	if s.deadline == 0 {
		s.deadline = 30 * time.Minute
	}
	switch {
	case s.outbox == nil:
		return nil, errors.New("order service: no outbox")
	case !currencyShape.MatchString(s.currency):
		return nil, errors.New("order service: currency is not three capital letters")
	case s.deadline < 0:
		return nil, errors.New("order service: deadline is negative")
	}
	s.db = s.outbox.DB()
	s.put = sqldb.NewGroup(s.db, s.store).Do
	var err error
	if s.metrics, err = newMetrics(cfg.Metrics); err != nil {
		return nil, fmt.Errorf("order service: %w", err)
	}
	return s, nil
}

// Subscribe makes the consumer hand the payment events to the service. The
// consumer's group is order-service and its database the service's own.
func (s *Service) Subscribe(c *outbox.Consumer) {
	outbox.OnBatch(c, s.onPaymentsCompleted)
	outbox.On(c, s.onPaymentFailed)
	c.OnDead(s.onDead)
}

// A Placement is a request to place an order. Key may be empty; Body is the
// request as it was sent, which a key must always come with.
type Placement struct {
	Draft Draft
	Key   string
	Body  []byte
}

// An Answer is what the customer is told of a placed order: the same bytes
// each time the key comes again.
type Answer struct {
	OrderID  string
	Body     []byte
	Replayed bool // the order was placed by an earlier request with this key
}

// Place stores a new order with its first event, or finds the one that the key
// stands for. Orders placed at the same time share a transaction, in which each
// stands or falls by itself. Errors: InvalidError, ErrKeyReused,
// ErrKeyInProgress, and whatever the database says, in which case the outcome
// can be unknown and a request with the same key finds it out.
func (s *Service) Place(ctx context.Context, p Placement) (Answer, error) {
	o, err := s.newOrder(ctx, p)
	if invalid := (*InvalidError)(nil); errors.As(err, &invalid) && p.Key != "" {
		// what was accepted then might be refused by a newer menu
		if a, e := s.replay(ctx, p); !errors.Is(e, sql.ErrNoRows) {
			return a, e
		}
	}
	if err != nil {
		return Answer{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, placeTimeout)
	defer cancel()
	refused, err := s.put(ctx, o)
	switch {
	case err != nil:
		return Answer{}, fmt.Errorf("place order: %w", err)
	case errors.Is(refused, errKeyTaken):
		a, err := s.replay(ctx, p)
		if errors.Is(err, sql.ErrNoRows) {
			err = ErrKeyInProgress
		}
		return a, err
	}
	return Answer{OrderID: o.ID, Body: o.answer}, refused
}

// replay finds the answer that the placement's key was given before, or
// sql.ErrNoRows.
func (s *Service) replay(ctx context.Context, p Placement) (Answer, error) {
	k, err := selectKey(ctx, s.db.Read(), p.Key)
	if err != nil {
		return Answer{}, fmt.Errorf("place order: %w", err)
	}
	if !bytes.Equal(bodySum(p.Body), k.sum) {
		return Answer{}, ErrKeyReused
	}
	return Answer{OrderID: k.orderID, Body: k.response, Replayed: true}, nil
}

func bodySum(body []byte) []byte {
	sum := sha256.Sum256(body)
	return sum[:]
}

// Order reads an order. An id that is not a UUID in its canonical form is
// nobody's: ErrNotFound.
func (s *Service) Order(ctx context.Context, id string) (Order, error) {
	if !isID(id) {
		return Order{}, ErrNotFound
	}
	o, err := selectOrder(ctx, s.db.Read(), id)
	if errors.Is(err, sql.ErrNoRows) {
		return Order{}, ErrNotFound
	}
	if err != nil {
		return Order{}, fmt.Errorf("read order: %w", err)
	}
	return o, nil
}

func isID(s string) bool {
	id, err := uuid.Parse(s)
	return err == nil && id.String() == s
}

// onPaymentsCompleted pays many orders with three statements. What is not as it
// should be with one of them is an error: the consumer then hands them over in
// ever smaller parts, and onPaymentCompleted looks closely at the one.
func (s *Service) onPaymentsCompleted(ctx context.Context, tx *outbox.Tx, ds []outbox.Delivery[event.PaymentCompleted]) error {
	if len(ds) == 1 {
		return s.onPaymentCompleted(ctx, tx, ds[0])
	}
	ids := make([]string, len(ds))
	for i, d := range ds {
		if ids[i] = d.Event.OrderID; !isID(ids[i]) {
			return fmt.Errorf("pay orders: %w", errMalformed)
		}
	}
	orders, err := selectForPayments(ctx, s.db, tx.Tx, ids)
	if err != nil {
		return fmt.Errorf("pay orders: %w", err)
	}
	var paid []*Order
	at := sqldb.Now()
	for i, d := range ds {
		o := orders[ids[i]]
		if o == nil {
			return fmt.Errorf("pay orders: %w", ErrNotFound)
		}
		changed, err := o.pay(d.Event, at)
		if err != nil {
			return fmt.Errorf("pay orders: %w", err)
		}
		if changed {
			paid = append(paid, o)
			tx.Cause(d.EventID, d.Traceparent)
		}
		s.follow(tx, o, d.Event, changed)
	}
	if all, err := updatePaid(ctx, s.db, tx.Tx, paid); err != nil || !all {
		return fmt.Errorf("pay orders: %w", cmp.Or(err, errStillOpen))
	}
	return nil
}

func (s *Service) onPaymentCompleted(ctx context.Context, tx *outbox.Tx, d outbox.Delivery[event.PaymentCompleted]) error {
	p := d.Event
	o, changed, err := settle(ctx, tx, p.OrderID, func(o *Order) (bool, error) { return o.pay(p, sqldb.Now()) })
	if err != nil {
		return fmt.Errorf("pay order %s: %w", o.ID, err)
	}
	s.follow(tx, &o, p, changed)
	return nil
}

// follow adds what a completed payment leads to.
func (s *Service) follow(tx *outbox.Tx, o *Order, p event.PaymentCompleted, changed bool) {
	if !changed {
		if o.Status == PaymentFailed {
			tx.AfterCommit(func() {
				s.log.Warn("payment of an order that failed before", "order_id", o.ID, "payment_id", p.PaymentID)
			})
		}
		return
	}
	tx.Add(o.Version, event.OrderPaid{
		OrderID: o.ID, PaymentID: p.PaymentID, Amount: p.Amount, Currency: p.Currency, PaidAt: o.PaidAt,
	})
	tx.AfterCommit(func() {
		s.metrics.orders.WithLabelValues(string(Paid)).Inc()
		s.metrics.endToEnd.Observe(o.PaidAt.Sub(o.CreatedAt).Seconds())
	})
}

func (s *Service) onPaymentFailed(ctx context.Context, tx *outbox.Tx, d outbox.Delivery[event.PaymentFailed]) error {
	p, at := d.Event, sqldb.Now()
	o, changed, err := settle(ctx, tx, p.OrderID, func(o *Order) (bool, error) { return o.fail(p, at), nil })
	if err != nil {
		return fmt.Errorf("fail order %s: %w", o.ID, err)
	}
	if !changed {
		return nil
	}
	tx.Add(o.Version, event.OrderPaymentFailed{OrderID: o.ID, PaymentID: p.PaymentID, Reason: p.ErrorCode, FailedAt: at})
	tx.AfterCommit(func() { s.metrics.orders.WithLabelValues(string(PaymentFailed)).Inc() })
	return nil
}

// settle lets decide change the order, if it is pending, and stores the
// change. It reports the order as it then is and whether it was changed here.
func settle(ctx context.Context, tx *outbox.Tx, id string, decide func(*Order) (bool, error)) (Order, bool, error) {
	if !isID(id) { // PostgreSQL would end the whole transaction over it
		return Order{}, false, outbox.Permanent(errMalformed)
	}
	for range 2 {
		o, err := selectForPayment(ctx, tx.Tx, id)
		if errors.Is(err, sql.ErrNoRows) {
			return Order{ID: id}, false, ErrNotFound
		}
		if err != nil {
			return Order{ID: id}, false, err
		}
		changed, err := decide(&o)
		if errors.Is(err, ErrAmountMismatch) {
			err = outbox.Permanent(err)
		}
		if err != nil || !changed {
			return o, false, err
		}
		if changed, err = updateStatus(ctx, tx.Tx, &o); err != nil || changed {
			return o, changed, err
		}
		// It became final between the two statements: see what it is now.
	}
	return Order{ID: id}, false, errStillOpen
}

// onDead marks the order whose payment did not match it, in the transaction
// that dead-letters the payment.
func (s *Service) onDead(ctx context.Context, tx *outbox.Tx, d outbox.Dead) error {
	if !errors.Is(d.Err, ErrAmountMismatch) {
		return nil
	}
	id, err := orderOf(d.Value)
	if err != nil {
		return fmt.Errorf("mark order: %w", err)
	}
	if err := markMismatch(ctx, tx.Tx, id); err != nil {
		return err
	}
	tx.AfterCommit(func() {
		s.log.Warn("payment does not match its order", "order_id", id, "event_id", d.EventID)
	})
	return nil
}

// orderOf is the order that the payment in a record's value is for.
func orderOf(value []byte) (string, error) {
	e, err := event.Open(value)
	if err != nil {
		return "", err
	}
	var p event.PaymentCompleted
	if err := json.Unmarshal(e.EventData, &p); err != nil {
		return "", fmt.Errorf("decode %s: %w", e.EventType, err)
	}
	return p.OrderID, nil
}
