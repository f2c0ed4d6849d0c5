// Package pizzaflow puts the services together: the table of what there is,
// and Run, which is the only wiring, whether everything runs in one process or
// each service in its own. What runs where is a matter of configuration.
package pizzaflow

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"

	"github.com/prometheus/client_golang/prometheus"

	"pizzaflow/event"
	"pizzaflow/notification"
	"pizzaflow/order"
	"pizzaflow/outbox"
	"pizzaflow/outbox/inbox"
	"pizzaflow/outbox/relay"
	"pizzaflow/payment"
	"pizzaflow/sqldb"
)

// A service is what the services with a database have in common.
type service interface {
	Routes(mux *http.ServeMux)
	Subscribe(c *inbox.Consumer)
	Run(ctx context.Context) error
}

// A builder makes a service.
type builder func(p *process, out *outbox.Outbox, log *slog.Logger, reg prometheus.Registerer) (service, error)

// domain is the table of the services with a database: what each is called,
// its tables, the topics it consumes and emits to, and how it is made.
var domain = []struct {
	name            string
	schema          fs.FS
	consumes, emits []string
	build           builder
}{
	{"order", order.Schema, []string{event.PaymentTopic}, []string{event.OrderTopic}, func(p *process, out *outbox.Outbox, log *slog.Logger, reg prometheus.Registerer) (service, error) {
		return order.New(order.Config{Outbox: out, Log: log, Metrics: reg, Currency: p.cfg.Currency, Deadline: p.cfg.OrderDeadline})
	}},
	{"payment", payment.Schema, []string{event.OrderTopic}, []string{event.PaymentTopic}, func(p *process, out *outbox.Outbox, log *slog.Logger, reg prometheus.Registerer) (service, error) {
		provider, err := payment.NewProvider(p.outside.provider, p.cfg.PaymentProviderTimeout, p.host.Dial)
		if err != nil {
			return nil, bad("PAYMENT_PROVIDER_URL", "%w", err)
		}
		return payment.New(payment.Config{Outbox: out, Log: log, Metrics: reg, Provider: provider, TTL: p.cfg.PaymentTTL, Timeout: p.cfg.PaymentProviderTimeout, Alone: alone(out)})
	}},
	{"notification", notification.Schema, event.Topics(), nil, func(p *process, out *outbox.Outbox, log *slog.Logger, reg prometheus.Registerer) (service, error) {
		email, err := notification.NewSMTP(p.outside.smtp, p.host.Dial)
		if err != nil {
			return nil, bad("SMTP_URL", "%w", err)
		}
		sms, err := notification.NewSMS(p.outside.sms, p.host.Dial)
		if err != nil {
			return nil, bad("SMS_URL", "%w", err)
		}
		cfg := notification.Config{Outbox: out, Log: log, Metrics: reg, Email: email, SMS: sms, PublicURL: p.publicURL, From: p.cfg.MailFrom, Alone: alone(out)}
		if p.cfg.NotificationTemplates != "" {
			cfg.Templates = os.DirFS(p.cfg.NotificationTemplates)
		}
		return notification.New(cfg)
	}},
}

// consumerGroup is the group in which all processes of a service consume.
func consumerGroup(service string) string { return service + "-service" }

func consumerGroups() (all []string) {
	for _, s := range domain {
		all = append(all, consumerGroup(s.name))
	}
	return all
}

// alone reports whether no other process can be at work on the database: the
// lock of a SQLite file keeps them away.
func alone(out *outbox.Outbox) bool { return out.DB().Engine == sqldb.SQLite }

// allServices are the names that SERVICES takes.
var allServices = []string{"order", "payment", "notification", "frontend", "broker", "sandbox"}

// Migrate brings the databases of the services that the configuration runs up
// to date and tells log what it did.
func Migrate(ctx context.Context, cfg Config, log *slog.Logger) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	for _, s := range domain {
		if !cfg.runs(s.name) {
			continue
		}
		db, err := openDatabase(ctx, cfg, s.name, s.schema)
		if err != nil {
			return err
		}
		if err := db.Close(); err != nil {
			return fmt.Errorf("migrate %s: %w", s.name, err)
		}
		log.Info("database is up to date", "service", s.name, "engine", db.Engine)
	}
	return nil
}

// openDatabase opens a service's database and migrates it.
func openDatabase(ctx context.Context, cfg Config, name string, schema fs.FS) (*sqldb.DB, error) {
	db, err := sqldb.OpenLimited(ctx, cfg.databaseURL(name), sqldb.Limits{
		Connections: cfg.DatabaseConnections, Sessions: relay.Sessions, IdleTime: cfg.DatabaseIdleTime, Lifetime: cfg.DatabaseConnectionLife,
	})
	if err != nil {
		return nil, bad(cfg.databaseKey(name), "%w", err)
	}
	return migrated(ctx, db, name, schema)
}

// migrated brings a service's database up to date, or closes it.
func migrated(ctx context.Context, db *sqldb.DB, name string, schema fs.FS) (*sqldb.DB, error) {
	for _, set := range []struct {
		name  string
		files fs.FS
	}{{"outbox", outbox.Schema}, {name, schema}} {
		if err := db.Migrate(ctx, set.name, set.files); err != nil {
			return nil, errors.Join(err, db.Close())
		}
	}
	return db, nil
}
