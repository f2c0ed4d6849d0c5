package admin

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/outbox/internal/store"
	"pizzaflow/outbox/internal/wire"
	"pizzaflow/sqldb"
)

// A ParkedFilter selects parked records; what is zero selects all.
type ParkedFilter struct {
	Group      string // the consumer group
	State      string // retrying, waiting, dead, handled, discarded; open for the first three
	EventID    string
	Key        string
	Topic      string
	EventType  string
	ErrorClass string // permanent, transient, panic
	All        bool   // says that everything is meant, where something must be selected
}

func (f ParkedFilter) where() (string, []any) {
	var conds []string
	var args []any
	if id, err := uuid.Parse(f.EventID); err == nil {
		f.EventID = id.String() // as it is stored, however it was written
	}
	add := func(column string, arg any) {
		args = append(args, arg)
		conds = append(conds, fmt.Sprintf("p.%s = $%d", column, len(args)))
	}
	for _, c := range []struct{ column, value string }{
		{"consumer", f.Group}, {"event_id", f.EventID}, {"topic", f.Topic}, {"event_type", f.EventType}, {"error_class", f.ErrorClass},
	} {
		if c.value != "" {
			add(c.column, c.value)
		}
	}
	if f.Key != "" {
		add("key_hash", store.KeyHash([]byte(f.Key)))
		add("key", []byte(f.Key))
	}
	switch f.State {
	case "":
	case "open":
		conds = append(conds, "p.state NOT IN ('handled', 'discarded')") // no index is of these: all of it might be read for one event
	default:
		add("state", f.State)
	}
	return strings.Join(append(conds, "1 = 1"), " AND "), args
}

// order is by age. Nobody shall look for one event in the order of all.
func (f ParkedFilter) order() string {
	if f.EventID != "" {
		return ` ORDER BY p.seq + 0`
	}
	return ` ORDER BY p.seq`
}

// String says in words what is selected.
func (f ParkedFilter) String() string {
	var parts []string
	for _, c := range []struct{ name, value string }{
		{"group", f.Group}, {"state", f.State}, {"event", f.EventID}, {"key", f.Key}, {"topic", f.Topic}, {"type", f.EventType}, {"class", f.ErrorClass},
	} {
		if c.value != "" {
			parts = append(parts, c.name+" "+c.value)
		}
	}
	if len(parts) == 0 {
		return "all"
	}
	return strings.Join(parts, ", ")
}

// check refuses what would be no filter for the database.
func (f ParkedFilter) check() error {
	if f.EventID == "" {
		return nil
	}
	if _, err := uuid.Parse(f.EventID); err != nil {
		return ErrEventID
	}
	return nil
}

// ErrEventID is returned for an EventID that is not a UUID.
var ErrEventID = errors.New("event id is not a UUID")

// selects reports whether anything but the state and the group is chosen.
func (f ParkedFilter) selects() bool {
	return f.All || f.EventID != "" || f.Key != "" || f.Topic != "" || f.EventType != "" || f.ErrorClass != ""
}

// A ParkedRecord is a record that was not handled at once.
type ParkedRecord struct {
	Group         string         `json:"consumer_group"`
	State         string         `json:"state"`
	EventID       string         `json:"event_id"`
	EventType     string         `json:"event_type"`
	Topic         string         `json:"topic"`
	Partition     int32          `json:"partition"`
	Offset        int64          `json:"offset"`
	Key           string         `json:"key"`
	Attempts      int            `json:"attempts"`
	DueAt         time.Time      `json:"due_at,omitzero"`
	ErrorClass    string         `json:"error_class"`
	Error         string         `json:"error"`
	FirstFailedAt time.Time      `json:"first_failed_at,omitzero"`
	LastFailedAt  time.Time      `json:"last_failed_at,omitzero"`
	FinishedAt    time.Time      `json:"finished_at,omitzero"`
	Followers     int64          `json:"followers"` // that wait behind it; 0 for one that waits itself
	Headers       []ParkedHeader `json:"headers,omitempty"`
	Value         []byte         `json:"value,omitempty"`

	seq int64
	key []byte // nil without one
}

// A ParkedHeader is a header of a record, as text where it is text.
type ParkedHeader struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// Followers are counted for heads alone: of all that wait behind one another
// each would count the rest.
const selectParked = `
	SELECT p.seq, p.consumer, p.state, p.event_id, p.event_type, p.topic, p.partition, p.record_offset, p.key, p.attempts, p.due_at, p.error_class, p.error,
		p.first_failed_at, p.last_failed_at, p.finished_at,
		CASE WHEN p.state IN ('retrying', 'dead') THEN (SELECT COUNT(*) FROM parked_records q
			WHERE q.consumer = p.consumer AND q.topic = p.topic AND q.key_hash BETWEEN p.key_hash AND p.key_hash AND q.key = p.key AND q.seq > p.seq
				AND q.state IN ` + store.OpenStates + ` AND q.state = 'waiting') ELSE 0 END
	FROM parked_records p `

func scanParked(rows *sql.Rows) (r ParkedRecord, err error) {
	err = rows.Scan(&r.seq, &r.Group, &r.State, &r.EventID, &r.EventType, &r.Topic, &r.Partition, &r.Offset, &r.key, &r.Attempts, sqldb.Time(&r.DueAt),
		&r.ErrorClass, &r.Error, sqldb.Time(&r.FirstFailedAt), sqldb.Time(&r.LastFailedAt), sqldb.Time(&r.FinishedAt), &r.Followers)
	r.Key = string(r.key)
	return r, err
}

// Parked lists parked records without their values, the oldest first, at most
// limit of them.
func (o *Operator) Parked(ctx context.Context, f ParkedFilter, limit int) ([]ParkedRecord, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	where, args := f.where()
	rows, err := o.db.Read().QueryContext(ctx, selectParked+`WHERE `+where+f.order()+fmt.Sprintf(` LIMIT $%d`, len(args)+1), append(args, limit)...)
	return sqldb.ReadAll(rows, err, scanParked, "list parked records")
}

// Show reads one parked record whole, with its headers and its value, which
// hold personal data. It is sql.ErrNoRows for an event that is not parked.
func (o *Operator) Show(ctx context.Context, group, eventID string) (ParkedRecord, error) {
	found, err := o.Parked(ctx, ParkedFilter{Group: group, EventID: eventID}, 1)
	if err != nil {
		return ParkedRecord{}, err
	}
	if len(found) == 0 {
		return ParkedRecord{}, sql.ErrNoRows
	}
	r, headers := found[0], ""
	if err := o.db.Read().QueryRowContext(ctx, `SELECT value, headers FROM parked_records WHERE seq = $1`, r.seq).Scan(&r.Value, &headers); err != nil {
		return ParkedRecord{}, fmt.Errorf("read parked record: %w", err)
	}
	var list wire.Headers
	if err := json.Unmarshal([]byte(headers), &list); err != nil {
		return ParkedRecord{}, fmt.Errorf("read headers of parked record: %w", err)
	}
	for _, h := range []kgo.RecordHeader(list) {
		r.Headers = append(r.Headers, ParkedHeader{h.Key, store.Text(string(h.Value), 4096)})
	}
	return r, nil
}

// Replay has dead records tried again, for their group alone, with a fresh set
// of attempts; what waits behind them follows in order. It returns which they
// are. Running services take them up within two seconds, others when they
// start. Something must be selected.
func (o *Operator) Replay(ctx context.Context, f ParkedFilter, a Action) ([]ParkedRecord, error) {
	f.State = store.Dead
	return o.move(ctx, f, a, "replay", `state = 'retrying', attempts = 0, due_at = `+sqldb.Clock+`, finished_at = NULL`, store.Retrying)
}

// Discard gives dead records up for ever, and with an EventID also one that is
// retrying or waiting; what waits behind them goes on. It returns which they
// are. Something must be selected.
func (o *Operator) Discard(ctx context.Context, f ParkedFilter, a Action) ([]ParkedRecord, error) {
	f.State = store.Dead
	if f.EventID != "" {
		f.State = "open"
	}
	return o.move(ctx, f, a, "discard", `state = 'discarded', due_at = NULL, finished_at = `+sqldb.Clock, store.Discarded)
}

// move changes the selected records, each if it still is what it was: another
// operator, or the group itself, may be faster.
func (o *Operator) move(ctx context.Context, f ParkedFilter, a Action, action, set, state string) (moved []ParkedRecord, err error) {
	if !f.selects() {
		return nil, ErrNothingSelected
	}
	if err := f.check(); err != nil {
		return nil, err
	}
	return moved, o.do(ctx, a, action, func(tx *sql.Tx) error {
		moved = []ParkedRecord{}
		where, args := f.where()
		rows, err := tx.QueryContext(ctx, selectParked+`WHERE `+where+f.order(), args...)
		selected, err := sqldb.ReadAll(rows, err, scanParked, "select parked records")
		if err != nil {
			return err
		}
		were := make([][]any, len(selected))
		for i, r := range selected {
			were[i] = []any{r.seq, r.State, r.Attempts}
		}
		var seqs []int64
		err = sqldb.Batch{
			Columns: `nr BIGINT, was TEXT, tries INTEGER`, SQL: `
			UPDATE parked_records SET ` + set + ` FROM {rows} WHERE seq = v.nr AND state = v.was AND attempts = v.tries RETURNING seq`,
		}.Query(ctx, o.db, tx, were, func(rows *sql.Rows) error {
			seqs = append(seqs, 0)
			return rows.Scan(&seqs[len(seqs)-1])
		})
		if err != nil {
			return fmt.Errorf("move parked records: %w", err)
		}
		slices.Sort(seqs)
		var targets []string
		var done []store.ParkedKey
		for _, r := range selected {
			if _, won := slices.BinarySearch(seqs, r.seq); won {
				targets = append(targets, ParkedFilter{Group: r.Group, EventID: r.EventID, Topic: r.Topic, Key: r.Key}.String())
				if r.key != nil && r.State != store.Waiting && state == store.Discarded {
					done = append(done, store.ParkedKey{Group: r.Group, Topic: r.Topic, Key: r.key, After: r.seq})
				}
				r.State = state
				moved = append(moved, r)
			}
		}
		if err := store.ReleaseNext(ctx, o.db, tx, done); err != nil {
			return err
		}
		return a.note(ctx, tx, action, targets, 1)
	})
}
