package ops

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"pizzaflow/outbox"
	"pizzaflow/outbox/admin"
	"pizzaflow/sqldb"
)

// ErrUsage is wrapped by errors about what the operator gave: an argument, or the URL of a database.
var ErrUsage = errors.New("usage")

// errNoDatabase is wrapped by the error about a service without a database, or without tables in it.
var errNoDatabase = errors.New("nothing has run here yet")

// A Database is the database of one service.
type Database struct {
	Service string
	Schema  fs.FS  // the service's tables; those of the outbox stand beside them
	URL     string // sqlite:FILE or postgres://…
	Option  string // the option that URL comes from
	Runs    bool   // the configuration runs the service

	// MovesLast says that the other services must have moved before: while this service's tables are empty, nothing
	// that is started too early finds orders to act on.
	MovesLast bool
}

// Migrate brings the tables of the outbox and of the service up to date.
func (d Database) Migrate(ctx context.Context, db *sqldb.DB) error {
	if err := db.Migrate(ctx, "outbox", outbox.Schema); err != nil {
		return err
	}
	return db.Migrate(ctx, d.Service, d.Schema)
}

// Open opens the database of the service, or with "" those of all services that the configuration runs and that have
// tables by now. It creates and migrates nothing, and the services may run or not.
func Open(ctx context.Context, databases []Database, service string) (opened Operators, err error) {
	var missing []error
	known := false
	for _, d := range databases {
		if service != d.Service && (service != "" || !d.Runs) {
			continue
		}
		known = true
		o, err := d.open(ctx)
		switch {
		case errors.Is(err, errNoDatabase):
			missing = append(missing, err)
		case err != nil:
			return nil, errors.Join(err, opened.Close())
		default:
			opened = append(opened, o)
		}
	}
	switch {
	case !known && service != "":
		return nil, fmt.Errorf("%w: %q is no service with a database", ErrUsage, service)
	case !known:
		return nil, fmt.Errorf("%w: SERVICES has no service with a database", ErrUsage)
	case len(opened) == 0:
		return nil, errors.Join(missing...)
	}
	return opened, nil
}

// open opens the database as it is, and refuses one whose tables are missing or older than this program.
func (d Database) open(ctx context.Context) (Operator, error) {
	where := d.Option
	if file, lite := strings.CutPrefix(d.URL, "sqlite:"); lite {
		where = file
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) { // opening the file would create it
			return Operator{}, fmt.Errorf("no database at %s: %w", where, errNoDatabase)
		}
	}
	db, err := sqldb.Open(ctx, d.URL)
	if errors.Is(err, sqldb.ErrURL) {
		return Operator{}, fmt.Errorf("%w: %s: %w", ErrUsage, d.Option, err)
	}
	if err != nil {
		return Operator{}, fmt.Errorf("%s: %w", d.Service, err)
	}
	o := newOperator(d.Service, db)
	switch err = o.admin.Check(ctx); {
	case err == nil:
		return o, nil
	case errors.Is(err, admin.ErrNoTables):
		err = fmt.Errorf("no tables of the %s service in %s: %w", d.Service, where, errNoDatabase)
	case errors.Is(err, admin.ErrOldTables):
		err = fmt.Errorf("%s: run `pizza migrate` first: %w", d.Service, err)
	default:
		err = fmt.Errorf("%s: %w", d.Service, err)
	}
	return Operator{}, errors.Join(err, db.Close())
}
