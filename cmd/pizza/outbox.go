package main

import (
	"context"
	"errors"
	"fmt"
	"time"

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

type outboxStatusCmd struct{ serviceFlag }

// Run shows how the publishing of each service stands.
func (c outboxStatusCmd) Run(ctx context.Context, p *program) error {
	return c.withOperators(ctx, p, func(operators ops.Operators) error {
		statuses, err := operators.Statuses(ctx)
		if err != nil {
			return err
		}
		err = show(p, statuses, "SERVICE\tLEADER\tUNPUBLISHED\tOLDEST\tBLOCKED\tSKIPPED\tREFUSED\tFLOOR", func(s ops.Status) []any {
			return []any{s.Service, leader(s), s.Unpublished, formatTime(s.OldestWaiting), s.Blocked, s.Skipped, len(s.Paused), s.Floor}
		})
		if err != nil || p.json {
			return err
		}
		for _, s := range statuses {
			for _, l := range s.Paused {
				fmt.Fprintf(p.stderr, "%s: %s does not take events since %s, %d wait: %s\n", s.Service, printable(l.Name), formatTime(l.Since), l.Waiting, printable(l.Reason))
			}
		}
		return nil
	})
}

func leader(s ops.Status) string {
	switch s.Leader {
	case "alive":
		return "led by " + printable(s.Holder)
	case "silent":
		return "silent: " + printable(s.Holder)
	}
	return "nobody leads"
}

type outboxBlockedCmd struct {
	serviceFlag
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

func (f blockedFlags) some() bool { return f != blockedFlags{} }

// checkSeq refuses a number without its service, because each service counts its own events.
func (f blockedFlags) checkSeq(s serviceFlag) error {
	if f.Seq != 0 && s.Service == "" {
		return fmt.Errorf("%w: --seq is a number of one service: give --service", errUsage)
	}
	return nil
}

func printBlocked(p *program, events []ops.BlockedEvent, nothing string) error {
	return list(p, events, nothing, "SERVICE\tSEQ\tTOPIC\tKEY\tTYPE\tSINCE\tSKIPPED\tREASON", func(e ops.BlockedEvent) []any {
		return []any{e.Service, e.Seq, printable(e.Topic), printable(e.Key), printable(e.EventType), formatTime(e.Since), formatTime(e.SkippedAt), printable(e.Reason)}
	})
}

// Run lists the blocked events.
func (c outboxBlockedCmd) Run(ctx context.Context, p *program) error {
	if c.Limit < 1 {
		return fmt.Errorf("%w: --limit must be at least 1", errUsage)
	}
	return c.withOperators(ctx, p, func(operators ops.Operators) error {
		events, more, err := operators.Blocked(ctx, c.filter(), c.Limit)
		if err != nil {
			return err
		}
		p.sayMore(more, c.Limit)
		return printBlocked(p, events, "nothing is blocked")
	})
}

// changeBlocked changes blocked events of each service, and prints them.
func changeBlocked(ctx context.Context, p *program, s serviceFlag, c changeFlags, verb string,
	change func(ops.Operator) ([]ops.BlockedEvent, error),
) error {
	return s.withOperators(ctx, p, func(operators ops.Operators) error {
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
			p.reportChange(c, "%s %s", verb, counted(len(events), "event"))
		}
		return errors.Join(failed, err)
	})
}

type outboxRetryCmd struct {
	serviceFlag
	blockedFlags
	changeFlags
	All bool `help:"Everything that is blocked."`
}

// Run has blocked events published.
func (c outboxRetryCmd) Run(ctx context.Context, p *program) error {
	if err := errors.Join(checkSelection(c.All, c.some(), "--topic, --key, --seq or --all"), c.checkSeq(c.serviceFlag)); err != nil {
		return err
	}
	return changeBlocked(ctx, p, c.serviceFlag, c.changeFlags, "released", func(op ops.Operator) ([]ops.BlockedEvent, error) {
		return op.Retry(ctx, c.filter(), c.action())
	})
}

type outboxSkipCmd struct {
	serviceFlag
	blockedFlags
	changeFlags
	Refused string `placeholder:"TOPIC" help:"All events that wait for this topic, which does not take any now."`
}

// Run gives blocked events up.
func (c outboxSkipCmd) Run(ctx context.Context, p *program) error {
	if c.Refused != "" && c.some() {
		return fmt.Errorf("%w: --refused goes with no other selection", errUsage)
	}
	if c.Refused != "" {
		return c.skipRefused(ctx, p)
	}
	if err := errors.Join(checkSelection(false, c.some(), "--seq, --key, --topic or --refused"), c.checkSeq(c.serviceFlag)); err != nil {
		return err
	}
	return changeBlocked(ctx, p, c.serviceFlag, c.changeFlags, "given up", func(op ops.Operator) ([]ops.BlockedEvent, error) {
		return op.Skip(ctx, c.filter(), c.action())
	})
}

// A changedCount is how many events of a service were changed.
type changedCount struct {
	Service string `json:"service"`
	Events  int64  `json:"events"`
}

// changeMany changes events of each service that are too many to be listed, and prints their numbers.
func changeMany(ctx context.Context, p *program, s serviceFlag, c changeFlags, verb, nothing string, change func(ops.Operator) (int64, error)) error {
	return s.withOperators(ctx, p, func(operators ops.Operators) error {
		var counts []changedCount
		var total int64
		var failed error
		for _, op := range operators {
			n, err := change(op)
			if err != nil {
				failed = err
				break
			}
			total += n
			counts = append(counts, changedCount{op.Service, n})
		}
		err := list(p, counts, nothing, "SERVICE\tEVENTS", func(n changedCount) []any { return []any{n.Service, n.Events} })
		switch {
		case total > 0:
			p.reportChange(c, "%s %s", verb, counted(total, "event"))
		case failed == nil:
			fmt.Fprintln(p.stderr, nothing)
		}
		return errors.Join(failed, err)
	})
}

// skipRefused gives up the events that wait for a topic.
func (c outboxSkipCmd) skipRefused(ctx context.Context, p *program) error {
	return changeMany(ctx, p, c.serviceFlag, c.changeFlags, "given up", "nothing waits for "+printable(c.Refused), func(op ops.Operator) (int64, error) {
		return op.SkipRefused(ctx, c.Refused, c.action())
	})
}

type outboxRepublishCmd struct {
	serviceFlag
	changeFlags
	Since string `required:"" placeholder:"TIME" help:"From the first event of this time on: 2026-01-02T15:04:05Z, or 2h for two hours ago."`
}

// Run has events of the past published again.
func (c outboxRepublishCmd) Run(ctx context.Context, p *program) error {
	since, err := time.Parse(time.RFC3339, c.Since)
	if ago, e := time.ParseDuration(c.Since); e == nil && ago > 0 {
		since, err = time.Now().Add(-ago), nil
	}
	if err != nil {
		return fmt.Errorf("%w: --since: %q is neither a time such as 2026-01-02T15:04:05Z nor a duration such as 2h", errUsage, c.Since)
	}
	nothing := "nothing that is retained was written since " + formatTime(since)
	return changeMany(ctx, p, c.serviceFlag, c.changeFlags, "rewound", nothing, func(op ops.Operator) (int64, error) {
		return op.Republish(ctx, since, c.action())
	})
}
