package notification

import (
	"cmp"
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

// Config is what a Service is made of.
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
	// Exclusive says that no other process uses the database: then the deliveries
	// of a killed process are sent at the start, and not only when their leases have
	// run out.
	Exclusive bool

	lease, jobTimeout, slowAfter, stopWait time.Duration // the constants of the same names when zero
}

// A Service makes and sends the notifications of orders.
type Service struct {
	db        *sqldb.DB
	log       *slog.Logger
	metrics   *metrics
	templates *templates
	from      string
	channels  map[Channel]*channelSender

	sending    context.Context // of the attempts: ends when a stop has waited long enough for their answers
	endSending context.CancelFunc

	slowAfter, stopWait time.Duration

	reads   *sqldb.Group[job.Job, leasedDelivery]
	updates *sqldb.Group[update, error]
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
	s := &Service{
		db: cfg.Outbox.DB(), log: cfg.Log, metrics: m, templates: texts, from: from,
		slowAfter: cmp.Or(cfg.slowAfter, slowAfter), stopWait: cmp.Or(cfg.stopWait, stopWait),
	}
	s.sending, s.endSending = context.WithCancel(context.Background())
	s.reads = sqldb.NewGroup(s.db, func(ctx context.Context, jobs []job.Job) ([]leasedDelivery, error) {
		return selectLeased(ctx, s.db, jobs)
	})
	s.updates = sqldb.NewGroup(s.db, func(ctx context.Context, all []update) ([]error, error) { return updateDeliveries(ctx, s.db, all) })
	s.channels = map[Channel]*channelSender{
		Email: s.newChannelSender(cfg, Email, cfg.Email), SMS: s.newChannelSender(cfg, SMS, cfg.SMS),
	}
	return s, nil
}

// Subscribe subscribes the service to its events.
func (s *Service) Subscribe(c *inbox.Consumer) {
	inbox.OnBatch(c, s.onOrderCreated)
	inbox.OnBatch(c, s.onPaymentCompleted)
	inbox.OnBatch(c, s.onPaymentFailed)
}

// Routes adds the public routes, of which the service has none.
func (s *Service) Routes(*http.ServeMux) {}

// Run sends deliveries that are due until ctx ends. Then it waits for the results of
// the messages in flight, so that a clean stop leaves none in doubt whose answer comes
// within stopWait.
func (s *Service) Run(ctx context.Context) error {
	defer s.endSending()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(s.stopWait, s.endSending) })()
	defer s.metrics.waiting.Start(ctx)()
	g, ctx := errgroup.WithContext(ctx)
	for _, c := range s.channels {
		g.Go(func() error {
			err := c.worker.Run(ctx)
			if sender, ok := c.sender.(io.Closer); ok {
				err = errors.Join(err, sender.Close())
			}
			return err
		})
	}
	return g.Wait()
}

// onOrderCreated stores the contacts, makes the confirmations of the orders, and
// releases the notifications that have waited for the contacts.
func (s *Service) onOrderCreated(ctx context.Context, tx *outbox.Tx, ds []inbox.Delivery[event.OrderCreated]) error {
	now := sqldb.Now()
	all := make([]order, len(ds))
	known := map[string]order{}
	confirmations := make([]notification, len(ds))
	for i, d := range ds {
		all[i] = orderOf(d.Event)
		known[all[i].ID] = all[i]
		confirmations[i] = notification{orderID: all[i].ID, typ: OrderConfirmation}
	}
	if err := saveContacts(ctx, tx.Tx, s.db, all, now); err != nil {
		return err
	}
	released, err := releaseNotifications(ctx, tx.Tx, s.db, all)
	if err != nil {
		return err
	}
	return s.notify(ctx, tx, confirmations, released, known, now)
}

// orderOf is the part of an order that the service keeps.
func orderOf(e event.OrderCreated) order {
	return order{
		ID: e.OrderID, Number: e.OrderNumber, Name: e.CustomerName, Email: e.CustomerEmail, Phone: e.CustomerPhone,
		Locale: e.Locale, Total: e.TotalAmount, Currency: e.Currency, Items: e.Items, Address: e.DeliveryAddress,
	}
}

func (s *Service) onPaymentCompleted(ctx context.Context, tx *outbox.Tx, ds []inbox.Delivery[event.PaymentCompleted]) error {
	all := make([]notification, len(ds))
	for i, d := range ds {
		e := d.Event
		all[i] = notification{orderID: e.OrderID, typ: PaymentConfirmation, payment: payment{ID: e.PaymentID, Amount: e.Amount, Currency: e.Currency}}
	}
	return s.notifyPayments(ctx, tx, all)
}

func (s *Service) onPaymentFailed(ctx context.Context, tx *outbox.Tx, ds []inbox.Delivery[event.PaymentFailed]) error {
	all := make([]notification, len(ds))
	for i, d := range ds {
		e := d.Event
		all[i] = notification{
			orderID: e.OrderID, typ: PaymentFailed,
			payment: payment{ID: e.PaymentID, Amount: e.Amount, Currency: e.Currency, ErrorCode: e.ErrorCode},
		}
	}
	return s.notifyPayments(ctx, tx, all)
}

// notifyPayments makes the notifications of payments. Those of orders without
// contacts wait for the contacts.
func (s *Service) notifyPayments(ctx context.Context, tx *outbox.Tx, all []notification) error {
	now := sqldb.Now()
	orderIDs := make([]string, len(all))
	for i, n := range all {
		orderIDs[i] = n.orderID
	}
	known, err := selectOrLockContacts(ctx, tx.Tx, s.db, orderIDs, now)
	if err != nil {
		return err
	}
	for i := range all {
		_, ok := known[all[i].orderID]
		all[i].waiting = !ok
	}
	return s.notify(ctx, tx, all, nil, known, now)
}

// notify stores notifications, unless they are there already, and makes a delivery
// for each channel of every new notification that does not wait and of every released
// one. Workers that are not too busy begin the deliveries with the commit.
func (s *Service) notify(ctx context.Context, tx *outbox.Tx, all, released []notification, known map[string]order, now time.Time) error {
	for i := range all {
		id, err := uuid.NewV7()
		if err != nil {
			return fmt.Errorf("insert notifications: %w", err)
		}
		all[i].id = id.String()
	}
	ready, err := insertNotifications(ctx, tx.Tx, s.db, all, now)
	if err != nil {
		return err
	}
	ready = append(slices.DeleteFunc(ready, func(n notification) bool { return n.waiting }), released...)
	if len(ready) == 0 {
		return nil
	}
	leases := map[Channel]job.Lease{}
	var deliveries []delivery
	for channel, c := range s.channels {
		leases[channel] = c.worker.Lease(len(ready))
		for _, n := range ready {
			id, err := uuid.NewV7()
			if err != nil {
				return fmt.Errorf("insert deliveries: %w", err)
			}
			deliveries = append(deliveries, delivery{
				ID: id.String(), Type: n.typ, Channel: channel, CreatedAt: now, Order: known[n.orderID], Payment: n.payment, notification: n.id,
			})
		}
	}
	if err := insertDeliveries(ctx, tx.Tx, s.db, deliveries, leases); err != nil {
		return err
	}
	for _, d := range deliveries {
		leases[d.Channel].Begin(tx, d.ID, d)
	}
	return nil
}
