package notification

import (
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"pizzaflow/event"
	"pizzaflow/outbox"
	"pizzaflow/sqldb"
)

// Schema is the set of the service's tables; its name is "notification".
//
//go:embed schema
var Schema embed.FS

// saveContacts keeps whom to tell, and locks the orders' rows.
func saveContacts(ctx context.Context, tx *sql.Tx, db *sqldb.DB, all []order, now time.Time) error {
	rows, err := sqldb.RowsArg(len(all), func(i int) []any {
		o := &all[i]
		return []any{o.ID, o.Name, o.Email, o.Phone, o.Locale, o.Number, int64(o.Total), o.Currency, o.Items, o.Address}
	})
	if err == nil {
		_, err = tx.ExecContext(ctx, `
			INSERT INTO order_contacts (order_id, name, email, phone, locale, order_number, total, currency, items, delivery_address, created_at)
			SELECT v.oid, v.name, v.email, v.phone, v.locale, v.number, v.total, v.currency, v.items, v.address, $2
			FROM `+db.Rows(1, "v", "oid UUID", "name TEXT", "email TEXT", "phone TEXT", "locale TEXT", "number TEXT", "total BIGINT",
			"currency TEXT", "items JSON", "address TEXT")+`
			WHERE true ON CONFLICT (order_id) DO UPDATE SET name = EXCLUDED.name, email = EXCLUDED.email, phone = EXCLUDED.phone,
				locale = EXCLUDED.locale, order_number = EXCLUDED.order_number, total = EXCLUDED.total, currency = EXCLUDED.currency,
				items = EXCLUDED.items, delivery_address = EXCLUDED.delivery_address`, rows, now)
	}
	if err != nil {
		return fmt.Errorf("save contacts: %w", err)
	}
	return nil
}

const contactColumns = `c.order_id, COALESCE(c.order_number, ''), COALESCE(c.name, ''), COALESCE(c.email, ''), COALESCE(c.phone, ''),
	COALESCE(c.locale, ''), COALESCE(c.total, 0), COALESCE(c.currency, ''), COALESCE(CAST(c.items AS TEXT), '[]'), COALESCE(c.delivery_address, '')`

// contacts returns the orders of which OrderCreated has arrived. The row of an
// order of which it has not is locked, and made if need be: of two transactions
// of one order the second waits here for the first and then sees what it did.
// Without the lock each could miss the other, and the notification would wait
// for ever.
func contacts(ctx context.Context, tx *sql.Tx, db *sqldb.DB, orderIDs []string, now time.Time) (map[string]order, error) {
	all := map[string]order{}
	rows, err := idRows(orderIDs)
	if err == nil {
		err = scanOrders(all)(tx.QueryContext(ctx, `
			SELECT `+contactColumns+` FROM `+db.Rows(1, "v", "oid UUID")+` JOIN order_contacts c ON c.order_id = v.oid`, rows))
	}
	if err != nil {
		return nil, fmt.Errorf("read contacts: %w", err)
	}
	missing := slices.DeleteFunc(slices.Sorted(slices.Values(orderIDs)), func(id string) bool { return all[id].Number != "" })
	if len(missing) == 0 {
		return all, nil
	}
	if rows, err = idRows(missing); err == nil {
		err = scanOrders(all)(tx.QueryContext(ctx, `
			INSERT INTO order_contacts AS c (order_id, created_at)
			SELECT v.oid, $2 FROM `+db.Rows(1, "v", "oid UUID")+`
			WHERE true ON CONFLICT (order_id) DO UPDATE SET created_at = c.created_at
			RETURNING `+strings.ReplaceAll(contactColumns, "c.", ""), rows, now))
	}
	if err != nil {
		return nil, fmt.Errorf("lock contacts: %w", err)
	}
	maps.DeleteFunc(all, func(_ string, o order) bool { return o.Number == "" })
	return all, nil
}

func idRows(ids []string) (string, error) {
	return sqldb.RowsArg(len(ids), func(i int) []any { return []any{ids[i]} })
}

// scanOrders adds the orders of a result to all.
func scanOrders(all map[string]order) func(*sql.Rows, error) error {
	return func(rows *sql.Rows, err error) error {
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var o order
			if err := o.scan(rows); err != nil {
				return err
			}
			all[o.ID] = o
		}
		return rows.Err()
	}
}

// scan reads contactColumns, and whatever else a row has after them.
func (o *order) scan(rows *sql.Rows, more ...any) error {
	var items string
	var total int64
	err := rows.Scan(append([]any{&o.ID, &o.Number, &o.Name, &o.Email, &o.Phone, &o.Locale, &total, &o.Currency, &items, &o.Address}, more...)...)
	if err != nil {
		return err
	}
	o.Total = event.Money(total)
	return json.Unmarshal([]byte(items), &o.Items)
}

// insertNotifications makes the notifications, and returns those that were not
// there yet.
func insertNotifications(ctx context.Context, tx *sql.Tx, db *sqldb.DB, all []notification, now time.Time) (fresh []notification, err error) {
	rows, err := sqldb.RowsArg(len(all), func(i int) []any {
		n := &all[i]
		status := "ready"
		if n.waiting {
			status = "waiting"
		}
		return []any{n.id, n.orderID, n.typ, status, n.payment}
	})
	if err != nil {
		return nil, fmt.Errorf("insert notifications: %w", err)
	}
	stored, err := ids(tx.QueryContext(ctx, `
		INSERT INTO notifications (id, order_id, type, status, data, created_at)
		SELECT v.nid, v.oid, v.type, v.status, v.data, $2
		FROM `+db.Rows(1, "v", "nid UUID", "oid UUID", "type TEXT", "status TEXT", "data JSON")+`
		WHERE true ON CONFLICT (order_id, type) DO NOTHING RETURNING id`, rows, now))
	if err != nil {
		return nil, fmt.Errorf("insert notifications: %w", err)
	}
	for _, n := range all {
		if stored[n.id] {
			fresh = append(fresh, n)
		}
	}
	return fresh, nil
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

// releaseNotifications makes ready what has waited for the orders' contacts.
func releaseNotifications(ctx context.Context, tx *sql.Tx, db *sqldb.DB, orders []order) (released []notification, err error) {
	rows, err := sqldb.RowsArg(len(orders), func(i int) []any { return []any{orders[i].ID} })
	if err != nil {
		return nil, fmt.Errorf("release notifications: %w", err)
	}
	result, err := tx.QueryContext(ctx, `
		UPDATE notifications SET status = 'ready' FROM `+db.Rows(1, "v", "oid UUID")+`
		WHERE order_id = v.oid AND status = 'waiting' RETURNING id, order_id, type, data`, rows)
	if err != nil {
		return nil, fmt.Errorf("release notifications: %w", err)
	}
	defer result.Close()
	for result.Next() {
		var n notification
		var data string
		err := result.Scan(&n.id, &n.orderID, &n.typ, &data)
		if err == nil {
			err = json.Unmarshal([]byte(data), &n.payment)
		}
		if err != nil {
			return nil, fmt.Errorf("release notifications: %w", err)
		}
		released = append(released, n)
	}
	if err := result.Err(); err != nil {
		return nil, fmt.Errorf("release notifications: %w", err)
	}
	return released, nil
}

// insertDeliveries stores new deliveries, each with the lease of its channel.
func insertDeliveries(ctx context.Context, tx *sql.Tx, db *sqldb.DB, all []delivery, leases map[Channel]outbox.Lease) error {
	rows, err := sqldb.RowsArg(len(all), func(i int) []any {
		d := &all[i]
		l := leases[d.Channel]
		var token any
		if l.Token.Valid {
			token = l.Token.String
		}
		return []any{d.ID, d.notification, d.Order.ID, d.Type, d.Channel, Pending, d.CreatedAt, l.DueAt, token, l.Attempts}
	})
	if err == nil {
		_, err = tx.ExecContext(ctx, `
			INSERT INTO notification_deliveries (id, notification_id, order_id, type, channel, status, created_at, due_at, lease_token, attempts)
			SELECT v.did, v.nid, v.oid, v.type, v.channel, v.status, v.at, v.due, v.token, v.attempts
			FROM `+db.Rows(1, "v", "did UUID", "nid UUID", "oid UUID", "type TEXT", "channel TEXT", "status TEXT", "at TIMESTAMPTZ",
			"due TIMESTAMPTZ", "token TEXT", "attempts INTEGER"), rows)
	}
	if err != nil {
		return fmt.Errorf("insert deliveries: %w", err)
	}
	return nil
}

// errLeaseLost says that a claimed row is another's by now, or settled.
var errLeaseLost = errors.New("lease lost")

// A found is a claimed delivery, or errLeaseLost when it is not the claim's.
type found struct {
	delivery delivery
	err      error
}

// loadDeliveries reads what claims are to send.
func loadDeliveries(ctx context.Context, db *sqldb.DB, claims []outbox.Claim) ([]found, error) {
	rows, err := sqldb.RowsArg(len(claims), func(i int) []any { return []any{claims[i].ID, claims[i].Token} })
	if err != nil {
		return nil, fmt.Errorf("load deliveries: %w", err)
	}
	result, err := db.Read().QueryContext(ctx, `
		SELECT `+contactColumns+`, d.id, d.type, d.channel, d.created_at, n.data
		FROM `+db.Rows(1, "v", "did UUID", "token TEXT")+`
		JOIN notification_deliveries d ON d.id = v.did AND d.lease_token = v.token
		JOIN notifications n ON n.id = d.notification_id
		JOIN order_contacts c ON c.order_id = d.order_id`, rows)
	if err != nil {
		return nil, fmt.Errorf("load deliveries: %w", err)
	}
	defer result.Close()
	byID := map[string]delivery{}
	for result.Next() {
		var d delivery
		var data string
		err := d.Order.scan(result, &d.ID, &d.Type, &d.Channel, sqldb.Time(&d.CreatedAt), &data)
		if err == nil {
			err = json.Unmarshal([]byte(data), &d.Payment)
		}
		if err != nil {
			return nil, fmt.Errorf("load deliveries: %w", err)
		}
		byID[d.ID] = d
	}
	if err := result.Err(); err != nil {
		return nil, fmt.Errorf("load deliveries: %w", err)
	}
	all := make([]found, len(claims))
	for i, c := range claims {
		d, ok := byID[c.ID]
		if all[i].delivery = d; !ok {
			all[i].err = errLeaseLost
		}
	}
	return all, nil
}

// A settlement is what an attempt made of a claimed delivery.
type settlement struct {
	claim      outbox.Claim
	status     Status
	dueAt      time.Time // of the next attempt, while pending
	sentAt     time.Time
	providerID string // the receiver's name for the message, "" if it gave none
	reason     string // why it was not sent, "" if it was
}

// settleDeliveries records attempts, each provided that its claim still holds:
// the result of one whose claim does not is errLeaseLost. One statement is a
// transaction of its own.
func settleDeliveries(ctx context.Context, db *sqldb.DB, all []settlement) (results []error, err error) {
	rows, err := sqldb.RowsArg(len(all), func(i int) []any {
		t := &all[i]
		return []any{t.claim.ID, t.claim.Token, t.status, t.dueAt, t.providerID, t.reason, t.sentAt}
	})
	if err != nil {
		return nil, fmt.Errorf("settle deliveries: %w", err)
	}
	won, err := ids(db.QueryContext(ctx, `
		UPDATE notification_deliveries
		SET status = v.new_status, due_at = v.due, lease_token = NULL, provider_message_id = NULLIF(v.name, ''), error = NULLIF(v.reason, ''), sent_at = v.sent
		FROM `+db.Rows(1, "v", "did UUID", "token TEXT", "new_status TEXT", "due TIMESTAMPTZ", "name TEXT", "reason TEXT", "sent TIMESTAMPTZ")+`
		WHERE id = v.did AND lease_token = v.token RETURNING id`, rows))
	if err != nil {
		return nil, fmt.Errorf("settle deliveries: %w", err)
	}
	results = make([]error, len(all))
	for i, t := range all {
		if !won[t.claim.ID] {
			results[i] = errLeaseLost
		}
	}
	return results, nil
}
