package pizzaflow

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/google/uuid"

	"pizzaflow/web"
)

func (a *operatorAPI) handleGetStatus(_ http.ResponseWriter, r *http.Request) (any, error) {
	q := readQuery(r, "service")
	if err := q.check(); err != nil {
		return nil, err
	}
	operators, err := a.services(q.values.Get("service"))
	if err != nil {
		return nil, err
	}
	statuses, err := OutboxStatuses(r.Context(), operators)
	return struct {
		Services []ServiceStatus `json:"services"`
	}{statuses}, err
}

// A listing is the answer to a question for many things.
type listing[T any] struct {
	Items []T  `json:"items"`
	More  bool `json:"more"` // than limit, of some service
}

// collect asks each service for at most limit things.
func collect[T, U any](operators []ServiceOperator, limit int, find func(ServiceOperator, int) ([]T, error), name func(string, T) U) (listing[U], error) {
	all := listing[U]{Items: []U{}}
	for _, op := range operators {
		found, err := find(op, limit+1)
		if err != nil {
			return all, fmt.Errorf("%s: %w", op.Service, err)
		}
		if len(found) > limit {
			found, all.More = found[:limit], true
		}
		for _, item := range found {
			all.Items = append(all.Items, name(op.Service, item))
		}
	}
	return all, nil
}

func nameEvent(service string, e BlockedEvent) ServiceEvent { return ServiceEvent{service, e} }

func nameRecord(service string, r ParkedRecord) ServiceRecord { return ServiceRecord{service, r} }

func (a *operatorAPI) handleListBlocked(_ http.ResponseWriter, r *http.Request) (any, error) {
	q := readQuery(r, "service", "topic", "key", "limit")
	filter, limit := BlockedFilter{Topic: q.values.Get("topic"), Key: q.values.Get("key")}, q.limit()
	if err := q.check(); err != nil {
		return nil, err
	}
	operators, err := a.services(q.values.Get("service"))
	if err != nil {
		return nil, err
	}
	return collect(operators, limit, func(op ServiceOperator, n int) ([]BlockedEvent, error) { return op.Blocked(r.Context(), filter, n) }, nameEvent)
}

// blockedSelection is what selects blocked events.
type blockedSelection struct {
	Topic string `json:"topic,omitempty"`
	Key   string `json:"key,omitempty"`
	Seq   int64  `json:"seq,omitempty"`
}

func (s blockedSelection) filter() BlockedFilter { return BlockedFilter(s) }

func (s blockedSelection) chosen() bool { return s != blockedSelection{} }

// faults refuses a number without its service: each counts for itself.
func (s blockedSelection) faults(service string) (faults []web.FieldError) {
	if s.Seq < 0 {
		faults = append(faults, web.FieldError{Pointer: "#/seq", Code: web.CodeOutOfRange, Detail: "Must be positive."})
	}
	if s.Seq != 0 && service == "" {
		faults = append(faults, web.FieldError{Pointer: "#/service", Code: "required", Detail: "A seq is a number of one service: say of which."})
	}
	return faults
}

// A changed is the answer to a change, or to a dry run of it.
type changed[T any] struct {
	DryRun   bool  `json:"dry_run"`
	Affected int64 `json:"affected"`
	Items    []T   `json:"items"` // the first thousand of them, where they were looked at one by one
}

func (c *changed[T]) add(items ...T) {
	c.Affected += int64(len(items))
	c.Items = append(c.Items, items[:min(len(items), maxLimit-len(c.Items))]...)
}

// changeBlocked does the same for the events of each service.
func (a *operatorAPI) changeBlocked(ctx context.Context, d *operatorDeed, action string, faults []web.FieldError,
	fn func(ServiceOperator) ([]BlockedEvent, error),
) (any, error) {
	answer := changed[ServiceEvent]{DryRun: d.DryRun, Items: []ServiceEvent{}}
	return &answer, a.change(ctx, d, action, faults, func(op ServiceOperator) (int64, error) {
		events, err := fn(op)
		for _, e := range events {
			answer.add(nameEvent(op.Service, e))
		}
		return int64(len(events)), err
	})
}

func (a *operatorAPI) handleRetry(w http.ResponseWriter, r *http.Request) (any, error) {
	var req struct {
		operatorDeed
		blockedSelection
		All bool `json:"all,omitempty"`
	}
	if _, err := web.Decode(w, r, &req); err != nil {
		return nil, err
	}
	faults := append(choose(req.All, req.chosen(), "topic, key, seq or all"), req.blockedSelection.faults(req.Service)...)
	return a.changeBlocked(r.Context(), &req.operatorDeed, "retry", faults, func(op ServiceOperator) ([]BlockedEvent, error) {
		return op.Retry(r.Context(), req.filter(), req.action())
	})
}

func (a *operatorAPI) handleSkip(w http.ResponseWriter, r *http.Request) (any, error) {
	var req struct {
		operatorDeed
		blockedSelection
		Refused string `json:"refused,omitempty"`
	}
	if _, err := web.Decode(w, r, &req); err != nil {
		return nil, err
	}
	switch {
	case req.Refused != "" && req.chosen():
		return nil, web.Invalid(web.FieldError{Pointer: "#/refused", Code: "invalid", Detail: "Goes with no other selection."})
	case req.Refused != "":
		answer := changed[ServiceEvent]{DryRun: req.DryRun, Items: []ServiceEvent{}}
		return &answer, a.change(r.Context(), &req.operatorDeed, "skip refused", nil, func(op ServiceOperator) (int64, error) {
			n, err := op.SkipRefused(r.Context(), req.Refused, req.action())
			answer.Affected += n
			return n, err
		})
	}
	faults := append(choose(false, req.chosen(), "topic, key, seq or refused"), req.blockedSelection.faults(req.Service)...)
	return a.changeBlocked(r.Context(), &req.operatorDeed, "skip", faults, func(op ServiceOperator) ([]BlockedEvent, error) {
		return op.Skip(r.Context(), req.filter(), req.action())
	})
}

func (a *operatorAPI) handleRepublish(w http.ResponseWriter, r *http.Request) (any, error) {
	var req struct {
		operatorDeed
		Since time.Time `json:"since"`
	}
	if _, err := web.Decode(w, r, &req); err != nil {
		return nil, err
	}
	var faults []web.FieldError
	if req.Since.IsZero() {
		faults = append(faults, web.FieldError{Pointer: "#/since", Code: "required", Detail: "Say from which time on, as in 2026-01-02T15:04:05Z."})
	}
	answer := changed[ServiceEvent]{DryRun: req.DryRun, Items: []ServiceEvent{}}
	return &answer, a.change(r.Context(), &req.operatorDeed, "republish", faults, func(op ServiceOperator) (int64, error) {
		n, err := op.Republish(r.Context(), req.Since, req.action())
		answer.Affected += n
		return n, err
	})
}

func (a *operatorAPI) handleListDeadLetters(_ http.ResponseWriter, r *http.Request) (any, error) {
	q := readQuery(r, "service", "state", "topic", "key", "type", "class", "limit")
	filter := ParkedFilter{
		State: q.oneOf("state", "dead", "retrying", "waiting", "handled", "discarded", "open", "all"),
		Topic: q.values.Get("topic"), Key: q.values.Get("key"), EventType: q.values.Get("type"),
		ErrorClass: q.oneOf("class", "", "permanent", "transient", "panic"),
	}
	if filter.State == "all" {
		filter.State = ""
	}
	limit := q.limit()
	if err := q.check(); err != nil {
		return nil, err
	}
	operators, err := a.services(q.values.Get("service"))
	if err != nil {
		return nil, err
	}
	return collect(operators, limit, func(op ServiceOperator, n int) ([]ParkedRecord, error) { return op.Parked(r.Context(), filter, n) }, nameRecord)
}

func (a *operatorAPI) handleGetDeadLetter(_ http.ResponseWriter, r *http.Request) (any, error) {
	operators, err := a.services(r.PathValue("service"))
	if err != nil {
		return nil, err
	}
	letter, found, err := ShowDeadLetter(r.Context(), operators[0], r.PathValue("event_id"))
	if err == nil && !found {
		err = web.NotFound("The service has no parked record of this event.")
	}
	return letter, err
}

// parkedRequest is the body of replay and discard.
type parkedRequest struct {
	operatorDeed
	EventIDs []string `json:"event_ids,omitempty"`
	Key      string   `json:"key,omitempty"`
	Topic    string   `json:"topic,omitempty"`
	Type     string   `json:"type,omitempty"`
	Class    string   `json:"class,omitempty"`
	All      bool     `json:"all,omitempty"`
}

func (q *parkedRequest) filter() ParkedFilter {
	return ParkedFilter{Key: q.Key, Topic: q.Topic, EventType: q.Type, ErrorClass: q.Class, All: q.All}
}

func (q *parkedRequest) faults() []web.FieldError {
	chosen := len(q.EventIDs) > 0 || q.Key != "" || q.Topic != "" || q.Type != "" || q.Class != ""
	faults := choose(q.All, chosen, "event_ids, key, topic, type, class or all")
	for i, id := range q.EventIDs {
		if _, err := uuid.Parse(id); err != nil {
			faults = append(faults, web.FieldError{Pointer: fmt.Sprintf("#/event_ids/%d", i), Code: "invalid", Detail: "Must be a UUID."})
		}
	}
	switch q.Class {
	case "", "permanent", "transient", "panic":
	default:
		faults = append(faults, web.FieldError{Pointer: "#/class", Code: "invalid", Detail: "Must be permanent, transient or panic."})
	}
	return faults
}

// changeParked moves the records of each service, each event by itself if
// events are named.
func (a *operatorAPI) changeParked(w http.ResponseWriter, r *http.Request, action string,
	move func(ServiceOperator, ParkedFilter, Action) ([]ParkedRecord, error),
) (any, error) {
	var req parkedRequest
	if _, err := web.Decode(w, r, &req); err != nil {
		return nil, err
	}
	ids := req.EventIDs
	if len(ids) == 0 {
		ids = []string{""} // whatever the other fields select
	}
	answer := struct {
		changed[ServiceRecord]
		Followers int64 `json:"followers"` // that waited behind them
	}{changed: changed[ServiceRecord]{DryRun: req.DryRun, Items: []ServiceRecord{}}}
	return &answer, a.change(r.Context(), &req.operatorDeed, action, req.faults(), func(op ServiceOperator) (n int64, err error) {
		for _, id := range ids {
			filter := req.filter()
			filter.EventID = id
			records, err := move(op, filter, req.action())
			if err != nil {
				return n, err
			}
			n += int64(len(records))
			for _, record := range records {
				answer.add(nameRecord(op.Service, record))
				answer.Followers += record.Followers
			}
		}
		return n, nil
	})
}

func (a *operatorAPI) handleReplay(w http.ResponseWriter, r *http.Request) (any, error) {
	return a.changeParked(w, r, "replay", func(op ServiceOperator, f ParkedFilter, by Action) ([]ParkedRecord, error) {
		return op.Replay(r.Context(), f, by)
	})
}

func (a *operatorAPI) handleDiscard(w http.ResponseWriter, r *http.Request) (any, error) {
	return a.changeParked(w, r, "discard", func(op ServiceOperator, f ParkedFilter, by Action) ([]ParkedRecord, error) {
		return op.Discard(r.Context(), f, by)
	})
}
