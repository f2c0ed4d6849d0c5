package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"

	"pizzaflow/ops"
	"pizzaflow/outbox/admin"
)

// serviceFlag selects the services of a command.
type serviceFlag struct {
	Service string `enum:",order,payment,notification" default:"" help:"Of this service alone: order, payment or notification. Default: of all that have a database."`
}

// withOperators opens the databases of the selected services and runs fn with them.
func (f serviceFlag) withOperators(ctx context.Context, p *program, fn func(ops.Operators) error) error {
	operators, err := ops.Open(ctx, p.cfg.Databases(), f.Service)
	if err != nil {
		return err
	}
	return errors.Join(fn(operators), operators.Close())
}

// changeFlags are those of all commands that change something.
type changeFlags struct {
	DryRun bool   `help:"Only show what would be changed."`
	Why    string `help:"The reason, to be kept with your name and what was done."`
}

func (c changeFlags) action() admin.Action {
	name, host := "unknown", "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if h, err := os.Hostname(); err == nil {
		host = h
	}
	return admin.Action{By: name + "@" + host, Why: c.Why, DryRun: c.DryRun}
}

// checkSelection is ops.CheckSelection for a command line.
func checkSelection(all, some bool, selectors string) error {
	if err := ops.CheckSelection(all, some); err != nil {
		return fmt.Errorf("%w: %w: give %s", errUsage, err, selectors)
	}
	return nil
}
