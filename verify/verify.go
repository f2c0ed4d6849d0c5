package verify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/internal/retry"
	"pizzaflow/load"
	"pizzaflow/sqldb"
)

// A Config says where the evidence is.
type Config struct {
	Databases map[string]*sqldb.DB // order, payment, notification
	Kafka     []kgo.Opt            // how the topics are reached; nil when they are not
	Sandbox   string               // its URL; "" when the outside world is another
	Channels  []string             // email, sms: whose messages the sandbox receives
	Log       io.Reader            // of pizza load, with the orders that were promised; nil without
	Progress  func(string)         // is given each step as a sentence; may be nil
}

// The states of an invariant.
const (
	Holds      = "holds"
	Violated   = "violated"
	InFlight   = "in flight"   // it does not hold yet, and need not while the system is at work
	NotChecked = "not checked" // evidence is missing
)

// A Finding is the outcome of one invariant.
type Finding struct {
	Name    string   `json:"invariant"`
	Says    string   `json:"says"`
	State   string   `json:"state"` // holds, violated, in flight or not checked
	Count   int      `json:"count"` // of violations, or of what is in flight
	Samples []string `json:"samples,omitempty"`
	Needs   string   `json:"needs,omitempty"` // besides the databases: the log of pizza load, the topics, the dead-letter topics or the sandbox
	Why     string   `json:"why,omitempty"`   // it is not checked
}

// A Figure is a count.
type Figure struct {
	Name  string `json:"name"`
	Count int64  `json:"count"`
}

// A Report has the findings and the figures of one collection.
type Report struct {
	Findings []Finding `json:"findings"`
	Figures  []Figure  `json:"figures"`

	young int // payments and messages that are too young to be asked about
}

// Count is the number of invariants in the state.
func (r Report) Count(state string) (n int) {
	for _, f := range r.Findings {
		if f.State == state {
			n++
		}
	}
	return n
}

const (
	samples   = 5
	pause     = 2 * time.Second // between two collections while something is in flight
	settling  = 5 * time.Second // and while something is too young; see settledBy
	reachable = 5 * time.Second // how long the topics, and the sandbox, may take to answer at all
)

// Check collects the evidence and checks every invariant. With a wait it does so again, for that long, until nothing is in
// flight and nothing too young to be asked about. What is in flight at the end of the wait is a violation, because the
// system had the time to come to rest.
func Check(ctx context.Context, cfg Config, wait time.Duration) (Report, error) {
	if cfg.Progress == nil {
		cfg.Progress = func(string) {}
	}
	promised, err := cfg.promised()
	if err != nil {
		return Report{}, err
	}
	for until := time.Now().Add(wait); ; {
		r, err := cfg.check(ctx, promised)
		if err != nil || wait == 0 || r.Count(InFlight) == 0 && r.young == 0 {
			return r, err
		}
		if time.Now().After(until) {
			for i, f := range r.Findings {
				if f.State == InFlight {
					r.Findings[i].State = Violated
				}
			}
			if r.young > 0 {
				cfg.Progress(fmt.Sprintf("it never was at rest for long enough: %d payments and messages are too young to be asked about", r.young))
			}
			return r, nil
		}
		cfg.Progress(fmt.Sprintf("%d invariants are in flight, %d payments and messages are too young: once more", r.Count(InFlight), r.young))
		next := pause
		if r.Count(InFlight) == 0 {
			next = settling
		}
		if !retry.Sleep(ctx, next) {
			return r, ctx.Err()
		}
	}
}

// promised reads from the log the orders that were answered with 201.
func (cfg Config) promised() (lines []load.Line, err error) {
	if cfg.Log == nil {
		return nil, nil
	}
	err = load.ReadLog(cfg.Log, func(l load.Line) error {
		if l.Kind == load.KindPlaced {
			lines = append(lines, l)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the log of pizza load: %w", err)
	}
	return lines, nil
}

// check collects the evidence once and checks every invariant.
func (cfg Config) check(ctx context.Context, promised []load.Line) (_ Report, err error) {
	dir, err := os.MkdirTemp("", "pizza-verify-")
	if err != nil {
		return Report{}, fmt.Errorf("keep evidence: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	e, err := newEvidence(ctx, dir, time.Now())
	if err != nil {
		return Report{}, err
	}
	defer func() { err = errors.Join(err, e.db.Close()) }()
	missing, err := cfg.collect(ctx, e, promised)
	if err != nil {
		return Report{}, err
	}
	cfg.Progress("asking the evidence")
	return e.ask(ctx, missing)
}

// collect copies the evidence, and returns why some of it is missing, by what an invariant needs. Effects are read before
// their causes: charges and messages, then the payments and deliveries behind them, then the orders. So an effect whose
// cause is not found has none. The topics are read last, because published events are on them by then; which of their
// records were there before the databases were read is known from the ends of their partitions at that time.
func (cfg Config) collect(ctx context.Context, e *evidence, promised []load.Line) (missing map[string]string, err error) {
	missing, snapshot := cfg.reach(ctx)
	if missing[needsSandbox] == "" {
		cfg.Progress("reading the sandbox")
		if err := e.copySandbox(ctx, cfg.Sandbox); err != nil {
			return nil, err
		}
	}
	for _, service := range []string{"notification", "payment", "order"} {
		cfg.Progress("reading the database of " + service)
		if err := e.copyDatabase(ctx, service, cfg.Databases[service]); err != nil {
			return nil, err
		}
	}
	if missing[needsTopics] == "" {
		cfg.Progress("reading the topics")
		// a user who may write a topic can see its ends, and need not be allowed to read it
		err := e.copyTopics(ctx, cfg.Kafka, eventTopics, snapshot)
		if errors.Is(err, kerr.TopicAuthorizationFailed) {
			missing[needsTopics] = err.Error()
		} else if err != nil {
			return nil, err
		}
		if err := e.copyTopics(ctx, cfg.Kafka, deadLetterTopics, nil); err != nil {
			missing[needsDeadLetters] = err.Error()
		}
	}
	if err := fillFrom(ctx, e, "channels", cfg.Channels, func(c string) []any { return []any{c} }); err != nil {
		return nil, err
	}
	return missing, fillFrom(ctx, e, "promised", promised, func(l load.Line) []any { return []any{l.Key, l.OrderID, l.Total} })
}

// reach returns why evidence is missing that is not given or does not answer, and the ends of the topics' partitions.
func (cfg Config) reach(ctx context.Context) (missing map[string]string, snapshot kadm.ListedOffsets) {
	missing = map[string]string{}
	if cfg.Log == nil {
		missing[needsLog] = "no log was given"
	}
	snapshot, err := cfg.ends(ctx)
	if err != nil {
		missing[needsTopics], missing[needsDeadLetters] = err.Error(), err.Error()
	}
	if err := cfg.pingSandbox(ctx); err != nil {
		missing[needsSandbox] = err.Error()
	}
	return missing, snapshot
}

// ends are the ends of the topics' partitions, if the brokers answer in time.
func (cfg Config) ends(ctx context.Context) (kadm.ListedOffsets, error) {
	if cfg.Kafka == nil {
		return nil, errors.New("they were not to be looked at")
	}
	ctx, cancel := context.WithTimeout(ctx, reachable)
	defer cancel()
	client, err := kgo.NewClient(cfg.Kafka...)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	return eventTopics.ends(ctx, client)
}

// pingSandbox asks the sandbox for a list that is empty.
func (cfg Config) pingSandbox(ctx context.Context) error {
	if cfg.Sandbox == "" {
		return errors.New("the payments go to another provider, or it was not to be looked at")
	}
	ctx, cancel := context.WithTimeout(ctx, reachable)
	defer cancel()
	return list(ctx, cfg.Sandbox+"/payments/charges?order_reference=none", func(struct{}) error { return nil })
}

// ask checks every invariant for which no evidence is missing.
func (e *evidence) ask(ctx context.Context, missing map[string]string) (r Report, err error) {
	if err := e.complete(ctx); err != nil {
		return r, err
	}
	for _, inv := range invariants {
		f := Finding{Name: inv.name, Says: inv.says, Needs: inv.needs, State: NotChecked, Why: missing[inv.needs]}
		if f.Why == "" {
			if f.Count, f.Samples, err = e.violations(ctx, inv); err != nil {
				return r, fmt.Errorf("ask whether %s: %w", inv.name, err)
			}
			f.State = inv.state(f.Count)
		}
		r.Findings = append(r.Findings, f)
	}
	for _, c := range figures {
		f := Figure{Name: c.name}
		if err := e.db.QueryRowContext(ctx, c.query).Scan(&f.Count); err != nil {
			return r, fmt.Errorf("count %s: %w", c.name, err)
		}
		r.Figures = append(r.Figures, f)
	}
	if err := e.db.QueryRowContext(ctx, tooYoung, time.Now().UnixMicro()).Scan(&r.young); err != nil {
		return r, fmt.Errorf("count what is too young: %w", err)
	}
	return r, nil
}

// state is that of an invariant with so many violations.
func (inv invariant) state(violations int) string {
	switch {
	case violations == 0:
		return Holds
	case inv.atRest:
		return InFlight
	}
	return Violated
}

// violations counts those of an invariant, and takes a few as samples.
func (e *evidence) violations(ctx context.Context, inv invariant) (n int, some []string, err error) {
	rows, err := e.db.QueryContext(ctx, inv.query)
	if err != nil {
		return 0, nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var violation string
		if err := rows.Scan(&violation); err != nil {
			return 0, nil, err
		}
		if n++; len(some) < samples {
			some = append(some, violation)
		}
	}
	slices.Sort(some)
	return n, some, rows.Err()
}
