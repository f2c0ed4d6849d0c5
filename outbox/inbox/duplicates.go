package inbox

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"time"

	"pizzaflow/outbox"
	"pizzaflow/outbox/internal/store"
	"pizzaflow/sqldb"
)

// refreshAfter is how old a mark in the inbox must be for a duplicate to refresh it:
// rereading a whole topic must not write every row.
const refreshAfter = 24 * time.Hour

// A reproduction is a record whose event is parked already as another record, and
// which has no effect.
type reproduction struct {
	msg     *message // the new record
	seq     int64    // of the parked record, as are the next four
	state   string
	topic   string
	part    int32
	offset  int64
	changed bool // the values differ
}

// reviewDuplicates refreshes the marks of duplicates in the inbox, so that events
// that still come are not forgotten, and returns the reproductions among them.
func (c *Consumer) reviewDuplicates(ctx context.Context, tx *outbox.Tx, msgs []*message) (reproduced []reproduction, err error) {
	if len(msgs) == 0 {
		return nil, nil
	}
	ids := make([]string, len(msgs))
	for i, msg := range msgs {
		ids[i] = msg.id
	}
	if err := c.refreshMarks(ctx, tx, ids); err != nil {
		return nil, err
	}
	return c.findReproduced(ctx, tx, msgs, ids)
}

// refreshMarks sets the time of old marks in the inbox to now. On SQLite the rows
// move to the end of the table, which stays in the order of their time.
func (c *Consumer) refreshMarks(ctx context.Context, tx *outbox.Tx, ids []string) error {
	old := c.db.Later("$3")
	among, list := c.eventIDCondition(2, ids)
	statement := `UPDATE inbox_events SET handled_at = ` + sqldb.Clock + ` WHERE consumer = $1 AND event_id ` + among + ` AND handled_at < ` + old
	if c.db.Engine == sqldb.SQLite {
		statement = `INSERT OR REPLACE INTO inbox_events (consumer, event_id, handled_at)
			SELECT consumer, event_id, ` + sqldb.Clock + ` FROM inbox_events WHERE consumer = $1 AND event_id ` + among + ` AND handled_at < ` + old
	}
	if _, err := tx.ExecContext(ctx, statement, c.cfg.Group, list, -refreshAfter.Microseconds()); err != nil {
		return fmt.Errorf("refresh marks in inbox: %w", err)
	}
	return nil
}

// findReproduced returns the duplicates that somebody, or a relay, produced again as
// new records without effect: their event is dead or discarded, or their value
// differs from the parked one that will be retried.
func (c *Consumer) findReproduced(ctx context.Context, tx *outbox.Tx, msgs []*message, ids []string) (reproduced []reproduction, err error) {
	among, list := c.eventIDCondition(2, ids)
	rows, err := tx.QueryContext(ctx, `
		SELECT event_id, seq, state, topic, partition, record_offset FROM parked_records
		WHERE consumer = $1 AND event_id `+among+` AND state <> 'handled'`, c.cfg.Group, list)
	parked := map[string]reproduction{}
	_, err = sqldb.ReadAll(rows, err, func(rows *sql.Rows) (r reproduction, err error) {
		var id string
		err = rows.Scan(&id, &r.seq, &r.state, &r.topic, &r.part, &r.offset)
		parked[id] = r
		return r, err
	}, "find parked records that were produced again")
	if err != nil {
		return nil, err
	}
	for _, msg := range msgs {
		r, ok := parked[msg.id]
		if !ok || msg.rec.Topic == r.topic && msg.rec.Partition == r.part && msg.rec.Offset == r.offset {
			continue // not parked, or the parked record itself, read again
		}
		var same bool
		if err := tx.QueryRowContext(ctx, `SELECT value IS NOT DISTINCT FROM $1 FROM parked_records WHERE seq = $2`, store.NullBytes(msg.rec.Value), r.seq).Scan(&same); err != nil {
			return nil, fmt.Errorf("compare with parked record: %w", err)
		}
		if r.msg, r.changed = msg, !same; r.changed || r.state == store.Dead || r.state == store.Discarded {
			reproduced = append(reproduced, r)
		}
	}
	return reproduced, nil
}

// eventIDCondition is an SQL condition that a column is one of ids, and its
// argument, which is number n.
func (c *Consumer) eventIDCondition(n int, ids []string) (condition string, arg any) {
	if c.db.Engine == sqldb.Postgres {
		return fmt.Sprintf(`= ANY($%d::UUID[])`, n), ids
	}
	return fmt.Sprintf(`IN (SELECT value FROM json_each($%d))`, n), `["` + strings.Join(ids, `","`) + `"]`
}

// logReproduced warns that a record was produced again without effect, and says what
// would have one.
func (c *Consumer) logReproduced(r reproduction) {
	remedy := "to retry the parked record: " + c.cfg.Replay
	switch {
	case r.state == store.Discarded:
		remedy = "the parked record was discarded: a record that is to have an effect needs an event id of its own"
	case r.changed:
		remedy = c.cfg.Replay + " retries the parked record with its first value: a repaired record needs an event id of its own, and the parked one must be discarded"
	}
	c.cfg.Log.Warn("parked event produced again: record has no effect", "consumer_group", c.cfg.Group, "event_id", r.msg.id,
		"event_type", r.msg.typeLabel(), "topic", r.msg.rec.Topic, "partition", r.msg.rec.Partition, "offset", r.msg.rec.Offset,
		"state", r.state, "parked_partition", r.part, "parked_offset", r.offset, "changed", r.changed, "to_do", remedy)
}
