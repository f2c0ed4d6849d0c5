package ops

import (
	"context"
	"errors"
	"time"

	"pizzaflow/sqldb"
	"pizzaflow/verify"
)

// Verify opens the databases, running or not, and checks the invariants on them and on what evidence names besides, for up
// to wait; see verify.Check.
func Verify(ctx context.Context, databases []Database, evidence verify.Config, wait time.Duration) (_ verify.Report, err error) {
	evidence.Databases = map[string]*sqldb.DB{}
	for _, d := range databases {
		o, e := d.open(ctx)
		if e != nil {
			return verify.Report{}, e
		}
		defer func() { err = errors.Join(err, o.db.Close()) }()
		evidence.Databases[d.Service] = o.db
	}
	return verify.Check(ctx, evidence, wait)
}
