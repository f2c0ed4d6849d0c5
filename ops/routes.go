package ops

import (
	"context"
	"net/http"
	"time"

	"pizzaflow/outbox/admin"
	"pizzaflow/web"
)

// A listing is the answer to a request for many items.
type listing[T any] struct {
	Items []T  `json:"items"`
	More  bool `json:"more"` // than limit, of some service
}

func listed[T any](items []T, more []string, err error) (any, error) {
	return listing[T]{append([]T{}, items...), len(more) > 0}, err
}

func (a *API) handleGetStatus(_ http.ResponseWriter, r *http.Request) (any, error) {
	q := readQuery(r, "service")
	if err := q.check(); err != nil {
		return nil, err
	}
	operators, err := a.operators(q.values.Get("service"))
	if err != nil {
		return nil, err
	}
	statuses, err := operators.Statuses(r.Context())
	return struct {
		Services []Status `json:"services"`
	}{statuses}, err
}

func (a *API) handleListBlocked(_ http.ResponseWriter, r *http.Request) (any, error) {
	q := readQuery(r, "service", "topic", "key", "limit")
	filter, limit := admin.BlockedFilter{Topic: q.values.Get("topic"), Key: q.values.Get("key")}, q.limit()
	if err := q.check(); err != nil {
		return nil, err
	}
	operators, err := a.operators(q.values.Get("service"))
	if err != nil {
		return nil, err
	}
	return listed(operators.Blocked(r.Context(), filter, limit))
}

func (a *API) handleListDeadLetters(_ http.ResponseWriter, r *http.Request) (any, error) {
	q := readQuery(r, "service", "state", "topic", "key", "type", "class", "limit")
	filter := admin.ParkedFilter{
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
	operators, err := a.operators(q.values.Get("service"))
	if err != nil {
		return nil, err
	}
	return listed(operators.Parked(r.Context(), filter, limit))
}

func (a *API) handleGetDeadLetter(_ http.ResponseWriter, r *http.Request) (any, error) {
	operators, err := a.operators(r.PathValue("service"))
	if err != nil {
		return nil, err
	}
	dead, found, err := operators[0].DeadLetter(r.Context(), r.PathValue("event_id"))
	if err == nil && !found {
		err = web.NotFound("The service has no parked record of this event.")
	}
	return dead, err
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

// change makes a change at each service that the request names. The log says how much was changed, but not what selected
// it: that may be personal, and so stands in operator_actions alone.
func (a *API) change(ctx context.Context, c *changeRequest, action string, faults []web.FieldError, fn func(Operator) (int64, error)) error {
	if faults = append(faults, c.faults()...); len(faults) > 0 {
		return web.Invalid(faults...)
	}
	operators, err := a.operators(c.Service)
	if err != nil {
		return err
	}
	for _, o := range operators {
		n, err := fn(o)
		if err != nil {
			return err
		}
		if n > 0 && !c.DryRun {
			a.cfg.Log.InfoContext(ctx, "changed by an operator", "service", o.Service, "action", action, "affected", n)
		}
	}
	return nil
}

// changeBlocked changes blocked events of each service and answers with them.
func (a *API) changeBlocked(ctx context.Context, c *changeRequest, action string, faults []web.FieldError, fn func(Operator) ([]BlockedEvent, error)) (any, error) {
	answer := changed[BlockedEvent]{DryRun: c.DryRun, Items: []BlockedEvent{}}
	return &answer, a.change(ctx, c, action, faults, func(o Operator) (int64, error) {
		events, err := fn(o)
		answer.add(events...)
		return int64(len(events)), err
	})
}

// changeMany changes events of each service that are too many to be listed, and answers with their number.
func (a *API) changeMany(ctx context.Context, c *changeRequest, action string, faults []web.FieldError, fn func(Operator) (int64, error)) (any, error) {
	answer := changed[BlockedEvent]{DryRun: c.DryRun, Items: []BlockedEvent{}}
	return &answer, a.change(ctx, c, action, faults, func(o Operator) (int64, error) {
		n, err := fn(o)
		answer.Affected += n
		return n, err
	})
}

func (a *API) handleRetry(w http.ResponseWriter, r *http.Request) (any, error) {
	var req struct {
		changeRequest
		blockedSelection
		All bool `json:"all,omitempty"`
	}
	if _, err := web.Decode(w, r, &req); err != nil {
		return nil, err
	}
	faults := append(selectionFaults(req.All, req.some(), "topic, key, seq or all"), req.blockedSelection.faults(req.Service)...)
	return a.changeBlocked(r.Context(), &req.changeRequest, "retry", faults, func(o Operator) ([]BlockedEvent, error) {
		return o.Retry(r.Context(), req.filter(), req.action())
	})
}

func (a *API) handleSkip(w http.ResponseWriter, r *http.Request) (any, error) {
	var req struct {
		changeRequest
		blockedSelection
		Refused string `json:"refused,omitempty"`
	}
	if _, err := web.Decode(w, r, &req); err != nil {
		return nil, err
	}
	switch {
	case req.Refused != "" && req.some():
		return nil, web.Invalid(web.FieldError{Pointer: "#/refused", Code: "invalid", Detail: "Goes with no other selection."})
	case req.Refused != "":
		return a.changeMany(r.Context(), &req.changeRequest, "skip refused", nil, func(o Operator) (int64, error) {
			return o.SkipRefused(r.Context(), req.Refused, req.action())
		})
	}
	faults := append(selectionFaults(false, req.some(), "topic, key, seq or refused"), req.blockedSelection.faults(req.Service)...)
	return a.changeBlocked(r.Context(), &req.changeRequest, "skip", faults, func(o Operator) ([]BlockedEvent, error) {
		return o.Skip(r.Context(), req.filter(), req.action())
	})
}

func (a *API) handleRepublish(w http.ResponseWriter, r *http.Request) (any, error) {
	var req struct {
		changeRequest
		Since time.Time `json:"since"`
	}
	if _, err := web.Decode(w, r, &req); err != nil {
		return nil, err
	}
	var faults []web.FieldError
	if req.Since.IsZero() {
		faults = append(faults, web.FieldError{Pointer: "#/since", Code: "required", Detail: "Say from which time on, as in 2026-01-02T15:04:05Z."})
	}
	return a.changeMany(r.Context(), &req.changeRequest, "republish", faults, func(o Operator) (int64, error) {
		return o.Republish(r.Context(), req.Since, req.action())
	})
}

// changeParked changes parked records of each service, one event after the other where events are named.
func (a *API) changeParked(w http.ResponseWriter, r *http.Request, action string,
	fn func(Operator, admin.ParkedFilter, admin.Action) ([]ParkedRecord, error),
) (any, error) {
	var req parkedRequest
	if _, err := web.Decode(w, r, &req); err != nil {
		return nil, err
	}
	answer := struct {
		changed[ParkedRecord]
		Followers int64 `json:"followers"` // that waited behind them
	}{changed: changed[ParkedRecord]{DryRun: req.DryRun, Items: []ParkedRecord{}}}
	return &answer, a.change(r.Context(), &req.changeRequest, action, req.faults(), func(o Operator) (n int64, err error) {
		for _, filter := range req.filters() {
			records, err := fn(o, filter, req.action())
			if err != nil {
				return n, err
			}
			n += int64(len(records))
			answer.add(records...)
			for _, record := range records {
				answer.Followers += record.Followers
			}
		}
		return n, nil
	})
}

func (a *API) handleReplay(w http.ResponseWriter, r *http.Request) (any, error) {
	return a.changeParked(w, r, "replay", func(o Operator, f admin.ParkedFilter, by admin.Action) ([]ParkedRecord, error) {
		return o.Replay(r.Context(), f, by)
	})
}

func (a *API) handleDiscard(w http.ResponseWriter, r *http.Request) (any, error) {
	return a.changeParked(w, r, "discard", func(o Operator, f admin.ParkedFilter, by admin.Action) ([]ParkedRecord, error) {
		return o.Discard(r.Context(), f, by)
	})
}
