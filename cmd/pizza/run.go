package main

import (
	"context"
	"fmt"
	"os/signal"
	"syscall"

	"pizzaflow"
	"pizzaflow/ops"
)

type runCmd struct{}

// Run runs the services until ctx ends. SIGPIPE is ignored: when the reader of the log's pipe ends, a write would end the
// process without a word.
func (runCmd) Run(ctx context.Context, p *program) error {
	signal.Ignore(syscall.SIGPIPE)
	return pizzaflow.Run(ctx, p.cfg, pizzaflow.Host{Stdout: p.stdout, Stderr: p.stderr, Log: p.log})
}

type sandboxCmd struct{}

// Run runs the sandbox alone.
func (sandboxCmd) Run(ctx context.Context, p *program) error {
	p.cfg.Services = "sandbox"
	signal.Ignore(syscall.SIGPIPE)
	return pizzaflow.Run(ctx, p.cfg, pizzaflow.Host{Stdout: p.stdout, Stderr: p.stderr, Log: p.log})
}

type migrateCmd struct {
	From    string   `placeholder:"sqlite:FOLDER" help:"Move the data from here: sqlite:DATA_DIR, or sqlite:FILE of one service. Nothing may run on it."`
	To      string   `placeholder:"postgres://…" help:"Where to move it: a PostgreSQL on which no service has run yet."`
	Service []string `help:"Which services to move; all without it."`
}

// Run brings the databases up to date, or moves them from SQLite to PostgreSQL and lists the tables.
func (c migrateCmd) Run(ctx context.Context, p *program) error {
	switch {
	case c.From == "" && c.To == "" && len(c.Service) == 0:
		return pizzaflow.Migrate(ctx, p.cfg, p.log)
	case c.From == "" || c.To == "":
		return fmt.Errorf("%w: --from and --to belong together", errUsage)
	}
	moved, err := p.cfg.MovedTo(c.To)
	if err != nil {
		return err
	}
	tables, err := ops.Move{From: c.From, To: moved.Databases(), Services: c.Service}.Run(ctx, p.log)
	if err != nil {
		return err
	}
	return show(p, tables, "SERVICE\tTABLE\tROWS", func(t ops.MovedTable) []any { return []any{t.Service, t.Table, t.Rows} })
}
