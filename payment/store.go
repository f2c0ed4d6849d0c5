package payment

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"pizzaflow/event"
	"pizzaflow/outbox"
	"pizzaflow/sqldb"
)

// errLeaseLost says that the row is not this claim's any more: another took it
// when the lease had run out.
var errLeaseLost = errors.New("the lease was lost")

// insertPayments stores the payments of orders that have none, with the lease,
// and returns the ids of those it stored. A payment that is begun gets its
// first attempt.
func insertPayments(ctx context.Context, tx *sql.Tx, db *sqldb.DB, all []Payment, l outbox.Lease) (stored map[string]bool, err error) {
	rows, err := sqldb.RowsArg(len(all), func(i int) []any {
		p := &all[i]
		return []any{p.ID, p.OrderID, int64(p.Amount), p.Currency, p.CustomerEmail, p.CausationID, p.Traceparent, p.Status, p.Calls, p.CreatedAt}
	})
	if err != nil {
		return nil, fmt.Errorf("insert payments: %w", err)
	}
	stored, err = ids(tx.QueryContext(ctx, `
		INSERT INTO payments (id, order_id, amount, currency, customer_email, causation_id, traceparent, status, calls, created_at, updated_at,
			due_at, lease_token, attempts)
		SELECT v.pid, v.oid, v.amount, v.currency, v.email, v.causation, v.trace, v.status, v.calls, v.at, v.at, $2, $3, $4
		FROM `+db.Rows(1, "v", "pid UUID", "oid UUID", "amount BIGINT", "currency TEXT", "email TEXT", "causation UUID", "trace TEXT",
		"status TEXT", "calls INTEGER", "at TIMESTAMPTZ")+`
		WHERE true ON CONFLICT (order_id) DO NOTHING RETURNING id`, rows, l.DueAt, l.Token, l.Attempts))
	if err != nil {
		return nil, fmt.Errorf("insert payments: %w", err)
	}
	begun := make([]attempt, 0, len(all))
	for _, p := range all {
		if p.Calls > 0 && stored[p.ID] {
			begun = append(begun, attempt{next: p, call: CallCharge})
		}
	}
	return stored, insertAttempts(ctx, tx, db, begun, all[0].CreatedAt)
}

// ids collects the only column of a result.
func ids(rows *sql.Rows, err error) (map[string]bool, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := map[string]bool{}
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		all[id] = true
	}
	return all, rows.Err()
}

const selectPayment = `
	SELECT id, order_id, amount, currency, customer_email, causation_id, traceparent, status, COALESCE(transaction_id, ''), COALESCE(error_code, ''),
		version, calls, checks, created_at, completed_at
	FROM payments `

func scanPayment(row interface{ Scan(dst ...any) error }) (Payment, error) {
	var p Payment
	err := row.Scan(&p.ID, &p.OrderID, &p.Amount, &p.Currency, &p.CustomerEmail, &p.CausationID, &p.Traceparent, &p.Status, &p.TransactionID, &p.ErrorCode,
		&p.Version, &p.Calls, &p.Checks, sqldb.Time(&p.CreatedAt), sqldb.Time(&p.CompletedAt))
	if err != nil {
		return Payment{}, fmt.Errorf("read payment: %w", err)
	}
	return p, nil
}

func paymentOfOrder(ctx context.Context, tx *sql.Tx, orderID string) (Payment, error) {
	return scanPayment(tx.QueryRowContext(ctx, selectPayment+`WHERE order_id = $1`, orderID))
}

func paymentByID(ctx context.Context, db *sql.DB, id string) (Payment, error) {
	return scanPayment(db.QueryRowContext(ctx, selectPayment+`WHERE id = $1`, id))
}

// A found is a claimed payment as it stands in the table, or errLeaseLost when
// it is not the claim's.
type found struct {
	payment Payment
	err     error
}

func claimedPayments(ctx context.Context, db *sqldb.DB, claims []outbox.Claim) ([]found, error) {
	rows, err := sqldb.RowsArg(len(claims), func(i int) []any { return []any{claims[i].ID, claims[i].Token} })
	if err != nil {
		return nil, fmt.Errorf("read payments: %w", err)
	}
	result, err := db.Read().QueryContext(ctx, selectPayment+`
		JOIN `+db.Rows(1, "v", "pid UUID", "token TEXT")+` ON id = v.pid AND lease_token = v.token`, rows)
	if err != nil {
		return nil, fmt.Errorf("read payments: %w", err)
	}
	defer result.Close()
	byID := map[string]Payment{}
	for result.Next() {
		p, err := scanPayment(result)
		if err != nil {
			return nil, err
		}
		byID[p.ID] = p
	}
	if err := result.Err(); err != nil {
		return nil, fmt.Errorf("read payments: %w", err)
	}
	all := make([]found, len(claims))
	for i, c := range claims {
		p, ok := byID[c.ID]
		if all[i].payment = p; !ok {
			all[i].err = errLeaseLost
		}
	}
	return all, nil
}

// An attempt is the next call for a claimed payment, about to be made. Whatever
// attempt was still open ended with before.
type attempt struct {
	claim  outbox.Claim
	from   Status
	next   Payment
	call   Call
	before Answer
}

// beginAttempts records that the calls are being made and returns the ids of
// the payments that still were their claims'.
func beginAttempts(ctx context.Context, tx *sql.Tx, db *sqldb.DB, all []attempt, at time.Time) (map[string]bool, error) {
	rows, err := sqldb.RowsArg(len(all), func(i int) []any {
		a := &all[i]
		return []any{a.next.ID, a.claim.Token, a.from, a.next.Status, a.next.Calls}
	})
	if err != nil {
		return nil, fmt.Errorf("begin attempts: %w", err)
	}
	won, err := ids(tx.QueryContext(ctx, `
		UPDATE payments SET status = v.new_status, calls = v.new_calls, updated_at = $2
		FROM `+db.Rows(1, "v", "pid UUID", "token TEXT", "old_status TEXT", "new_status TEXT", "new_calls INTEGER")+`
		WHERE id = v.pid AND lease_token = v.token AND status = v.old_status RETURNING id`, rows, at))
	if err != nil {
		return nil, fmt.Errorf("begin attempts: %w", err)
	}
	var begun []attempt
	var open []ending
	for _, a := range all {
		if !won[a.next.ID] {
			continue
		}
		begun = append(begun, a)
		if a.next.Calls > 1 {
			open = append(open, ending{a.next.ID, a.before})
		}
	}
	if err := endAttempts(ctx, tx, db, open, at); err != nil {
		return nil, err
	}
	return won, insertAttempts(ctx, tx, db, begun, at)
}

func insertAttempts(ctx context.Context, tx *sql.Tx, db *sqldb.DB, all []attempt, at time.Time) error {
	if len(all) == 0 {
		return nil
	}
	rows, err := sqldb.RowsArg(len(all), func(i int) []any { return []any{all[i].next.ID, all[i].next.Calls, all[i].call} })
	if err == nil {
		_, err = tx.ExecContext(ctx, `
			INSERT INTO payment_attempts (payment_id, attempt, kind, started_at)
			SELECT v.pid, v.attempt, v.kind, $2 FROM `+db.Rows(1, "v", "pid UUID", "attempt INTEGER", "kind TEXT"), rows, at)
	}
	if err != nil {
		return fmt.Errorf("insert attempts: %w", err)
	}
	return nil
}

// An ending is what a payment's open attempt came to.
type ending struct {
	paymentID string
	answer    Answer
}

func endAttempts(ctx context.Context, tx *sql.Tx, db *sqldb.DB, all []ending, at time.Time) error {
	if len(all) == 0 {
		return nil
	}
	rows, err := sqldb.RowsArg(len(all), func(i int) []any {
		return []any{all[i].paymentID, all[i].answer.Outcome, all[i].answer.Detail}
	})
	if err == nil {
		_, err = tx.ExecContext(ctx, `
			UPDATE payment_attempts SET ended_at = $2, outcome = v.came_to, detail = NULLIF(v.why, '')
			FROM `+db.Rows(1, "v", "pid UUID", "came_to TEXT", "why TEXT")+` WHERE payment_id = v.pid AND ended_at IS NULL`, rows, at)
	}
	if err != nil {
		return fmt.Errorf("end attempts: %w", err)
	}
	return nil
}

// settlePayments ends the claims: each payment as it is now, to be taken again
// when it is due or never. It returns the ids of those that still were their
// claims'.
func settlePayments(ctx context.Context, tx *sql.Tx, db *sqldb.DB, all []settlement, at time.Time) (map[string]bool, error) {
	rows, err := sqldb.RowsArg(len(all), func(i int) []any {
		p := &all[i].next
		return []any{
			p.ID, all[i].claim.Token, all[i].from.Status, p.Status, p.TransactionID, p.ErrorCode, message(p.ErrorCode),
			p.Version, p.Checks, p.CompletedAt, all[i].due,
		}
	})
	if err != nil {
		return nil, fmt.Errorf("settle payments: %w", err)
	}
	won, err := ids(tx.QueryContext(ctx, `
		UPDATE payments SET status = v.new_status, transaction_id = NULLIF(v.tid, ''), error_code = NULLIF(v.code, ''), error_message = NULLIF(v.said, ''),
			version = v.new_version, checks = v.new_checks, completed_at = v.final, updated_at = $2, due_at = v.due, lease_token = NULL
		FROM `+db.Rows(1, "v", "pid UUID", "token TEXT", "old_status TEXT", "new_status TEXT", "tid TEXT", "code TEXT", "said TEXT",
		"new_version BIGINT", "new_checks INTEGER", "final TIMESTAMPTZ", "due TIMESTAMPTZ")+`
		WHERE id = v.pid AND lease_token = v.token AND status = v.old_status RETURNING id`, rows, at))
	if err != nil {
		return nil, fmt.Errorf("settle payments: %w", err)
	}
	return won, nil
}

// postponeWork ends the claim of a row of either table with nothing done.
func postponeWork(ctx context.Context, db *sql.DB, table string, c outbox.Claim, due time.Time) error {
	res, err := db.ExecContext(ctx, `UPDATE `+table+` SET due_at = $1, lease_token = NULL WHERE id = $2 AND lease_token = $3`, due, c.ID, c.Token)
	if err := changedOne(res, err); err != nil {
		return fmt.Errorf("postpone: %w", err)
	}
	return nil
}

// A refund is a row of refunds.
type refund struct {
	ID            string // the idempotency key as well
	PaymentID     string
	TransactionID string
	Amount        event.Money
	Currency      string
	CreatedAt     time.Time
}

func insertRefund(ctx context.Context, tx *sql.Tx, r refund) error {
	_, err := tx.ExecContext(ctx, `
		INSERT INTO refunds (id, payment_id, transaction_id, amount, currency, status, created_at, updated_at, due_at)
		VALUES ($1, $2, $3, $4, $5, 'pending', $6, $7, $8)`,
		r.ID, r.PaymentID, r.TransactionID, int64(r.Amount), r.Currency, r.CreatedAt, r.CreatedAt, r.CreatedAt)
	if err != nil {
		return fmt.Errorf("insert refund: %w", err)
	}
	return nil
}

// claimedRefund is errLeaseLost when the row is not the claim's.
func claimedRefund(ctx context.Context, db *sql.DB, c outbox.Claim) (refund, error) {
	var r refund
	err := db.QueryRowContext(ctx, `
		SELECT id, payment_id, transaction_id, amount, currency, created_at FROM refunds WHERE id = $1 AND lease_token = $2`, c.ID, c.Token).
		Scan(&r.ID, &r.PaymentID, &r.TransactionID, &r.Amount, &r.Currency, sqldb.Time(&r.CreatedAt))
	if errors.Is(err, sql.ErrNoRows) {
		return refund{}, errLeaseLost
	}
	if err != nil {
		return refund{}, fmt.Errorf("read refund: %w", err)
	}
	return r, nil
}

// settleRefund ends the claim: done, or to be tried again at due.
func settleRefund(ctx context.Context, tx *sql.Tx, c outbox.Claim, detail string, due, at time.Time) error {
	status, completed := "pending", time.Time{}
	if due.IsZero() {
		status, completed = "completed", at
	}
	res, err := tx.ExecContext(ctx, `
		UPDATE refunds SET status = $1, detail = NULLIF($2, ''), completed_at = $3, updated_at = $4, due_at = $5, lease_token = NULL
		WHERE id = $6 AND lease_token = $7`,
		status, detail, sqldb.NullTime(completed), at, sqldb.NullTime(due), c.ID, c.Token)
	if err := changedOne(res, err); err != nil {
		return fmt.Errorf("settle refund: %w", err)
	}
	return nil
}

// changedOne takes the result of an update that is conditional on the lease.
func changedOne(res sql.Result, err error) error {
	if err != nil {
		return err
	}
	n, err := res.RowsAffected()
	if err == nil && n != 1 {
		return errLeaseLost
	}
	return err
}
