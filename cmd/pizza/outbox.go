package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strings"
	"time"
	"unicode"

	"pizzaflow/ops"
	"pizzaflow/outbox/admin"
)

type outboxCmd struct {
	Status    outboxStatusCmd    `cmd:"" help:"Who publishes, what waits, and what is refused."`
	Blocked   outboxBlockedCmd   `cmd:"" help:"List the events that the broker refuses for ever, and what waits behind them."`
	Retry     outboxRetryCmd     `cmd:"" help:"Publish blocked events after all: their topic takes them by now."`
	Skip      outboxSkipCmd      `cmd:"" help:"Give blocked events up for ever; what waits behind them follows."`
	Republish outboxRepublishCmd `cmd:"" help:"Publish again what was published before: a topic has lost it."`
}

// where says whose database is meant.
type where struct {
	Service string `enum:",order,payment,notification" default:"" help:"Of this service alone: order, payment or notification. Default: of all that have a database."`
}

// each opens the databases that are meant and runs fn with them.
func (w where) each(ctx context.Context, p *program, fn func(ops.Operators) error) error {
	operators, err := ops.Open(ctx, p.cfg.Databases(), w.Service)
	if err != nil {
		return err
	}
	return errors.Join(fn(operators), operators.Close())
}

// deed says who changes something, why, and whether really.
type deed struct {
	DryRun bool   `help:"Only show what would be changed."`
	Why    string `help:"The reason, to be kept with your name and what was done."`
}

func (d deed) action() admin.Action {
	name, host := "unknown", "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if h, err := os.Hostname(); err == nil {
		host = h
	}
	return admin.Action{By: name + "@" + host, Why: d.Why, DryRun: d.DryRun}
}

// did tells what was done, or would be.
func (p *program) did(d deed, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if d.DryRun {
		text = "dry run: would have " + text
	}
	fmt.Fprintln(p.stderr, text)
}

// list prints what was found, and says so in words when there is nothing.
func list[T any](p *program, items []T, nothing, header string, columns func(T) []any) error {
	if len(items) == 0 {
		fmt.Fprintln(p.stderr, nothing)
		if !p.json {
			return nil
		}
		items = []T{} // not null
	}
	return show(p, items, header, columns)
}

// checkSelection is ops.CheckSelection for a command line.
func checkSelection(all, some bool, selectors string) error {
	if err := ops.CheckSelection(all, some); err != nil {
		return fmt.Errorf("%w: %w: give %s", errUsage, err, selectors)
	}
	return nil
}

// sayMore names the services that have more than limit.
func (p *program) sayMore(services []string, limit int) {
	for _, s := range services {
		fmt.Fprintf(p.stderr, "%s has more than %d: see --limit\n", s, limit)
	}
}

// counted is a number with its noun: "1 record", "3 records".
func counted[N int | int64](n N, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprint(n, " ", noun, "s")
}

// plain makes a text from outside safe to show: on one line, and nothing in it
// that a terminal would obey.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}

// clock shows a time to the second, and nothing for none.
func clock(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

type outboxStatusCmd struct{ where }

// Run shows how the publishing of each service stands.
func (c outboxStatusCmd) Run(ctx context.Context, p *program) error {
	return c.each(ctx, p, func(operators ops.Operators) error {
		statuses, err := operators.Statuses(ctx)
		if err != nil {
			return err
		}
		err = show(p, statuses, "SERVICE\tLEADER\tUNPUBLISHED\tOLDEST\tBLOCKED\tSKIPPED\tREFUSED\tFLOOR", func(s ops.Status) []any {
			return []any{s.Service, leader(s), s.Unpublished, clock(s.OldestWaiting), s.Blocked, s.Skipped, len(s.Paused), s.Floor}
		})
		if err != nil || p.json {
			return err
		}
		for _, s := range statuses {
			for _, l := range s.Paused {
				fmt.Fprintf(p.stderr, "%s: %s does not take events since %s, %d wait: %s\n", s.Service, plain(l.Name), clock(l.Since), l.Waiting, plain(l.Reason))
			}
		}
		return nil
	})
}

func leader(s ops.Status) string {
	switch s.Leader {
	case "alive":
		return "led by " + plain(s.Holder)
	case "silent":
		return "silent: " + plain(s.Holder)
	}
	return "nobody leads"
}

type outboxBlockedCmd struct {
	where
	blockedFlags
	Limit int `default:"100" help:"At most so many of each service."`
}

// blockedFlags select blocked events.
type blockedFlags struct {
	Topic string `help:"Events for this topic."`
	Key   string `help:"Events under this key."`
	Seq   int64  `help:"The event of this number; give its --service, too."`
}

func (f blockedFlags) filter() admin.BlockedFilter {
	return admin.BlockedFilter{Topic: f.Topic, Key: f.Key, Seq: f.Seq}
}

func (f blockedFlags) chosen() bool { return f != blockedFlags{} }

// checkSeq refuses a number without its service: each counts for itself.
func (f blockedFlags) checkSeq(w where) error {
	if f.Seq != 0 && w.Service == "" {
		return fmt.Errorf("%w: --seq is a number of one service: give --service", errUsage)
	}
	return nil
}

func printBlocked(p *program, events []ops.BlockedEvent, nothing string) error {
	return list(p, events, nothing, "SERVICE\tSEQ\tTOPIC\tKEY\tTYPE\tSINCE\tSKIPPED\tREASON", func(e ops.BlockedEvent) []any {
		return []any{e.Service, e.Seq, plain(e.Topic), plain(e.Key), plain(e.EventType), clock(e.Since), clock(e.SkippedAt), plain(e.Reason)}
	})
}

// Run lists what is blocked.
func (c outboxBlockedCmd) Run(ctx context.Context, p *program) error {
	if c.Limit < 1 {
		return fmt.Errorf("%w: --limit must be at least 1", errUsage)
	}
	return c.each(ctx, p, func(operators ops.Operators) error {
		events, more, err := operators.Blocked(ctx, c.filter(), c.Limit)
		if err != nil {
			return err
		}
		p.sayMore(more, c.Limit)
		return printBlocked(p, events, "nothing is blocked")
	})
}

// changeBlocked has each service change the events that are meant.
func changeBlocked(ctx context.Context, p *program, w where, d deed, verb string,
	change func(ops.Operator) ([]ops.BlockedEvent, error),
) error {
	return w.each(ctx, p, func(operators ops.Operators) error {
		var events []ops.BlockedEvent
		var failed error
		for _, op := range operators {
			changed, err := change(op)
			if err != nil { // the changes at the services before it are shown all the same
				failed = err
				break
			}
			events = append(events, changed...)
		}
		err := printBlocked(p, events, "nothing such is blocked")
		if len(events) > 0 {
			p.did(d, "%s %s", verb, counted(len(events), "event"))
		}
		return errors.Join(failed, err)
	})
}

type outboxRetryCmd struct {
	where
	blockedFlags
	deed
	All bool `help:"Everything that is blocked."`
}

// Run has blocked events published.
func (c outboxRetryCmd) Run(ctx context.Context, p *program) error {
	if err := errors.Join(checkSelection(c.All, c.chosen(), "--topic, --key, --seq or --all"), c.checkSeq(c.where)); err != nil {
		return err
	}
	return changeBlocked(ctx, p, c.where, c.deed, "released", func(op ops.Operator) ([]ops.BlockedEvent, error) {
		return op.Retry(ctx, c.filter(), c.action())
	})
}

type outboxSkipCmd struct {
	where
	blockedFlags
	deed
	Refused string `placeholder:"TOPIC" help:"All events that wait for this topic, which does not take any now."`
}

// Run gives events up.
func (c outboxSkipCmd) Run(ctx context.Context, p *program) error {
	if c.Refused != "" && c.chosen() {
		return fmt.Errorf("%w: --refused goes with no other selection", errUsage)
	}
	if c.Refused != "" {
		return c.skipRefused(ctx, p)
	}
	if err := errors.Join(checkSelection(false, c.chosen(), "--seq, --key, --topic or --refused"), c.checkSeq(c.where)); err != nil {
		return err
	}
	return changeBlocked(ctx, p, c.where, c.deed, "given up", func(op ops.Operator) ([]ops.BlockedEvent, error) {
		return op.Skip(ctx, c.filter(), c.action())
	})
}

// A tally is how many events of a service were changed.
type tally struct {
	Service string `json:"service"`
	Events  int64  `json:"events"`
}

// tallied has each service change something, and prints how much it was.
func tallied(ctx context.Context, p *program, w where, d deed, verb, nothing string, change func(ops.Operator) (int64, error)) error {
	return w.each(ctx, p, func(operators ops.Operators) error {
		var tallies []tally
		var total int64
		var failed error
		for _, op := range operators {
			n, err := change(op)
			if err != nil {
				failed = err
				break
			}
			total += n
			tallies = append(tallies, tally{op.Service, n})
		}
		err := list(p, tallies, nothing, "SERVICE\tEVENTS", func(t tally) []any { return []any{t.Service, t.Events} })
		switch {
		case total > 0:
			p.did(d, "%s %s", verb, counted(total, "event"))
		case failed == nil:
			fmt.Fprintln(p.stderr, nothing)
		}
		return errors.Join(failed, err)
	})
}

func (c outboxSkipCmd) skipRefused(ctx context.Context, p *program) error {
	return tallied(ctx, p, c.where, c.deed, "given up", "nothing waits for "+plain(c.Refused), func(op ops.Operator) (int64, error) {
		return op.SkipRefused(ctx, c.Refused, c.action())
	})
}

type outboxRepublishCmd struct {
	where
	deed
	Since string `required:"" placeholder:"TIME" help:"From the first event of this time on: 2026-01-02T15:04:05Z, or 2h for two hours ago."`
}

// Run has events published again.
func (c outboxRepublishCmd) Run(ctx context.Context, p *program) error {
	since, err := time.Parse(time.RFC3339, c.Since)
	if ago, e := time.ParseDuration(c.Since); e == nil && ago > 0 {
		since, err = time.Now().Add(-ago), nil
	}
	if err != nil {
		return fmt.Errorf("%w: --since: %q is neither a time such as 2026-01-02T15:04:05Z nor a duration such as 2h", errUsage, c.Since)
	}
	nothing := "nothing that is retained was written since " + clock(since)
	return tallied(ctx, p, c.where, c.deed, "rewound", nothing, func(op ops.Operator) (int64, error) {
		return op.Republish(ctx, since, c.action())
	})
}
