package notification

import (
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"pizzaflow/event"
	"pizzaflow/job"
	"pizzaflow/measure"
	"pizzaflow/sqldb"
)

// Schema is the set of the service's tables; its name is "notification".
//
//go:embed schema
var Schema embed.FS

// The statements over many rows; see sqldb.Insert and sqldb.Batch.
var (
	intoContacts = sqldb.Insert{
		Into:  `INSERT INTO order_contacts (order_id, name, email, phone, locale, order_number, total, currency, items, delivery_address, created_at)`,
		Types: `UUID, TEXT, TEXT, TEXT, TEXT, TEXT, BIGINT, TEXT, JSON, TEXT, TIMESTAMPTZ`,
		Then: `ON CONFLICT (order_id) DO UPDATE SET name = EXCLUDED.name, email = EXCLUDED.email, phone = EXCLUDED.phone,
			locale = EXCLUDED.locale, order_number = EXCLUDED.order_number, total = EXCLUDED.total, currency = EXCLUDED.currency,
			items = EXCLUDED.items, delivery_address = EXCLUDED.delivery_address`,
	}
	readContacts = sqldb.Batch{
		Columns: `oid UUID`,
		SQL:     `SELECT ` + contactColumns + ` FROM {rows} JOIN order_contacts c ON c.order_id = v.oid`,
	}
	// inserts a row without contacts, or locks the row that is there
	lockContacts = sqldb.Insert{
		Into:  `INSERT INTO order_contacts (order_id, created_at)`,
		Types: `UUID, TIMESTAMPTZ`,
		Then:  `ON CONFLICT (order_id) DO UPDATE SET created_at = order_contacts.created_at RETURNING ` + strings.ReplaceAll(contactColumns, "c.", ""),
	}
	intoNotifications = sqldb.Insert{
		Into:  `INSERT INTO notifications (id, order_id, type, status, data, created_at)`,
		Types: `UUID, UUID, TEXT, TEXT, JSON, TIMESTAMPTZ`,
		Then:  `ON CONFLICT (order_id, type) DO NOTHING RETURNING id`,
	}
	updateReleased = sqldb.Batch{
		Columns: `oid UUID`,
		SQL:     `UPDATE notifications SET status = 'ready' FROM {rows} WHERE order_id = v.oid AND status = 'waiting' RETURNING id, order_id, type, data`,
	}
	intoDeliveries = sqldb.Insert{
		Into:  `INSERT INTO notification_deliveries (id, notification_id, order_id, type, channel, status, created_at, due_at, lease_token, attempts)`,
		Types: `UUID, UUID, UUID, TEXT, TEXT, TEXT, TIMESTAMPTZ, CLOCK, TEXT, INTEGER`,
	}
	readLeased = sqldb.Batch{
		Columns: `did UUID, token TEXT`,
		SQL: `SELECT ` + contactColumns + `, d.id, d.type, d.channel, d.created_at, d.unknown_attempts, n.data
			FROM {rows}
			JOIN notification_deliveries d ON d.id = v.did AND d.lease_token = v.token
			JOIN notifications n ON n.id = d.notification_id
			JOIN order_contacts c ON c.order_id = d.order_id`,
	}
	updateAttempted = sqldb.Batch{
		Columns: `did UUID, token TEXT, new_status TEXT, due CLOCK, name TEXT, reason TEXT, sent TIMESTAMPTZ, unknown INTEGER`,
		SQL: `UPDATE notification_deliveries SET status = v.new_status, due_at = v.due, lease_token = NULL,
				provider_message_id = NULLIF(v.name, ''), error = NULLIF(v.reason, ''), sent_at = v.sent, unknown_attempts = v.unknown
			FROM {rows} WHERE id = v.did AND lease_token = v.token RETURNING id`,
	}
)

const contactColumns = `c.order_id, COALESCE(c.order_number, ''), COALESCE(c.name, ''), COALESCE(c.email, ''), COALESCE(c.phone, ''),
	COALESCE(c.locale, ''), COALESCE(c.total, 0), COALESCE(c.currency, ''), COALESCE(CAST(c.items AS TEXT), '[]'), COALESCE(c.delivery_address, '')`

// saveContacts stores the contacts of orders, and locks the orders' rows.
func saveContacts(ctx context.Context, tx *sql.Tx, db *sqldb.DB, all []order, now time.Time) error {
	rows := make([][]any, len(all))
	for i, o := range all {
		items, err := json.Marshal(o.Items)
		if err != nil {
			return fmt.Errorf("save contacts: %w", err)
		}
		rows[i] = []any{o.ID, o.Name, o.Email, o.Phone, o.Locale, o.Number, int64(o.Total), o.Currency, string(items), o.Address, now}
	}
	if _, err := intoContacts.Exec(ctx, db, tx, rows); err != nil {
		return fmt.Errorf("save contacts: %w", err)
	}
	return nil
}

// selectOrLockContacts returns the orders whose OrderCreated has arrived. It locks the rows of the
// other orders, and inserts those that are missing: of two transactions of one order
// the second waits here for the first, and then sees its rows. Without the lock
// neither would see the other's, and the notification would wait for ever.
func selectOrLockContacts(ctx context.Context, tx *sql.Tx, db *sqldb.DB, orderIDs []string, now time.Time) (map[string]order, error) {
	known := map[string]order{}
	got := func(rows *sql.Rows) error {
		var o order
		err := o.scan(rows)
		if o.Number != "" {
			known[o.ID] = o
		}
		return err
	}
	var rows, missing [][]any
	for _, id := range slices.Sorted(slices.Values(orderIDs)) {
		rows = append(rows, []any{id})
	}
	if err := readContacts.Query(ctx, db, tx, rows, got); err != nil {
		return nil, fmt.Errorf("read contacts: %w", err)
	}
	for _, row := range rows {
		if _, ok := known[row[0].(string)]; !ok {
			missing = append(missing, []any{row[0], now})
		}
	}
	if len(missing) > 0 {
		if err := lockContacts.Query(ctx, db, tx, missing, got); err != nil {
			return nil, fmt.Errorf("lock contacts: %w", err)
		}
	}
	return known, nil
}

// scan scans contactColumns, and the columns after them into more.
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

// insertNotifications stores the notifications that are not there yet, and returns
// them.
func insertNotifications(ctx context.Context, tx *sql.Tx, db *sqldb.DB, all []notification, now time.Time) (fresh []notification, err error) {
	rows := make([][]any, len(all))
	for i, n := range all {
		status := "ready"
		if n.waiting {
			status = "waiting"
		}
		data, err := json.Marshal(n.payment)
		if err != nil {
			return nil, fmt.Errorf("insert notifications: %w", err)
		}
		rows[i] = []any{n.id, n.orderID, string(n.typ), status, string(data), now}
	}
	stored := sqldb.IDs{}
	if err := intoNotifications.Query(ctx, db, tx, rows, stored.Add); err != nil {
		return nil, fmt.Errorf("insert notifications: %w", err)
	}
	for _, n := range all {
		if stored[n.id] {
			fresh = append(fresh, n)
		}
	}
	return fresh, nil
}

// releaseNotifications makes the notifications ready that have waited for the orders'
// contacts, and returns them.
func releaseNotifications(ctx context.Context, tx *sql.Tx, db *sqldb.DB, orders []order) (released []notification, err error) {
	rows := make([][]any, len(orders))
	for i, o := range orders {
		rows[i] = []any{o.ID}
	}
	err = updateReleased.Query(ctx, db, tx, rows, func(rows *sql.Rows) error {
		var n notification
		var data string
		if err := rows.Scan(&n.id, &n.orderID, &n.typ, &data); err != nil {
			return err
		}
		released = append(released, n)
		return json.Unmarshal([]byte(data), &released[len(released)-1].payment)
	})
	if err != nil {
		return nil, fmt.Errorf("release notifications: %w", err)
	}
	return released, nil
}

// insertDeliveries stores new deliveries, each with the lease of its channel.
func insertDeliveries(ctx context.Context, tx *sql.Tx, db *sqldb.DB, all []delivery, leases map[Channel]job.Lease) error {
	rows := make([][]any, len(all))
	for i, d := range all {
		l := leases[d.Channel]
		rows[i] = []any{
			d.ID, d.notification, d.Order.ID, string(d.Type), string(d.Channel), string(Pending), d.CreatedAt, l.DueIn.Microseconds(), l.Token, l.Attempts,
		}
	}
	if _, err := intoDeliveries.Exec(ctx, db, tx, rows); err != nil {
		return fmt.Errorf("insert deliveries: %w", err)
	}
	return nil
}

// countWaiting counts the deliveries that are not sent yet, by channel, up to one more
// than measure.Limit of those that are due first. The stored reason begins with the
// outcome of the last attempt.
func countWaiting(ctx context.Context, db *sql.DB) (map[Channel]tally, error) {
	tallies := map[Channel]tally{}
	for _, channel := range []Channel{Email, SMS} {
		var t tally
		var said time.Time
		err := db.QueryRowContext(ctx, `
			SELECT COUNT(*), COUNT(CASE WHEN error LIKE $1 THEN 1 END), MIN(created_at), `+sqldb.Clock+` FROM (
				SELECT error, created_at FROM notification_deliveries WHERE channel = $2 AND due_at IS NOT NULL ORDER BY due_at LIMIT $3) waiting`,
			string(Unknown)+": %", string(channel), measure.Limit+1).Scan(&t.rows, &t.unknown, sqldb.Time(&t.oldest), sqldb.Time(&said))
		if err != nil {
			return nil, fmt.Errorf("count waiting deliveries: %w", err)
		}
		t.clock = sqldb.NewReading(said)
		tallies[channel] = t
	}
	return tallies, nil
}

// A leasedDelivery is the delivery of a job, or job.ErrLeaseLost.
type leasedDelivery struct {
	delivery delivery
	err      error
}

// selectLeased reads the deliveries of jobs, in their order.
func selectLeased(ctx context.Context, db *sqldb.DB, jobs []job.Job) ([]leasedDelivery, error) {
	rows := make([][]any, len(jobs))
	for i, j := range jobs {
		rows[i] = []any{j.ID, j.Token}
	}
	byID := map[string]delivery{}
	err := readLeased.Query(ctx, db, db.Read(), rows, func(rows *sql.Rows) error {
		var d delivery
		var data string
		if err := d.Order.scan(rows, &d.ID, &d.Type, &d.Channel, sqldb.Time(&d.CreatedAt), &d.unknownAttempts, &data); err != nil {
			return err
		}
		err := json.Unmarshal([]byte(data), &d.Payment)
		byID[d.ID] = d
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read deliveries: %w", err)
	}
	all := make([]leasedDelivery, len(jobs))
	for i, j := range jobs {
		d, ok := byID[j.ID]
		if all[i].delivery = d; !ok {
			all[i].err = job.ErrLeaseLost
		}
	}
	return all, nil
}

// An update is what the result of an attempt makes of the delivery of a job.
type update struct {
	job        job.Job
	at         time.Time // of the result
	status     Status
	pause      time.Duration // before the next attempt while pending, else never
	providerID string        // the receiver's id of the message, "" if it gave none
	reason     string        // why the message was not sent, "" if it was

	unknownAttempts int // how many attempts so far were Unknown
}

// updateDeliveries stores updates and ends their leases. The result of each is nil,
// or job.ErrLeaseLost when the delivery was not leased to the job any more: then
// nothing is done.
func updateDeliveries(ctx context.Context, db *sqldb.DB, all []update) ([]error, error) {
	rows := make([][]any, len(all))
	for i, u := range all {
		var sentAt time.Time
		if u.status == Sent {
			sentAt = u.at
		}
		rows[i] = []any{u.job.ID, u.job.Token, string(u.status), sqldb.NullPause(u.pause), u.providerID, u.reason, sqldb.NullTime(sentAt), u.unknownAttempts}
	}
	var held sqldb.IDs
	run := func(q sqldb.Querier) error {
		held = sqldb.IDs{}
		return updateAttempted.Query(ctx, db, q, rows, held.Add)
	}
	var err error
	if db.Engine == sqldb.Postgres { // one statement is a transaction of its own, and saves two round trips
		err = run(db)
	} else {
		err = db.Tx(ctx, func(tx *sql.Tx) error { return run(tx) })
	}
	if err != nil {
		return nil, fmt.Errorf("update deliveries: %w", err)
	}
	results := make([]error, len(all))
	for i, u := range all {
		if !held[u.job.ID] {
			results[i] = job.ErrLeaseLost
		}
	}
	return results, nil
}
