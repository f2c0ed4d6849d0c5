package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"pizzaflow"
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

func (f parkedFlags) filter() pizzaflow.ParkedFilter {
	return pizzaflow.ParkedFilter{Key: f.Key, Topic: f.Topic, EventType: f.Type, ErrorClass: f.Class}
}

func (f parkedFlags) chosen() bool { return f != parkedFlags{} }

func printParked(p *program, records []pizzaflow.ServiceRecord, nothing string) error {
	return list(p, records, nothing, "SERVICE\tSTATE\tEVENT\tTYPE\tTOPIC\tKEY\tATTEMPTS\tBEHIND\tFAILED\tCLASS\tERROR", func(r pizzaflow.ServiceRecord) []any {
		return []any{
			r.Service, r.State, r.EventID, plain(r.EventType), plain(r.Topic), plain(r.Key), r.Attempts, r.Followers,
			clock(r.LastFailedAt), r.ErrorClass, plain(r.Error),
		}
	})
}

type dlqListCmd struct {
	where
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
	return c.each(ctx, p, func(operators []pizzaflow.ServiceOperator) error {
		var records []pizzaflow.ServiceRecord
		for _, op := range operators {
			found, err := op.Parked(ctx, filter, c.Limit+1)
			if err != nil {
				return fmt.Errorf("%s: %w", op.Service, err)
			}
			if len(found) > c.Limit {
				found = found[:c.Limit]
				fmt.Fprintf(p.stderr, "%s has more than %d: see --limit\n", op.Service, c.Limit)
			}
			for _, r := range found {
				records = append(records, pizzaflow.ServiceRecord{Service: op.Service, ParkedRecord: r})
			}
		}
		nothing := "nothing is " + c.State
		if c.State == "all" {
			nothing = "nothing was ever parked"
		}
		return printParked(p, records, nothing)
	})
}

type dlqShowCmd struct {
	where
	EventID string `arg:"" name:"event-id" help:"The id of the event."`
}

// Run shows a parked record, once for each service that has it.
func (c dlqShowCmd) Run(ctx context.Context, p *program) error {
	return c.each(ctx, p, func(operators []pizzaflow.ServiceOperator) error {
		var letters []pizzaflow.DeadLetter
		for _, op := range operators {
			letter, found, err := pizzaflow.ShowDeadLetter(ctx, op, c.EventID)
			if err != nil {
				return err
			}
			if found {
				letters = append(letters, letter)
			}
		}
		if len(letters) == 0 {
			return fmt.Errorf("no parked record has the event id %s", c.EventID)
		}
		if p.json {
			return printJSON(p, letters)
		}
		for _, l := range letters {
			if _, err := fmt.Fprintln(p.stdout, describe(l)); err != nil {
				return err
			}
		}
		return nil
	})
}

// describe shows a dead letter to a person.
func describe(l pizzaflow.DeadLetter) string {
	var b strings.Builder
	line := func(name string, value any) { fmt.Fprintf(&b, "%-13s %s\n", name, plain(fmt.Sprint(value))) }
	line("event", l.EventID)
	line("type", l.EventType)
	line("group", l.Group)
	line("state", l.State)
	line("record", fmt.Sprintf("%s, partition %d, offset %d", l.Topic, l.Partition, l.Offset))
	line("key", l.Key)
	line("attempts", l.Attempts)
	line("first failed", clock(l.FirstFailedAt))
	line("last failed", clock(l.LastFailedAt))
	line("next attempt", clock(l.DueAt))
	line("finished", clock(l.FinishedAt))
	line("error", l.ErrorClass+": "+l.Error)
	line("behind it", counted(l.Followers, "record"))
	for _, h := range l.Headers {
		line("header", h.Key+": "+h.Value)
	}
	var indented bytes.Buffer
	switch {
	case len(l.Value) > 0 && json.Indent(&indented, l.Value, "", "  ") == nil:
		b.WriteString("value\n")
		for text := range strings.Lines(indented.String()) {
			b.WriteString(plain(strings.TrimSuffix(text, "\n")) + "\n")
		}
	case len(l.Bytes) > 0:
		line("value, base64", base64.StdEncoding.EncodeToString(l.Bytes))
	default:
		line("value", "(none)")
	}
	return b.String()
}

// moveFlags select the dead records that are to be replayed or discarded.
type moveFlags struct {
	where
	parkedFlags
	deed
	EventIDs []string `arg:"" optional:"" name:"event-id" help:"The ids of the events."`
	All      bool     `help:"Every dead record."`
}

// change moves the records that are meant, each event by itself if events are
// named, and tells what was done.
func (f moveFlags) change(ctx context.Context, p *program, verb string,
	move func(pizzaflow.ServiceOperator, pizzaflow.ParkedFilter) ([]pizzaflow.ParkedRecord, error),
) error {
	if err := choose(f.All, f.chosen() || len(f.EventIDs) > 0, "event ids, --key, --topic, --type, --class or --all"); err != nil {
		return err
	}
	ids := f.EventIDs
	if len(ids) == 0 {
		ids = []string{""} // whatever the flags select
	}
	return f.each(ctx, p, func(operators []pizzaflow.ServiceOperator) error {
		var records []pizzaflow.ServiceRecord
		var errs []error
		var behind int64
		for _, id := range ids {
			before := len(records)
			for _, op := range operators {
				filter := f.filter()
				filter.EventID, filter.All = id, f.All
				moved, err := move(op, filter)
				if err != nil {
					errs = append(errs, fmt.Errorf("%s: %w", op.Service, err))
				}
				for _, r := range moved {
					records, behind = append(records, pizzaflow.ServiceRecord{Service: op.Service, ParkedRecord: r}), behind+r.Followers
				}
			}
			if id != "" && len(records) == before && len(errs) == 0 {
				errs = append(errs, fmt.Errorf("nothing to do for %s: it is not parked, or somebody was faster", id))
			}
		}
		err := printParked(p, records, "nothing such is dead")
		if len(records) > 0 {
			p.did(f.deed, "%s %s; %s that waited behind them follow", verb, counted(len(records), "record"), fmt.Sprint(behind))
		}
		return errors.Join(append(errs, err)...)
	})
}

type dlqReplayCmd struct{ moveFlags }

// Run has dead records tried again.
func (c dlqReplayCmd) Run(ctx context.Context, p *program) error {
	return c.change(ctx, p, "replayed", func(op pizzaflow.ServiceOperator, f pizzaflow.ParkedFilter) ([]pizzaflow.ParkedRecord, error) {
		return op.Replay(ctx, f, c.action())
	})
}

type dlqDiscardCmd struct{ moveFlags }

// Run gives dead records up.
func (c dlqDiscardCmd) Run(ctx context.Context, p *program) error {
	return c.change(ctx, p, "discarded", func(op pizzaflow.ServiceOperator, f pizzaflow.ParkedFilter) ([]pizzaflow.ParkedRecord, error) {
		return op.Discard(ctx, f, c.action())
	})
}
