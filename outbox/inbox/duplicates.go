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

// refreshAfter is how old a mark in the inbox must be that a record which came
// again makes it new: to read a whole topic again must not write all of them.
const refreshAfter = 24 * time.Hour

// A repeat is a record that came again while its event is parked, and what it
// changes nothing about.
type reproduction struct {
	msg     *message
	seq     int64
	state   string
	topic   string
	part    int32
	offset  int64
	changed bool // its value is another than that of the parked record
}

// reviewDuplicates sees to records whose events are in the inbox: what still comes must
// not be forgotten. It returns those that somebody, or a relay, produced again
// without any effect, because their events are dead or discarded, or because
// they differ from what will be tried.
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

// refresh makes old marks in the inbox new. On SQLite the rows also move to the
// end of the table, which is in the order of their time.
func (c *Consumer) refreshMarks(ctx context.Context, tx *outbox.Tx, ids []string) error {
	old := c.db.Later("$3")
	among, list := c.eventIDCondition(2, ids)
	statement := `UPDATE inbox_events SET handled_at = ` + sqldb.Clock + ` WHERE consumer = $1 AND event_id ` + among + ` AND handled_at < ` + old
	if c.db.Engine == sqldb.SQLite {
		statement = `INSERT OR REPLACE INTO inbox_events (consumer, event_id, handled_at)
			SELECT consumer, event_id, ` + sqldb.Clock + ` FROM inbox_events WHERE consumer = $1 AND event_id ` + among + ` AND handled_at < ` + old
	}
	if _, err := tx.ExecContext(ctx, statement, c.cfg.Group, list, -refreshAfter.Microseconds()); err != nil {
		return fmt.Errorf("mark in inbox again: %w", err)
	}
	return nil
}

// findReproduced
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
	}, "look for parked records that came again")
	if err != nil {
		return nil, err
	}
	for _, msg := range msgs {
		r, ok := parked[msg.id]
		if !ok || msg.rec.Topic == r.topic && msg.rec.Partition == r.part && msg.rec.Offset == r.offset {
			continue // the same record, read again
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

// amongIDs is a condition on a column of event ids, and its argument, number n.
func (c *Consumer) eventIDCondition(n int, ids []string) (condition string, arg any) {
	if c.db.Engine == sqldb.Postgres {
		return fmt.Sprintf(`= ANY($%d::UUID[])`, n), ids
	}
	return fmt.Sprintf(`IN (SELECT value FROM json_each($%d))`, n), `["` + strings.Join(ids, `","`) + `"]`
}

// passedOver says in the log that a record was produced again for nothing, and
// what would help.
func (c *Consumer) logReproduced(r reproduction) {
	remedy := "to have it tried again: " + c.cfg.Replay
	switch {
	case r.state == store.Discarded:
		remedy = "it was given up: what shall have an effect after all needs an event id of its own"
	case r.changed:
		remedy = "what is tried again, by " + c.cfg.Replay + ", is the parked record as it came first: a repaired one needs an event id of its own, and the parked one to be discarded"
	}
	c.cfg.Log.Warn("a parked record was produced again: it is passed over", "consumer_group", c.cfg.Group, "event_id", r.msg.id,
		"event_type", r.msg.typeLabel(), "topic", r.msg.rec.Topic, "partition", r.msg.rec.Partition, "offset", r.msg.rec.Offset,
		"state", r.state, "parked_partition", r.part, "parked_offset", r.offset, "changed", r.changed, "to_do", remedy)
}
