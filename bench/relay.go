package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// A contender is one way to relay the same events.
type contender struct {
	name   string
	role   string
	order  relayOrder
	fill   func(ctx context.Context, url string, items []item) error
	events int  // of its backlog
	all    bool // the backlog is drained to its end, else until the box is full
	rounds int
	start  func(context.Context) (*child, error) // of one that is no role
}

// A drain is what one round of a contender came to.
type drain struct {
	pace
	records  int64 // relayed in all
	took     usage // by the relay
	postgres time.Duration
	broker   time.Duration
}

func (d drain) cpuPerMillion() time.Duration {
	return time.Duration(float64(d.took.cpu+d.postgres) / float64(d.records) * 1e6)
}

// relayPart drains backlogs: on each pair of engine and broker all contenders
// in turn, round after round.
func relayPart(ctx context.Context, b *bench) error {
	ours := contender{name: "ours", role: "ours", fill: fillOurs, events: b.size.backlog, all: true, rounds: b.size.rounds}
	logged := contender{name: "ours, writing its log", role: "ours", order: relayOrder{Log: true}, fill: fillOurs, events: b.size.backlog, all: true, rounds: 1}
	literal := contender{name: "literal: one by one", role: "literal", fill: fillLiteral, events: b.size.slow, rounds: b.size.rounds}
	claim := contender{name: "SKIP LOCKED, batches of 1,000", role: "skiplocked", fill: fillSkipLocked, events: b.size.backlog / 2, rounds: b.size.rounds}
	mill := contender{name: "Watermill forwarder, tuned", role: "watermill", fill: fillWatermill, events: b.size.slow * 2, rounds: b.size.rounds}
	millDefaults := contender{
		name: "Watermill forwarder, as it comes", role: "watermill", order: relayOrder{Defaults: true}, fill: fillWatermill,
		events: b.size.slow * 2, rounds: 1,
	}
	lite := ours
	lite.events = min(b.size.backlog, 300_000)
	err := b.drainAll(ctx, b.size.rounds, "PostgreSQL", "Kafka", []contender{literal, claim, mill, millDefaults, ours, logged})
	err = errors.Join(err, b.drainDebezium(ctx))
	err = errors.Join(err, b.drainAll(ctx, min(2, b.size.rounds), "PostgreSQL", "embedded", []contender{literal, claim, ours}))
	err = errors.Join(err, b.drainAll(ctx, min(2, b.size.rounds), "SQLite", "embedded", []contender{literal, lite}))
	b.relayTables()
	return err
}

// drainAll measures contenders on one pair of engine and broker, in turn, so
// that what else happens on the machine meets all of them.
func (b *bench) drainAll(ctx context.Context, rounds int, engine, broker string, all []contender) error {
	var errs []error
	backlogs := map[string]string{}
	for round := range rounds {
		for _, c := range all {
			if round >= c.rounds || ctx.Err() != nil {
				continue
			}
			full, err := b.backlogOf(ctx, backlogs, engine, c)
			if err == nil {
				err = b.round(ctx, engine, broker, c, full)
			}
			if err != nil {
				err = fmt.Errorf("%s → %s, %s: %w", engine, broker, c.name, err)
				b.say("  FAILED %v", err)
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// backlogOf makes a contender's backlog, once for all of its rounds, each of
// which drains a copy of it.
func (b *bench) backlogOf(ctx context.Context, made map[string]string, engine string, c contender) (string, error) {
	key := fmt.Sprintf("%s_%d", c.role, c.events)
	if full, ok := made[key]; ok {
		return full, nil
	}
	b.say("  filling: %s, %d events on %s", c.role, c.events, engine)
	full, url := "backlog_"+key, ""
	if engine == "SQLite" {
		full = b.path(full + ".db")
		url = "sqlite:" + full
	} else {
		if _, err := os.Stat(b.path(full)); err == nil { // an earlier pair had the same
			made[key] = full
			return full, nil
		}
		var err error
		if url, err = b.createDatabase(ctx, full, ""); err != nil {
			return "", err
		}
	}
	if err := c.fill(ctx, url, backlog(c.events, b.size.aggregates)); err != nil {
		return "", err
	}
	made[key] = full
	if engine == "SQLite" {
		return full, nil
	}
	return full, os.WriteFile(b.path(full), nil, 0o600)
}

// round drains a copy of the backlog once.
func (b *bench) round(ctx context.Context, engine, broker string, c contender, full string) (err error) {
	where, err := b.on(ctx, engine, broker)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, where.close()) }()
	order := c.order
	order.Brokers = where.Brokers
	if engine == "SQLite" {
		copied := b.path("round.db")
		if err := copyFile(full, copied); err != nil {
			return err
		}
		defer func() {
			err = errors.Join(err, os.Remove(copied), removeIfThere(copied+"-wal"), removeIfThere(copied+"-shm"))
		}()
		order.URL = "sqlite:" + copied
	} else {
		if order.URL, err = b.createDatabase(ctx, "round", full); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, b.dropDatabase(context.WithoutCancel(ctx), "round")) }()
	}
	if c.start == nil {
		c.start = func(ctx context.Context) (*child, error) { return b.role(ctx, c.role, order) }
	}
	return b.drain(ctx, where, c)
}

// drain starts a contender on its backlog, watches what comes to the topic,
// stops it and looks at what came.
func (b *bench) drain(ctx context.Context, where *place, c contender) (err error) {
	s, err := mark(ctx, where.Brokers, orderTopic)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.forget(context.WithoutCancel(ctx))) }()
	var d drain
	postgres, broker, err := b.times(where)
	if err != nil {
		return err
	}
	relay, err := c.start(ctx)
	if err != nil {
		return err
	}
	box := b.size.box
	if c.all {
		box = 10 * time.Minute // it ends with the backlog, or when nothing comes any more
	}
	d.pace, err = s.watch(ctx, int64(c.events), box, 30*time.Second)
	if err == nil && c.all {
		err = s.settle(ctx)
	}
	took, stopErr := relay.stop()
	if err = errors.Join(err, stopErr); err != nil {
		return relay.failed(err)
	}
	d.took = took
	if d.postgres, d.broker, err = b.times(where); err != nil {
		return err
	}
	d.postgres, d.broker = d.postgres-postgres, d.broker-broker
	v := newVerdict(b.size.aggregates)
	if err := s.each(ctx, v.look); err != nil {
		return err
	}
	d.records = int64(v.distinct)
	want := 0
	if c.all {
		want = c.events
	}
	if err := v.fault(want); err != nil {
		return err
	}
	b.say("  %s, %s: %s events/s; processor %.1f + %.1f s, %s; order kept, none missing, %d repeated", where, c.name, group(d.perSecond()),
		d.took.cpu.Seconds(), d.postgres.Seconds(), mib(d.took.peak), v.repeated)
	b.report.drained(where.String(), c, d)
	return nil
}

// times is the processor time that PostgreSQL and the broker have used so far.
func (b *bench) times(where *place) (postgres, broker time.Duration, err error) {
	postgres, err = processTime(b.pgPID)
	if err != nil {
		return 0, 0, err
	}
	broker, err = processTime(where.pid)
	return postgres, broker, err
}

// drainDebezium measures Debezium on PostgreSQL and Kafka.
func (b *bench) drainDebezium(ctx context.Context) (err error) {
	if !b.size.peers {
		return nil
	}
	d, err := b.newDebezium(ctx, "debezium_drain")
	if err != nil {
		return b.withoutDebezium(fmt.Errorf("debezium: %w", err))
	}
	defer func() { err = errors.Join(err, d.close(context.WithoutCancel(ctx), b)) }()
	b.say("  filling: debezium, %d events on PostgreSQL", b.size.backlog)
	if err := d.fill(ctx, backlog(b.size.backlog, b.size.aggregates)); err != nil {
		return err
	}
	where, err := b.on(ctx, "PostgreSQL", "Kafka")
	if err != nil {
		return err
	}
	return b.drain(ctx, where, contender{
		name: "Debezium, tuned", events: b.size.backlog, all: true, rounds: 1,
		start: func(ctx context.Context) (*child, error) { return d.start(ctx, b, debeziumTuned) },
	})
}

// withoutDebezium reports loudly that it could not be had, which is no failure.
func (b *bench) withoutDebezium(err error) error {
	if !errors.Is(err, errNoDebezium) {
		return err
	}
	b.say("  *** %v ***", err)
	b.report.note("**%v**", err)
	return nil
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // nothing was written
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}

func removeIfThere(name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
