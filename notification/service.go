package notification

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"pizzaflow/event"
	"pizzaflow/job"
	"pizzaflow/outbox"
	"pizzaflow/outbox/inbox"
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
	// Alone says that no other process uses the database: then what a killed
	// one had in hand is sent at the start, and not only when its leases have
	// run out.
	Alone bool

	lease, patience time.Duration
}

// A Service makes and sends the notifications of orders.
type Service struct {
	db        *sqldb.DB
	log       *slog.Logger
	metrics   *metrics
	templates *templates
	from      string
	channels  map[Channel]*lane

	loads   *sqldb.Group[job.Job, found]
	settles *sqldb.Group[settlement, error]
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
	m, err := newMetrics(cfg.Metrics, cfg.Outbox.DB(), cfg.Log)
	if err != nil {
		return nil, fmt.Errorf("notification: %w", err)
	}
	s := &Service{db: cfg.Outbox.DB(), log: cfg.Log, metrics: m, templates: texts, from: from}
	s.loads = sqldb.NewGroup(s.db, func(ctx context.Context, claims []job.Job) ([]found, error) {
		return loadDeliveries(ctx, s.db, claims)
	})
	s.settles = sqldb.NewGroup(s.db, func(ctx context.Context, all []settlement) ([]error, error) { return settleDeliveries(ctx, s.db, all) })
	s.channels = map[Channel]*lane{Email: s.newLane(cfg, Email, cfg.Email), SMS: s.newLane(cfg, SMS, cfg.SMS)}
	return s, nil
}

// Subscribe has the service handle its events.
func (s *Service) Subscribe(c *inbox.Consumer) {
	inbox.OnBatch(c, s.onOrderCreated)
	inbox.OnBatch(c, s.onPaymentCompleted)
	inbox.OnBatch(c, s.onPaymentFailed)
}

// Routes adds the public routes, of which the service has none.
func (s *Service) Routes(*http.ServeMux) {}

// Run sends what is due until ctx ends. Then it waits for the messages on
// their way, so that a clean stop leaves none in doubt.
func (s *Service) Run(ctx context.Context) error {
	defer s.metrics.waiting.Start(ctx)()
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range s.channels {
		g.Go(func() error {
			err := l.work.Run(ctx)
			if c, ok := l.sender.(io.Closer); ok {
				err = errors.Join(err, c.Close())
			}
			return err
		})
	}
	return g.Wait()
}

// onOrderCreated keeps the contacts, confirms the orders, and releases what has
// waited for the contacts.
func (s *Service) onOrderCreated(ctx context.Context, tx *outbox.Tx, ds []inbox.Delivery[event.OrderCreated]) error {
	now := sqldb.Now()
	all := make([]order, len(ds))
	known := map[string]order{}
	told := make([]notification, len(ds))
	for i, d := range ds {
		all[i] = orderOf(d.Event)
		known[all[i].ID] = all[i]
		told[i] = notification{orderID: all[i].ID, typ: OrderConfirmation}
	}
	if err := saveContacts(ctx, tx.Tx, s.db, all, now); err != nil {
		return err
	}
	waited, err := releaseNotifications(ctx, tx.Tx, s.db, all)
	if err != nil {
		return err
	}
	return s.notify(ctx, tx, told, waited, known, now)
}

// orderOf is what the service keeps of an order.
func orderOf(e event.OrderCreated) order {
	return order{
		ID: e.OrderID, Number: e.OrderNumber, Name: e.CustomerName, Email: e.CustomerEmail, Phone: e.CustomerPhone,
		Locale: e.Locale, Total: e.TotalAmount, Currency: e.Currency, Items: e.Items, Address: e.DeliveryAddress,
	}
}

func (s *Service) onPaymentCompleted(ctx context.Context, tx *outbox.Tx, ds []inbox.Delivery[event.PaymentCompleted]) error {
	told := make([]notification, len(ds))
	for i, d := range ds {
		e := d.Event
		told[i] = notification{orderID: e.OrderID, typ: PaymentConfirmation, payment: payment{ID: e.PaymentID, Amount: e.Amount, Currency: e.Currency}}
	}
	return s.notifyPayments(ctx, tx, told)
}

func (s *Service) onPaymentFailed(ctx context.Context, tx *outbox.Tx, ds []inbox.Delivery[event.PaymentFailed]) error {
	told := make([]notification, len(ds))
	for i, d := range ds {
		e := d.Event
		told[i] = notification{
			orderID: e.OrderID, typ: PaymentFailed,
			payment: payment{ID: e.PaymentID, Amount: e.Amount, Currency: e.Currency, ErrorCode: e.ErrorCode},
		}
	}
	return s.notifyPayments(ctx, tx, told)
}

func (s *Service) notifyPayments(ctx context.Context, tx *outbox.Tx, told []notification) error {
	now := sqldb.Now()
	orderIDs := make([]string, len(told))
	for i, n := range told {
		orderIDs[i] = n.orderID
	}
	known, err := contacts(ctx, tx.Tx, s.db, orderIDs, now)
	if err != nil {
		return err
	}
	for i := range told {
		_, ok := known[told[i].orderID]
		told[i].waiting = !ok
	}
	return s.notify(ctx, tx, told, nil, known, now)
}

// notify makes the notifications. Of those that are new and do not wait, and of
// those that have waited, it makes the deliveries, one for each channel; the
// workers have them in hand with the commit, if they are not too busy.
func (s *Service) notify(ctx context.Context, tx *outbox.Tx, told, waited []notification, known map[string]order, now time.Time) error {
	for i := range told {
		id, err := uuid.NewV7()
		if err != nil {
			return fmt.Errorf("insert notifications: %w", err)
		}
		told[i].id = id.String()
	}
	ready, err := insertNotifications(ctx, tx.Tx, s.db, told, now)
	if err != nil {
		return err
	}
	ready = append(slices.DeleteFunc(ready, func(n notification) bool { return n.waiting }), waited...)
	if len(ready) == 0 {
		return nil
	}
	leases := map[Channel]job.Lease{}
	var all []delivery
	for channel, l := range s.channels {
		leases[channel] = l.work.Lease(len(ready))
		for _, n := range ready {
			id, err := uuid.NewV7()
			if err != nil {
				return fmt.Errorf("insert deliveries: %w", err)
			}
			all = append(all, delivery{
				ID: id.String(), Type: n.typ, Channel: channel, CreatedAt: now, Order: known[n.orderID], Payment: n.payment, notification: n.id,
			})
		}
	}
	if err := insertDeliveries(ctx, tx.Tx, s.db, all, leases); err != nil {
		return err
	}
	for _, d := range all {
		leases[d.Channel].Begin(tx, d.ID, d)
	}
	return nil
}
