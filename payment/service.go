package payment

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
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

// Schema is the set of the service's tables; its name is "payment".
//
//go:embed schema
var Schema embed.FS

// Errors of an OrderCreated that no payment can be made from.
var (
	ErrOrderID       = errors.New("the order's id is not a UUID")
	ErrAmountChanged = errors.New("the order has a payment of another amount")
)

// Config is what a Service is made of. Outbox and Provider are needed.
type Config struct {
	Outbox   *outbox.Outbox
	Provider Provider
	Log      *slog.Logger
	Metrics  prometheus.Registerer

	TTL     time.Duration // how long a payment is charged again while the provider has no charge, and once after that; 15 minutes when zero
	Timeout time.Duration // of one call to the provider; 10 seconds when zero
	Limit   int           // charges and lookups at once; 64 when zero
	Lease   time.Duration // how long the payments of a process that crashed wait; 5 seconds when zero
	// Exclusive says that no other process uses the database: then the payments of a
	// process that crashed wait for nothing.
	Exclusive bool
	// LateChecks are when a payment that failed as provider_unavailable is
	// looked up, counted from its failure; 1 minute, 5 and 30 minutes, 2 hours
	// and a day when nil.
	LateChecks []time.Duration

	jobTimeout time.Duration // how long one job may take
}

// A Service charges orders.
type Service struct {
	cfg     Config
	outbox  *outbox.Outbox
	db      *sqldb.DB
	log     *slog.Logger
	circuit circuit
	charges *job.Worker
	refunds *job.Worker
	metrics metrics

	mu    sync.Mutex
	watch sqldb.ClockWatch // over the database's clock

	reads    *sqldb.Group[job.Job, leasedPayment]
	attempts *sqldb.Group[attempt, error]
	updates  *sqldb.Group[update, error]
}

// New makes a Service; Run starts its workers.
func New(cfg Config) (*Service, error) {
	if cfg.Outbox == nil || cfg.Provider == nil {
		return nil, errors.New("payment service: an outbox and a provider are needed")
	}
	cfg = cfg.withDefaults()
	s := &Service{cfg: cfg, outbox: cfg.Outbox, db: cfg.Outbox.DB(), log: cfg.Log, circuit: newCircuit(cfg.Log)}
	var err error
	if s.metrics, err = newMetrics(cfg.Metrics, s.db, s.circuit, s.log); err != nil {
		return nil, fmt.Errorf("payment service: %w", err)
	}
	s.reads = sqldb.NewGroup(s.db, s.readPayments)
	s.attempts = sqldb.NewGroup(s.db, s.storeAttempts)
	s.updates = sqldb.NewGroup(s.db, s.storeUpdates)
	work := job.Config{DB: s.db, Lease: cfg.Lease, Timeout: cfg.jobTimeout, Exclusive: cfg.Exclusive, Log: cfg.Log}
	work.Table, work.Limit, work.Do, work.LongestPause = "payments", cfg.Limit, s.charge, longestPause(cfg.LateChecks)
	s.charges = job.New(work)
	work.Table, work.Limit, work.Do, work.LongestPause = "refunds", 4, s.refund, job.LongestBackoff(firstRetry, lastRefundRetry)
	s.refunds = job.New(work)
	return s, nil
}

func (cfg Config) withDefaults() Config {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.TTL == 0 {
		cfg.TTL = 15 * time.Minute
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.Limit == 0 {
		cfg.Limit = 64
	}
	if cfg.Lease == 0 {
		cfg.Lease = 5 * time.Second
	}
	if cfg.jobTimeout == 0 {
		cfg.jobTimeout = 2*cfg.Timeout + time.Minute
	}
	if cfg.LateChecks == nil {
		cfg.LateChecks = []time.Duration{time.Minute, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 24 * time.Hour}
	}
	return cfg
}

// Subscribe subscribes the service to its events.
func (s *Service) Subscribe(c *inbox.Consumer) { inbox.OnBatch(c, s.onOrderCreated) }

// Routes adds nothing: the service has no public routes.
func (s *Service) Routes(*http.ServeMux) {}

// Run charges, looks up and refunds what is due until ctx ends, and returns
// when the running calls are finished.
func (s *Service) Run(ctx context.Context) error {
	defer s.metrics.unanswered.Start(ctx)()
	var now time.Time
	asked := time.Now()
	if s.db.Read().QueryRowContext(ctx, `SELECT `+sqldb.Clock).Scan(sqldb.Time(&now)) == nil { // else it is observed with the first payment
		s.observeClock(now, asked)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.charges.Run(ctx) })
	g.Go(func() error { return s.refunds.Run(ctx) })
	err := g.Wait()
	if c, ok := s.cfg.Provider.(io.Closer); ok {
		err = errors.Join(err, c.Close())
	}
	return err
}

// onOrderCreated stores a payment for each order, once. Where a worker is free, the
// payment is leased to it and its first attempt is stored with it: the worker need
// not take the payment from the table, and a crash leaves the same rows as a crash in
// the middle of the call.
func (s *Service) onOrderCreated(ctx context.Context, tx *outbox.Tx, ds []inbox.Delivery[event.OrderCreated]) error {
	lease := s.charges.Due()
	if s.circuit.closed() {
		lease = s.charges.Lease(len(ds))
	}
	now := sqldb.Now() // the rows get the database's time
	all := make([]Payment, len(ds))
	for i, d := range ds {
		o := d.Event
		if id, err := uuid.Parse(o.OrderID); err != nil || id.String() != o.OrderID {
			return inbox.Permanent(fmt.Errorf("accept order: %w", ErrOrderID))
		}
		id, err := uuid.NewV7()
		if err != nil {
			return fmt.Errorf("accept order: %w", err)
		}
		all[i] = Payment{
			ID: id.String(), OrderID: o.OrderID, Amount: o.TotalAmount, Currency: o.Currency, CustomerEmail: o.CustomerEmail,
			CausationID: d.EventID, Traceparent: d.Traceparent, Status: Pending, CreatedAt: now,
		}
		if lease.Token.Valid {
			all[i] = all[i].Begin(CallCharge, now)
		}
	}
	stored, err := insertPayments(ctx, tx.Tx, s.db, all, lease)
	if err != nil {
		return fmt.Errorf("accept order: %w", err)
	}
	for _, p := range all {
		if stored[p.ID] {
			lease.Begin(tx, p.ID, p)
		} else if err := checkKnown(ctx, tx.Tx, p); err != nil {
			return fmt.Errorf("accept order: %w", err)
		}
	}
	return nil
}

// checkKnown returns an error if p differs from the payment that its order has.
func checkKnown(ctx context.Context, tx *sql.Tx, p Payment) error {
	known, err := paymentOfOrder(ctx, tx, p.OrderID)
	if err != nil {
		return err
	}
	if known.Amount != p.Amount || known.Currency != p.Currency {
		return inbox.Permanent(fmt.Errorf("%w: %s %s, now %s %s", ErrAmountChanged, known.Amount, known.Currency, p.Amount, p.Currency))
	}
	return nil
}
