package notification

import (
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"pizzaflow/event"
	"pizzaflow/outbox"
	"pizzaflow/sqldb"
)

// Schema is the set of the service's tables; its name is "notification".
//
//go:embed schema
var Schema embed.FS

// saveContacts keeps whom to tell, and locks the order's row.
func saveContacts(ctx context.Context, tx *sql.Tx, e event.OrderCreated, now time.Time) error {
	items, err := json.Marshal(e.Items)
	if err != nil {
		return fmt.Errorf("save contacts: %w", err)
	}
	_, err = tx.ExecContext(ctx, `
		INSERT INTO order_contacts (order_id, name, email, phone, locale, order_number, total, currency, items, delivery_address, created_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
		ON CONFLICT (order_id) DO UPDATE SET name = EXCLUDED.name, email = EXCLUDED.email, phone = EXCLUDED.phone,
			locale = EXCLUDED.locale, order_number = EXCLUDED.order_number, total = EXCLUDED.total, currency = EXCLUDED.currency,
			items = EXCLUDED.items, delivery_address = EXCLUDED.delivery_address`,
		e.OrderID, e.CustomerName, e.CustomerEmail, e.CustomerPhone, e.Locale, e.OrderNumber, int64(e.TotalAmount), e.Currency,
		string(items), e.DeliveryAddress, now)
	if err != nil {
		return fmt.Errorf("save contacts: %w", err)
	}
	return nil
}

// lockContacts locks the order's row, which it makes if need be, and reports
// whether the contacts are there. Of two transactions of one order the second
// waits here for the first and then sees what it did; without the lock each
// could miss the other, and the notification would wait for ever.
func lockContacts(ctx context.Context, tx *sql.Tx, orderID string, now time.Time) (known bool, err error) {
	err = tx.QueryRowContext(ctx, `
		INSERT INTO order_contacts (order_id, created_at) VALUES ($1, $2)
		ON CONFLICT (order_id) DO UPDATE SET created_at = order_contacts.created_at
		RETURNING order_number IS NOT NULL`, orderID, now).Scan(&known)
	if err != nil {
		return false, fmt.Errorf("lock contacts: %w", err)
	}
	return known, nil
}

// insertNotification makes the order's notification of a type, waiting. One
// that is there stays as it is.
func insertNotification(ctx context.Context, tx *sql.Tx, orderID string, typ Type, p payment, now time.Time) error {
	id, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("insert notification: %w", err)
	}
	data, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("insert notification: %w", err)
	}
	_, err = tx.ExecContext(ctx, `
		INSERT INTO notifications (id, order_id, type, status, data, created_at) VALUES ($1, $2, $3, 'waiting', $4, $5)
		ON CONFLICT (order_id, type) DO NOTHING`, id.String(), orderID, string(typ), string(data), now)
	if err != nil {
		return fmt.Errorf("insert notification: %w", err)
	}
	return nil
}

// A released notification is one that stopped waiting.
type released struct {
	id  string
	typ Type
}

// releaseNotifications makes the order's waiting notifications ready.
func releaseNotifications(ctx context.Context, tx *sql.Tx, orderID string) ([]released, error) {
	rows, err := tx.QueryContext(ctx, `
		UPDATE notifications SET status = 'ready' WHERE order_id = $1 AND status = 'waiting' RETURNING id, type`, orderID)
	if err != nil {
		return nil, fmt.Errorf("release notifications: %w", err)
	}
	defer rows.Close()
	var all []released
	for rows.Next() {
		var r released
		if err := rows.Scan(&r.id, &r.typ); err != nil {
			return nil, fmt.Errorf("release notifications: %w", err)
		}
		all = append(all, r)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("release notifications: %w", err)
	}
	return all, nil
}

// insertDeliveries makes the deliveries of ready notifications, one for each
// channel, due now.
func insertDeliveries(ctx context.Context, tx *sql.Tx, orderID string, ready []released, now time.Time) error {
	const columns = 8
	channels := []Channel{Email, SMS}
	args := make([]any, 0, columns*len(channels)*len(ready))
	for _, n := range ready {
		for _, channel := range channels {
			id, err := uuid.NewV7()
			if err != nil {
				return fmt.Errorf("insert deliveries: %w", err)
			}
			args = append(args, id.String(), n.id, orderID, string(n.typ), string(channel), string(Pending), now, now)
		}
	}
	if len(args) == 0 {
		return nil
	}
	_, err := tx.ExecContext(ctx, `
		INSERT INTO notification_deliveries (id, notification_id, order_id, type, channel, status, due_at, created_at)
		VALUES `+sqldb.Values(columns, len(args)/columns), args...)
	if err != nil {
		return fmt.Errorf("insert deliveries: %w", err)
	}
	return nil
}

// errLeaseLost says that a claimed row is another's by now, or settled.
var errLeaseLost = errors.New("lease lost")

// loadDelivery reads what a claim is to send.
func loadDelivery(ctx context.Context, db *sqldb.DB, c outbox.Claim) (delivery, error) {
	var d delivery
	var data, items string
	var total int64
	err := db.Read().QueryRowContext(ctx, `
		SELECT d.id, d.type, d.channel, d.created_at, n.data, c.order_id, c.order_number, c.name, c.email, c.phone, c.locale,
			c.total, c.currency, c.items, c.delivery_address
		FROM notification_deliveries d
		JOIN notifications n ON n.id = d.notification_id
		JOIN order_contacts c ON c.order_id = d.order_id
		WHERE d.id = $1 AND d.lease_token = $2`, c.ID, c.Token).
		Scan(&d.ID, &d.Type, &d.Channel, sqldb.Time(&d.CreatedAt), &data, &d.Order.ID, &d.Order.Number, &d.Order.Name,
			&d.Order.Email, &d.Order.Phone, &d.Order.Locale, &total, &d.Order.Currency, &items, &d.Order.Address)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return d, errLeaseLost
	case err == nil:
		d.Order.Total = event.Money(total)
		err = errors.Join(json.Unmarshal([]byte(data), &d.Payment), json.Unmarshal([]byte(items), &d.Order.Items))
	}
	if err != nil {
		return d, fmt.Errorf("load delivery: %w", err)
	}
	return d, nil
}

// A settlement is what an attempt made of a delivery.
type settlement struct {
	Status     Status
	DueAt      time.Time // of the next attempt, while pending
	SentAt     time.Time
	ProviderID string // the receiver's name for the message, "" if it gave none
	Error      string // why it was not sent, "" if it was
}

// settleDelivery records an attempt, provided that the claim still holds. One
// statement is a transaction of its own.
func settleDelivery(ctx context.Context, db *sqldb.DB, c outbox.Claim, s settlement) error {
	res, err := db.ExecContext(ctx, `
		UPDATE notification_deliveries
		SET status = $1, due_at = $2, lease_token = NULL, provider_message_id = $3, error = $4, sent_at = $5
		WHERE id = $6 AND lease_token = $7`,
		string(s.Status), sqldb.NullTime(s.DueAt), nullText(s.ProviderID), nullText(s.Error), sqldb.NullTime(s.SentAt), c.ID, c.Token)
	if err != nil {
		return fmt.Errorf("settle delivery: %w", err)
	}
	n, err := res.RowsAffected()
	if err == nil && n == 0 {
		return errLeaseLost
	}
	return err
}

func nullText(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// postpone gives a claim back that nothing was done about.
func postpone(ctx context.Context, db *sqldb.DB, c outbox.Claim, due time.Time) error {
	_, err := db.ExecContext(ctx, `
		UPDATE notification_deliveries SET due_at = $1, lease_token = NULL, attempts = attempts - 1
		WHERE id = $2 AND lease_token = $3`, due, c.ID, c.Token)
	if err != nil {
		return fmt.Errorf("postpone delivery: %w", err)
	}
	return nil
}
