package verify

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"pizzaflow/sqldb"
)

// tables are where the evidence is kept. Times are microseconds since 1970.
var tables = []string{
	`CREATE TABLE promised (key TEXT, order_id TEXT, total INTEGER)`,
	`CREATE TABLE orders (id TEXT PRIMARY KEY, status TEXT, version INTEGER, total INTEGER, currency TEXT, created_at INTEGER,
		paid_at INTEGER, payment_id TEXT, attention TEXT, loaded INTEGER)`, // loaded: by pizza load, which gives every order a key
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
	`CREATE TABLE dead (service TEXT, consumer TEXT, event_id TEXT, topic TEXT, place TEXT, failed_at INTEGER)`, // place: of the record, topic/partition/offset
	`CREATE TABLE letters (service TEXT, topic TEXT, consumer TEXT, place TEXT, failed_at INTEGER, sum BLOB, published INTEGER, created_at INTEGER)`,
	`CREATE TABLE posted (topic TEXT, sum BLOB)`, // the letters on the topics
	`CREATE TABLE records (topic TEXT, part INTEGER, pos INTEGER, key TEXT, event_id TEXT, type TEXT, version INTEGER, sum BLOB, at INTEGER,
		written INTEGER, early INTEGER)`, // at: the event's time; early: was there before the databases were read
	`CREATE TABLE partitions (topic TEXT, part INTEGER, first INTEGER, since INTEGER)`, // since: the time of its first record, where older ones are gone
	`CREATE TABLE charges (id TEXT PRIMARY KEY, order_id TEXT, status TEXT, amount INTEGER, currency TEXT, refunded INTEGER)`,
	`CREATE TABLE messages (channel TEXT, delivery_id TEXT)`,
	`CREATE TABLE channels (channel TEXT)`, // by which the sandbox receives
	`CREATE TABLE subscriptions (consumer TEXT, topic TEXT, type TEXT)`,
	// what is asked about is what was so a while before the evidence was collected
	`CREATE TABLE began (at INTEGER)`,
}

// indexes are made when the evidence is complete.
var indexes = []string{
	`CREATE INDEX history_order ON history (order_id)`, `CREATE INDEX events_id ON events (id)`, `CREATE INDEX events_aggregate ON events (aggregate)`,
	`CREATE INDEX records_event ON records (event_id)`, `CREATE INDEX records_key ON records (topic, key)`, `CREATE INDEX payments_order ON payments (order_id)`,
	`CREATE INDEX deliveries_order ON deliveries (order_id)`, `CREATE INDEX inbox_event ON inbox (event_id)`, `CREATE INDEX parked_event ON parked (event_id)`,
	`CREATE INDEX keys_order ON keys (order_id)`,
	`CREATE INDEX parked_place ON parked (topic, part, pos)`, `CREATE INDEX parked_key ON parked (topic, key)`,
	`CREATE INDEX letters_place ON letters (place)`, `CREATE INDEX posted_sum ON posted (sum)`,
	`CREATE INDEX charges_order ON charges (order_id)`, `CREATE INDEX messages_delivery ON messages (delivery_id)`,
	// since when a service has all rows of its events: those of the last week, and an
	// hour for what goes meanwhile, and all from its oldest on, and a minute for
	// clocks that differ; rows that are blocked stay behind when those around them go
	`CREATE TABLE kept AS SELECT e.service, CASE WHEN MIN(e.seq) = 1 THEN 0
		ELSE MIN(COALESCE(MIN(e.created_at) + 60000000, b.at), b.at - 7 * 86400000000 + 3600000000) END AS since
		FROM began b, (SELECT service, seq, created_at FROM events WHERE blocked = 0 UNION ALL VALUES ('order', NULL, NULL), ('payment', NULL, NULL), ('notification', NULL, NULL)) e GROUP BY e.service`,
	// where a key's first record stands
	`CREATE TABLE homes AS SELECT topic, key, part FROM
		(SELECT topic, key, part, ROW_NUMBER() OVER (PARTITION BY topic, key ORDER BY written, pos) AS n FROM records) WHERE n = 1`,
	`CREATE INDEX homes_key ON homes (topic, key)`,
	// keys of which an event first came in another partition; repetitions may stand
	// elsewhere: the topic has more partitions than it had
	`CREATE TABLE crossed AS SELECT r.topic, r.key, MIN(r.at) AS since, h.part AS home, MIN(r.part) FILTER (WHERE r.part <> h.part) AS lowest,
		MAX(r.part) FILTER (WHERE r.part <> h.part) AS highest, MAX(r.written) FILTER (WHERE r.part = h.part) AS stayed,
		MIN(r.written) FILTER (WHERE r.part <> h.part) AS went, 0 AS raised
		FROM (SELECT topic, key, part, at, written, ROW_NUMBER() OVER (PARTITION BY topic, key, event_id ORDER BY written) AS n FROM records WHERE key <> '') r
		JOIN homes h ON h.topic = r.topic AND h.key = r.key GROUP BY r.topic, r.key HAVING COUNT(*) FILTER (WHERE r.n = 1 AND r.part <> h.part) > 0`,
	`ANALYZE`,
}

// An evidence is the file with what was found.
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
	err = e.fill(ctx, "began", 1, func(put func(...any) error) error { return put(began.UnixMicro()) })
	if err == nil {
		err = e.fill(ctx, "subscriptions", 3, func(put func(...any) error) error {
			for _, s := range subscriptions {
				if err := put(s.consumer, s.topic, s.eventType); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err != nil {
		return nil, closing(err, db)
	}
	return e, nil
}

// fill puts rows into a table, all in one transaction.
func (e *evidence) fill(ctx context.Context, table string, columns int, from func(put func(...any) error) error) error {
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

// complete makes what was found quick to ask.
func (e *evidence) complete(ctx context.Context) error {
	for _, statement := range indexes {
		if _, err := e.db.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("keep evidence: %w", err)
		}
	}
	return e.tellRaised(ctx)
}
