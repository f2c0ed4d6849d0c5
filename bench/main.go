// Command bench measures the system beside what people use instead of it, in
// one run on one machine, and writes what it found to docs/benchmarks.md.
// "make bench" runs it from the root of the repository.
//
// It starts PostgreSQL and Apache Kafka of its own, by e2e/servers/servers.
// Whatever is measured runs in a process of its own, this program again with
// a role (see roles), so that its processor time and memory are its own. A
// part that fails is reported as such, the others go on, and the exit code
// is 1. Nothing is left behind: no process, no folder.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"
)

// gcPercent is what cmd/pizza sets, for all who are compared.
const gcPercent = 200

func main() {
	debug.SetGCPercent(gcPercent)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is main without the process around it: it returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == "role" {
		if err := play(ctx, args[1:], os.Stdin, stdout); err != nil {
			fmt.Fprintln(stderr, "bench:", err)
			return 1
		}
		return 0
	}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	root := flags.String("root", ".", "the root of the repository")
	out := flags.String("out", "docs/benchmarks.md", "the report, from the root; empty writes none")
	which := flags.String("run", "", "the parts to run, by commas: "+strings.Join(partNames(), ", ")+"; all when empty")
	size := flags.String("size", "full", "full (about 17 minutes), quick (about 6) or tiny (to try the program itself)")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	chosen, err := choose(*which)
	s, known := sizes()[*size]
	if err == nil && !known {
		err = fmt.Errorf("there is no size %q", *size)
	}
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 2
	}
	b := &bench{root: *root, size: s, sizeName: *size, log: stderr, began: time.Now(), report: &report{}}
	err = b.all(ctx, chosen)
	if ctx.Err() != nil {
		*out = "" // half a run is not for the record
	}
	err = errors.Join(err, b.publish(*out, stdout))
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	return 0
}

// A part of the measurements. It adds what it found to the report, also what
// it found before it failed.
type part struct {
	name, title string
	run         func(context.Context, *bench) error
}

func parts() []part {
	return []part{
		{"relay", "Relay: draining a backlog", relayPart},
		{"latency", "From the commit to a consumer's hands", latencyPart},
		{"intake", "Order intake", intakePart},
		{"consumer", "Consumer with inbox, effect and outbox", consumerPart},
		{"chain", "Orders, relay, broker and consumer at once", chainPart},
		{"flow", "The whole flow, with the binary", flowPart},
		{"provider", "A provider that takes its time", providerPart},
	}
}

func partNames() []string {
	var names []string
	for _, p := range parts() {
		names = append(names, p.name)
	}
	return names
}

// choose finds the parts named in a list.
func choose(list string) ([]part, error) {
	if list == "" {
		return parts(), nil
	}
	var chosen []part
	for name := range strings.SplitSeq(list, ",") {
		found := false
		for _, p := range parts() {
			if p.name == strings.TrimSpace(name) {
				chosen, found = append(chosen, p), true
			}
		}
		if !found {
			return nil, fmt.Errorf("there is no part %q; there are %s", name, strings.Join(partNames(), ", "))
		}
	}
	return chosen, nil
}

// bench is one run.
type bench struct {
	root     string
	size     size
	sizeName string
	log      io.Writer
	began    time.Time
	report   *report
	*servers

	debezium   *debezium // of the latency part, once it has been started
	aggregates int       // the last that a route was given
}

// all runs the parts on servers that live as long as they do.
func (b *bench) all(ctx context.Context, chosen []part) (err error) {
	b.servers, err = b.startServers(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stopServers()) }()
	b.report.about = b.describe(ctx)
	for _, p := range chosen {
		b.say("%s", p.title)
		b.report.section(p.title)
		if e := b.one(ctx, p); e != nil {
			b.report.fail(p.name, e)
			err = errors.Join(err, fmt.Errorf("part %s failed", p.name))
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return err
}

// one runs a part. It has a limit, so that one that hangs does not keep the
// others from being run.
func (b *bench) one(ctx context.Context, p part) error {
	ctx, cancel := context.WithTimeout(ctx, 25*time.Minute)
	defer cancel()
	return p.run(ctx, b)
}

// say tells whoever waits how far it is.
func (b *bench) say(format string, args ...any) {
	at := time.Since(b.began)
	fmt.Fprintf(b.log, "[%2d:%02d] %s\n", int(at.Minutes()), int(at.Seconds())%60, fmt.Sprintf(format, args...))
}
