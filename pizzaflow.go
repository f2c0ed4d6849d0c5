// Package pizzaflow puts the services together: the configuration, the table of the services, and Run, the only wiring, be it
// for all services in one process or for each in its own.
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
	"pizzaflow/ops"
	"pizzaflow/order"
	"pizzaflow/outbox"
	"pizzaflow/outbox/inbox"
	"pizzaflow/outbox/relay"
	"pizzaflow/payment"
	"pizzaflow/sqldb"
)

// A service is one with a database.
type service interface {
	Routes(mux *http.ServeMux)
	Subscribe(c *inbox.Consumer)
	Run(ctx context.Context) error
}

// A builder makes a service.
type builder func(p *process, out *outbox.Outbox, log *slog.Logger, reg prometheus.Registerer) (service, error)

// serviceTable is the table of the services with a database: the name of each, its tables, the topics that it consumes and emits to,
// and its builder.
var serviceTable = []struct {
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
		return payment.New(payment.Config{Outbox: out, Log: log, Metrics: reg, Provider: provider, TTL: p.cfg.PaymentTTL, Timeout: p.cfg.PaymentProviderTimeout, Exclusive: exclusive(out)})
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
		cfg := notification.Config{Outbox: out, Log: log, Metrics: reg, Email: email, SMS: sms, PublicURL: p.publicURL, From: p.cfg.MailFrom, Exclusive: exclusive(out)}
		if p.cfg.NotificationTemplates != "" {
			cfg.Templates = os.DirFS(p.cfg.NotificationTemplates)
		}
		return notification.New(cfg)
	}},
}

// consumerGroup is the group in which all processes of a service consume.
func consumerGroup(service string) string { return service + "-service" }

func consumerGroups() (all []string) {
	for _, s := range serviceTable {
		all = append(all, consumerGroup(s.name))
	}
	return all
}

// exclusive reports whether no other process can use the database: the lock of a SQLite file keeps them away.
func exclusive(out *outbox.Outbox) bool { return out.DB().Engine == sqldb.SQLite }

// allServices are the names that SERVICES accepts.
var allServices = []string{"order", "payment", "notification", "frontend", "broker", "sandbox"}

// Databases are those of all services, in the order of the table.
func (c Config) Databases() (all []ops.Database) {
	for _, s := range serviceTable {
		all = append(all, c.database(s.name, s.schema))
	}
	return all
}

// database describes the database of a service to package ops.
func (c Config) database(service string, schema fs.FS) ops.Database {
	return ops.Database{Service: service, Schema: schema, URL: c.databaseURL(service), Option: c.databaseKey(service), Runs: c.runs(service), MovesLast: service == "order"}
}

// Migrate brings the databases of the services that the configuration runs up to date.
func Migrate(ctx context.Context, cfg Config, log *slog.Logger) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	for _, d := range cfg.Databases() {
		if !d.Runs {
			continue
		}
		db, err := openDatabase(ctx, cfg, d)
		if err != nil {
			return err
		}
		if err := db.Close(); err != nil {
			return fmt.Errorf("migrate %s: %w", d.Service, err)
		}
		log.Info("database is up to date", "service", d.Service, "engine", db.Engine)
	}
	return nil
}

// openDatabase opens a service's database and migrates it.
func openDatabase(ctx context.Context, cfg Config, d ops.Database) (*sqldb.DB, error) {
	db, err := sqldb.OpenLimited(ctx, d.URL, sqldb.Limits{
		Connections: cfg.DatabaseConnections, Sessions: relay.Sessions, IdleTime: cfg.DatabaseIdleTime, Lifetime: cfg.DatabaseConnectionLife,
	})
	if err != nil {
		return nil, bad(d.Option, "%w", err)
	}
	if err := d.Migrate(ctx, db); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}
