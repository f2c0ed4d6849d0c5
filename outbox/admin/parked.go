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

// A ParkedFilter selects parked records; a field that is zero selects all.
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
		conds = append(conds, "p.state NOT IN ('handled', 'discarded')") // no index holds open records by event: a plan that begins with the state reads all of them
	default:
		add("state", f.State)
	}
	return strings.Join(append(conds, "1 = 1"), " AND "), args
}

// order is by age. For one event the database must not walk all records in order:
// the expression keeps it from the index of seq.
func (f ParkedFilter) order() string {
	if f.EventID != "" {
		return ` ORDER BY p.seq + 0`
	}
	return ` ORDER BY p.seq`
}

// String describes the selection, for the audit.
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

// check refuses an EventID that the database would not take for a UUID.
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

// selects reports whether the filter chooses by more than state and group.
func (f ParkedFilter) selects() bool {
	return f.All || f.EventID != "" || f.Key != "" || f.Topic != "" || f.EventType != "" || f.ErrorClass != ""
}

// A ParkedRecord is a record that its consumer group did not handle at once.
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
	Followers     int64          `json:"followers"` // how many records wait behind it; 0 for one that waits itself
	Headers       []ParkedHeader `json:"headers,omitempty"`
	Value         []byte         `json:"value,omitempty"`

	seq int64
	key []byte // nil without one
}

// A ParkedHeader is a header of a record. Bytes that are not text are replaced.
type ParkedHeader struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// selectParked counts followers for the head of a key alone: of the records that
// wait behind one another each would count the rest.
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

// Parked lists the parked records that f selects, without headers and values, the
// oldest first, at most limit of them. The error may be ErrEventID.
func (o *Operator) Parked(ctx context.Context, f ParkedFilter, limit int) ([]ParkedRecord, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	where, args := f.where()
	rows, err := o.db.Read().QueryContext(ctx, selectParked+`WHERE `+where+f.order()+fmt.Sprintf(` LIMIT $%d`, len(args)+1), append(args, limit)...)
	return sqldb.ReadAll(rows, err, scanParked, "list parked records")
}

// Show reads one parked record whole, with its headers and its value, which hold
// personal data; of any group when group is empty. The error is sql.ErrNoRows for
// an event that is not parked.
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

// Replay has the selected dead records retried, for their group alone, with a fresh
// set of attempts; the records that wait behind them follow in order. It returns
// the replayed records. A running service retries them within two seconds, another
// when it starts. The error is ErrNothingSelected for a filter without a choice.
func (o *Operator) Replay(ctx context.Context, f ParkedFilter, a Action) ([]ParkedRecord, error) {
	f.State = store.Dead
	return o.changeParked(ctx, f, a, "replay", `state = 'retrying', attempts = 0, due_at = `+sqldb.Clock+`, finished_at = NULL`, store.Retrying)
}

// Discard gives the selected dead records up for ever, and with an EventID also a
// record that is retrying or waiting; the records that wait behind them go on. It
// returns the discarded records. The error is ErrNothingSelected for a filter
// without a choice.
func (o *Operator) Discard(ctx context.Context, f ParkedFilter, a Action) ([]ParkedRecord, error) {
	f.State = store.Dead
	if f.EventID != "" {
		f.State = "open"
	}
	return o.changeParked(ctx, f, a, "discard", `state = 'discarded', due_at = NULL, finished_at = `+sqldb.Clock, store.Discarded)
}

// changeParked changes the selected records to state, each only if it has not
// changed since it was read: another operator, or the group itself, may be faster.
// A discarded head has the next record of its key retried.
func (o *Operator) changeParked(ctx context.Context, f ParkedFilter, a Action, action, set, state string) (changed []ParkedRecord, err error) {
	if !f.selects() {
		return nil, ErrNothingSelected
	}
	if err := f.check(); err != nil {
		return nil, err
	}
	return changed, o.transact(ctx, a, action, func(tx *sql.Tx) error {
		changed = []ParkedRecord{}
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
			return fmt.Errorf("change parked records: %w", err)
		}
		slices.Sort(seqs)
		var targets []string
		var finished []store.ParkedKey
		for _, r := range selected {
			if _, won := slices.BinarySearch(seqs, r.seq); won {
				targets = append(targets, ParkedFilter{Group: r.Group, EventID: r.EventID, Topic: r.Topic, Key: r.Key}.String())
				if r.key != nil && r.State != store.Waiting && state == store.Discarded {
					finished = append(finished, store.ParkedKey{Group: r.Group, Topic: r.Topic, Key: r.key, After: r.seq})
				}
				r.State = state
				changed = append(changed, r)
			}
		}
		if err := store.ReleaseNext(ctx, o.db, tx, finished); err != nil {
			return err
		}
		return a.audit(ctx, tx, action, targets, 1)
	})
}
