package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"pizzaflow/ops"
	"pizzaflow/verify"
)

type verifyCmd struct {
	Log     string        `placeholder:"FILE" help:"The log of pizza load: what was promised must be there."`
	Wait    time.Duration `default:"0s" help:"How long the system may take to come to rest. Without, what is not final yet is in flight and no violation."`
	Require []string      `help:"What must be checked: log, topics, sandbox. By commas."`
	Skip    []string      `help:"What is not looked at: topics, sandbox. A sandbox that is younger than the orders knows nothing of them."`
}

// Run checks the invariants and prints the finding of each.
func (c verifyCmd) Run(ctx context.Context, p *program) error {
	if c.Wait < 0 {
		return fmt.Errorf("%w: --wait must not be negative", errUsage)
	}
	for _, r := range c.Require {
		if r != "log" && r != "topics" && r != "sandbox" {
			return fmt.Errorf("%w: --require: %q is not log, topics or sandbox", errUsage, r)
		}
	}
	for _, r := range c.Skip {
		if r != "topics" && r != "sandbox" {
			return fmt.Errorf("%w: --skip: %q is not topics or sandbox", errUsage, r)
		}
	}
	var log io.Reader
	if c.Log != "" {
		f, err := os.Open(c.Log)
		if err != nil {
			return fmt.Errorf("%w: --log: %w", errUsage, err)
		}
		defer f.Close() //nolint:errcheck // it was read
		log = f
	}
	evidence, err := p.cfg.Evidence(c.Skip)
	if err != nil {
		return err
	}
	evidence.Log, evidence.Progress = log, func(what string) { fmt.Fprintln(p.stderr, what) }
	report, err := ops.Verify(ctx, p.cfg.Databases(), evidence, c.Wait)
	if err != nil {
		return err
	}
	if err := printReport(p, report); err != nil {
		return err
	}
	violated, unchecked := report.Count(verify.Violated), report.Count(verify.NotChecked)
	fmt.Fprintf(p.stderr, "%d hold, %d are violated, %d are in flight, %d were not checked\n",
		report.Count(verify.Holds), violated, report.Count(verify.InFlight), unchecked)
	if violated > 0 {
		return fmt.Errorf("%s violated", counted(violated, "invariant"))
	}
	for _, r := range c.Require {
		for _, f := range report.Findings {
			if f.State == verify.NotChecked && strings.Contains(f.Needs, r) {
				return fmt.Errorf("--require %s: not checked: %s", r, f.Why)
			}
		}
	}
	return nil
}

func printReport(p *program, r verify.Report) error {
	if p.json {
		return printJSON(p, r)
	}
	w := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "INVARIANT\tSTATE\tWRONG\t")
	for _, f := range r.Findings {
		more := strings.Join(f.Samples, " ")
		switch f.State {
		case verify.Holds:
			more = f.Says
		case verify.NotChecked:
			more = f.Why
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\n", f.Name, f.State, f.Count, printable(more))
	}
	fmt.Fprintln(w)
	for _, f := range r.Figures {
		fmt.Fprintf(w, "%s\t%d\n", f.Name, f.Count)
	}
	return w.Flush()
}
