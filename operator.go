package pizzaflow

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/sync/errgroup"

	"pizzaflow/outbox/admin"
	"pizzaflow/sqldb"
)

// What an operator says and gets: see the package outbox.
type (
	// Action says who changes something and why.
	Action = admin.Action
	// OutboxStatus is how the publishing of one database stands.
	OutboxStatus = admin.Status
	// BlockedFilter selects events that are not published.
	BlockedFilter = admin.BlockedFilter
	// BlockedEvent is an event that is not published.
	BlockedEvent = admin.BlockedEvent
	// ParkedFilter selects records that were not handled at once.
	ParkedFilter = admin.ParkedFilter
	// ParkedRecord is a record that was not handled at once.
	ParkedRecord = admin.ParkedRecord
)

// ErrNothingHere is wrapped by Operators' error for a service that has no
// tables yet.
var ErrNothingHere = errors.New("nothing has run here yet")

// A ServiceOperator operates the outbox and the dead letters of one service.
type ServiceOperator struct {
	*admin.Operator
	Service string
	db      *sqldb.DB
}

// Close closes the database.
func (s ServiceOperator) Close() error {
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("close the database of %s: %w", s.Service, err)
	}
	return nil
}

// Operators opens the database of a service, or with "" those of all services
// of the configuration that have one by now. It creates and migrates nothing,
// and the services may run or not. The caller closes each of them.
func Operators(ctx context.Context, cfg Config, service string) (opened []ServiceOperator, err error) {
	var missing []error
	known := false
	for _, s := range domain {
		if service != s.name && (service != "" || !cfg.runs(s.name)) {
			continue
		}
		known = true
		op, err := openOperator(ctx, cfg, s.name)
		switch {
		case errors.Is(err, ErrNothingHere):
			missing = append(missing, err)
		case err != nil:
			return nil, errors.Join(err, closeAll(opened))
		default:
			opened = append(opened, op)
		}
	}
	if !known {
		return nil, bad("SERVICES", "%q has no service with a database", strings.Join(append(cfg.services(), service), ","))
	}
	if len(opened) == 0 {
		return nil, errors.Join(missing...)
	}
	return opened, nil
}

func closeAll(opened []ServiceOperator) error {
	var errs []error
	for _, op := range opened {
		errs = append(errs, op.Close())
	}
	return errors.Join(errs...)
}

func openOperator(ctx context.Context, cfg Config, service string) (ServiceOperator, error) {
	rawURL, place := cfg.databaseURL(service), cfg.databaseKey(service)
	if path, lite := strings.CutPrefix(rawURL, "sqlite:"); lite {
		place = path
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) { // Open would make it
			return ServiceOperator{}, fmt.Errorf("no database at %s: %w", place, ErrNothingHere)
		}
	}
	db, err := sqldb.Open(ctx, rawURL)
	if errors.Is(err, sqldb.ErrURL) {
		return ServiceOperator{}, bad(cfg.databaseKey(service), "%w", err)
	}
	if err != nil {
		return ServiceOperator{}, fmt.Errorf("%s: %w", service, err)
	}
	op := ServiceOperator{Operator: admin.New(db), Service: service, db: db}
	switch err = op.Check(ctx); {
	case err == nil:
		return op, nil
	case errors.Is(err, admin.ErrNoTables):
		err = fmt.Errorf("no tables of the %s service in %s: %w", service, place, ErrNothingHere)
	case errors.Is(err, admin.ErrOldTables):
		err = fmt.Errorf("%s: run `pizza migrate` first: %w", service, err)
	default:
		err = fmt.Errorf("%s: %w", service, err)
	}
	return ServiceOperator{}, errors.Join(err, db.Close())
}

// A ServiceStatus is how the publishing of one service stands.
type ServiceStatus struct {
	Service string `json:"service"`
	Leader  string `json:"leader"` // alive; silent, when the lease is held and not renewed; none
	OutboxStatus
}

// OutboxStatuses looks at all outboxes at once. It takes up to 2.5 s to be sure
// that a leader is silent.
func OutboxStatuses(ctx context.Context, operators []ServiceOperator) ([]ServiceStatus, error) {
	list := make([]ServiceStatus, len(operators))
	group, ctx := errgroup.WithContext(ctx)
	for i, op := range operators {
		group.Go(func() error {
			alive, err := op.Alive(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", op.Service, err)
			}
			s, err := op.Status(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", op.Service, err)
			}
			list[i] = ServiceStatus{op.Service, "silent", s}
			switch {
			case s.Holder == "":
				list[i].Leader = "none"
			case alive:
				list[i].Leader = "alive"
			}
			return nil
		})
	}
	return list, group.Wait()
}

// A ServiceEvent is a blocked event of one service.
type ServiceEvent struct {
	Service string `json:"service"`
	BlockedEvent
}

// A ServiceRecord is a parked record of one service, without its value.
type ServiceRecord struct {
	Service string `json:"service"`
	ParkedRecord
}

// A DeadLetter is a parked record of one service. With its value, it holds it as
// JSON when it is JSON, and else as bytes, which JSON shows in base64.
type DeadLetter struct {
	Service string `json:"service"`
	ParkedRecord
	Value json.RawMessage `json:"value,omitempty"`
	Bytes []byte          `json:"value_base64,omitempty"`
}

// ShowDeadLetter reads the parked record of an event whole; found is false when
// the service has none.
func ShowDeadLetter(ctx context.Context, op ServiceOperator, eventID string) (letter DeadLetter, found bool, err error) {
	r, err := op.Show(ctx, "", eventID)
	if errors.Is(err, sql.ErrNoRows) {
		return DeadLetter{}, false, nil
	}
	if err != nil {
		return DeadLetter{}, false, fmt.Errorf("%s: %w", op.Service, err)
	}
	letter = DeadLetter{Service: op.Service, ParkedRecord: r} // whose own Value is hidden by letter's
	if utf8.Valid(r.Value) && json.Valid(r.Value) {
		letter.Value = r.Value
	} else {
		letter.Bytes = r.Value
	}
	return letter, true, nil
}
