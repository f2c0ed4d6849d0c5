package e2e

import (
	"context"
	"flag"
	"fmt"
	"net"
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

// pizza is the binary under test, and scratch a folder that lasts as long as
// the tests.
var pizza, scratch string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	flag.Parse()
	// These tests mostly wait: one more test at a time than there are processors keeps the processors busy.
	if p := flag.Lookup("test.parallel"); p.Value.String() == p.DefValue {
		if err := p.Value.Set(strconv.Itoa(runtime.GOMAXPROCS(0) + 1)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	dir, err := os.MkdirTemp("", "pizzaflow-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }() // an error leaves files in /tmp
	scratch = dir
	if pizza = os.Getenv("PIZZA_BINARY"); pizza != "" {
		return m.Run()
	}
	pizza = filepath.Join(dir, "pizza")
	if out, err := exec.Command("go", "build", "-o", pizza, "pizzaflow/cmd/pizza").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the binary under test: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// missing skips a test that needs a program or server that is not there, or fails
// it where PIZZA_TEST_REQUIRE names that.
func missing(t *testing.T, what, why string) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("PIZZA_TEST_REQUIRE"), ","), what) {
		t.Fatalf("PIZZA_TEST_REQUIRE promises %s: %s", what, why)
	}
	t.Skipf("no %s: %s; make test has it", what, why)
}

// program is the path of an external program; without it the test is skipped.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		missing(t, name, err.Error())
	}
	return path
}

// databaseServer is the URL of the PostgreSQL to create databases on.
func databaseServer(t *testing.T) string {
	t.Helper()
	url := os.Getenv("DATABASE_URL")
	if url == "" {
		missing(t, "postgres", "DATABASE_URL is not set")
	}
	return url
}

// kafkaBrokers are the addresses of the Apache Kafka to use. It must be on this
// machine, because its topics are deleted.
func kafkaBrokers(t *testing.T) []string {
	t.Helper()
	if os.Getenv("KAFKA_BROKERS") == "" {
		missing(t, "kafka", "KAFKA_BROKERS is not set")
	}
	brokers := strings.Split(os.Getenv("KAFKA_BROKERS"), ",")
	for _, b := range brokers {
		host, _, err := net.SplitHostPort(b)
		if ip := net.ParseIP(host); err != nil || host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			t.Fatalf("KAFKA_BROKERS: these tests delete topics, so %q must be host:port of this machine", b)
		}
	}
	return brokers
}

// eventually waits until done returns "" instead of what is still wrong, and ends
// the test with that if it takes too long.
func eventually(t *testing.T, within time.Duration, done func() string) {
	t.Helper()
	if wrong := waitFor(t.Context(), within, done); wrong != "" {
		t.Fatalf("after %s still: %s", within, wrong)
	}
}

// waitFor polls until done returns "", and returns "", or what is wrong when the
// time is over. The pauses become longer.
func waitFor(ctx context.Context, within time.Duration, done func() string) string {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for pause := 5 * time.Millisecond; ; pause = min(pause*5/4, 200*time.Millisecond) {
		wrong := done()
		if wrong == "" {
			return ""
		}
		next := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			next.Stop()
			return wrong
		case <-next.C:
		}
	}
}
