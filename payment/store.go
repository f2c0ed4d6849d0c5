package payment

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"pizzaflow/event"
	"pizzaflow/job"
	"pizzaflow/measure"
	"pizzaflow/sqldb"
)

// The statements over many rows; see sqldb.Insert and sqldb.Batch.
var (
	intoPayments = sqldb.Insert{
		Into: `INSERT INTO payments (id, order_id, amount, currency, customer_email, causation_id, traceparent, status, calls,
			created_at, updated_at, due_at, lease_token, attempts)`,
		Types: `UUID, UUID, BIGINT, TEXT, TEXT, UUID, TEXT, TEXT, INTEGER, CLOCK, CLOCK, CLOCK, TEXT, INTEGER`,
		Then:  `ON CONFLICT (order_id) DO NOTHING RETURNING id`,
	}
	intoAttempts = sqldb.Insert{
		Into:  `INSERT INTO payment_attempts (payment_id, attempt, kind, started_at)`,
		Types: `UUID, INTEGER, TEXT, CLOCK`,
	}
	readLeased = sqldb.Batch{
		Columns: `pid UUID, token TEXT`,
		SQL:     selectPayment + `JOIN {rows} ON id = v.pid AND lease_token = v.token`,
	}
	updateBegun = sqldb.Batch{
		Columns: `pid UUID, token TEXT, old_status TEXT, new_status TEXT, new_calls INTEGER`,
		SQL: `UPDATE payments SET status = v.new_status, calls = v.new_calls, updated_at = ` + sqldb.Clock + ` FROM {rows}
			WHERE id = v.pid AND lease_token = v.token AND status = v.old_status RETURNING id`,
	}
	updateAnswered = sqldb.Batch{
		Columns: `pid UUID, token TEXT, old_status TEXT, new_status TEXT, tid TEXT, code TEXT, said TEXT, new_version BIGINT, new_checks INTEGER,
			final TIMESTAMPTZ, due CLOCK`,
		SQL: `UPDATE payments SET status = v.new_status, transaction_id = NULLIF(v.tid, ''), error_code = NULLIF(v.code, ''), error_message = NULLIF(v.said, ''),
				version = v.new_version, checks = v.new_checks, completed_at = v.final, updated_at = ` + sqldb.Clock + `, due_at = v.due, lease_token = NULL
			FROM {rows} WHERE id = v.pid AND lease_token = v.token AND status = v.old_status RETURNING id`,
	}
	updateAttempts = sqldb.Batch{
		Columns: `pid UUID, came_to TEXT, why TEXT`,
		SQL: `UPDATE payment_attempts SET ended_at = ` + sqldb.Clock + `, outcome = v.came_to, detail = NULLIF(v.why, '')
			FROM {rows} WHERE payment_id = v.pid AND ended_at IS NULL`,
	}
)

// insertPayments stores the payments of orders that have none, with the lease, and
// returns the ids of the payments it stored. A payment that is begun gets its first
// attempt.
func insertPayments(ctx context.Context, tx *sql.Tx, db *sqldb.DB, all []Payment, l job.Lease) (sqldb.IDs, error) {
	rows := make([][]any, len(all))
	for i, p := range all {
		rows[i] = []any{
			p.ID, p.OrderID, int64(p.Amount), p.Currency, p.CustomerEmail, p.CausationID, p.Traceparent, string(p.Status), p.Calls,
			0, 0, l.DueIn.Microseconds(), l.Token, l.Attempts,
		}
	}
	stored := sqldb.IDs{}
	if err := intoPayments.Query(ctx, db, tx, rows, stored.Add); err != nil {
		return nil, fmt.Errorf("insert payments: %w", err)
	}
	begun := make([]attempt, 0, len(all))
	for _, p := range all {
		if p.Calls > 0 && stored[p.ID] {
			begun = append(begun, attempt{next: p, call: CallCharge})
		}
	}
	return stored, insertAttempts(ctx, tx, db, begun)
}

const selectPayment = `
	SELECT id, order_id, amount, currency, customer_email, causation_id, traceparent, status, COALESCE(transaction_id, ''), COALESCE(error_code, ''),
		version, calls, checks, created_at, completed_at,
		(SELECT MAX(a.started_at) FROM payment_attempts a WHERE a.payment_id = payments.id AND a.kind = 'charge'), ` + sqldb.Clock + `
	FROM payments `

// scanPayment scans a row of selectPayment, and the clock of the database.
func scanPayment(row interface{ Scan(dst ...any) error }) (Payment, sqldb.Reading, error) {
	var p Payment
	var now time.Time
	err := row.Scan(&p.ID, &p.OrderID, &p.Amount, &p.Currency, &p.CustomerEmail, &p.CausationID, &p.Traceparent, &p.Status, &p.TransactionID, &p.ErrorCode,
		&p.Version, &p.Calls, &p.Checks, sqldb.Time(&p.CreatedAt), sqldb.Time(&p.CompletedAt), sqldb.Time(&p.ChargedAt), sqldb.Time(&now))
	if err != nil {
		return Payment{}, sqldb.Reading{}, fmt.Errorf("read payment: %w", err)
	}
	return p, sqldb.NewReading(now), nil
}

func paymentOfOrder(ctx context.Context, tx *sql.Tx, orderID string) (Payment, error) {
	p, _, err := scanPayment(tx.QueryRowContext(ctx, selectPayment+`WHERE order_id = $1`, orderID))
	return p, err
}

func paymentByID(ctx context.Context, db *sql.DB, id string) (Payment, error) {
	p, _, err := scanPayment(db.QueryRowContext(ctx, selectPayment+`WHERE id = $1`, id))
	return p, err
}

// countUnanswered counts the payments that the provider was asked for and has not
// answered, up to one more than measure.Limit of each status. The first condition is
// there because it is the index's.
func countUnanswered(ctx context.Context, db *sql.DB) (map[Status]tally, error) {
	tallies := map[Status]tally{}
	for _, status := range []Status{Processing, Unknown} {
		var t tally
		var said time.Time
		err := db.QueryRowContext(ctx, `
			SELECT COUNT(*), MIN(created_at), `+sqldb.Clock+` FROM (SELECT created_at FROM payments
				WHERE status IN ('processing', 'unknown') AND status = $1 ORDER BY created_at LIMIT $2) unanswered`,
			string(status), measure.Limit+1).Scan(&t.rows, sqldb.Time(&t.oldest), sqldb.Time(&said))
		if err != nil {
			return nil, fmt.Errorf("count unanswered payments: %w", err)
		}
		t.clock = sqldb.NewReading(said)
		tallies[status] = t
	}
	return tallies, nil
}

// A leasedPayment is the payment of a job as it stood in the table at a time, or
// job.ErrLeaseLost.
type leasedPayment struct {
	payment Payment
	clock   sqldb.Reading
	err     error
}

// selectLeased reads the payments of jobs, in their order.
func selectLeased(ctx context.Context, db *sqldb.DB, jobs []job.Job) ([]leasedPayment, error) {
	rows := make([][]any, len(jobs))
	for i, j := range jobs {
		rows[i] = []any{j.ID, j.Token}
	}
	byID := map[string]leasedPayment{}
	err := readLeased.Query(ctx, db, db.Read(), rows, func(rows *sql.Rows) error {
		p, clock, err := scanPayment(rows)
		byID[p.ID] = leasedPayment{payment: p, clock: clock}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read payments: %w", err)
	}
	all := make([]leasedPayment, len(jobs))
	for i, j := range jobs {
		r, ok := byID[j.ID]
		if all[i] = r; !ok {
			all[i].err = job.ErrLeaseLost
		}
	}
	return all, nil
}

// An attempt is a call for the payment of a job, about to be made.
type attempt struct {
	job    job.Job
	from   Status
	next   Payment
	call   Call
	before Answer // of the attempt before, if that has no end yet
}

// beginAttempts stores attempts with their payments, and ends the attempts before
// them. It returns the ids of the payments that are still leased to their jobs, and
// does nothing for the others.
func beginAttempts(ctx context.Context, tx *sql.Tx, db *sqldb.DB, all []attempt) (sqldb.IDs, error) {
	rows := make([][]any, len(all))
	for i, a := range all {
		rows[i] = []any{a.next.ID, a.job.Token, string(a.from), string(a.next.Status), a.next.Calls}
	}
	held := sqldb.IDs{}
	if err := updateBegun.Query(ctx, db, tx, rows, held.Add); err != nil {
		return nil, fmt.Errorf("begin attempts: %w", err)
	}
	var begun []attempt
	var open []attemptEnd
	for _, a := range all {
		if !held[a.next.ID] {
			continue
		}
		begun = append(begun, a)
		if a.next.Calls > 1 {
			open = append(open, attemptEnd{a.next.ID, a.before})
		}
	}
	if err := endAttempts(ctx, tx, db, open); err != nil {
		return nil, err
	}
	return held, insertAttempts(ctx, tx, db, begun)
}

func insertAttempts(ctx context.Context, tx *sql.Tx, db *sqldb.DB, all []attempt) error {
	rows := make([][]any, len(all))
	for i, a := range all {
		rows[i] = []any{a.next.ID, a.next.Calls, string(a.call), 0}
	}
	if _, err := intoAttempts.Exec(ctx, db, tx, rows); err != nil {
		return fmt.Errorf("insert attempts: %w", err)
	}
	return nil
}

// An attemptEnd is the answer to a payment's open attempt.
type attemptEnd struct {
	paymentID string
	answer    Answer
}

func endAttempts(ctx context.Context, tx *sql.Tx, db *sqldb.DB, all []attemptEnd) error {
	rows := make([][]any, len(all))
	for i, e := range all {
		rows[i] = []any{e.paymentID, string(e.answer.Outcome), e.answer.Detail}
	}
	if err := updateAttempts.Query(ctx, db, tx, rows, nil); err != nil {
		return fmt.Errorf("end attempts: %w", err)
	}
	return nil
}

// An update is what an answer makes of the payment of a job.
type update struct {
	job        job.Job
	from, next Payment
	step       Step
	answer     Answer
	pause      time.Duration // before the payment is due again, or never
}

// updatePayments stores updates and ends their leases. It returns the ids of the
// payments that were still leased to their jobs, and does nothing for the others.
func updatePayments(ctx context.Context, tx *sql.Tx, db *sqldb.DB, all []update) (sqldb.IDs, error) {
	rows := make([][]any, len(all))
	for i := range all {
		u, p := &all[i], &all[i].next
		rows[i] = []any{
			p.ID, u.job.Token, string(u.from.Status), string(p.Status), p.TransactionID, p.ErrorCode, message(p.ErrorCode),
			p.Version, p.Checks, sqldb.NullTime(p.CompletedAt), sqldb.NullPause(u.pause),
		}
	}
	held := sqldb.IDs{}
	if err := updateAnswered.Query(ctx, db, tx, rows, held.Add); err != nil {
		return nil, fmt.Errorf("update payments: %w", err)
	}
	return held, nil
}

// postpone ends the lease of a row of payments or refunds without any other change.
// The row is due again after the pause.
func postpone(ctx context.Context, db *sqldb.DB, table string, j job.Job, pause time.Duration) error {
	res, err := db.ExecContext(ctx, `UPDATE `+table+` SET due_at = `+db.Later("$1")+`, lease_token = NULL WHERE id = $2 AND lease_token = $3`,
		pause.Microseconds(), j.ID, j.Token)
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
}

func insertRefund(ctx context.Context, tx *sql.Tx, r refund) error {
	_, err := tx.ExecContext(ctx, `
		INSERT INTO refunds (id, payment_id, transaction_id, amount, currency, status, created_at, updated_at, due_at)
		VALUES ($1, $2, $3, $4, $5, 'pending', `+sqldb.Clock+`, `+sqldb.Clock+`, `+sqldb.Clock+`)`,
		r.ID, r.PaymentID, r.TransactionID, int64(r.Amount), r.Currency)
	if err != nil {
		return fmt.Errorf("insert refund: %w", err)
	}
	return nil
}

// selectLeasedRefund reads the refund of a job, or returns job.ErrLeaseLost.
func selectLeasedRefund(ctx context.Context, db *sql.DB, j job.Job) (refund, error) {
	var r refund
	err := db.QueryRowContext(ctx, `
		SELECT id, payment_id, transaction_id, amount, currency FROM refunds WHERE id = $1 AND lease_token = $2`, j.ID, j.Token).
		Scan(&r.ID, &r.PaymentID, &r.TransactionID, &r.Amount, &r.Currency)
	if errors.Is(err, sql.ErrNoRows) {
		return refund{}, job.ErrLeaseLost
	}
	if err != nil {
		return refund{}, fmt.Errorf("read refund: %w", err)
	}
	return r, nil
}

// updateRefund ends the lease. The refund is completed when the pause is never, and
// else due again after the pause.
func updateRefund(ctx context.Context, tx *sql.Tx, db *sqldb.DB, j job.Job, detail string, pause time.Duration) error {
	status, completed := "pending", "NULL"
	if pause == never {
		status, completed = "completed", sqldb.Clock
	}
	res, err := tx.ExecContext(ctx, `
		UPDATE refunds SET status = $1, detail = NULLIF($2, ''), completed_at = `+completed+`, updated_at = `+sqldb.Clock+`,
			due_at = `+db.Later("$3")+`, lease_token = NULL
		WHERE id = $4 AND lease_token = $5`,
		status, detail, sqldb.NullPause(pause), j.ID, j.Token)
	if err := changedOne(res, err); err != nil {
		return fmt.Errorf("update refund: %w", err)
	}
	return nil
}

// changedOne returns job.ErrLeaseLost when the update of a leased row changed none.
func changedOne(res sql.Result, err error) error {
	n, err := sqldb.Affected(res, err)
	if err == nil && n != 1 {
		return job.ErrLeaseLost
	}
	return err
}
