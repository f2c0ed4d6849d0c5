// Package admin is what an operator does by hand to an outbox and an inbox:
// status, retry, skip and republish of events, and replay and discard of parked
// records.
//
// Read admin.go (Operator, and the transaction around every change), then
// status.go, blocked.go (events that are not published), republish.go (events
// that are published again) and parked.go (records that a group has not handled).
package admin

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"pizzaflow/outbox/internal/store"
	"pizzaflow/sqldb"
)

// An Operator does by hand what no process does by itself. Each method that
// changes something is one transaction on the database, so it works while the
// services run and while they do not; of two operators who ask for the same
// change one finds nothing left to do. Every change is written to
// operator_actions, with the Action's name and reason.
//
// A running relay notices a change by the loss of its lease: it starts again
// from the tables, within half a second.
type Operator struct{ db *sqldb.DB }

// New makes the operator of a service's database.
func New(db *sqldb.DB) *Operator { return &Operator{db: db} }

// An Action says who changes something and why. With DryRun the change is made
// and rolled back: a method returns what it would change.
type Action struct {
	By     string
	Why    string
	DryRun bool
}

// ErrNothingSelected is returned for an empty filter where something must be
// selected.
var ErrNothingSelected = errors.New("nothing is selected")

// ErrNoTables is returned by Check for a database without an outbox.
var ErrNoTables = errors.New("there is no outbox")

// ErrOldTables is returned by Check for an outbox that lacks a migration that
// an Operator needs.
var ErrOldTables = errors.New("the tables of the outbox are not up to date")

// Check reports whether the database has the tables that an Operator needs: the
// error is ErrNoTables, ErrOldTables or that of a database that does not answer.
// It changes nothing.
func (o *Operator) Check(ctx context.Context) error {
	for _, c := range []struct {
		query   string
		missing error
	}{
		{`SELECT COUNT(*) FROM outbox_lease`, ErrNoTables},
		{`SELECT (SELECT COUNT(*) FROM operator_actions WHERE 1 = 0) + COUNT(skipped_at) FROM outbox_blocked WHERE 1 = 0`, ErrOldTables},
	} {
		var n int64
		err := o.db.Read().QueryRowContext(ctx, c.query).Scan(&n)
		if err != nil && (sqldb.IsUnavailable(err) && !sqldb.IsFatal(err) || ctx.Err() != nil) {
			return fmt.Errorf("look for the outbox: %w", err)
		}
		if err != nil {
			return fmt.Errorf("%w: %w", c.missing, err)
		}
	}
	return nil
}

// errDryRun rolls the transaction of a dry run back.
var errDryRun = errors.New("dry run")

// change runs fn in a transaction and writes one entry about target to the
// audit, unless fn changed nothing.
func (o *Operator) change(ctx context.Context, a Action, action, target string, fn func(*sql.Tx) (affected int, err error)) error {
	return o.transact(ctx, a, action, func(tx *sql.Tx) error {
		if err := lockLease(ctx, tx); err != nil {
			return err
		}
		n, err := fn(tx)
		if err != nil || n == 0 {
			return err
		}
		return a.audit(ctx, tx, action, []string{target}, n)
	})
}

// changeEach is change with an entry for each of the targets that fn changed.
func (o *Operator) changeEach(ctx context.Context, a Action, action string, fn func(*sql.Tx) (targets []string, err error)) error {
	return o.transact(ctx, a, action, func(tx *sql.Tx) error {
		if err := lockLease(ctx, tx); err != nil {
			return err
		}
		targets, err := fn(tx)
		if err != nil {
			return err
		}
		return a.audit(ctx, tx, action, targets, 1)
	})
}

// lockLease takes the lease's row before any other, so that the change and what
// the relay records come one after the other.
func lockLease(ctx context.Context, tx *sql.Tx) error {
	if _, err := tx.ExecContext(ctx, `UPDATE outbox_lease SET epoch = epoch WHERE id = 1`); err != nil {
		return fmt.Errorf("lock the lease: %w", err)
	}
	return nil
}

// transact runs fn in a transaction, which a dry run rolls back.
func (o *Operator) transact(ctx context.Context, a Action, action string, fn func(*sql.Tx) error) error {
	ctx = store.LongStatements(ctx)
	err := o.db.Tx(ctx, func(tx *sql.Tx) error {
		if err := fn(tx); err != nil || !a.DryRun {
			return err
		}
		return errDryRun
	})
	if err != nil && !errors.Is(err, errDryRun) {
		return fmt.Errorf("%s: %w", action, err)
	}
	return nil
}

// audit writes an entry for each target to operator_actions: who did what, why,
// and how many rows it affected.
func (a Action) audit(ctx context.Context, tx *sql.Tx, action string, targets []string, affected int) error {
	at := sqldb.Now()
	return sqldb.Chunks(len(targets), 512, func(from, to int) error {
		args := make([]any, 0, 6*(to-from))
		for _, target := range targets[from:to] {
			args = append(args, at, store.Text(a.By, 200), action, store.Text(target, 500), store.Text(a.Why, 1000), affected)
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO operator_actions (at, operator, action, target, reason, affected) VALUES `+sqldb.Values(6, to-from), args...)
		if err != nil {
			return fmt.Errorf("write the audit: %w", err)
		}
		return nil
	})
}
