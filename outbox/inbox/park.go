package inbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"pizzaflow/internal/crash"
	"pizzaflow/outbox"
	"pizzaflow/outbox/internal/store"
	"pizzaflow/outbox/internal/wire"
	"pizzaflow/sqldb"
)

// A parkedState is what parked_records has of a record beside the record itself.
type parkedState struct {
	state    string        // one of store's
	attempts int           // that failed
	wait     time.Duration // until the retry is due
	err      error         // of the last attempt; nil for a record that waits
	failedAt time.Time     // zero for a record that waits
}

// afterFailure decides the state of a record after attempt number n failed: retrying,
// or dead when the error is permanent or n was the last attempt.
func (c *Consumer) afterFailure(n int, cause error) parkedState {
	s := parkedState{state: store.Retrying, attempts: n, err: cause, failedAt: sqldb.Now()}
	if classify(cause) == classPermanent || n >= c.cfg.Attempts {
		s.state = store.Dead
		return s
	}
	s.wait = c.retryDelay(n)
	return s
}

// retryDelay is how long a record waits after attempt number n.
func (c *Consumer) retryDelay(n int) time.Duration {
	delay := c.cfg.Delay * time.Duration(n)
	return delay + rand.N(delay/5+1) //nolint:gosec // jitter
}

// parkFailed parks a message whose handler failed, as retrying or dead, and marks it
// as processed: its offset may be committed. It waits until the message can be
// parked, because its offset must not be passed before; when ctx ends or the
// partition is revoked, the message stays unmarked.
func (c *Consumer) parkFailed(ctx context.Context, msg *message, cause error) {
	s := c.afterFailure(msg.attempt, cause)
	o := outcome("")
	err := c.retryWhileUnavailable(ctx, func() bool { return !msg.part.revoked.Load() }, func() error {
		err := c.park(ctx, msg, s, &o)
		if hook, ok := errors.AsType[*onDeadError](err); ok { // OnDead is called again after another attempt
			s = c.retryLastAttempt(s, hook)
			err = c.park(ctx, msg, s, &o)
		}
		if err != nil && classify(err) != classConflict {
			return Unavailable(err) // its offset must not be passed before it is parked
		}
		return err
	})
	if err != nil {
		return
	}
	crash.Point("parked: committed")
	c.conclude(msg, o)
	if o == outcome(s.state) {
		c.logFailure(msg, s)
	}
}

// park marks a message in the inbox and inserts it into parked_records, in one
// transaction, and sets o to its outcome. It does neither when the event is marked
// already. Behind a parked record of its key it waits, also when the state in s is another.
func (c *Consumer) park(ctx context.Context, msg *message, s parkedState, o *outcome) error {
	ctx, cancel := context.WithTimeout(ctx, transactionTimeout)
	defer cancel()
	return c.cfg.Outbox.Tx(ctx, func(tx *outbox.Tx) error {
		*o = duplicate
		fresh, err := c.markInInbox(ctx, tx, []*message{msg})
		if err != nil || !fresh[msg.id] {
			return err // another process handled or parked it
		}
		crash.Point("parked: marked")
		parkedKeys, err := c.findParkedKeys(ctx, tx, []*message{msg})
		if err != nil {
			return err
		}
		if parkedKeys[msg.key] { // another process parked a record of the key meanwhile
			s = parkedState{state: store.Waiting}
		}
		*o = outcome(s.state)
		if s.state == store.Dead {
			if err := c.writeDeadLetter(ctx, tx, msg, s); err != nil {
				return err
			}
		}
		return c.parkInKeyOrder(ctx, tx, []*message{msg}, s)
	})
}

// insertParked inserts one row into parked_records.
func (c *Consumer) insertParked(ctx context.Context, tx *outbox.Tx, msg *message, s parkedState) error {
	headers, err := json.Marshal(wire.Headers(msg.rec.Headers))
	if err != nil {
		return fmt.Errorf("park record: %w", err)
	}
	// the row of the same event is replaced if it was finished so long ago that the inbox forgot the event
	_, err = tx.ExecContext(ctx, `DELETE FROM parked_records WHERE consumer = $1 AND event_id = $2 AND state NOT IN `+store.OpenStates, c.cfg.Group, msg.id)
	if err != nil {
		return fmt.Errorf("park record: %w", err)
	}
	_, err = tx.ExecContext(ctx, `
		INSERT INTO parked_records (consumer, state, topic, partition, record_offset, key, key_hash, value, headers, event_id, event_type,
			attempts, due_at, error_class, error, first_failed_at, last_failed_at)
		VALUES ($1, $2, $3, $4, $5, $6, $16, $7, $8, $9, $10, $11, CASE WHEN $2 = 'retrying' THEN `+c.db.Later("$12")+` END, $13, $14, $15, $15)`,
		c.cfg.Group, s.state, msg.rec.Topic, msg.rec.Partition, msg.rec.Offset, store.NullBytes(msg.rec.Key), store.NullBytes(msg.rec.Value), string(headers),
		msg.id, store.Text(msg.envelope.EventType, 200), s.attempts, s.wait.Microseconds(), string(classify(s.err)), store.Reason(s.err), sqldb.NullTime(s.failedAt), store.KeyHash(msg.rec.Key))
	if err != nil {
		return fmt.Errorf("park record: %w", err)
	}
	return nil
}

// logFailure logs a failed attempt.
func (c *Consumer) logFailure(msg *message, s parkedState) {
	log := c.cfg.Log.Warn
	if s.state == store.Dead {
		log = c.cfg.Log.Error
	}
	log("event not handled", "consumer_group", c.cfg.Group, "event_id", msg.id, "event_type", msg.typeLabel(), "topic", msg.rec.Topic,
		"partition", msg.rec.Partition, "offset", msg.rec.Offset, "attempt", s.attempts, "state", s.state, "err", s.err)
}
