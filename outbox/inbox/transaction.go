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

// settleTimeout is for one transaction; a server that fell silent must not hold
// a worker for ever.
const transactionTimeout = 30 * time.Second

// settle brings every record of the batch to where its offset may be passed:
// handled, known already, or parked. Those that it gives up, because ctx has
// ended or their partitions were taken away, are left unsettled.
func (c *Consumer) processBatch(ctx context.Context, batch []*message) {
	// locks are taken in one order by all: two batches cannot wait for each other
	slices.SortFunc(batch, func(a, b *message) int { return strings.Compare(a.key, b.key) })
	c.processSorted(ctx, batch)
}

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
	case errors.Is(err, errBatchTooSlow), culprit == nil && len(batch) > 1: // or one of them spoils it for all: find out which
		half := len(batch) / 2
		c.processSorted(ctx, batch[:half])
		c.processSorted(ctx, batch[half:])
	default: // what was handled before it had no fault and no effect: once more without it
		bad := max(0, slices.Index(batch, culprit))
		c.processSorted(ctx, batch[:bad])
		c.parkFailed(ctx, batch[bad], err)
		c.processSorted(ctx, batch[bad+1:])
	}
}

// withoutRevoked returns the messages of the batch whose partitions are still
// assigned to this process.
func withoutRevoked(batch []*message) []*message {
	return slices.DeleteFunc(slices.Clone(batch), func(msg *message) bool { return msg.part.revoked.Load() })
}

// An outcome is what became of a record, as the metrics call it.
type outcome string

const (
	handled       outcome = "handled"
	duplicate     outcome = "duplicate"
	waiting       outcome = "waiting" // behind a parked record of its key
	retrying      outcome = "retrying"
	dead          outcome = "dead"
	producedAgain outcome = "again" // produced again while its event is parked or discarded: passed over
)

// try handles the batch in one transaction. It names the record whose handler
// failed, nil when the error is nobody's in particular.
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
			delete(fresh, msg.id) // one event twice in one batch
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
	if err != nil && ctx.Err() != nil && len(batch) > 1 { // the time that they share is up: none of them is to blame
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

// receive marks the batch's events in the inbox and returns those that were
// not there. What another transaction is handling right now is waited for.
func (c *Consumer) markInInbox(ctx context.Context, tx *outbox.Tx, batch []*message) (fresh map[string]bool, err error) {
	ids := make([]string, len(batch))
	for i, msg := range batch {
		ids[i] = msg.id
	}
	// one statement for any number of events
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

// settled tells the world what became of a record.
func (c *Consumer) conclude(msg *message, o outcome) {
	msg.processed = true
	c.metrics.count(msg, o)
	switch o {
	case retrying:
		select {
		case c.wakeRetries <- struct{}{}:
		default: // they are awake already
		}
	case handled:
		c.recordHandled(msg)
	}
}

// recordHandled logs a handled event and how long it took.
func (c *Consumer) recordHandled(msg *message) {
	took := time.Since(msg.startedAt)
	msg.sub.duration.Observe(took.Seconds())
	c.cfg.Log.LogAttrs(context.Background(), slog.LevelInfo, "Event processed",
		slog.String("event_id", msg.id), slog.String("event_type", msg.envelope.EventType),
		slog.Float64("processing_time_ms", float64(took.Microseconds())/1000),
		slog.String("consumer_group", c.cfg.Group), slog.Time("timestamp", sqldb.Now()))
}
