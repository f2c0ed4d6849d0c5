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
	"pizzaflow/outbox/inbox"
	"pizzaflow/sqldb"
)

// Schema is the set of the service's tables; its name is "order".
//
//go:embed schema
var Schema embed.FS

const (
	keyLifetime  = 24 * time.Hour   // how long an Idempotency-Key stands for its order at least
	placeTimeout = 10 * time.Second // how long a request waits for its order to be stored
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
	errContended  = errors.New("order was changed by others at the same time")
	errMalformed  = errors.New("order id is not a UUID")
	currencyShape = regexp.MustCompile(`^[A-Z]{3}$`)
)

// Config is what a Service is made of.
type Config struct {
	Outbox   *outbox.Outbox        // over the service's database
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
	// put stores an order, in one transaction with others that are placed at the same time.
	put        func(context.Context, *newOrder) (refused, err error)
	drawNumber func() string // called by many goroutines at once
}

// New makes the service and registers its metrics. The tables must be migrated
// before it is used.
func New(cfg Config) (*Service, error) {
	s := &Service{
		outbox: cfg.Outbox, log: cfg.Log, menu: ourMenu(), currency: cfg.Currency, deadline: cfg.Deadline,
		drawNumber: newNumber,
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

// Subscribe subscribes the service to its events. The consumer's group is
// order-service, and its database the service's own.
func (s *Service) Subscribe(c *inbox.Consumer) {
	inbox.OnBatch(c, s.onPaymentsCompleted)
	inbox.On(c, s.onPaymentFailed)
	c.OnDead(s.onDead)
}

// A Placement is a request to place an order.
type Placement struct {
	Draft Draft
	Key   string // the Idempotency-Key, or ""
	Body  []byte // the request's, as it was sent: a key belongs to one body
}

// An Answer is the answer to a placed order: the same bytes each time the key comes
// again.
type Answer struct {
	OrderID  string
	Body     []byte
	Replayed bool // the order was placed by an earlier request with this key
}

// Place stores a new order with its first event, or finds the order that the key
// stands for. Orders placed at the same time share a transaction, in which each
// is stored or refused by itself. Errors: InvalidError, ErrKeyReused,
// ErrKeyInProgress, and those of the database: then the outcome can be unknown,
// and a request with the same key finds it out.
func (s *Service) Place(ctx context.Context, p Placement) (Answer, error) {
	o, err := s.newOrder(ctx, p)
	if invalid := (*InvalidError)(nil); errors.As(err, &invalid) && p.Key != "" {
		// the key's order may have been placed from an older menu
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

// replay reads the answer to an earlier request with the placement's key. It
// returns sql.ErrNoRows when there is none.
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

// Order reads an order. It returns ErrNotFound for an id that no order has,
// such as a UUID in another form than the canonical one.
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

// onPaymentsCompleted pays many orders with three statements. It returns an error
// when one of them cannot be paid: the consumer then hands the events over in
// ever smaller batches, and onPaymentCompleted deals with that one by itself.
func (s *Service) onPaymentsCompleted(ctx context.Context, tx *outbox.Tx, ds []inbox.Delivery[event.PaymentCompleted]) error {
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
		if !changed {
			s.logLatePayment(tx, o, d.Event)
			continue
		}
		paid = append(paid, o)
		tx.Cause(d.EventID, d.Traceparent)
		s.addPaid(tx, o, d.Event)
	}
	if all, err := updatePaid(ctx, s.db, tx.Tx, paid); err != nil || !all {
		return fmt.Errorf("pay orders: %w", cmp.Or(err, errContended))
	}
	return nil
}

func (s *Service) onPaymentCompleted(ctx context.Context, tx *outbox.Tx, d inbox.Delivery[event.PaymentCompleted]) error {
	p := d.Event
	o, changed, err := updatePending(ctx, tx, p.OrderID, func(o *Order) (bool, error) { return o.pay(p, sqldb.Now()) })
	if err != nil {
		return fmt.Errorf("pay order %s: %w", o.ID, err)
	}
	if !changed {
		s.logLatePayment(tx, &o, p)
		return nil
	}
	s.addPaid(tx, &o, p)
	return nil
}

// logLatePayment logs a payment that came after its order had failed. A repeated
// payment of a paid order is not worth a line.
func (s *Service) logLatePayment(tx *outbox.Tx, o *Order, p event.PaymentCompleted) {
	if o.Status != PaymentFailed {
		return
	}
	tx.AfterCommit(func() {
		s.log.Warn("payment of an order that failed before", "order_id", o.ID, "payment_id", p.PaymentID)
	})
}

// addPaid adds the event of an order that became paid.
func (s *Service) addPaid(tx *outbox.Tx, o *Order, p event.PaymentCompleted) {
	tx.Add(o.Version, event.OrderPaid{
		OrderID: o.ID, PaymentID: p.PaymentID, Amount: p.Amount, Currency: p.Currency, PaidAt: o.PaidAt,
	})
	tx.AfterCommit(func() {
		s.metrics.orders.WithLabelValues(string(Paid)).Inc()
		s.metrics.endToEnd.Observe(o.PaidAt.Sub(o.CreatedAt).Seconds())
	})
}

func (s *Service) onPaymentFailed(ctx context.Context, tx *outbox.Tx, d inbox.Delivery[event.PaymentFailed]) error {
	p, at := d.Event, sqldb.Now()
	o, changed, err := updatePending(ctx, tx, p.OrderID, func(o *Order) (bool, error) { return o.fail(p, at), nil })
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

// updatePending reads an order, has apply change it, and stores the change,
// provided that the order is pending still. It returns the order as it is then,
// and whether it was changed.
func updatePending(ctx context.Context, tx *outbox.Tx, id string, apply func(*Order) (bool, error)) (Order, bool, error) {
	if !isID(id) { // PostgreSQL would end the whole transaction over it
		return Order{}, false, inbox.Permanent(errMalformed)
	}
	for range 2 {
		o, err := selectForPayment(ctx, tx.Tx, id)
		if errors.Is(err, sql.ErrNoRows) {
			return Order{ID: id}, false, ErrNotFound
		}
		if err != nil {
			return Order{ID: id}, false, err
		}
		changed, err := apply(&o)
		if errors.Is(err, ErrAmountMismatch) {
			err = inbox.Permanent(err)
		}
		if err != nil || !changed {
			return o, false, err
		}
		if changed, err = updateStatus(ctx, tx.Tx, &o); err != nil || changed {
			return o, changed, err
		}
		// the order became final between the two statements: apply sees it as it is now
	}
	return Order{ID: id}, false, errContended
}

// onDead marks the order whose payment did not match it, in the transaction
// that dead-letters the payment.
func (s *Service) onDead(ctx context.Context, tx *outbox.Tx, d inbox.Dead) error {
	if !errors.Is(d.Err, ErrAmountMismatch) {
		return nil
	}
	id, err := orderIDIn(d.Value)
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

// orderIDIn decodes the id of the order that the payment in a record's value is for.
func orderIDIn(value []byte) (string, error) {
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
