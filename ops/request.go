package ops

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"

	"pizzaflow/outbox/admin"
	"pizzaflow/web"
)

// A query reads the parameters of a GET and collects what is wrong with them.
type query struct {
	values url.Values
	faults []web.FieldError
}

// readQuery refuses a parameter that is unknown, given twice, or no text.
func readQuery(r *http.Request, known ...string) *query {
	q := &query{values: url.Values{}}
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		q.fault("", web.CodeSyntax, "The query cannot be decoded.")
	}
	q.values = values
	for name, given := range values {
		switch {
		case !slices.Contains(known, name):
			q.fault("", web.CodeUnknownField, "The query has a parameter that is not one of "+strings.Join(known, ", ")+".")
		case len(given) > 1:
			q.fault(name, web.CodeDuplicateField, "The parameter is given twice.")
		case !utf8.ValidString(given[0]):
			q.fault(name, web.CodeInvalidUTF8, "The parameter is not UTF-8.")
		case strings.ContainsRune(given[0], 0):
			q.fault(name, web.CodeNUL, "The parameter has the character U+0000.")
		}
	}
	return q
}

func (q *query) fault(name, code, detail string) {
	pointer := "#"
	if name != "" {
		pointer += "/" + name
	}
	q.faults = append(q.faults, web.FieldError{Pointer: pointer, Code: code, Detail: detail})
}

// oneOf reads a parameter that is one of the words; without it, the first word.
func (q *query) oneOf(name string, words ...string) string {
	v := q.values.Get(name)
	if v == "" {
		return words[0]
	}
	if !slices.Contains(words, v) {
		q.fault(name, "invalid", "Must be one of "+strings.TrimPrefix(strings.Join(words, ", "), ", ")+".")
	}
	return v
}

// The bounds of limit, for each service.
const (
	defaultLimit = 100
	maxLimit     = 1000
)

func (q *query) limit() int {
	v := q.values.Get("limit")
	if v == "" {
		return defaultLimit
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 || n > maxLimit {
		q.fault("limit", web.CodeOutOfRange, fmt.Sprintf("Must be between 1 and %d.", maxLimit))
	}
	return n
}

func (q *query) check() error {
	if len(q.faults) > 0 {
		return web.Invalid(q.faults...)
	}
	return nil
}

// A changeRequest is what the bodies of all changes have.
type changeRequest struct {
	Service  string `json:"service,omitempty"` // all that run here when empty
	Operator string `json:"operator"`
	Reason   string `json:"reason,omitempty"`
	DryRun   bool   `json:"dry_run,omitempty"`
}

func (c *changeRequest) action() admin.Action {
	return admin.Action{By: c.Operator, Why: c.Reason, DryRun: c.DryRun}
}

func (c *changeRequest) faults() (faults []web.FieldError) {
	for _, f := range []struct {
		pointer, value string
		limit          int
		required       bool
	}{{"#/operator", c.Operator, 200, true}, {"#/reason", c.Reason, 1000, false}} {
		switch {
		case f.required && strings.TrimSpace(f.value) == "":
			faults = append(faults, web.FieldError{Pointer: f.pointer, Code: "required", Detail: "Say who does it: it is kept with what was done."})
		case len(f.value) > f.limit:
			faults = append(faults, web.FieldError{Pointer: f.pointer, Code: "too_long", Detail: fmt.Sprintf("Must have at most %d bytes.", f.limit)})
		}
	}
	return faults
}

// selectionFaults is CheckSelection for a body; fields are those that select.
func selectionFaults(all, some bool, fields string) []web.FieldError {
	switch err := CheckSelection(all, some); {
	case errors.Is(err, ErrAllAndSome):
		return []web.FieldError{{Pointer: "#/all", Code: "invalid", Detail: "Goes with no other selection."}}
	case errors.Is(err, ErrNothingSelected):
		return []web.FieldError{{Pointer: "#", Code: "required", Detail: "Nothing is selected: give " + fields + "."}}
	}
	return nil
}

// A blockedSelection selects blocked events.
type blockedSelection struct {
	Topic string `json:"topic,omitempty"`
	Key   string `json:"key,omitempty"`
	Seq   int64  `json:"seq,omitempty"`
}

func (s blockedSelection) filter() admin.BlockedFilter { return admin.BlockedFilter(s) }

func (s blockedSelection) some() bool { return s != blockedSelection{} }

// faults refuses a number without its service, because each service counts its own events.
func (s blockedSelection) faults(service string) (faults []web.FieldError) {
	if s.Seq < 0 {
		faults = append(faults, web.FieldError{Pointer: "#/seq", Code: web.CodeOutOfRange, Detail: "Must be positive."})
	}
	if s.Seq != 0 && service == "" {
		faults = append(faults, web.FieldError{Pointer: "#/service", Code: "required", Detail: "A seq is a number of one service: say of which."})
	}
	return faults
}

// A parkedRequest is the body of replay and discard.
type parkedRequest struct {
	changeRequest
	EventIDs []string `json:"event_ids,omitempty"`
	Key      string   `json:"key,omitempty"`
	Topic    string   `json:"topic,omitempty"`
	Type     string   `json:"type,omitempty"`
	Class    string   `json:"class,omitempty"`
	All      bool     `json:"all,omitempty"`
}

// filters are one for each event that is named, or one for what the other fields select.
func (p *parkedRequest) filters() []admin.ParkedFilter {
	f := admin.ParkedFilter{Key: p.Key, Topic: p.Topic, EventType: p.Type, ErrorClass: p.Class, All: p.All}
	if len(p.EventIDs) == 0 {
		return []admin.ParkedFilter{f}
	}
	filters := make([]admin.ParkedFilter, len(p.EventIDs))
	for i, id := range p.EventIDs {
		filters[i] = f
		filters[i].EventID = id
	}
	return filters
}

func (p *parkedRequest) faults() []web.FieldError {
	some := len(p.EventIDs) > 0 || p.Key != "" || p.Topic != "" || p.Type != "" || p.Class != ""
	faults := selectionFaults(p.All, some, "event_ids, key, topic, type, class or all")
	for i, id := range p.EventIDs {
		if _, err := uuid.Parse(id); err != nil {
			faults = append(faults, web.FieldError{Pointer: fmt.Sprintf("#/event_ids/%d", i), Code: "invalid", Detail: "Must be a UUID."})
		}
	}
	switch p.Class {
	case "", "permanent", "transient", "panic":
	default:
		faults = append(faults, web.FieldError{Pointer: "#/class", Code: "invalid", Detail: "Must be permanent, transient or panic."})
	}
	return faults
}
