package ops

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"golang.org/x/sync/errgroup"

	"pizzaflow/outbox/admin"
	"pizzaflow/sqldb"
)

// An Operator sees and changes the outbox and the dead letters of one service. What it returns and the errors it returns
// name the service.
type Operator struct {
	Service string
	admin   *admin.Operator
	db      *sqldb.DB
}

func newOperator(service string, db *sqldb.DB) Operator {
	return Operator{service, admin.New(db), db}
}

// Operators are those of several services.
type Operators []Operator

// Close closes the databases.
func (all Operators) Close() error {
	var errs []error
	for _, o := range all {
		errs = append(errs, o.failed(o.db.Close()))
	}
	return errors.Join(errs...)
}

// failed names the service in an error.
func (o Operator) failed(err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", o.Service, err)
	}
	return nil
}

// A Status is how the publishing of one service stands.
type Status struct {
	Service string `json:"service"`
	Leader  string `json:"leader"` // alive; silent, when the lease is held and not renewed; none
	admin.Status
}

// Statuses looks at all outboxes at once. It takes up to 2.5 s to be sure that a leader is silent.
func (all Operators) Statuses(ctx context.Context) ([]Status, error) {
	list := make([]Status, len(all))
	group, ctx := errgroup.WithContext(ctx)
	for i, o := range all {
		group.Go(func() (err error) {
			list[i], err = o.status(ctx)
			return o.failed(err)
		})
	}
	return list, group.Wait()
}

func (o Operator) status(ctx context.Context) (Status, error) {
	alive, err := o.admin.Alive(ctx)
	if err != nil {
		return Status{}, err
	}
	s, err := o.admin.Status(ctx)
	leader := "silent"
	switch {
	case s.Holder == "":
		leader = "none"
	case alive:
		leader = "alive"
	}
	return Status{o.Service, leader, s}, err
}

// A BlockedEvent is an event of one service that is not published.
type BlockedEvent struct {
	Service string `json:"service"`
	admin.BlockedEvent
}

// A ParkedRecord is a record that one service did not handle at once, without its value.
type ParkedRecord struct {
	Service string `json:"service"`
	admin.ParkedRecord
}

func (o Operator) events(found []admin.BlockedEvent, err error) ([]BlockedEvent, error) {
	events := make([]BlockedEvent, len(found))
	for i, e := range found {
		events[i] = BlockedEvent{o.Service, e}
	}
	return events, o.failed(err)
}

func (o Operator) records(found []admin.ParkedRecord, err error) ([]ParkedRecord, error) {
	records := make([]ParkedRecord, len(found))
	for i, r := range found {
		records[i] = ParkedRecord{o.Service, r}
	}
	return records, o.failed(err)
}

// Blocked lists at most limit blocked events of each service, and names the services that have more.
func (all Operators) Blocked(ctx context.Context, f admin.BlockedFilter, limit int) (events []BlockedEvent, more []string, err error) {
	return collect(all, limit, func(o Operator) ([]BlockedEvent, error) { return o.events(o.admin.Blocked(ctx, f, limit+1)) })
}

// Parked lists at most limit parked records of each service, and names the services that have more.
func (all Operators) Parked(ctx context.Context, f admin.ParkedFilter, limit int) (records []ParkedRecord, more []string, err error) {
	return collect(all, limit, func(o Operator) ([]ParkedRecord, error) { return o.records(o.admin.Parked(ctx, f, limit+1)) })
}

// collect takes limit items of each service; find looks for one more.
func collect[T any](all Operators, limit int, find func(Operator) ([]T, error)) (items []T, more []string, err error) {
	for _, o := range all {
		found, err := find(o)
		if err != nil {
			return nil, nil, err
		}
		if len(found) > limit {
			found, more = found[:limit], append(more, o.Service)
		}
		items = append(items, found...)
	}
	return items, more, nil
}

// Retry has blocked events published after all, and returns them.
func (o Operator) Retry(ctx context.Context, f admin.BlockedFilter, a admin.Action) ([]BlockedEvent, error) {
	return o.events(o.admin.Retry(ctx, f, a))
}

// Skip gives blocked events up, and returns them.
func (o Operator) Skip(ctx context.Context, f admin.BlockedFilter, a admin.Action) ([]BlockedEvent, error) {
	return o.events(o.admin.Skip(ctx, f, a))
}

// SkipRefused gives up the events that wait for a topic which takes none, and returns how many they are.
func (o Operator) SkipRefused(ctx context.Context, topic string, a admin.Action) (int64, error) {
	n, err := o.admin.SkipRefused(ctx, topic, a)
	return n, o.failed(err)
}

// Republish has events published again, from the first of that time on, and returns how many they are.
func (o Operator) Republish(ctx context.Context, since time.Time, a admin.Action) (int64, error) {
	n, err := o.admin.Republish(ctx, since, a)
	return n, o.failed(err)
}

// Replay has dead records tried again, and returns them.
func (o Operator) Replay(ctx context.Context, f admin.ParkedFilter, a admin.Action) ([]ParkedRecord, error) {
	return o.records(o.admin.Replay(ctx, f, a))
}

// Discard gives dead records up, and returns them.
func (o Operator) Discard(ctx context.Context, f admin.ParkedFilter, a admin.Action) ([]ParkedRecord, error) {
	return o.records(o.admin.Discard(ctx, f, a))
}

// A DeadLetter is a parked record of one service with its value: as JSON when it is JSON, and else as bytes, which JSON
// shows in base64.
type DeadLetter struct {
	Service string `json:"service"`
	admin.ParkedRecord
	Value json.RawMessage `json:"value,omitempty"` // hides the Value of ParkedRecord
	Bytes []byte          `json:"value_base64,omitempty"`
}

// DeadLetter reads the parked record of an event whole; found is false when the service has none.
func (o Operator) DeadLetter(ctx context.Context, eventID string) (dead DeadLetter, found bool, err error) {
	r, err := o.admin.Show(ctx, "", eventID)
	if errors.Is(err, sql.ErrNoRows) {
		return DeadLetter{}, false, nil
	}
	if err != nil {
		return DeadLetter{}, false, o.failed(err)
	}
	dead = DeadLetter{Service: o.Service, ParkedRecord: r}
	if utf8.Valid(r.Value) && json.Valid(r.Value) {
		dead.Value = r.Value
	} else {
		dead.Bytes = r.Value
	}
	return dead, true, nil
}

// What is wrong with a selection.
var (
	ErrNothingSelected = admin.ErrNothingSelected
	ErrAllAndSome      = errors.New("all goes with no other selection")
)

// CheckSelection refuses a change of nothing in particular: all must be said, and then nothing besides.
func CheckSelection(all, some bool) error {
	switch {
	case all && some:
		return ErrAllAndSome
	case !all && !some:
		return ErrNothingSelected
	}
	return nil
}
