package notification

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"pizzaflow/event"
	"pizzaflow/outbox"
	"pizzaflow/sqldb"
)

// A Config is what the service is made of.
type Config struct {
	Outbox  *outbox.Outbox // over the service's own database
	Log     *slog.Logger
	Metrics prometheus.Registerer

	Email Sender // see NewSMTP
	SMS   Sender // see NewSMS

	// PublicURL is where customers reach the shop, such as
	// https://pizza.example; messages link to PublicURL/orders/{id}.
	PublicURL string
	// From is who the e-mails are from, such as "Pizza <orders@pizza.example>".
	// Empty, it is orders@ the host of PublicURL, if that is a domain.
	From string
	// Templates is a folder whose files replace those embedded; nil replaces none.
	Templates fs.FS
}

// A Service makes and sends the notifications of orders.
type Service struct {
	db        *sqldb.DB
	log       *slog.Logger
	metrics   *metrics
	templates *templates
	from      string
	channels  map[Channel]*lane
	work      *outbox.Work
}

// New makes the service and registers its metrics. It fails when a template or
// the sender's address is unusable.
func New(cfg Config) (*Service, error) {
	texts, err := newTemplates(cfg.Templates, strings.TrimRight(cfg.PublicURL, "/"))
	if err != nil {
		return nil, fmt.Errorf("notification: %w", err)
	}
	from, err := fromAddress(cfg.From, cfg.PublicURL)
	if err != nil {
		return nil, fmt.Errorf("notification: %w", err)
	}
	m, err := newMetrics(cfg.Metrics)
	if err != nil {
		return nil, fmt.Errorf("notification: %w", err)
	}
	s := &Service{db: cfg.Outbox.DB(), log: cfg.Log, metrics: m, templates: texts, from: from}
	s.channels = map[Channel]*lane{Email: newLane(cfg.Email, s.db.Engine), SMS: newLane(cfg.SMS, s.db.Engine)}
	s.work = outbox.NewWork(outbox.WorkConfig{
		DB: s.db, Table: "notification_deliveries", Limit: workLimit, Lease: lease, Do: s.deliver, Log: cfg.Log,
	})
	return s, nil
}

// Subscribe has the service handle its events.
func (s *Service) Subscribe(c *outbox.Consumer) {
	outbox.On(c, s.onOrderCreated)
	outbox.On(c, s.onPaymentCompleted)
	outbox.On(c, s.onPaymentFailed)
}

// Routes adds the public routes, of which the service has none.
func (s *Service) Routes(*http.ServeMux) {}

// Run sends what is due until ctx ends. Then it waits for the messages on
// their way, so that a clean stop leaves none in doubt.
func (s *Service) Run(ctx context.Context) error {
	err := s.work.Run(ctx)
	for _, l := range s.channels {
		if c, ok := l.sender.(io.Closer); ok {
			err = errors.Join(err, c.Close())
		}
	}
	return err
}

// onOrderCreated keeps the contacts, confirms the order, and releases what has
// waited for the contacts.
func (s *Service) onOrderCreated(ctx context.Context, tx *outbox.Tx, d outbox.Delivery[event.OrderCreated]) error {
	if err := saveContacts(ctx, tx.Tx, d.Event, sqldb.Now()); err != nil {
		return err
	}
	return s.notify(ctx, tx, d.Event.OrderID, OrderConfirmation, payment{}, true)
}

func (s *Service) onPaymentCompleted(ctx context.Context, tx *outbox.Tx, d outbox.Delivery[event.PaymentCompleted]) error {
	e := d.Event
	return s.notifyPayment(ctx, tx, e.OrderID, PaymentConfirmation, payment{ID: e.PaymentID, Amount: e.Amount, Currency: e.Currency})
}

func (s *Service) onPaymentFailed(ctx context.Context, tx *outbox.Tx, d outbox.Delivery[event.PaymentFailed]) error {
	e := d.Event
	return s.notifyPayment(ctx, tx, e.OrderID, PaymentFailed,
		payment{ID: e.PaymentID, Amount: e.Amount, Currency: e.Currency, ErrorCode: e.ErrorCode})
}

func (s *Service) notifyPayment(ctx context.Context, tx *outbox.Tx, orderID string, typ Type, p payment) error {
	known, err := lockContacts(ctx, tx.Tx, orderID, sqldb.Now())
	if err != nil {
		return err
	}
	return s.notify(ctx, tx, orderID, typ, p, known)
}

// notify makes a notification of an order whose contacts row the transaction
// has locked. Unless the contacts are known it waits; otherwise it is released
// at once, together with whatever else has waited.
func (s *Service) notify(ctx context.Context, tx *outbox.Tx, orderID string, typ Type, p payment, known bool) error {
	now := sqldb.Now()
	if err := insertNotification(ctx, tx.Tx, orderID, typ, p, now); err != nil || !known {
		return err
	}
	ready, err := releaseNotifications(ctx, tx.Tx, orderID)
	if err != nil {
		return err
	}
	if err := insertDeliveries(ctx, tx.Tx, orderID, ready, now); err != nil {
		return err
	}
	if len(ready) > 0 {
		tx.AfterCommit(s.work.Wake)
	}
	return nil
}
