package verify

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"time"

	"pizzaflow/sqldb"
)

// A source is a table of a service's database: a query, and how many columns it
// has. They are the evidence's, in their order.
type source struct {
	table   string
	columns int
	query   string
}

var sources = map[string][]source{
	"notification": {
		{"contacts", 1, `SELECT order_id FROM order_contacts WHERE order_number IS NOT NULL`},
		{"deliveries", 6, `SELECT id, order_id, type, channel, status, sent_at FROM notification_deliveries`},
	},
	"payment": {
		{"payments", 5, `SELECT id, order_id, status, version, completed_at FROM payments`},
		{"refunds", 3, `SELECT id, payment_id, status FROM refunds`},
	},
	"order": {
		{"orders", 10, `SELECT id, status, version, total_amount, currency, created_at, paid_at, payment_id, attention_reason,
			CASE WHEN customer_email LIKE '%@load.example' THEN 1 ELSE 0 END FROM orders`},
		{"keys", 2, `SELECT key, order_id FROM idempotency_keys`},
		{"items", 2, `SELECT order_id, CAST(SUM(quantity * price) AS BIGINT) FROM order_items GROUP BY order_id`},
		{"history", 3, `SELECT order_id, version, status FROM order_history`},
	},
}

// library are the tables that each service has from the outbox library.
func library(service string) []source {
	return []source{
		{"events", 11, `SELECT '` + service + `', o.seq, o.id, o.aggregate_id, o.aggregate_version, o.event_type, o.topic, CAST(o.event_data AS TEXT),
			CASE WHEN o.published_at IS NULL THEN 0 ELSE 1 END, CASE WHEN b.seq IS NULL THEN 0 ELSE 1 END, o.created_at
			FROM outbox o LEFT JOIN outbox_blocked b ON b.seq = o.seq`},
		{"inbox", 2, `SELECT consumer, event_id FROM inbox_events`},
		{"parked", 7, `SELECT consumer, event_id, state, topic, partition, record_offset, key FROM parked_records`},
	}
}

// copyDatabase copies what a service's database holds at one moment.
func (e *evidence) copyDatabase(ctx context.Context, service string, db *sqldb.DB) (err error) {
	options := &sql.TxOptions{ReadOnly: true, Isolation: sql.LevelRepeatableRead}
	if db.Engine == sqldb.SQLite {
		options = nil // reads there are of one moment, and that pool can do nothing else
	}
	tx, err := db.Read().BeginTx(ctx, options)
	if err != nil {
		return fmt.Errorf("read the database of %s: %w", service, err)
	}
	defer func() {
		if e := tx.Rollback(); e != nil && !errors.Is(e, sql.ErrTxDone) {
			err = errors.Join(err, e)
		}
	}()
	for _, s := range append(library(service), sources[service]...) {
		if err := e.copyTable(ctx, tx, s); err != nil {
			return fmt.Errorf("read the database of %s: %s: %w", service, s.table, err)
		}
	}
	return nil
}

func (e *evidence) copyTable(ctx context.Context, tx *sql.Tx, s source) error {
	rows, err := tx.QueryContext(ctx, s.query) //nolint:sqlclosecheck // it loses sight of them in the function below
	if err != nil {
		return err
	}
	defer rows.Close()
	return e.fill(ctx, s.table, s.columns, func(put func(...any) error) error {
		cells, into := make([]any, s.columns), make([]any, s.columns)
		for i := range cells {
			into[i] = &cells[i]
		}
		for rows.Next() {
			if err := rows.Scan(into...); err != nil {
				return err
			}
			for i, c := range cells {
				switch v := c.(type) {
				case time.Time:
					cells[i] = v.UnixMicro()
				case []byte:
					cells[i] = string(v)
				}
			}
			if s.table == "events" {
				cells[7] = sumOf(cells[7])
			}
			if err := put(cells...); err != nil {
				return err
			}
		}
		return rows.Err()
	})
}

// sumOf is what an event's data is known by; nil for a dead letter, which has
// none.
func sumOf(data any) any {
	text, ok := data.(string)
	if !ok {
		return nil
	}
	sum := sha256.Sum256([]byte(text))
	return sum[:16]
}

func closing(err error, c io.Closer) error { return errors.Join(err, c.Close()) }
