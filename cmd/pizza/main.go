// Command pizza takes pizza orders, gets them paid and tells the customers.
// Without arguments it runs everything in one process; see `pizza --help`.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/alecthomas/kong"
	"github.com/lmittmann/tint"
	"golang.org/x/term"

	"pizzaflow"
	"pizzaflow/logs"
	"pizzaflow/ops"
)

// Exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// errUsage is wrapped by errors about arguments that kong does not find.
var errUsage = ops.ErrUsage

// cli is a command line. The options are the same for every command.
type cli struct {
	Options

	Output string `short:"o" default:"text" enum:"text,json" help:"How lists are printed: text or json."`

	Run     runCmd     `cmd:"" default:"1" help:"Run the services (the default)."`
	Migrate migrateCmd `cmd:"" help:"Bring the databases up to date."`
	Topics  topicsCmd  `cmd:"" help:"Create the Kafka topics that are missing, or see to all of them."`
	Outbox  outboxCmd  `cmd:"" help:"See what is not published, and act on it."`
	DLQ     dlqCmd     `cmd:"" name:"dlq" help:"See what could not be handled, and act on it."`
	Load    loadCmd    `cmd:"" help:"Place orders at a running system on a schedule, and tell how that went."`
	Verify  verifyCmd  `cmd:"" help:"Check on live data that the promise was kept."`
	Sandbox sandboxCmd `cmd:"" help:"Run the sandbox alone: payment provider, mail and SMS to try things with."`
	ConfigC configCmd  `cmd:"" name:"config" help:"Show every option and its value."`
	Ready   readyCmd   `cmd:"" help:"Exit with 0 when the process at ADMIN_ADDR is ready, else with 1."`
	Version versionCmd `cmd:"" help:"Show the version."`
}

// Options are those of the configuration without its methods: kong would call Validate before all that cannot be read is told.
type Options pizzaflow.Config

// A program is a command's configuration, output and log.
type program struct {
	cfg    pizzaflow.Config
	unread error // the options that cannot be read; they have their defaults in cfg
	json   bool
	stdout io.Writer
	stderr io.Writer
	log    *slog.Logger
}

// gcPercent is GOGC unless the environment sets it. The services have a small heap and much garbage: twice the runtime's own
// 100 saves a fifth of the relay's processor time and costs it 20 MiB.
const gcPercent = 200

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	// the first signal stops the command in good order, the second ends the process
	ctx, stop := signal.NotifyContext(context.Background(), stopSignals()...)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// stopSignals are the signals that stop the command in good order. A terminal that is closed sends SIGHUP, which would end the
// process at once and without a word; where nohup has SIGHUP ignored, it stays ignored.
func stopSignals() []os.Signal {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		signals = append(signals, syscall.SIGHUP)
	}
	return signals
}

// run is main without the process: it returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var c cli
	helped := false
	cfg := (*pizzaflow.Config)(&c.Options)
	options := newOptionReader(cfg)
	parser, err := kong.New(&c, append(options.mappers(), kong.Name("pizza"), kong.Writers(stdout, stderr), kong.UsageOnError(),
		kong.Description("Takes pizza orders, gets them paid and tells the customers. Without arguments it runs everything."),
		kong.Exit(func(int) { helped = true }))...)
	if err != nil {
		fmt.Fprintln(stderr, "pizza:", err)
		return exitFailed
	}
	parsed, err := parser.Parse(args)
	switch {
	case helped:
		return exitDone
	case err != nil:
		fmt.Fprintf(stderr, "pizza: %v\nSee `pizza --help`.\n", err)
		return exitUsage
	}
	lines := logs.Fold(newHandler(*cfg, stderr))
	p := &program{cfg: *cfg, unread: options.err(), json: c.Output == "json", stdout: stdout, stderr: stderr, log: slog.New(lines)}
	parsed.BindTo(ctx, (*context.Context)(nil))
	switch parsed.Command() {
	case "config", "version": // they tell what is there, be it usable or not
	case "run":
		err = errors.Join(p.validate(), cfg.CheckFiles())
	default:
		err = p.validate()
	}
	if err == nil {
		err = parsed.Run(p)
	}
	lines.Flush()
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, pizzaflow.ErrConfig), errors.Is(err, errUsage):
		fmt.Fprintln(stderr, "pizza:", err)
		return exitUsage
	}
	fmt.Fprintln(stderr, "pizza:", err)
	return exitFailed
}

// validate reports every fault of the options: what cannot be read, and what Validate finds in the rest.
func (p *program) validate() error { return errors.Join(p.unread, p.cfg.Validate()) }

// newHandler writes for people on a terminal and JSON elsewhere.
func newHandler(cfg pizzaflow.Config, stderr io.Writer) slog.Handler {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
		level = slog.LevelInfo // other words are not read
	}
	f, isFile := stderr.(*os.File)
	terminal := isFile && term.IsTerminal(int(f.Fd()))
	switch {
	case cfg.LogFormat == "auto" && terminal:
		return tint.NewTextHandler(stderr, &tint.Options{Level: level, TimeFormat: "15:04:05.000"})
	case cfg.LogFormat == "text":
		return slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level})
	}
	return slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: level})
}
