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

// The relay remembers which topics its events went to, by the ids of topic and
// cluster. One that was deleted and created again, or whose cluster lost its
// data, is empty: then all events that are retained are published again, and
// the inboxes of the consumers see to it that nothing happens twice.

// errRewound says that events are to be published again: the next term does it.
var errRewound = errors.New("events are to be published again")

// sinceSQL finds the first range that was published since a time. The limit, which
// limits nothing, keeps PostgreSQL from looking through all in the order of their
// numbers.
const sinceSQL = `SELECT MIN(first_seq) FROM (
	SELECT first_seq FROM outbox_published WHERE published_at >= $1 ORDER BY published_at, first_seq LIMIT 9223372036854775807) recent`

// rewindSince has what was published since a time published again, once.
func (t *term) rewindSince(ctx context.Context) error {
	ctx = store.Patient(ctx)
	if t.again.IsZero() {
		return nil
	}
	err := t.db.Tx(ctx, func(tx *sql.Tx) error {
		if err := t.lease.holds(ctx, tx); err != nil {
			return err
		}
		if err := store.ByNumber(ctx, t.db, tx); err != nil {
			return fmt.Errorf("rewind: %w", err)
		}
		var first sql.NullInt64
		err := tx.QueryRowContext(ctx, sinceSQL, t.again).Scan(&first)
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
	t.cfg.Log.Warn("the broker was not stopped cleanly: events are published again", "service", t.cfg.Service, "since", t.again)
	t.again = time.Time{}
	if t.cfg.Rewound != nil {
		t.cfg.Rewound()
	}
	return errRewound
}

// rewindAll has everything that is retained published again, to topics that
// are remembered as they are now.
func (t *term) rewindAll(ctx context.Context, found map[string]foundTopic) error {
	ctx = store.Patient(ctx)
	err := t.db.Tx(ctx, func(tx *sql.Tx) error {
		if err := t.lease.holds(ctx, tx); err != nil {
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
