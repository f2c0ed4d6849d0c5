package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"pizzaflow/ops"
	"pizzaflow/outbox/admin"
)

type dlqCmd struct {
	List    dlqListCmd    `cmd:"" help:"List the records that could not be handled."`
	Show    dlqShowCmd    `cmd:"" help:"Show one of them whole, with its value, which holds personal data."`
	Replay  dlqReplayCmd  `cmd:"" help:"Have dead records tried again; what waits behind them follows."`
	Discard dlqDiscardCmd `cmd:"" help:"Give dead records up for ever; what waits behind them follows."`
}

// parkedFlags select parked records.
type parkedFlags struct {
	Key   string `help:"Records under this key."`
	Topic string `help:"Records of this topic."`
	Type  string `help:"Records of this event type, such as OrderCreated."`
	Class string `enum:",permanent,transient,panic" default:"" help:"Records with an error of this class: permanent, transient or panic."`
}

func (f parkedFlags) filter() admin.ParkedFilter {
	return admin.ParkedFilter{Key: f.Key, Topic: f.Topic, EventType: f.Type, ErrorClass: f.Class}
}

func (f parkedFlags) some() bool { return f != parkedFlags{} }

func printParked(p *program, records []ops.ParkedRecord, nothing string) error {
	return list(p, records, nothing, "SERVICE\tSTATE\tEVENT\tTYPE\tTOPIC\tKEY\tATTEMPTS\tBEHIND\tFAILED\tCLASS\tERROR", func(r ops.ParkedRecord) []any {
		return []any{
			r.Service, r.State, r.EventID, printable(r.EventType), printable(r.Topic), printable(r.Key), r.Attempts, r.Followers,
			formatTime(r.LastFailedAt), r.ErrorClass, printable(r.Error),
		}
	})
}

type dlqListCmd struct {
	serviceFlag
	parkedFlags
	Group string `help:"Records of this consumer group."`
	State string `enum:"dead,retrying,waiting,handled,discarded,open,all" default:"dead" help:"dead, retrying, waiting, handled, discarded; open for the first three, or all."`
	Limit int    `default:"100" help:"At most so many of each service."`
}

// Run lists parked records.
func (c dlqListCmd) Run(ctx context.Context, p *program) error {
	if c.Limit < 1 {
		return fmt.Errorf("%w: --limit must be at least 1", errUsage)
	}
	filter := c.filter()
	filter.Group, filter.State = c.Group, c.State
	if c.State == "all" {
		filter.State = ""
	}
	return c.withOperators(ctx, p, func(operators ops.Operators) error {
		records, more, err := operators.Parked(ctx, filter, c.Limit)
		if err != nil {
			return err
		}
		p.sayMore(more, c.Limit)
		nothing := "nothing is " + c.State
		if c.State == "all" {
			nothing = "nothing was ever parked"
		}
		return printParked(p, records, nothing)
	})
}

type dlqShowCmd struct {
	serviceFlag
	EventID string `arg:"" name:"event-id" help:"The id of the event."`
}

// Run shows a parked record, once for each service that has it.
func (c dlqShowCmd) Run(ctx context.Context, p *program) error {
	return c.withOperators(ctx, p, func(operators ops.Operators) error {
		var deadLetters []ops.DeadLetter
		for _, op := range operators {
			dead, found, err := op.DeadLetter(ctx, c.EventID)
			if err != nil {
				return err
			}
			if found {
				deadLetters = append(deadLetters, dead)
			}
		}
		if len(deadLetters) == 0 {
			return fmt.Errorf("no parked record has the event id %s", c.EventID)
		}
		if p.json {
			return printJSON(p, deadLetters)
		}
		for _, d := range deadLetters {
			if _, err := fmt.Fprintln(p.stdout, describe(d)); err != nil {
				return err
			}
		}
		return nil
	})
}

// describe is a dead letter as text.
func describe(d ops.DeadLetter) string {
	var b strings.Builder
	line := func(name string, value any) { fmt.Fprintf(&b, "%-13s %s\n", name, printable(fmt.Sprint(value))) }
	line("event", d.EventID)
	line("type", d.EventType)
	line("group", d.Group)
	line("state", d.State)
	line("record", fmt.Sprintf("%s, partition %d, offset %d", d.Topic, d.Partition, d.Offset))
	line("key", d.Key)
	line("attempts", d.Attempts)
	line("first failed", formatTime(d.FirstFailedAt))
	line("last failed", formatTime(d.LastFailedAt))
	line("next attempt", formatTime(d.DueAt))
	line("finished", formatTime(d.FinishedAt))
	line("error", d.ErrorClass+": "+d.Error)
	line("behind it", counted(d.Followers, "record"))
	for _, h := range d.Headers {
		line("header", h.Key+": "+h.Value)
	}
	var indented bytes.Buffer
	switch {
	case len(d.Value) > 0 && json.Indent(&indented, d.Value, "", "  ") == nil:
		b.WriteString("value\n")
		for text := range strings.Lines(indented.String()) {
			b.WriteString(printable(strings.TrimSuffix(text, "\n")) + "\n")
		}
	case len(d.Bytes) > 0:
		line("value, base64", base64.StdEncoding.EncodeToString(d.Bytes))
	default:
		line("value", "(none)")
	}
	return b.String()
}

// deadFlags select the dead records of a change.
type deadFlags struct {
	serviceFlag
	parkedFlags
	changeFlags
	EventIDs []string `arg:"" optional:"" name:"event-id" help:"The ids of the events."`
	All      bool     `help:"Every dead record."`
}

// change changes dead records of each service, one event after the other where events are named, and prints them.
func (f deadFlags) change(ctx context.Context, p *program, verb string,
	fn func(ops.Operator, admin.ParkedFilter) ([]ops.ParkedRecord, error),
) error {
	if err := checkSelection(f.All, f.some() || len(f.EventIDs) > 0, "event ids, --key, --topic, --type, --class or --all"); err != nil {
		return err
	}
	ids := f.EventIDs
	if len(ids) == 0 {
		ids = []string{""} // the flags select
	}
	return f.withOperators(ctx, p, func(operators ops.Operators) error {
		var records []ops.ParkedRecord
		var errs []error
		var behind int64
		for _, id := range ids {
			before := len(records)
			for _, op := range operators {
				filter := f.filter()
				filter.EventID, filter.All = id, f.All
				changed, err := fn(op, filter)
				if err != nil {
					errs = append(errs, err)
				}
				for _, r := range changed {
					behind += r.Followers
				}
				records = append(records, changed...)
			}
			if id != "" && len(records) == before && len(errs) == 0 {
				errs = append(errs, fmt.Errorf("nothing to do for %s: it is not parked, or somebody was faster", id))
			}
		}
		err := printParked(p, records, "nothing such is dead")
		if len(records) > 0 {
			p.reportChange(f.changeFlags, "%s %s; %s that waited behind them follow", verb, counted(len(records), "record"), fmt.Sprint(behind))
		}
		return errors.Join(append(errs, err)...)
	})
}

type dlqReplayCmd struct{ deadFlags }

// Run has dead records tried again.
func (c dlqReplayCmd) Run(ctx context.Context, p *program) error {
	return c.change(ctx, p, "replayed", func(op ops.Operator, f admin.ParkedFilter) ([]ops.ParkedRecord, error) {
		return op.Replay(ctx, f, c.action())
	})
}

type dlqDiscardCmd struct{ deadFlags }

// Run gives dead records up.
func (c dlqDiscardCmd) Run(ctx context.Context, p *program) error {
	return c.change(ctx, p, "discarded", func(op ops.Operator, f admin.ParkedFilter) ([]ops.ParkedRecord, error) {
		return op.Discard(ctx, f, c.action())
	})
}
