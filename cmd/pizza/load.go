package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/term"

	"pizzaflow/load"
)

type loadCmd struct {
	URL       []string      `name:"url" default:"http://127.0.0.1:8080" help:"Where the order API or a frontend is: one address or more, by commas."`
	Rate      float64       `default:"50" help:"Orders a second. The schedule is kept whatever the answers are."`
	Duration  time.Duration `default:"30s" help:"For how long orders are scheduled."`
	Orders    int           `help:"How many orders are scheduled, instead of --duration."`
	Declined  float64       `default:"0" help:"Percent of orders whose card the sandbox declines."`
	InFlight  int           `default:"4096" help:"Orders under way at once. What exceeds that is counted as not sent."`
	Patience  time.Duration `default:"60s" help:"So long after its scheduled time an order is tried; then it is unknown."`
	Timeout   time.Duration `default:"10s" help:"How long one try may take."`
	Log       string        `placeholder:"FILE" help:"A new file for what was promised, synced before it counts, for pizza verify."`
	Follow    bool          `help:"Ask after each placed order until it is paid or not."`
	FollowFor time.Duration `default:"60s" help:"For how long after its 201 an order is followed."`
}

// maxLoad bounds the orders of a run, whose latencies are in memory with eight bytes each.
const maxLoad = 100_000_000

func (c *loadCmd) check() error {
	bad := func(flag, format string, args ...any) error {
		return fmt.Errorf("%w: --%s %s", errUsage, flag, fmt.Sprintf(format, args...))
	}
	for _, u := range c.URL {
		if err := load.CheckURL(u); err != nil {
			return bad("url", "%v", err)
		}
	}
	switch {
	case len(c.URL) == 0:
		return bad("url", "must name an address")
	case !(c.Rate > 0 && c.Rate <= 1e6):
		return bad("rate", "must be above 0 and at most 1000000")
	case c.Duration <= 0:
		return bad("duration", "must be above 0")
	case c.Orders < 0 || c.Orders > maxLoad:
		return bad("orders", "must be between 1 and %d", maxLoad)
	case c.count() > maxLoad:
		return bad("duration", "must come to at most %d orders", maxLoad)
	case !(c.Declined >= 0 && c.Declined <= 100):
		return bad("declined", "must be between 0 and 100")
	case c.InFlight < 1 || c.InFlight > 1_000_000:
		return bad("in-flight", "must be between 1 and 1000000")
	case c.Patience <= 0:
		return bad("patience", "must be above 0")
	case c.Timeout <= 0:
		return bad("timeout", "must be above 0")
	case c.FollowFor <= 0:
		return bad("follow-for", "must be above 0")
	}
	return nil
}

// count is how many orders are scheduled.
func (c *loadCmd) count() int {
	if c.Orders > 0 {
		return c.Orders
	}
	return max(1, int(math.Round(math.Min(c.Rate*c.Duration.Seconds(), maxLoad+1))))
}

// Run places orders at a running system and prints the report.
func (c *loadCmd) Run(ctx context.Context, p *program) (err error) {
	if err := c.check(); err != nil {
		return err
	}
	cfg := load.Config{
		URLs: c.URL, Rate: c.Rate, Orders: c.count(), Declined: c.Declined,
		InFlight: c.InFlight, Patience: c.Patience, Timeout: c.Timeout,
	}
	if c.Follow {
		cfg.Follow = c.FollowFor
	}
	if c.Log != "" {
		if cfg.Log, err = load.CreateLog(c.Log); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, cfg.Log.Close()) }()
	}
	r, err := load.Start(ctx, cfg)
	if err != nil {
		if c.Log != "" { // the new file is empty, and the next run would refuse it
			err = errors.Join(err, os.Remove(c.Log))
		}
		return err
	}
	printProgress(ctx, r, p.stderr)
	report, err := r.Wait()
	return errors.Join(err, printLoad(p, &report), failure(&report))
}

// failure is the error of a run with orders that were not placed or, if followed, did not become final.
func failure(r *load.Report) error {
	if r.OK() {
		return nil
	}
	var what []string
	add := func(n int, word string) {
		if n > 0 {
			what = append(what, fmt.Sprintf("%d %s", n, word))
		}
	}
	add(r.Refused, "refused")
	add(r.Unknown, "unknown")
	add(r.NotSent, "not sent")
	if r.Followed != nil {
		add(r.Followed.Pending, "pending")
		add(r.Followed.Missing, "missing")
	}
	return fmt.Errorf("of %s: %s", counted(int64(r.Orders), "order"), strings.Join(what, ", "))
}

func printLoad(p *program, r *load.Report) error {
	if p.json {
		return printJSON(p, r)
	}
	w := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ORDERS\tPLACED\tREFUSED\tUNKNOWN\tNOT SENT\tTRIES\tWANTED/S\tREACHED/S")
	fmt.Fprintf(w, "%d\t%d\t%d\t%d\t%d\t%d\t%g\t%g\n", r.Orders, r.Placed, r.Refused, r.Unknown, r.NotSent, r.Tries, r.Wanted, r.Rate)
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w, "\nTRIES\tANSWER")
	for _, answer := range slices.Sorted(maps.Keys(r.Answers)) {
		fmt.Fprintf(w, "%d\t%s\n", r.Answers[answer], answer)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w, "\nMILLISECONDS\tP50\tP90\tP99\tP99.9\tMAX")
	times := func(what string, l load.Latency) {
		fmt.Fprintf(w, "%s\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\n", what, l.P50, l.P90, l.P99, l.P999, l.Max)
	}
	times("scheduled to 201", r.Latency)
	if f := r.Followed; f != nil {
		times("created to final", f.Latency)
		fmt.Fprintln(w, "\nPAID\tPAYMENT FAILED\tPENDING\tMISSING")
		fmt.Fprintf(w, "%d\t%d\t%d\t%d\n", f.Paid, f.PaymentFailed, f.Pending, f.Missing)
	}
	return w.Flush()
}

// printProgress prints the progress until the run is done: a bar on a terminal, a line every 5 s elsewhere.
func printProgress(ctx context.Context, r *load.Run, stderr io.Writer) {
	f, isFile := stderr.(*os.File)
	bar := isFile && term.IsTerminal(int(f.Fd()))
	interval := 5 * time.Second
	if bar {
		interval = 200 * time.Millisecond
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	stopped := ctx.Done()
	for {
		select {
		case <-r.Done():
			if bar {
				fmt.Fprintf(stderr, "\r\x1b[K%s\n", progressBar(r.Progress()))
			}
			return
		case <-stopped:
			stopped = nil
			fmt.Fprintln(stderr, "no more orders; waiting for those under way")
			continue
		case <-tick.C:
		}
		if bar {
			fmt.Fprintf(stderr, "\r\x1b[K%s", progressBar(r.Progress()))
		} else {
			fmt.Fprintln(stderr, progressLine(r.Progress()))
		}
	}
}

const barWidth = 20

func progressBar(p load.Progress) string {
	settled := p.Placed + p.Refused + p.Unknown + p.NotSent
	full := barWidth * settled / max(p.Wanted, 1)
	return "[" + strings.Repeat("=", full) + strings.Repeat(" ", barWidth-full) + "] " + progressLine(p)
}

func progressLine(p load.Progress) string {
	var line strings.Builder
	fmt.Fprintf(&line, "%d of %d: %d placed, %d under way", p.Begun+p.NotSent, p.Wanted, p.Placed, p.UnderWay)
	for _, c := range []struct {
		n    int
		word string
	}{{p.Refused, "refused"}, {p.Unknown, "unknown"}, {p.NotSent, "not sent"}, {p.Open, "not final"}} {
		if c.n > 0 {
			fmt.Fprintf(&line, ", %d %s", c.n, c.word)
		}
	}
	return line.String()
}
