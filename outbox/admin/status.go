package admin

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"pizzaflow/outbox/internal/store"
	"pizzaflow/sqldb"
)

// A Status says how the publishing of one database stands.
type Status struct {
	Holder         string            `json:"holder"`  // the relay that holds the lease; "" when none leads
	Epoch          int64             `json:"epoch"`   // counts terms
	Renewal        int64             `json:"renewal"` // counts up while the holder lives
	Floor          int64             `json:"floor"`   // the low watermark: every event up to here is published, blocked or skipped
	Unpublished    int64             `json:"unpublished"`
	OldestWaiting  time.Time         `json:"oldest_unpublished,omitzero"`
	OldestRetained time.Time         `json:"oldest_retained,omitzero"`
	Blocked        int64             `json:"blocked"`
	Skipped        int64             `json:"skipped"`
	Paused         []PausedPartition `json:"refused"`
}

// A PausedPartition is a topic, or a partition of one, that does not take events
// now: the relay tries it again, and keeps its events waiting.
type PausedPartition struct {
	Name    string    `json:"lane"` // unique: the topic, or the topic and a partition
	Topic   string    `json:"topic"`
	Waiting int64     `json:"waiting"`
	Reason  string    `json:"reason"`
	Since   time.Time `json:"since"`
	TriedAt time.Time `json:"tried_at"`
}

// Status reads the state of publishing, all of it at one moment. It counts every
// unpublished event, so it may take long where many are.
func (o *Operator) Status(ctx context.Context) (s Status, err error) {
	ctx = store.LongStatements(ctx)
	tx, err := store.Snapshot(ctx, o.db)
	if err != nil {
		return Status{}, fmt.Errorf("outbox status: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // it has changed nothing
	err = tx.QueryRowContext(ctx, `SELECT holder, epoch, renewal, floor FROM outbox_lease WHERE id = 1`).Scan(&s.Holder, &s.Epoch, &s.Renewal, &s.Floor)
	if err != nil {
		return Status{}, fmt.Errorf("read lease: %w", err)
	}
	unpublished, err := store.CountUnpublished(ctx, tx, s.Floor, store.MaxSeq)
	if err != nil {
		return Status{}, err
	}
	s.Unpublished, s.OldestWaiting = unpublished.Events, unpublished.Oldest
	err = tx.QueryRowContext(ctx, `SELECT COUNT(*) - COUNT(skipped_at), COUNT(skipped_at) FROM outbox_blocked`).Scan(&s.Blocked, &s.Skipped)
	if err != nil {
		return Status{}, fmt.Errorf("count blocked: %w", err)
	}
	err = tx.QueryRowContext(ctx, `SELECT created_at FROM outbox_events ORDER BY seq LIMIT 1`).Scan(sqldb.Time(&s.OldestRetained))
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return Status{}, fmt.Errorf("read oldest event: %w", err)
	}
	s.Paused, err = pausedPartitions(ctx, tx)
	return s, err
}

func pausedPartitions(ctx context.Context, tx *sql.Tx) ([]PausedPartition, error) {
	rows, err := tx.QueryContext(ctx, `SELECT lane, topic, waiting, reason, since, tried_at FROM outbox_lanes ORDER BY lane`)
	if err != nil {
		return nil, fmt.Errorf("read paused partitions: %w", err)
	}
	defer rows.Close()
	paused := []PausedPartition{}
	for rows.Next() {
		var p PausedPartition
		if err := rows.Scan(&p.Name, &p.Topic, &p.Waiting, &p.Reason, sqldb.Time(&p.Since), sqldb.Time(&p.TriedAt)); err != nil {
			return nil, fmt.Errorf("read paused partitions: %w", err)
		}
		paused = append(paused, p)
	}
	return paused, rows.Err()
}

// aliveWithin is how long the holder of the lease may take to count its renewal
// up: the TTL of the lease, within which a relay renews four times, and some time
// for a busy machine.
const aliveWithin = 2500 * time.Millisecond

// Alive reports whether a relay holds the lease and renews it: true as soon as it
// sees a renewal, false after 2.5 s without one, and false at once when no relay
// holds the lease.
func (o *Operator) Alive(ctx context.Context) (bool, error) {
	type state struct {
		holder         string
		epoch, renewal int64
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var first state
	for began := time.Now(); ; {
		var s state
		err := o.db.Read().QueryRowContext(ctx, `SELECT holder, epoch, renewal FROM outbox_lease WHERE id = 1`).Scan(&s.holder, &s.epoch, &s.renewal)
		switch {
		case err != nil:
			return false, fmt.Errorf("read lease: %w", err)
		case s.holder == "":
			return false, nil
		case first == state{}:
			first = s
		case s != first:
			return true, nil
		case time.Since(began) > aliveWithin:
			return false, nil
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-tick.C:
		}
	}
}
