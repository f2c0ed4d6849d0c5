package verify

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"pizzaflow/sqldb"
)

// tables hold the evidence. Times are microseconds since 1970; a position is topic/partition/offset of a record.
var tables = []string{
	`CREATE TABLE promised (key TEXT, order_id TEXT, total INTEGER)`,
	`CREATE TABLE orders (id TEXT PRIMARY KEY, status TEXT, version INTEGER, total INTEGER, currency TEXT, created_at INTEGER,
		paid_at INTEGER, payment_id TEXT, attention TEXT, loaded INTEGER)`, // loaded: placed by pizza load, which gives every order a key
	`CREATE TABLE keys (key TEXT PRIMARY KEY, order_id TEXT)`,
	`CREATE TABLE items (order_id TEXT PRIMARY KEY, total INTEGER)`,
	`CREATE TABLE history (order_id TEXT, version INTEGER, status TEXT)`,
	`CREATE TABLE payments (id TEXT PRIMARY KEY, order_id TEXT, status TEXT, version INTEGER, ended_at INTEGER)`,
	`CREATE TABLE refunds (id TEXT PRIMARY KEY, payment_id TEXT, status TEXT)`,
	`CREATE TABLE contacts (order_id TEXT PRIMARY KEY)`,
	`CREATE TABLE deliveries (id TEXT PRIMARY KEY, order_id TEXT, type TEXT, channel TEXT, status TEXT, sent_at INTEGER)`,
	`CREATE TABLE events (service TEXT, seq INTEGER, id TEXT, aggregate TEXT, version INTEGER, type TEXT, topic TEXT, sum BLOB,
		published INTEGER, blocked INTEGER, created_at INTEGER)`,
	`CREATE TABLE inbox (consumer TEXT, event_id TEXT)`,
	`CREATE TABLE parked (consumer TEXT, event_id TEXT, state TEXT, topic TEXT, part INTEGER, pos INTEGER, key TEXT)`,
	`CREATE TABLE dead (service TEXT, consumer TEXT, event_id TEXT, topic TEXT, position TEXT, failed_at INTEGER)`,
	// dead letters in the outboxes, and on their topics
	`CREATE TABLE dead_letters (service TEXT, topic TEXT, consumer TEXT, position TEXT, failed_at INTEGER, sum BLOB, published INTEGER, created_at INTEGER)`,
	`CREATE TABLE dlq_records (topic TEXT, sum BLOB)`,
	`CREATE TABLE records (topic TEXT, part INTEGER, pos INTEGER, key TEXT, event_id TEXT, type TEXT, version INTEGER, sum BLOB, at INTEGER,
		written INTEGER, before_snapshot INTEGER)`, // at: the event's time; before_snapshot: 1 if the record was there before the databases were read
	`CREATE TABLE partitions (topic TEXT, part INTEGER, first INTEGER, retained_since INTEGER)`, // retained_since: the first record's time, 0 if none was deleted before it
	`CREATE TABLE charges (id TEXT PRIMARY KEY, order_id TEXT, status TEXT, amount INTEGER, currency TEXT, refunded INTEGER)`,
	`CREATE TABLE messages (channel TEXT, delivery_id TEXT)`,
	`CREATE TABLE channels (channel TEXT)`, // whose messages the sandbox receives
	`CREATE TABLE subscriptions (consumer TEXT, topic TEXT, type TEXT)`,
	`CREATE TABLE began (at INTEGER)`, // when the collection began
}

// derived are the indexes and the tables that are made when the evidence is complete.
var derived = []string{
	`CREATE INDEX history_order ON history (order_id)`, `CREATE INDEX events_id ON events (id)`, `CREATE INDEX events_aggregate ON events (aggregate)`,
	`CREATE INDEX records_event ON records (event_id)`, `CREATE INDEX records_key ON records (topic, key)`, `CREATE INDEX payments_order ON payments (order_id)`,
	`CREATE INDEX deliveries_order ON deliveries (order_id)`, `CREATE INDEX inbox_event ON inbox (event_id)`, `CREATE INDEX parked_event ON parked (event_id)`,
	`CREATE INDEX keys_order ON keys (order_id)`,
	`CREATE INDEX parked_position ON parked (topic, part, pos)`, `CREATE INDEX parked_key ON parked (topic, key)`,
	`CREATE INDEX dead_letters_position ON dead_letters (position)`, `CREATE INDEX dlq_records_sum ON dlq_records (sum)`,
	`CREATE INDEX charges_order ON charges (order_id)`, `CREATE INDEX messages_delivery ON messages (delivery_id)`,
	// Since when a service has all rows of its events. With its first event it has all; else it has those of the last week,
	// less an hour for rows that are pruned during the collection, and those from its oldest row on, less a minute for clocks
	// that differ. Blocked rows do not count, because they outlive their neighbours.
	`CREATE TABLE retained AS SELECT e.service, CASE WHEN MIN(e.seq) = 1 THEN 0
		ELSE MIN(COALESCE(MIN(e.created_at) + 60000000, b.at), b.at - 7 * 86400000000 + 3600000000) END AS since
		FROM began b, (SELECT service, seq, created_at FROM events WHERE blocked = 0 UNION ALL VALUES ('order', NULL, NULL), ('payment', NULL, NULL), ('notification', NULL, NULL)) e GROUP BY e.service`,
	// the partition that has a key's first record
	`CREATE TABLE first_partitions AS SELECT topic, key, part FROM
		(SELECT topic, key, part, ROW_NUMBER() OVER (PARTITION BY topic, key ORDER BY written, pos) AS n FROM records) WHERE n = 1`,
	`CREATE INDEX first_partitions_key ON first_partitions (topic, key)`,
	// Keys with an event whose first record is in another partition than the key's first record. Repetitions may be in
	// other partitions, when the topic was given more of them.
	`CREATE TABLE keys_in_two_partitions AS SELECT r.topic, r.key, MIN(r.at) AS since, f.part AS first_part, MIN(r.part) FILTER (WHERE r.part <> f.part) AS lowest_other,
		MAX(r.part) FILTER (WHERE r.part <> f.part) AS highest_other, MAX(r.written) FILTER (WHERE r.part = f.part) AS last_in_first,
		MIN(r.written) FILTER (WHERE r.part <> f.part) AS first_in_other, 0 AS repartitioned
		FROM (SELECT topic, key, part, at, written, ROW_NUMBER() OVER (PARTITION BY topic, key, event_id ORDER BY written) AS n FROM records WHERE key <> '') r
		JOIN first_partitions f ON f.topic = r.topic AND f.key = r.key GROUP BY r.topic, r.key HAVING COUNT(*) FILTER (WHERE r.n = 1 AND r.part <> f.part) > 0`,
	`ANALYZE`,
}

// An evidence is the SQLite file with the evidence.
type evidence struct{ db *sqldb.DB }

func newEvidence(ctx context.Context, dir string, began time.Time) (_ *evidence, err error) {
	db, err := sqldb.Open(ctx, "sqlite:"+filepath.Join(dir, "evidence.db"))
	if err != nil {
		return nil, fmt.Errorf("keep evidence: %w", err)
	}
	e := &evidence{db}
	for _, statement := range tables {
		if _, err := db.ExecContext(ctx, statement); err != nil {
			return nil, fmt.Errorf("keep evidence: %w", closing(err, db))
		}
	}
	err = fillFrom(ctx, e, "began", []int64{began.UnixMicro()}, func(at int64) []any { return []any{at} })
	if err == nil {
		err = fillFrom(ctx, e, "subscriptions", subscriptions, func(s subscription) []any { return []any{s.consumer, s.topic, s.eventType} })
	}
	if err != nil {
		return nil, closing(err, db)
	}
	return e, nil
}

func closing(err error, c io.Closer) error { return errors.Join(err, c.Close()) }

// fill inserts the rows that from passes to insert, all in one transaction.
func (e *evidence) fill(ctx context.Context, table string, columns int, from func(insert func(...any) error) error) error {
	return e.db.Tx(ctx, func(tx *sql.Tx) error {
		stmt, err := tx.PrepareContext(ctx, `INSERT INTO `+table+` VALUES (`+sqldb.List(1, columns)+`)`) //nolint:sqlclosecheck // it loses sight of it in the function below
		if err != nil {
			return fmt.Errorf("keep evidence: %w", err)
		}
		err = from(func(row ...any) error {
			if _, err := stmt.ExecContext(ctx, row...); err != nil {
				return fmt.Errorf("keep evidence of %s: %w", table, err)
			}
			return nil
		})
		return errors.Join(err, stmt.Close())
	})
}

// fillFrom inserts a row for each item of the list.
func fillFrom[T any](ctx context.Context, e *evidence, table string, list []T, row func(T) []any) error {
	var none T
	return e.fill(ctx, table, len(row(none)), func(insert func(...any) error) error {
		for _, item := range list {
			if err := insert(row(item)...); err != nil {
				return err
			}
		}
		return nil
	})
}

// complete makes the indexes and the derived tables.
func (e *evidence) complete(ctx context.Context) error {
	for _, statement := range derived {
		if _, err := e.db.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("keep evidence: %w", err)
		}
	}
	return e.markRepartitioned(ctx)
}
