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
const settleTimeout = 30 * time.Second

// settle brings every record of the batch to where its offset may be passed:
// handled, known already, or parked. Those that it gives up, because ctx has
// ended or their partitions were taken away, are left unsettled.
func (c *Consumer) settle(ctx context.Context, batch []*inbound) {
	// locks are taken in one order by all: two batches cannot wait for each other
	slices.SortFunc(batch, func(a, b *inbound) int { return strings.Compare(a.key, b.key) })
	c.settleSorted(ctx, batch)
}

func (c *Consumer) settleSorted(ctx context.Context, batch []*inbound) {
	if len(batch) == 0 {
		return
	}
	var culprit *inbound
	timeouts := 0
	err := c.insist(ctx, present(&batch), func() (err error) {
		culprit, err = c.try(ctx, batch)
		if sqldb.IsTimeout(err) && len(batch) > 1 {
			if timeouts++; timeouts == 3 {
				return fmt.Errorf("%w: %w", errTooMuch, err)
			}
		}
		return err
	})
	switch {
	case err == nil || errors.Is(err, errGivenUp):
	case errors.Is(err, errTooMuch), culprit == nil && len(batch) > 1: // or one of them spoils it for all: find out which
		half := len(batch) / 2
		c.settleSorted(ctx, batch[:half])
		c.settleSorted(ctx, batch[half:])
	default: // what was handled before it had no fault and no effect: once more without it
		bad := max(0, slices.Index(batch, culprit))
		c.settleSorted(ctx, batch[:bad])
		c.setAside(ctx, batch[bad], err)
		c.settleSorted(ctx, batch[bad+1:])
	}
}

// present drops from a batch what is no longer this process's, and reports
// whether anything is left.
func present(batch *[]*inbound) func() bool {
	return func() bool {
		*batch = slices.DeleteFunc(slices.Clone(*batch), func(in *inbound) bool { return in.part.gone.Load() })
		return len(*batch) > 0
	}
}

// An outcome is what became of a record, as the metrics call it.
type outcome string

const (
	handled   outcome = "handled"
	duplicate outcome = "duplicate"
	waiting   outcome = "waiting" // behind a parked record of its key
	retrying  outcome = "retrying"
	dead      outcome = "dead"
	again     outcome = "again" // produced again while its event is parked or discarded: passed over
)

// try handles the batch in one transaction. It names the record whose handler
// failed, nil when the error is nobody's in particular.
func (c *Consumer) try(ctx context.Context, batch []*inbound) (culprit *inbound, err error) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	outcomes := make([]outcome, len(batch))
	var repeats []repeat
	err = c.cfg.Outbox.Tx(ctx, func(tx *outbox.Tx) error {
		culprit = nil
		fresh, err := c.receive(ctx, tx, batch)
		if err != nil {
			return err
		}
		parkedKeys, err := c.parkedKeys(ctx, tx, batch)
		if err != nil {
			return err
		}
		todo := make([]*inbound, 0, len(batch))
		var behind, known []*inbound
		for i, in := range batch {
			switch {
			case !fresh[in.id]:
				outcomes[i] = duplicate
				known = append(known, in)
			case in.rec.Key != nil && parkedKeys[in.key]:
				outcomes[i] = waiting
				behind = append(behind, in)
			default:
				outcomes[i] = handled
				todo = append(todo, in)
			}
			delete(fresh, in.id) // one event twice in one batch
		}
		if repeats, err = c.again(ctx, tx, known); err != nil {
			return err
		}
		culprit, err = c.handle(ctx, tx, todo)
		crash.Point("consumer: handled")
		if err != nil {
			return err
		}
		return c.parkInTurn(ctx, tx, behind, parkedState{state: store.Waiting})
	})
	if err != nil && ctx.Err() != nil && len(batch) > 1 { // the time that they share is up: none of them is to blame
		return nil, fmt.Errorf("%w: %w", errTooMuch, err)
	}
	if err != nil {
		return culprit, err
	}
	crash.Point("consumer: committed")
	for _, r := range repeats {
		outcomes[slices.Index(batch, r.in)] = again
		c.passedOver(r)
	}
	for i, in := range batch {
		c.settled(in, outcomes[i])
	}
	return nil, nil
}

// settled tells the world what became of a record.
func (c *Consumer) settled(in *inbound, o outcome) {
	in.settled = true
	c.metrics.count(in, o)
	switch o {
	case retrying:
		select {
		case c.parked <- struct{}{}:
		default:
		}
	case handled:
		took := time.Since(in.began)
		in.sub.took.Observe(took.Seconds())
		c.cfg.Log.LogAttrs(context.Background(), slog.LevelInfo, "Event processed",
			slog.String("event_id", in.id), slog.String("event_type", in.msg.EventType),
			slog.Float64("processing_time_ms", float64(took.Microseconds())/1000),
			slog.String("consumer_group", c.cfg.Group), slog.Time("timestamp", sqldb.Now()))
	}
}

// eventType is the type as a metric's label: only what is subscribed to, so
// that strangers cannot make up labels.
func (in *inbound) eventType() string {
	if in.sub == nil {
		return "other"
	}
	return in.msg.EventType
}

// receive marks the batch's events in the inbox and returns those that were
// not there. What another transaction is handling right now is waited for.
func (c *Consumer) receive(ctx context.Context, tx *outbox.Tx, batch []*inbound) (fresh map[string]bool, err error) {
	ids := make([]string, len(batch))
	for i, in := range batch {
		ids[i] = in.id
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

// setAside parks a record that could not be handled: to be tried again, or dead
// at once when no retry will cure it. With its mark in the inbox it is settled
// as far as its partition is concerned.
func (c *Consumer) setAside(ctx context.Context, in *inbound, cause error) {
	s := c.afterFailure(in.attempt, cause)
	o := outcome("")
	err := c.insist(ctx, present(&[]*inbound{in}), func() error {
		err := c.park(ctx, in, s, &o)
		if hook, ok := errors.AsType[*hookError](err); ok { // it will be told again
			s = c.undecided(s, hook)
			err = c.park(ctx, in, s, &o)
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
	c.settled(in, o)
	if o == outcome(s.state) {
		c.failed(in, s)
	}
}

// park writes a record among the parked ones, unless it is settled already.
func (c *Consumer) park(ctx context.Context, in *inbound, s parkedState, o *outcome) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	return c.cfg.Outbox.Tx(ctx, func(tx *outbox.Tx) error {
		*o = duplicate
		fresh, err := c.receive(ctx, tx, []*inbound{in})
		if err != nil || !fresh[in.id] {
			return err // another process was faster
		}
		crash.Point("parked: marked")
		parkedKeys, err := c.parkedKeys(ctx, tx, []*inbound{in})
		if err != nil {
			return err
		}
		if parkedKeys[in.key] { // put there by another process meanwhile
			s = parkedState{state: store.Waiting}
		}
		*o = outcome(s.state)
		if err := c.bury(ctx, tx, in, s); err != nil {
			return err
		}
		return c.parkInTurn(ctx, tx, []*inbound{in}, s)
	})
}

// failed says in the log that an attempt came to nothing.
func (c *Consumer) failed(in *inbound, s parkedState) {
	log := c.cfg.Log.Warn
	if s.state == store.Dead {
		log = c.cfg.Log.Error
	}
	log("event not handled", "consumer_group", c.cfg.Group, "event_id", in.id, "event_type", in.eventType(), "topic", in.rec.Topic,
		"partition", in.rec.Partition, "offset", in.rec.Offset, "attempt", s.attempts, "state", s.state, "err", s.err)
}
