package ops

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"pizzaflow/outbox/admin"
	"pizzaflow/sqldb"
	"pizzaflow/web"
)

// requestTimeout is how long one request may keep a database busy: less than the 30 s that web.Serve gives an answer.
const requestTimeout = 25 * time.Second

// minToken is the least length of a token: 16 random letters and digits are more than can be guessed.
const minToken = 16

// CheckToken refuses a token that could be guessed or does not fit into a header.
func CheckToken(token string) error {
	if len(token) < minToken || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("must have at least %d characters, all of them visible ASCII", minToken)
	}
	return nil
}

// An APIConfig configures an API.
type APIConfig struct {
	Token     string     // the bearer token that requests must have; "" shuts the API
	Databases []Database // of all services; the API serves those whose service runs
	RateLimit int        // requests a minute from one peer, and so guesses at the token; 0 is no limit
	Log       *slog.Logger
}

// An API is what `pizza outbox` and `pizza dlq` do, over HTTP, for the services of this process. It can be served before
// their databases are open.
type API struct {
	cfg  APIConfig
	runs []string // the services of this process
	mux  *http.ServeMux

	mu     sync.Mutex
	opened Operators
}

// NewAPI makes an API that knows no open database yet.
func NewAPI(cfg APIConfig) *API {
	a := &API{cfg: cfg, mux: http.NewServeMux()}
	for _, d := range cfg.Databases {
		if d.Runs {
			a.runs = append(a.runs, d.Service)
		}
	}
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
		a.handle(pattern, handle)
	}
	return a
}

// handle adds a route whose answer is sent as JSON.
func (a *API) handle(pattern string, handle func(http.ResponseWriter, *http.Request) (any, error)) {
	a.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
		defer cancel()
		answer, err := handle(w, r.WithContext(ctx))
		if err != nil {
			web.Error(w, r, a.cfg.Log, problem(err))
			return
		}
		web.JSON(w, http.StatusOK, answer)
	})
}

// Add makes the open database of a service known.
func (a *API) Add(service string, db *sqldb.DB) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.opened = append(a.opened, newOperator(service, db))
}

// Handler serves the routes to requests that show the token.
func (a *API) Handler() http.Handler {
	authorized := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := a.refusal(r); p != nil {
			if p.Status == http.StatusUnauthorized {
				w.Header().Set("WWW-Authenticate", `Bearer realm="pizza operators"`)
			}
			web.Error(w, r, a.cfg.Log, p)
			return
		}
		a.mux.ServeHTTP(w, r)
	})
	return web.Handler(authorized, web.HandlerConfig{Log: a.cfg.Log, RateLimit: a.cfg.RateLimit})
}

// refusal is the answer to a request that does not show the token; nil when it does.
func (a *API) refusal(r *http.Request) *web.Problem {
	if a.cfg.Token == "" {
		return web.NewProblem(http.StatusForbidden, "operators-shut", "The operator API is shut",
			fmt.Sprintf("Set OPS_TOKEN, of at least %d characters, and start again to open it.", minToken))
	}
	scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	want, got := sha256.Sum256([]byte(a.cfg.Token)), sha256.Sum256([]byte(given)) // of one length, so that the time it takes tells nothing
	if !strings.EqualFold(scheme, "Bearer") || subtle.ConstantTimeCompare(want[:], got[:]) != 1 {
		return web.NewProblem(http.StatusUnauthorized, "unauthorized", "Who are you?",
			"Send the header Authorization: Bearer, with the token of OPS_TOKEN.")
	}
	return nil
}

// problem returns the answer to a request that failed with err.
func problem(err error) error {
	switch {
	case errors.Is(err, admin.ErrEventID):
		return web.Invalid(web.FieldError{Pointer: "#/event_id", Code: "invalid", Detail: "Must be a UUID."})
	case sqldb.IsUnavailable(err):
		return web.Unavailable("A database does not answer at the moment. What was asked for may be done for some services: look before asking again.").Because(err)
	}
	return err
}

// operators are those of one service, or with "" of all that run here.
func (a *API) operators(service string) (Operators, error) {
	if service != "" && !slices.Contains(a.runs, service) {
		return nil, web.Invalid(web.FieldError{Pointer: "#/service", Code: "unknown_service", Detail: "Must be one that runs in this process: " + strings.Join(a.runs, ", ") + "."})
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	var found Operators
	for _, o := range a.opened {
		if service == "" || service == o.Service {
			found = append(found, o)
		}
	}
	if len(found) == 0 || service == "" && len(found) < len(a.runs) {
		return nil, web.Unavailable("A database has not been opened yet.")
	}
	return found, nil
}
