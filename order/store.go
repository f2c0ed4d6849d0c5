package order

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"pizzaflow/event"
	"pizzaflow/measure"
	"pizzaflow/sqldb"
)

// This file holds every SQL statement of the service.

// The statements over many rows; see sqldb.Insert and sqldb.Batch.
var (
	intoOrders = sqldb.Insert{
		Into: `INSERT INTO orders (id, order_number, status, version, total_amount, currency,
			customer_name, customer_email, customer_phone, delivery_address, comment, locale, created_at)`,
		Types: `UUID, TEXT, TEXT, BIGINT, BIGINT, TEXT, TEXT, TEXT, TEXT, TEXT, TEXT, TEXT, TIMESTAMPTZ`,
		Then:  `ON CONFLICT (order_number) DO NOTHING`,
	}
	intoItems = sqldb.Insert{
		Into:  `INSERT INTO order_items (order_id, line, pizza_id, name, size, quantity, price)`,
		Types: `UUID, INTEGER, UUID, TEXT, TEXT, INTEGER, BIGINT`,
	}
	intoHistory = sqldb.Insert{
		Into:  `INSERT INTO order_history (order_id, version, status, at)`,
		Types: `UUID, BIGINT, TEXT, TIMESTAMPTZ`,
	}
	readForPayment = sqldb.Batch{
		Columns: `oid UUID`,
		SQL: `SELECT id, status, version, total_amount, currency, created_at, COALESCE(payment_id, '')
			FROM {rows} JOIN orders ON id = v.oid`,
	}
	updateToPaid = sqldb.Batch{
		Columns: `oid UUID, new_version BIGINT, paid TIMESTAMPTZ, pid TEXT`,
		SQL: `UPDATE orders SET status = 'paid', version = v.new_version, paid_at = v.paid, payment_id = v.pid,
				attention_reason = CASE WHEN attention_reason = 'payment_amount_mismatch' THEN attention_reason END,
				attention_since = CASE WHEN attention_reason = 'payment_amount_mismatch' THEN attention_since END
			FROM {rows} WHERE id = v.oid AND status = 'pending' RETURNING id`,
	}
	intoKeys = sqldb.Insert{
		Into:  `INSERT INTO idempotency_keys (key, body_sha256, order_id, response, created_at)`,
		Types: `TEXT, BYTEA, UUID, BYTEA, CLOCK`,
		Then:  `ON CONFLICT (key) DO NOTHING`,
	}
)

// insertOrders stores the rows of new orders and returns the orders whose number
// another order has. Such an order is skipped: a violated constraint would end
// the transaction.
func insertOrders(ctx context.Context, db *sqldb.DB, tx *sql.Tx, orders []*newOrder) (taken []*newOrder, err error) {
	rows := make([][]any, len(orders))
	for i, o := range orders {
		rows[i] = []any{
			o.ID, o.Number, o.Status, o.Version, o.Total, o.Currency,
			o.Customer.Name, o.Customer.Email, o.Customer.Phone, o.Address, o.Comment, o.Locale, o.CreatedAt,
		}
	}
	n, err := intoOrders.Exec(ctx, db, tx, rows)
	if err != nil {
		return nil, fmt.Errorf("insert orders: %w", err)
	}
	if n == int64(len(orders)) {
		return nil, nil
	}
	numbers, err := selectNumbers(ctx, tx, orders)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(orders), func(o *newOrder) bool { return numbers[o.ID] != "" }), nil
}

// insertDetails stores the items and the first step of new orders.
func insertDetails(ctx context.Context, db *sqldb.DB, tx *sql.Tx, orders []*newOrder) error {
	items, steps := make([][]any, 0, 2*len(orders)), make([][]any, len(orders))
	for i, o := range orders {
		for l, it := range o.Items {
			items = append(items, []any{o.ID, l + 1, it.PizzaID, it.Name, it.Size, it.Quantity, it.Price})
		}
		steps[i] = stepRow(&o.Order)
	}
	if _, err := intoItems.Exec(ctx, db, tx, items); err != nil {
		return fmt.Errorf("insert items: %w", err)
	}
	if _, err := intoHistory.Exec(ctx, db, tx, steps); err != nil {
		return fmt.Errorf("insert steps: %w", err)
	}
	return nil
}

// stepRow is the order's latest step as a row of order_history.
func stepRow(o *Order) []any {
	step := o.History[len(o.History)-1]
	return []any{o.ID, step.Version, step.Status, step.At}
}

// insertStep stores the order's latest step.
func insertStep(ctx context.Context, tx *sql.Tx, o *Order) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO order_history (order_id, version, status, at) VALUES ($1, $2, $3, $4)`, stepRow(o)...)
	if err != nil {
		return fmt.Errorf("insert step: %w", err)
	}
	return nil
}

// selectNumbers reads the order numbers by id. An order that is not stored has
// none.
func selectNumbers(ctx context.Context, db sqldb.Querier, orders []*newOrder) (map[string]string, error) {
	ids := make([]any, len(orders))
	for i, o := range orders {
		ids[i] = o.ID
	}
	numbers, err := selectPairs(ctx, db, `SELECT id, order_number FROM orders WHERE id IN (`+sqldb.List(1, len(ids))+`)`, ids)
	if err != nil {
		return nil, fmt.Errorf("select order numbers: %w", err)
	}
	return numbers, nil
}

// insertKeys stores the idempotency keys of new orders with their answers, and
// returns the orders whose key another order has. On PostgreSQL it waits for
// transactions that store one of the keys at the same time.
func insertKeys(ctx context.Context, db *sqldb.DB, tx *sql.Tx, orders []*newOrder) (taken []*newOrder, err error) {
	rows, keys := make([][]any, 0, len(orders)), make([]any, 0, len(orders))
	for _, o := range orders {
		if o.key != "" {
			rows = append(rows, []any{o.key, o.sum, o.ID, o.answer, 0})
			keys = append(keys, o.key)
		}
	}
	n, err := intoKeys.Exec(ctx, db, tx, rows)
	if err != nil {
		return nil, fmt.Errorf("insert idempotency keys: %w", err)
	}
	if n == int64(len(rows)) {
		return nil, nil
	}
	owners, err := selectPairs(ctx, tx, `SELECT key, order_id FROM idempotency_keys WHERE key IN (`+sqldb.List(1, len(keys))+`)`, keys)
	if err != nil {
		return nil, fmt.Errorf("select owners of keys: %w", err)
	}
	for _, o := range orders {
		if o.key != "" && owners[o.key] != o.ID {
			taken = append(taken, o)
		}
	}
	if len(taken) == 0 {
		return nil, errors.New("insert idempotency keys: some were skipped, and no other order has any of them")
	}
	return taken, nil
}

// selectPairs reads rows of two texts.
func selectPairs(ctx context.Context, db sqldb.Querier, query string, args []any) (pairs map[string]string, err error) {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	pairs = make(map[string]string, len(args))
	for rows.Next() {
		var a, b string
		if err := rows.Scan(&a, &b); err != nil {
			return nil, err
		}
		pairs[a] = b
	}
	return pairs, rows.Err()
}

// A keyRow is a row of idempotency_keys.
type keyRow struct {
	sum      []byte // SHA-256 of the body
	orderID  string
	response []byte
}

// selectKey reads the row of a key; sql.ErrNoRows when there is none.
func selectKey(ctx context.Context, db *sql.DB, key string) (keyRow, error) {
	var k keyRow
	err := db.QueryRowContext(ctx, `SELECT body_sha256, order_id, response FROM idempotency_keys WHERE key = $1`, key).Scan(&k.sum, &k.orderID, &k.response)
	if err != nil {
		return keyRow{}, fmt.Errorf("select idempotency key: %w", err)
	}
	return k, nil
}

// deleteKeys removes some of the keys that are older than lifetime, and returns
// how many it removed.
func deleteKeys(ctx context.Context, db *sqldb.DB, lifetime time.Duration) (int64, error) {
	n, err := sqldb.Affected(db.ExecContext(ctx, `DELETE FROM idempotency_keys WHERE key IN
		(SELECT key FROM idempotency_keys WHERE created_at <= `+db.Later("$1")+` ORDER BY created_at LIMIT 1000)`, -lifetime.Microseconds()))
	if err != nil {
		return 0, fmt.Errorf("delete idempotency keys: %w", err)
	}
	return n, nil
}

// selectOrder reads an order with its items and history; sql.ErrNoRows when
// there is none. The order and its history come in one statement, so that they
// agree; items never change.
func selectOrder(ctx context.Context, db *sql.DB, id string) (o Order, err error) {
	rows, err := db.QueryContext(ctx, `
		SELECT o.order_number, o.status, o.version, o.total_amount, o.currency,
			o.customer_name, o.customer_email, o.customer_phone, o.delivery_address, o.comment, o.locale,
			o.created_at, o.paid_at, COALESCE(o.payment_id, ''), COALESCE(o.failure_reason, ''),
			h.version, h.status, h.at
		FROM orders o JOIN order_history h ON h.order_id = o.id
		WHERE o.id = $1 ORDER BY h.version`, id)
	if err != nil {
		return Order{}, fmt.Errorf("select order: %w", err)
	}
	defer rows.Close()
	o.ID = id
	for rows.Next() {
		var s Step
		if err := rows.Scan(&o.Number, &o.Status, &o.Version, &o.Total, &o.Currency,
			&o.Customer.Name, &o.Customer.Email, &o.Customer.Phone, &o.Address, &o.Comment, &o.Locale,
			sqldb.Time(&o.CreatedAt), sqldb.Time(&o.PaidAt), &o.PaymentID, &o.FailureReason,
			&s.Version, &s.Status, sqldb.Time(&s.At)); err != nil {
			return Order{}, fmt.Errorf("select order: %w", err)
		}
		o.History = append(o.History, s)
	}
	if err := rows.Err(); err != nil {
		return Order{}, fmt.Errorf("select order: %w", err)
	}
	if len(o.History) == 0 {
		return Order{}, fmt.Errorf("select order: %w", sql.ErrNoRows)
	}
	o.Items, err = selectItems(ctx, db, id)
	return o, err
}

func selectItems(ctx context.Context, db *sql.DB, id string) (items []event.Item, err error) {
	rows, err := db.QueryContext(ctx,
		`SELECT pizza_id, name, size, quantity, price FROM order_items WHERE order_id = $1 ORDER BY line`, id)
	if err != nil {
		return nil, fmt.Errorf("select items: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var it event.Item
		if err := rows.Scan(&it.PizzaID, &it.Name, &it.Size, &it.Quantity, &it.Price); err != nil {
			return nil, fmt.Errorf("select items: %w", err)
		}
		items = append(items, it)
	}
	return items, rows.Err()
}

// selectForPayment reads of an order what Order.pay and Order.fail need;
// sql.ErrNoRows when there is no such order.
func selectForPayment(ctx context.Context, tx *sql.Tx, id string) (Order, error) {
	o := Order{ID: id}
	err := tx.QueryRowContext(ctx, `SELECT status, version, total_amount, currency, created_at,
			COALESCE(payment_id, '') FROM orders WHERE id = $1`, id).
		Scan(&o.Status, &o.Version, &o.Total, &o.Currency, sqldb.Time(&o.CreatedAt), &o.PaymentID)
	if err != nil {
		return Order{}, fmt.Errorf("select order: %w", err)
	}
	return o, nil
}

// selectForPayments is selectForPayment for many orders. It returns them by id.
func selectForPayments(ctx context.Context, db *sqldb.DB, tx *sql.Tx, ids []string) (map[string]*Order, error) {
	rows := make([][]any, len(ids))
	for i, id := range ids {
		rows[i] = []any{id}
	}
	orders := map[string]*Order{}
	err := readForPayment.Query(ctx, db, tx, rows, func(rows *sql.Rows) error {
		o := &Order{}
		err := rows.Scan(&o.ID, &o.Status, &o.Version, &o.Total, &o.Currency, sqldb.Time(&o.CreatedAt), &o.PaymentID)
		orders[o.ID] = o
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("select orders: %w", err)
	}
	return orders, nil
}

// updatePaid stores that pending orders were paid, and reports whether all of
// them were still pending.
func updatePaid(ctx context.Context, db *sqldb.DB, tx *sql.Tx, orders []*Order) (bool, error) {
	rows, steps, n := make([][]any, len(orders)), make([][]any, len(orders)), 0
	for i, o := range orders {
		rows[i] = []any{o.ID, o.Version, o.PaidAt, o.PaymentID}
		steps[i] = stepRow(o)
	}
	err := updateToPaid.Query(ctx, db, tx, rows, func(*sql.Rows) error { n++; return nil })
	if err != nil {
		return false, fmt.Errorf("update statuses: %w", err)
	}
	if n < len(orders) {
		return false, nil
	}
	if _, err := intoHistory.Exec(ctx, db, tx, steps); err != nil {
		return false, fmt.Errorf("insert steps: %w", err)
	}
	return true, nil
}

// updateStatus stores the final status of a pending order, and reports whether
// the order was still pending. The order's mark is removed, unless it is
// AttentionMismatch.
func updateStatus(ctx context.Context, tx *sql.Tx, o *Order) (bool, error) {
	n, err := sqldb.Affected(tx.ExecContext(ctx, `
		UPDATE orders SET status = $2, version = $3, paid_at = $4, payment_id = $5, failure_reason = $6,
			attention_reason = CASE WHEN attention_reason = 'payment_amount_mismatch' THEN attention_reason END,
			attention_since = CASE WHEN attention_reason = 'payment_amount_mismatch' THEN attention_since END
		WHERE id = $1 AND status = 'pending'`,
		o.ID, o.Status, o.Version, sqldb.NullTime(o.PaidAt), o.PaymentID,
		sql.NullString{String: o.FailureReason, Valid: o.Status == PaymentFailed}))
	if err != nil {
		return false, fmt.Errorf("update status: %w", err)
	}
	if n == 0 {
		return false, nil
	}
	return true, insertStep(ctx, tx, o)
}

// markMismatch marks an order of any status whose payment does not match it.
func markMismatch(ctx context.Context, tx *sql.Tx, id string) error {
	_, err := tx.ExecContext(ctx, `
		UPDATE orders SET attention_reason = 'payment_amount_mismatch', attention_since = `+sqldb.Clock+`
		WHERE id = $1 AND (attention_reason IS NULL OR attention_reason <> 'payment_amount_mismatch')`, id)
	if err != nil {
		return fmt.Errorf("mark mismatch: %w", err)
	}
	return nil
}

// markOverdue marks some of the orders that have been pending for longer than the
// deadline, and returns how many it marked. The conditions stand twice: an order
// that was paid between the subquery and the lock must not be marked.
func markOverdue(ctx context.Context, db *sqldb.DB, deadline time.Duration) (int64, error) {
	n, err := sqldb.Affected(db.ExecContext(ctx, `
		UPDATE orders SET attention_reason = 'payment_overdue', attention_since = `+sqldb.Clock+`
		WHERE status = 'pending' AND attention_reason IS NULL AND id IN (
			SELECT id FROM orders WHERE status = 'pending' AND attention_reason IS NULL AND created_at <= `+db.Later("$1")+`
			ORDER BY created_at LIMIT 500)`, -deadline.Microseconds()))
	if err != nil {
		return 0, fmt.Errorf("mark overdue: %w", err)
	}
	return n, nil
}

// countAttention counts the marked orders by reason, up to one more than measure.Limit in all.
func countAttention(ctx context.Context, db *sql.DB) (counts map[string]int64, err error) {
	rows, err := db.QueryContext(ctx, `SELECT attention_reason, COUNT(*) FROM (
		SELECT attention_reason FROM orders WHERE attention_reason IS NOT NULL LIMIT $1) marked GROUP BY attention_reason`, measure.Limit+1)
	if err != nil {
		return nil, fmt.Errorf("count attention: %w", err)
	}
	defer rows.Close()
	counts = map[string]int64{}
	for rows.Next() {
		var reason string
		var n int64
		if err := rows.Scan(&reason, &n); err != nil {
			return nil, fmt.Errorf("count attention: %w", err)
		}
		counts[reason] = n
	}
	return counts, rows.Err()
}
