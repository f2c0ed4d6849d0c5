// Package servers gives a test its own real Apache Kafka or PostgreSQL, which it may crash and start again, and a real
// pgbouncer before any PostgreSQL.
//
// It runs the script of the same name beside it, which fetches the first two by Maven and chooses free ports. A test gets
// them only when PIZZA_TEST_REQUIRE names "kafka", "postgres" or "pgbouncer", as "make test" does, and is skipped
// otherwise; once required, any error fails the test. The servers end with the test, or with its process.
// Tests that do not stop their server use that of KAFKA_BROKERS or DATABASE_URL instead.
package servers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A Cluster is a running Apache Kafka.
type Cluster struct {
	// Brokers are the addresses of all brokers, separated by commas, for KAFKA_BROKERS.
	Brokers string
	// CA is the file of the authority of the brokers' certificates, "" without TLS.
	CA string

	t   testing.TB
	dir string
}

// Kafka starts a cluster of n brokers, numbered from 1. By default a topic has a replica on each broker, on three at
// most, and of three replicas two must have a record. Only a single broker has ACLs.
func Kafka(t testing.TB, n int) *Cluster {
	t.Helper()
	c := &Cluster{t: t, dir: folder(t, "kafka")}
	t.Cleanup(func() { script(t, "kafka-stop", c.dir) })
	c.Brokers = script(t, "kafka", c.dir, strconv.Itoa(n))
	return c
}

// Kill ends broker i with SIGKILL.
func (c *Cluster) Kill(i int) {
	c.t.Helper()
	script(c.t, "kafka-stop", c.dir, strconv.Itoa(i))
}

// Stop ends broker i cleanly: it hands over its leaderships first.
func (c *Cluster) Stop(i int) {
	c.t.Helper()
	script(c.t, "kafka-stop", c.dir, strconv.Itoa(i), "TERM")
}

// Restart starts the killed or stopped broker i with its address and data, and returns when it serves.
func (c *Cluster) Restart(i int) {
	c.t.Helper()
	script(c.t, "kafka-restart", c.dir, strconv.Itoa(i))
}

// folder creates the server's folder.
func folder(t testing.TB, server string) string {
	t.Helper()
	required(t, server)
	// Not t.TempDir, which only its owner may enter: PostgreSQL runs as another user when the test is root.
	dir, err := os.MkdirTemp("", "pizzaflow-"+server+"-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

// required skips the test unless PIZZA_TEST_REQUIRE names the server.
func required(t testing.TB, server string) {
	t.Helper()
	if !slices.Contains(strings.Split(os.Getenv("PIZZA_TEST_REQUIRE"), ","), server) {
		t.Skipf("starts its own server only when PIZZA_TEST_REQUIRE names %s, as make test does", server)
	}
}

func script(t testing.TB, args ...string) string {
	t.Helper()
	return scriptWith(t, nil, args...)
}

func scriptWith(t testing.TB, env []string, args ...string) string {
	t.Helper()
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		t.Fatal("the source of the package cannot be found")
	}
	// The first start on a machine may have to fetch the servers. t.Context has ended when cleanups run.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(filepath.Dir(file), "servers"), args...)
	cmd.Env = append(append(os.Environ(), fmt.Sprintf("OWNER=%d", os.Getpid())), env...)
	out, err := cmd.Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		t.Fatalf("servers %s: %v", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out))
}

// Home returns the folder of the fetched programs: "kafka" in it holds the jars, those of the command-line tools too.
func Home(t testing.TB) string {
	t.Helper()
	required(t, "kafka")
	return script(t, "fetch")
}
