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
	Channels  []string             // email, sms: those of which the sandbox receives the messages
	Log       io.Reader            // what pizza load was promised; nil without
	Progress  func(string)         // told what is being done; may be nil
}

// What became of an invariant.
const (
	Holds      = "holds"
	Violated   = "violated"
	InFlight   = "in flight"   // not yet, and it need not: the system is at work
	NotChecked = "not checked" // for want of evidence
)

// A Finding is what became of one invariant.
type Finding struct {
	Name    string   `json:"invariant"`
	Says    string   `json:"says"`
	State   string   `json:"state"` // holds, violated, in flight or not checked
	Count   int      `json:"count"` // of what is wrong or in flight
	Samples []string `json:"samples,omitempty"`
	Needs   string   `json:"needs,omitempty"` // beside the databases: the log of pizza load, the topics, the dead-letter topics or the sandbox
	Why     string   `json:"why,omitempty"`   // it is not checked
}

// A Figure is something that was counted.
type Figure struct {
	Name  string `json:"name"`
	Count int64  `json:"count"`
}

// A Report is what the evidence says.
type Report struct {
	Findings []Finding `json:"findings"`
	Figures  []Figure  `json:"figures"`

	young int // payments and messages that came too late to be asked about
}

// Count is how many invariants are in the state.
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
	settling  = 5 * time.Second // and when what is left is too young; see settledBy
	reachable = 5 * time.Second // how long a topic or the sandbox may take to answer at all
)

// Check collects the evidence and asks it about every invariant. With a wait it
// does so again, for that long, until nothing is in flight and nothing too young
// to be asked about; what is in flight at the last is a violation then, because
// the system had the time to come to rest.
func Check(ctx context.Context, cfg Config, wait time.Duration) (Report, error) {
	if cfg.Progress == nil {
		cfg.Progress = func(string) {}
	}
	var promised []load.Line
	if cfg.Log != nil {
		err := load.ReadLog(cfg.Log, func(l load.Line) error {
			if l.Kind == load.KindPlaced {
				promised = append(promised, l)
			}
			return nil
		})
		if err != nil {
			return Report{}, fmt.Errorf("read the log of pizza load: %w", err)
		}
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

// check collects the evidence once. Effects are read before their causes:
// charges and messages, then what payments and deliveries say of them, then the
// orders. So whatever has no cause in what was read later has none at all. The
// topics are read last, because a published event is on them by then; which of
// their records were there from the beginning is known from their ends at that
// time.
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
	missing := map[string]string{}
	if cfg.Log == nil {
		missing[needsLog] = "no log was given"
	}
	early := cfg.reach(ctx, missing)
	if missing[needsSandbox] == "" {
		cfg.Progress("reading the sandbox")
		if err := e.copySandbox(ctx, cfg.Sandbox); err != nil {
			return Report{}, err
		}
	}
	for _, service := range []string{"notification", "payment", "order"} {
		cfg.Progress("reading the database of " + service)
		if err := e.copyDatabase(ctx, service, cfg.Databases[service]); err != nil {
			return Report{}, err
		}
	}
	if missing[needsTopics] == "" {
		cfg.Progress("reading the topics")
		// who may write a topic can see it, and need not be allowed to read it
		err := e.copyTopics(ctx, cfg.Kafka, events, early)
		if errors.Is(err, kerr.TopicAuthorizationFailed) {
			missing[needsTopics] = err.Error()
		} else if err != nil {
			return Report{}, err
		}
		if err := e.copyTopics(ctx, cfg.Kafka, letters, nil); err != nil {
			missing[needsLetters] = err.Error()
		}
	}
	err = e.fill(ctx, "channels", 1, func(put func(...any) error) error {
		for _, c := range cfg.Channels {
			if err := put(c); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return Report{}, err
	}
	err = e.fill(ctx, "promised", 3, func(put func(...any) error) error {
		for _, l := range promised {
			if err := put(l.Key, l.OrderID, l.Total); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return Report{}, err
	}
	cfg.Progress("asking the evidence")
	return e.ask(ctx, missing)
}

// reach finds out what is not there to be read, and where the topics end.
func (cfg Config) reach(ctx context.Context, missing map[string]string) (early kadm.ListedOffsets) {
	if cfg.Kafka == nil {
		missing[needsTopics] = "they were not to be looked at"
	} else if listed, err := cfg.ends(ctx); err != nil {
		missing[needsTopics] = err.Error()
	} else {
		early = listed
	}
	if why := missing[needsTopics]; why != "" {
		missing[needsLetters] = why
	}
	ctx, cancel := context.WithTimeout(ctx, reachable)
	defer cancel()
	if cfg.Sandbox == "" {
		missing[needsSandbox] = "the payments go to another provider, or it was not to be looked at"
	} else if err := list(ctx, cfg.Sandbox+"/payments/charges?order_reference=none", func(struct{}) error { return nil }); err != nil {
		missing[needsSandbox] = err.Error()
	}
	return early
}

// ends are where the topics end, if somebody answers in time.
func (cfg Config) ends(ctx context.Context) (kadm.ListedOffsets, error) {
	ctx, cancel := context.WithTimeout(ctx, reachable)
	defer cancel()
	client, err := kgo.NewClient(cfg.Kafka...)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	return events.ends(ctx, client)
}

// ask asks about every invariant.
func (e *evidence) ask(ctx context.Context, missing map[string]string) (r Report, err error) {
	if err := e.complete(ctx); err != nil {
		return r, err
	}
	for _, inv := range invariants {
		f := Finding{Name: inv.name, Says: inv.says, Needs: inv.needs, State: Holds}
		if why := missing[inv.needs]; why != "" {
			f.State, f.Why = NotChecked, why
		} else if err := e.put(ctx, inv, &f); err != nil {
			return r, err
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
	if err := e.db.QueryRowContext(ctx, young, time.Now().UnixMicro()).Scan(&r.young); err != nil {
		return r, fmt.Errorf("count what is too young: %w", err)
	}
	return r, nil
}

// put puts one question.
func (e *evidence) put(ctx context.Context, inv invariant, f *Finding) error {
	rows, err := e.db.QueryContext(ctx, inv.query)
	if err != nil {
		return fmt.Errorf("ask whether %s: %w", inv.name, err)
	}
	defer rows.Close()
	for rows.Next() {
		var what string
		if err := rows.Scan(&what); err != nil {
			return fmt.Errorf("ask whether %s: %w", inv.name, err)
		}
		if f.Count++; len(f.Samples) < samples {
			f.Samples = append(f.Samples, what)
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("ask whether %s: %w", inv.name, err)
	}
	slices.Sort(f.Samples)
	if f.Count > 0 {
		f.State = Violated
		if inv.atRest {
			f.State = InFlight
		}
	}
	return nil
}
