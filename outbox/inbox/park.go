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

// A parkedState is what is known of a parked record beside the record itself.
type parkedState struct {
	state    string
	attempts int
	wait     time.Duration // until a retry is due
	err      error
	failedAt time.Time
}

// afterFailure decides what becomes of a record after attempt number n.
func (c *Consumer) afterFailure(n int, cause error) parkedState {
	s := parkedState{state: store.Retrying, attempts: n, err: cause, failedAt: sqldb.Now()}
	if classify(cause) == classPermanent || n >= c.cfg.Attempts {
		s.state = store.Dead
		return s
	}
	s.wait = c.retryDelay(n)
	return s
}

// waitAfter is how long a record waits after attempt number n.
func (c *Consumer) retryDelay(n int) time.Duration {
	delay := c.cfg.Delay * time.Duration(n)
	return delay + rand.N(delay/5+1) //nolint:gosec // jitter
}

// setAside parks a record that could not be handled: to be tried again, or dead
// at once when no retry will cure it. With its mark in the inbox it is settled
// as far as its partition is concerned.
func (c *Consumer) parkFailed(ctx context.Context, msg *message, cause error) {
	s := c.afterFailure(msg.attempt, cause)
	o := outcome("")
	err := c.retryWhileUnavailable(ctx, func() bool { return !msg.part.revoked.Load() }, func() error {
		err := c.park(ctx, msg, s, &o)
		if hook, ok := errors.AsType[*onDeadError](err); ok { // it will be told again
			s = c.retryLastAttempt(s, hook)
			err = c.park(ctx, msg, s, &o)
		}
		if err != nil && classify(err) != classConflict {
			return Unavailable(err) // what cannot be parked must not be passed: wait until it can
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

// park writes a record among the parked ones, unless it is settled already.
func (c *Consumer) park(ctx context.Context, msg *message, s parkedState, o *outcome) error {
	ctx, cancel := context.WithTimeout(ctx, transactionTimeout)
	defer cancel()
	return c.cfg.Outbox.Tx(ctx, func(tx *outbox.Tx) error {
		*o = duplicate
		fresh, err := c.markInInbox(ctx, tx, []*message{msg})
		if err != nil || !fresh[msg.id] {
			return err // another process was faster
		}
		crash.Point("parked: marked")
		parkedKeys, err := c.findParkedKeys(ctx, tx, []*message{msg})
		if err != nil {
			return err
		}
		if parkedKeys[msg.key] { // put there by another process meanwhile
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

func (c *Consumer) insertParked(ctx context.Context, tx *outbox.Tx, msg *message, s parkedState) error {
	headers, err := json.Marshal(wire.Headers(msg.rec.Headers))
	if err != nil {
		return fmt.Errorf("park record: %w", err)
	}
	// one that was done so long ago that the inbox has forgotten it makes way
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

// failed says in the log that an attempt came to nothing.
func (c *Consumer) logFailure(msg *message, s parkedState) {
	log := c.cfg.Log.Warn
	if s.state == store.Dead {
		log = c.cfg.Log.Error
	}
	log("event not handled", "consumer_group", c.cfg.Group, "event_id", msg.id, "event_type", msg.typeLabel(), "topic", msg.rec.Topic,
		"partition", msg.rec.Partition, "offset", msg.rec.Offset, "attempt", s.attempts, "state", s.state, "err", s.err)
}
