package pizzaflow

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"pizzaflow/outbox/admin"
	"pizzaflow/sqldb"
	"pizzaflow/web"
)

// operatorTimeout is how long one request may keep a database busy: less than
// the 30 s that web.Serve gives an answer.
const operatorTimeout = 25 * time.Second

// An operatorAPI is what `pizza outbox` and `pizza dlq` do, over HTTP, for the
// services of this process. It is served from before their databases are open.
type operatorAPI struct {
	token string // OPS_TOKEN; "" shuts the API
	runs  []string
	log   *slog.Logger

	mu     sync.Mutex
	opened []ServiceOperator
}

func newOperatorAPI(cfg Config, log *slog.Logger) *operatorAPI {
	a := &operatorAPI{token: cfg.OpsToken, log: log}
	for _, s := range domain {
		if cfg.runs(s.name) {
			a.runs = append(a.runs, s.name)
		}
	}
	return a
}

// add makes the service's database known.
func (a *operatorAPI) add(service string, db *sqldb.DB) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.opened = append(a.opened, ServiceOperator{Operator: admin.New(db), Service: service, db: db})
}

// handler serves the API behind its lock and what every address of ours goes
// through. A peer elsewhere has only as many guesses at the token as rateLimit.
func (a *operatorAPI) handler(rateLimit int) http.Handler {
	mux := http.NewServeMux()
	for pattern, handle := range map[string]func(http.ResponseWriter, *http.Request) (any, error){
		"GET /api/v1/outbox":                            a.handleGetStatus,
		"GET /api/v1/outbox/blocked":                    a.handleListBlocked,
		"POST /api/v1/outbox/retry":                     a.handleRetry,
		"POST /api/v1/outbox/skip":                      a.handleSkip,
		"POST /api/v1/outbox/republish":                 a.handleRepublish,
		"GET /api/v1/dead-letters":                      a.handleListDeadLetters,
		"GET /api/v1/dead-letters/{service}/{event_id}": a.handleGetDeadLetter,
		"POST /api/v1/dead-letters/replay":              a.handleReplay,
		"POST /api/v1/dead-letters/discard":             a.handleDiscard,
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithTimeout(r.Context(), operatorTimeout)
			defer cancel()
			answer, err := handle(w, r.WithContext(ctx))
			if err != nil {
				web.Error(w, r, a.log, operatorProblem(err))
				return
			}
			web.JSON(w, http.StatusOK, answer)
		})
	}
	locked := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := a.refusal(r); p != nil {
			if p.Status == http.StatusUnauthorized {
				w.Header().Set("WWW-Authenticate", `Bearer realm="pizza operators"`)
			}
			web.Error(w, r, a.log, p)
			return
		}
		mux.ServeHTTP(w, r)
	})
	return web.Handler(locked, web.HandlerConfig{Log: a.log, RateLimit: rateLimit})
}

// refusal is the answer to whoever does not show the token.
func (a *operatorAPI) refusal(r *http.Request) *web.Problem {
	if a.token == "" {
		return web.NewProblem(http.StatusForbidden, "operators-shut", "The operator API is shut",
			fmt.Sprintf("Set OPS_TOKEN, of at least %d characters, and start again to open it.", minToken))
	}
	scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	want, got := sha256.Sum256([]byte(a.token)), sha256.Sum256([]byte(given)) // of one length: nothing is told by the time it takes
	if !strings.EqualFold(scheme, "Bearer") || subtle.ConstantTimeCompare(want[:], got[:]) != 1 {
		return web.NewProblem(http.StatusUnauthorized, "unauthorized", "Who are you?",
			"Send the header Authorization: Bearer, with the token of OPS_TOKEN.")
	}
	return nil
}

// operatorProblem says what an error means to who asked.
func operatorProblem(err error) error {
	switch {
	case errors.Is(err, admin.ErrEventID):
		return web.Invalid(web.FieldError{Pointer: "#/event_id", Code: "invalid", Detail: "Must be a UUID."})
	case sqldb.IsUnavailable(err):
		return web.Unavailable("A database does not answer at the moment. What was asked for may be done for some services: look before asking again.").Because(err)
	}
	return err
}

// services are the operators of one service, or with "" of all that run here.
// field is where the request names it.
func (a *operatorAPI) services(name string) ([]ServiceOperator, error) {
	if name != "" && !slices.Contains(a.runs, name) {
		return nil, web.Invalid(web.FieldError{Pointer: "#/service", Code: "unknown_service", Detail: "Must be one that runs in this process: " + strings.Join(a.runs, ", ") + "."})
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	var found []ServiceOperator
	for _, op := range a.opened {
		if name == "" || name == op.Service {
			found = append(found, op)
		}
	}
	if len(found) == 0 || name == "" && len(found) < len(a.runs) {
		return nil, web.Unavailable("A database has not been opened yet.")
	}
	return found, nil
}

// A query reads the parameters of a GET and collects what is wrong with them.
type query struct {
	values url.Values
	faults []web.FieldError
}

// readQuery refuses parameters that are not known, given twice or no text.
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

// oneOf reads a parameter that is one of some words, the first of them unless
// it is given.
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

// The bounds of limit, of each service.
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

// An operatorDeed is what the bodies of all changes have.
type operatorDeed struct {
	Service  string `json:"service,omitempty"` // all that run here when empty
	Operator string `json:"operator"`
	Reason   string `json:"reason,omitempty"`
	DryRun   bool   `json:"dry_run,omitempty"`
}

// faults tells what is wrong with it.
func (d *operatorDeed) faults() (faults []web.FieldError) {
	for _, f := range []struct {
		pointer, value string
		limit          int
		required       bool
	}{{"#/operator", d.Operator, 200, true}, {"#/reason", d.Reason, 1000, false}} {
		switch {
		case f.required && strings.TrimSpace(f.value) == "":
			faults = append(faults, web.FieldError{Pointer: f.pointer, Code: "required", Detail: "Say who does it: it is kept with what was done."})
		case len(f.value) > f.limit:
			faults = append(faults, web.FieldError{Pointer: f.pointer, Code: "too_long", Detail: fmt.Sprintf("Must have at most %d bytes.", f.limit)})
		}
	}
	return faults
}

func (d *operatorDeed) action() Action {
	return Action{By: d.Operator, Why: d.Reason, DryRun: d.DryRun}
}

// choose tells what is wrong when nothing is selected, or all and something
// besides.
func choose(all, chosen bool, fields string) (faults []web.FieldError) {
	switch {
	case all && chosen:
		faults = append(faults, web.FieldError{Pointer: "#/all", Code: "invalid", Detail: "Goes with no other selection."})
	case !all && !chosen:
		faults = append(faults, web.FieldError{Pointer: "#", Code: "required", Detail: "Nothing is selected: give " + fields + "."})
	}
	return faults
}

// change runs a change for each service that is meant, and notes it in the log:
// what was selected may be personal, so that stands in operator_actions alone.
func (a *operatorAPI) change(ctx context.Context, d *operatorDeed, action string, faults []web.FieldError, fn func(ServiceOperator) (int64, error)) error {
	if faults = append(faults, d.faults()...); len(faults) > 0 {
		return web.Invalid(faults...)
	}
	operators, err := a.services(d.Service)
	if err != nil {
		return err
	}
	for _, op := range operators {
		n, err := fn(op)
		if err != nil {
			return fmt.Errorf("%s: %w", op.Service, err)
		}
		if n > 0 && !d.DryRun {
			a.log.InfoContext(ctx, "changed by an operator", "service", op.Service, "action", action, "affected", n)
		}
	}
	return nil
}
