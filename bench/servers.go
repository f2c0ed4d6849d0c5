package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"pizzaflow/kafka"
)

// pgOptions are what anybody would set on a machine for this; wal_level is
// what Debezium needs. All else is as PostgreSQL comes, and alike for all.
const pgOptions = "-c wal_level=logical -c shared_buffers=1GB -c max_wal_size=8GB"

// servers are the ones of this run.
type servers struct {
	dir      string // of everything that the run writes
	script   string
	postgres string // the URL of its superuser
	pgPID    int
	brokers  []string
	kafkaPID int
}

// startServers starts PostgreSQL and Apache Kafka, which end with this process
// in any case.
func (b *bench) startServers(ctx context.Context) (_ *servers, err error) {
	b.say("starting PostgreSQL and Apache Kafka")
	script, err := filepath.Abs(filepath.Join(b.root, "e2e", "servers", "servers"))
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "pizzaflow-bench-")
	if err != nil {
		return nil, err
	}
	s := &servers{dir: dir, script: script}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stopServers())
		}
	}()
	if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // PostgreSQL may run as another user
		return nil, err
	}
	if s.postgres, err = s.call(ctx, "postgres", s.path("postgres")); err != nil {
		return nil, err
	}
	if s.pgPID, err = pidIn(s.path("postgres", "data", "postmaster.pid")); err != nil {
		return nil, err
	}
	brokers, err := s.call(ctx, "kafka", s.path("kafka"))
	if err != nil {
		return nil, err
	}
	s.brokers = strings.Split(brokers, ",")
	if s.kafkaPID, err = pidIn(s.path("kafka", "1.pid")); err != nil {
		return nil, err
	}
	return s, kafka.EnsureTopics(ctx, kafka.Config{Brokers: s.brokers}, nil, topics(12)...)
}

// stopServers stops them and deletes what they wrote.
func (s *servers) stopServers() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var errs []error
	if _, err := os.Stat(s.path("kafka")); err == nil {
		_, err = s.call(ctx, "kafka-stop", s.path("kafka"))
		errs = append(errs, err)
	}
	if _, err := os.Stat(s.path("postgres")); err == nil {
		_, err = s.call(ctx, "postgres-stop", s.path("postgres"), "immediate")
		errs = append(errs, err)
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

func (s *servers) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

// call runs the script that starts and stops the servers.
func (s *servers) call(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, s.script, args...) //nolint:gosec // it is the project's own
	cmd.Env = append(os.Environ(), fmt.Sprintf("OWNER=%d", os.Getpid()), "PG_OPTIONS="+pgOptions)
	cmd.SysProcAttr = ownGroup() // what it starts outlives it; OWNER ends that
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	if err != nil {
		return "", fmt.Errorf("servers %s: %w", args[0], err)
	}
	return strings.TrimSpace(string(out)), nil
}

func pidIn(file string) (int, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(text), "\n")
	return strconv.Atoi(strings.TrimSpace(first))
}

// databaseURL is the URL of a database on the run's PostgreSQL.
func (s *servers) databaseURL(name string) (string, error) {
	u, err := url.Parse(s.postgres)
	if err != nil {
		return "", err
	}
	u.Path = "/" + name
	return u.String(), nil
}

// createDatabase makes an empty database, or a copy of another one, in place
// of one of that name.
func (s *servers) createDatabase(ctx context.Context, name, from string) (string, error) {
	if err := s.dropDatabase(ctx, name); err != nil {
		return "", err
	}
	statement := `CREATE DATABASE ` + name
	if from != "" {
		statement += ` TEMPLATE ` + from + ` STRATEGY FILE_COPY`
	}
	if err := s.admin(ctx, statement); err != nil {
		return "", err
	}
	return s.databaseURL(name)
}

func (s *servers) dropDatabase(ctx context.Context, name string) error {
	return s.admin(ctx, `DROP DATABASE IF EXISTS `+name+` WITH (FORCE)`)
}

func (s *servers) admin(ctx context.Context, statement string) error {
	conn, err := pgx.Connect(ctx, s.postgres)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, statement)
	if err != nil {
		err = fmt.Errorf("%s: %w", statement, err)
	}
	return errors.Join(err, conn.Close(ctx))
}

// A place is where something is measured: an engine and a broker.
type place struct {
	Engine  string   // "PostgreSQL" or "SQLite"
	Broker  string   // "Kafka" or "embedded"
	Brokers []string // how to reach it
	child   *child   // the embedded broker's process
	pid     int      // of either
}

func (p *place) String() string { return p.Engine + " → " + p.Broker }

// on opens a place: with an embedded broker, a new one.
func (b *bench) on(ctx context.Context, engine, broker string) (*place, error) {
	p := &place{Engine: engine, Broker: broker}
	if broker == "Kafka" {
		p.Brokers, p.pid = b.brokers, b.kafkaPID
		return p, nil
	}
	dir, err := os.MkdirTemp(b.dir, "broker-")
	if err != nil {
		return nil, err
	}
	if p.child, err = b.role(ctx, "broker", brokerOrder{Dir: dir}); err != nil {
		return nil, err
	}
	p.pid = p.child.cmd.Process.Pid
	if err := p.child.read(&p.Brokers); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

func (p *place) close() error {
	if p.child == nil {
		return nil
	}
	_, err := p.child.stop()
	return err
}
