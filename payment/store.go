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

// insertPayment reports whether the order had no payment yet.
func insertPayment(ctx context.Context, tx *sql.Tx, p Payment) (bool, error) {
	res, err := tx.ExecContext(ctx, `
		INSERT INTO payments (id, order_id, amount, currency, customer_email, causation_id, traceparent, status, created_at, updated_at, due_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT (order_id) DO NOTHING`,
		p.ID, p.OrderID, int64(p.Amount), p.Currency, p.CustomerEmail, p.CausationID, p.Traceparent, string(p.Status), p.CreatedAt, p.CreatedAt, p.CreatedAt)
	if err != nil {
		return false, fmt.Errorf("insert payment: %w", err)
	}
	n, err := res.RowsAffected()
	return n == 1, err
}

const selectPayment = `
	SELECT id, order_id, amount, currency, customer_email, causation_id, traceparent, status, COALESCE(transaction_id, ''), COALESCE(error_code, ''),
		version, calls, checks, created_at, completed_at
	FROM payments `

func scanPayment(row *sql.Row) (Payment, error) {
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

// claimedPayment is errLeaseLost when the row is not the claim's.
func claimedPayment(ctx context.Context, db *sql.DB, c outbox.Claim) (Payment, error) {
	p, err := scanPayment(db.QueryRowContext(ctx, selectPayment+`WHERE id = $1 AND lease_token = $2`, c.ID, c.Token))
	if errors.Is(err, sql.ErrNoRows) {
		return Payment{}, errLeaseLost
	}
	return p, err
}

// beginAttempt records that p's next call is being made. Whatever attempt was
// still open ended with prev.
func beginAttempt(ctx context.Context, tx *sql.Tx, c outbox.Claim, from Status, p Payment, call Call, prev Answer, at time.Time) error {
	res, err := tx.ExecContext(ctx, `
		UPDATE payments SET status = $1, calls = $2, updated_at = $3 WHERE id = $4 AND lease_token = $5 AND status = $6`,
		string(p.Status), p.Calls, at, p.ID, c.Token, string(from))
	if err := changedOne(res, err); err != nil {
		return fmt.Errorf("begin attempt: %w", err)
	}
	if err := endAttempt(ctx, tx, p.ID, prev, at); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO payment_attempts (payment_id, attempt, kind, started_at) VALUES ($1, $2, $3, $4)`,
		p.ID, p.Calls, string(call), at)
	if err != nil {
		return fmt.Errorf("begin attempt: %w", err)
	}
	return nil
}

func endAttempt(ctx context.Context, tx *sql.Tx, paymentID string, a Answer, at time.Time) error {
	_, err := tx.ExecContext(ctx, `
		UPDATE payment_attempts SET ended_at = $1, outcome = $2, detail = NULLIF($3, '') WHERE payment_id = $4 AND ended_at IS NULL`,
		at, string(a.Outcome), a.Detail, paymentID)
	if err != nil {
		return fmt.Errorf("end attempt: %w", err)
	}
	return nil
}

// settlePayment ends the claim: p as it is now, to be taken again at due or
// never.
func settlePayment(ctx context.Context, tx *sql.Tx, c outbox.Claim, from Status, p Payment, due, at time.Time) error {
	res, err := tx.ExecContext(ctx, `
		UPDATE payments SET status = $1, transaction_id = NULLIF($2, ''), error_code = NULLIF($3, ''), error_message = NULLIF($4, ''),
			version = $5, checks = $6, completed_at = $7, updated_at = $8, due_at = $9, lease_token = NULL
		WHERE id = $10 AND lease_token = $11 AND status = $12`,
		string(p.Status), p.TransactionID, p.ErrorCode, message(p.ErrorCode),
		p.Version, p.Checks, sqldb.NullTime(p.CompletedAt), at, sqldb.NullTime(due), p.ID, c.Token, string(from))
	if err := changedOne(res, err); err != nil {
		return fmt.Errorf("settle payment: %w", err)
	}
	return nil
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
