package inbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"pizzaflow/internal/crash"
	"pizzaflow/outbox"
	"pizzaflow/outbox/internal/store"
	"pizzaflow/sqldb"
)

// transactionTimeout bounds one transaction: a silent server must not hold a worker
// for ever.
const transactionTimeout = 30 * time.Second

// processBatch handles or parks every message of the batch and marks it as
// processed. Messages that are abandoned, because ctx ended or their partitions
// were revoked, stay unmarked. It sorts the batch by key.
func (c *Consumer) processBatch(ctx context.Context, batch []*message) {
	// all batches lock in the order of keys, so no two of them deadlock
	slices.SortFunc(batch, func(a, b *message) int { return strings.Compare(a.key, b.key) })
	c.processSorted(ctx, batch)
}

// processSorted is processBatch for a batch sorted by key. A batch that fails is
// split until the message that causes the error is alone; that one is parked.
func (c *Consumer) processSorted(ctx context.Context, batch []*message) {
	if len(batch) == 0 {
		return
	}
	var culprit *message
	timeouts := 0
	err := c.retryWhileUnavailable(ctx, func() bool { batch = withoutRevoked(batch); return len(batch) > 0 }, func() (err error) {
		culprit, err = c.handleBatch(ctx, batch)
		if sqldb.IsTimeout(err) && len(batch) > 1 {
			if timeouts++; timeouts == 3 {
				return fmt.Errorf("%w: %w", errBatchTooSlow, err)
			}
		}
		return err
	})
	switch {
	case err == nil || errors.Is(err, errAbandoned):
	case errors.Is(err, errBatchTooSlow), culprit == nil && len(batch) > 1: // any message may be the cause: split until it is known
		half := len(batch) / 2
		c.processSorted(ctx, batch[:half])
		c.processSorted(ctx, batch[half:])
	default: // the error undid the work of the others: handle them without the culprit
		bad := max(0, slices.Index(batch, culprit))
		c.processSorted(ctx, batch[:bad])
		c.parkFailed(ctx, batch[bad], err)
		c.processSorted(ctx, batch[bad+1:])
	}
}

// withoutRevoked returns the messages whose partitions are still assigned to this
// process.
func withoutRevoked(batch []*message) []*message {
	return slices.DeleteFunc(slices.Clone(batch), func(msg *message) bool { return msg.part.revoked.Load() })
}

// An outcome is what became of a message, as the metrics call it.
type outcome string

const (
	handled       outcome = "handled"
	duplicate     outcome = "duplicate"
	waiting       outcome = "waiting" // parked behind a record of its key
	retrying      outcome = "retrying"
	dead          outcome = "dead"
	producedAgain outcome = "again" // produced again while its event is parked or discarded: no effect
)

// handleBatch handles the batch in one transaction: it marks the events in the
// inbox, drops duplicates, parks messages behind parked ones of their key, and runs
// the handlers for the rest. On an error culprit is the message that caused it, nil
// when it may be any of several.
func (c *Consumer) handleBatch(ctx context.Context, batch []*message) (culprit *message, err error) {
	ctx, cancel := context.WithTimeout(ctx, transactionTimeout)
	defer cancel()
	outcomes := make([]outcome, len(batch))
	var reproduced []reproduction
	err = c.cfg.Outbox.Tx(ctx, func(tx *outbox.Tx) error {
		culprit = nil
		fresh, err := c.markInInbox(ctx, tx, batch)
		if err != nil {
			return err
		}
		parkedKeys, err := c.findParkedKeys(ctx, tx, batch)
		if err != nil {
			return err
		}
		toHandle := make([]*message, 0, len(batch))
		var followers, duplicates []*message
		for i, msg := range batch {
			switch {
			case !fresh[msg.id]:
				outcomes[i] = duplicate
				duplicates = append(duplicates, msg)
			case msg.rec.Key != nil && parkedKeys[msg.key]:
				outcomes[i] = waiting
				followers = append(followers, msg)
			default:
				outcomes[i] = handled
				toHandle = append(toHandle, msg)
			}
			delete(fresh, msg.id) // a second record of the event in this batch is a duplicate
		}
		if reproduced, err = c.reviewDuplicates(ctx, tx, duplicates); err != nil {
			return err
		}
		culprit, err = c.runHandlers(ctx, tx, toHandle)
		crash.Point("consumer: handled")
		if err != nil {
			return err
		}
		return c.parkInKeyOrder(ctx, tx, followers, parkedState{state: store.Waiting})
	})
	if err != nil && ctx.Err() != nil && len(batch) > 1 { // all messages share the timeout, so none is the culprit
		return nil, fmt.Errorf("%w: %w", errBatchTooSlow, err)
	}
	if err != nil {
		return culprit, err
	}
	crash.Point("consumer: committed")
	for _, r := range reproduced {
		outcomes[slices.Index(batch, r.msg)] = producedAgain
		c.logReproduced(r)
	}
	for i, msg := range batch {
		c.conclude(msg, outcomes[i])
	}
	return nil, nil
}

// markInInbox marks the events of the batch in the inbox and returns the ids that
// were not marked before. It waits for other transactions that mark the same ids.
func (c *Consumer) markInInbox(ctx context.Context, tx *outbox.Tx, batch []*message) (fresh map[string]bool, err error) {
	ids := make([]string, len(batch))
	for i, msg := range batch {
		ids[i] = msg.id
	}
	// one argument, so one statement text, for any number of events
	list, arg := `unnest($2::uuid[]) AS value`, any(ids)
	if c.db.Engine == sqldb.SQLite {
		list, arg = `json_each($2)`, `["`+strings.Join(ids, `","`)+`"]`
	}
	result, err := tx.QueryContext(ctx, `
		INSERT INTO inbox_events (consumer, event_id, handled_at) SELECT $1, value, `+sqldb.Clock+` FROM `+list+` WHERE true
		ON CONFLICT DO NOTHING RETURNING event_id`, c.cfg.Group, arg)
	if err != nil {
		return nil, fmt.Errorf("mark in inbox: %w", err)
	}
	defer result.Close()
	fresh = map[string]bool{}
	for result.Next() {
		var id string
		if err := result.Scan(&id); err != nil {
			return nil, fmt.Errorf("mark in inbox: %w", err)
		}
		fresh[id] = true
	}
	return fresh, result.Err()
}

// conclude marks a message as processed, counts its outcome, and wakes the retry
// loop when it is to be retried.
func (c *Consumer) conclude(msg *message, o outcome) {
	msg.processed = true
	c.metrics.count(msg, o)
	switch o {
	case retrying:
		select {
		case c.wakeRetries <- struct{}{}:
		default: // the retry loop is woken already
		}
	case handled:
		c.recordHandled(msg)
	}
}

// recordHandled logs a handled event and observes its duration.
func (c *Consumer) recordHandled(msg *message) {
	took := time.Since(msg.startedAt)
	msg.sub.duration.Observe(took.Seconds())
	c.cfg.Log.LogAttrs(context.Background(), slog.LevelInfo, "Event processed",
		slog.String("event_id", msg.id), slog.String("event_type", msg.envelope.EventType),
		slog.Float64("processing_time_ms", float64(took.Microseconds())/1000),
		slog.String("consumer_group", c.cfg.Group), slog.Time("timestamp", sqldb.Now()))
}
