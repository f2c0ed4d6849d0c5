package relay

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"pizzaflow/outbox/internal/store"
	"pizzaflow/sqldb"
)

// To rewind is to have published events published again, from a number on: their
// ranges are deleted and the low watermark is lowered, and the next term publishes
// them.

// errRewound ends a term after a rewind: the next term publishes the events again.
var errRewound = errors.New("events are to be published again")

// sinceSQL finds the first range that was published since a time. Its limit is
// higher than any number of ranges, and keeps PostgreSQL from a plan that reads all
// ranges in the order of their numbers.
const sinceSQL = `SELECT MIN(first_seq) FROM (
	SELECT first_seq FROM outbox_published WHERE published_at >= $1 ORDER BY published_at, first_seq LIMIT 9223372036854775807) recent`

// rewindSince rewinds to the first event that was published since
// Config.RepublishSince, once.
func (t *term) rewindSince(ctx context.Context) error {
	ctx = store.LongStatements(ctx)
	if t.republishSince.IsZero() {
		return nil
	}
	err := t.db.Tx(ctx, func(tx *sql.Tx) error {
		if err := t.lease.fence(ctx, tx); err != nil {
			return err
		}
		if err := store.UseIndexes(ctx, t.db, tx); err != nil {
			return fmt.Errorf("rewind: %w", err)
		}
		var first sql.NullInt64
		err := tx.QueryRowContext(ctx, sinceSQL, t.republishSince).Scan(&first)
		if err != nil {
			return fmt.Errorf("rewind: %w", err)
		}
		if !first.Valid {
			return nil
		}
		return store.Rewind(ctx, tx, first.Int64)
	})
	if err != nil {
		return err
	}
	t.cfg.Log.Warn("broker was not stopped cleanly: events are published again", "service", t.cfg.Service, "since", t.republishSince)
	t.republishSince = time.Time{}
	if t.cfg.Rewound != nil {
		t.cfg.Rewound()
	}
	return errRewound
}

// rewindAll rewinds to the first retained event, and stores the present ids of the
// topics.
func (t *term) rewindAll(ctx context.Context, found map[string]foundTopic) error {
	ctx = store.LongStatements(ctx)
	err := t.db.Tx(ctx, func(tx *sql.Tx) error {
		if err := t.lease.fence(ctx, tx); err != nil {
			return err
		}
		if err := store.Rewind(ctx, tx, 1); err != nil {
			return err
		}
		for topic, f := range found {
			if f.err != nil {
				continue
			}
			_, err := tx.ExecContext(ctx, `UPDATE outbox_topics SET cluster_id = $1, topic_id = $2, since = $3 WHERE topic = $4`,
				f.identity.cluster, f.identity.topic, sqldb.Now(), topic)
			if err != nil {
				return fmt.Errorf("remember topic: %w", err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return errRewound
}
