package main

import (
	"context"

	"pizzaflow"
)

type runCmd struct{}

// Run runs the services until ctx ends.
func (runCmd) Run(ctx context.Context, p *program) error {
	return pizzaflow.Run(ctx, p.cfg, pizzaflow.Host{Stdout: p.stdout, Stderr: p.stderr, Log: p.log})
}

type sandboxCmd struct{}

// Run runs the sandbox alone.
func (sandboxCmd) Run(ctx context.Context, p *program) error {
	p.cfg.Services = "sandbox"
	return pizzaflow.Run(ctx, p.cfg, pizzaflow.Host{Stdout: p.stdout, Stderr: p.stderr, Log: p.log})
}

type migrateCmd struct{}

// Run brings the databases up to date.
func (migrateCmd) Run(ctx context.Context, p *program) error {
	return pizzaflow.Migrate(ctx, p.cfg, p.log)
}
