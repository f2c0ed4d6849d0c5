package verify

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"pizzaflow/sqldb"
)

// A source is a query to a service's database whose rows are copied to a table of the evidence, column by column.
type source struct {
	table   string
	columns int
	query   string
	finish  func(cells []any) // changes a row before it is stored; may be nil
}

// sources are the queries to the services' own tables.
var sources = map[string][]source{
	"notification": {
		{"contacts", 1, `SELECT order_id FROM order_contacts WHERE order_number IS NOT NULL`, nil},
		{"deliveries", 6, `SELECT id, order_id, type, channel, status, sent_at FROM notification_deliveries`, nil},
	},
	"payment": {
		{"payments", 5, `SELECT id, order_id, status, version, completed_at FROM payments`, nil},
		{"refunds", 3, `SELECT id, payment_id, status FROM refunds`, nil},
	},
	"order": {
		{"orders", 10, `SELECT id, status, version, total_amount, currency, created_at, paid_at, payment_id, attention_reason,
			CASE WHEN customer_email LIKE '%@load.example' THEN 1 ELSE 0 END FROM orders`, nil},
		{"keys", 2, `SELECT key, order_id FROM idempotency_keys`, nil},
		{"items", 2, `SELECT order_id, CAST(SUM(quantity * price) AS BIGINT) FROM order_items GROUP BY order_id`, nil},
		{"history", 3, `SELECT order_id, version, status FROM order_history`, nil},
	},
}

// outboxSources are the queries to the outbox's tables, which each service has.
func outboxSources(service string) []source {
	return []source{
		{"events", 11, `SELECT '` + service + `', o.seq, o.id, o.aggregate_id, o.aggregate_version, o.event_type, o.topic, CAST(o.event_data AS TEXT),
			CASE WHEN o.published_at IS NULL THEN 0 ELSE 1 END, CASE WHEN b.seq IS NULL THEN 0 ELSE 1 END, o.created_at
			FROM outbox o LEFT JOIN outbox_blocked b ON b.seq = o.seq`, finishEvent},
		{"dead_letters", 8, `SELECT '` + service + `', topic, value, key, CAST(headers AS TEXT), '', CASE WHEN published_at IS NULL THEN 0 ELSE 1 END, created_at
			FROM outbox WHERE event_data IS NULL`, finishDeadLetter},
		{"inbox", 2, `SELECT consumer, event_id FROM inbox_events`, nil},
		{"parked", 7, `SELECT consumer, event_id, state, topic, partition, record_offset, key FROM parked_records`, nil},
		{"dead", 6, `SELECT '` + service + `', consumer, event_id, topic, topic || '/' || partition || '/' || record_offset, last_failed_at
			FROM parked_records WHERE state = 'dead'`, nil},
	}
}

// tableTimeout is how long the copy of one table may take: longer than any table needs.
const tableTimeout = time.Hour

// copyDatabase copies a snapshot of a service's database.
func (e *evidence) copyDatabase(ctx context.Context, service string, db *sqldb.DB) (err error) {
	options := &sql.TxOptions{ReadOnly: true, Isolation: sql.LevelRepeatableRead}
	if db.Engine == sqldb.SQLite {
		options = nil // a read transaction there is a snapshot, and the pool allows no writes
	}
	tx, err := db.Read().BeginTx(sqldb.WithStatementTimeout(ctx, tableTimeout), options)
	if err != nil {
		return fmt.Errorf("read the database of %s: %w", service, err)
	}
	defer func() {
		if e := tx.Rollback(); e != nil && !errors.Is(e, sql.ErrTxDone) {
			err = errors.Join(err, e)
		}
	}()
	if db.Engine == sqldb.Postgres { // while rows that were sent ahead are copied the server sees an idle session
		if _, err := tx.ExecContext(ctx, `SET LOCAL idle_in_transaction_session_timeout = 0`); err != nil {
			return fmt.Errorf("read the database of %s: %w", service, err)
		}
	}
	for _, s := range append(outboxSources(service), sources[service]...) {
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
	return e.fill(ctx, s.table, s.columns, func(insert func(...any) error) error {
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
			if s.finish != nil {
				s.finish(cells)
			}
			if err := insert(cells...); err != nil {
				return err
			}
		}
		return rows.Err()
	})
}

// finishEvent replaces an event's data by its checksum. A dead letter, which is in the outbox as well, has no data.
func finishEvent(cells []any) {
	if data, ok := cells[7].(string); ok {
		sum := sha256.Sum256([]byte(data))
		cells[7] = sum[:16]
	}
}
