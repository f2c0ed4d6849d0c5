package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pizzaflow"
)

// pizza runs a command line in a clean environment and a folder of its own.
func pizza(t *testing.T, env map[string]string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cleanEnvironment(t, env)
	var out, talk bytes.Buffer
	code = run(t.Context(), args, &out, &talk)
	return code, out.String(), talk.String()
}

// cleanEnvironment sets the given options and unsets all others. Ports and folder are not those of a pizza of one's own.
func cleanEnvironment(t *testing.T, env map[string]string) {
	t.Helper()
	for _, o := range (pizzaflow.Config{}).Options() {
		t.Setenv(o.Env, "") // remembers it for after the test
		if err := os.Unsetenv(o.Env); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(t.TempDir())
	for _, key := range []string{"HTTP_ADDR", "ADMIN_ADDR", "KAFKA_LISTEN", "SANDBOX_ADDR", "SANDBOX_SMTP_ADDR"} {
		t.Setenv(key, "127.0.0.1:0")
	}
	for key, value := range env {
		t.Setenv(key, value)
	}
}

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args           []string
		code           int
		stdout, stderr string
	}{
		{[]string{"--help"}, exitDone, "Usage: pizza", ""},
		{[]string{"topics", "--help"}, exitDone, "Create the Kafka topics", ""},
		{[]string{"version"}, exitDone, "pizza ", ""},
		{[]string{"config"}, exitDone, "OPTION", ""},
		{[]string{"bake"}, exitUsage, "", "bake"},
		{[]string{"--http-adr", "x"}, exitUsage, "", "--http-adr"},
		{[]string{"config", "-o", "yaml"}, exitUsage, "", "--output"},
		{[]string{"topics"}, exitUsage, "", "KAFKA_BROKERS"},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			code, stdout, stderr := pizza(t, nil, c.args...)
			if code != c.code || !strings.Contains(stdout, c.stdout) || !strings.Contains(stderr, c.stderr) {
				t.Errorf("exit %d, want %d\nstdout: %s\nstderr: %s", code, c.code, stdout, stderr)
			}
			if c.stdout == "" && stdout != "" {
				t.Errorf("there is no data to tell, but stdout has %q", stdout)
			}
			if c.stderr == "" && stderr != "" {
				t.Errorf("there is nothing to say, but stderr has %q", stderr)
			}
		})
	}
}

// fullDisk fails every write.
type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

func TestLostOutputIsAFailure(t *testing.T) {
	for _, args := range [][]string{{"version"}, {"config"}, {"config", "-o", "json"}} {
		cleanEnvironment(t, nil)
		var stderr bytes.Buffer
		if code := run(t.Context(), args, fullDisk{}, &stderr); code != exitFailed || !strings.Contains(stderr.String(), "no space left") {
			t.Errorf("%v: exit %d, want %d; stderr: %s", args, code, exitFailed, stderr.String())
		}
	}
}

func TestBadConfigurationNamesItsKey(t *testing.T) {
	for _, c := range []struct {
		key, value string
		more       map[string]string
	}{
		{key: "SERVICES", value: "order,oven"},
		{key: "HTTP_ADDR", value: "localhost"},
		{key: "ADMIN_ADDR", value: "127.0.0.1:99999"},
		{key: "SANDBOX_SMTP_ADDR", value: "25"},
		{key: "DATABASE_URL", value: "mysql://localhost/pizza"},
		{key: "DATABASE_URL", value: "postgres://127.0.0.1:port/nobody"},
		{key: "ORDER_DATABASE_URL", value: "pizza.db"},
		{key: "KAFKA_BROKERS", value: "kafka"},
		{key: "KAFKA_BROKERS", value: "", more: map[string]string{"SERVICES": "order"}},
		{key: "KAFKA_PARTITIONS", value: "-1"},
		{key: "KAFKA_PARTITIONS", value: "1000000"},
		{key: "KAFKA_PARTITIONS", value: "129"},
		{key: "RETRY_ATTEMPTS", value: "0"},
		{key: "RETRY_ATTEMPTS", value: "three"},
		{key: "RETRY_DELAY", value: "5"},
		{key: "OUTBOX_POLL_INTERVAL", value: "0s"},
		{key: "ORDER_URL", value: "", more: map[string]string{"SERVICES": "frontend,broker"}},
		{key: "ORDER_URL", value: "ftp://orders"},
		{key: "PUBLIC_URL", value: "pizza.example"},
		{key: "PAYMENT_PROVIDER_URL", value: "", more: map[string]string{"SERVICES": "payment,broker"}},
		{key: "PAYMENT_PROVIDER_URL", value: "bank://127.0.0.1:1"},
		{key: "PAYMENT_PROVIDER_TIMEOUT", value: "soon"},
		{key: "SMTP_URL", value: "", more: map[string]string{"SERVICES": "notification,broker"}},
		{key: "SMTP_URL", value: "imap://127.0.0.1:1"},
		{key: "SMS_URL", value: "", more: map[string]string{"SERVICES": "notification,broker"}},
		{key: "SMS_URL", value: "sms:me"},
		{key: "NOTIFICATION_TEMPLATES", value: "/does/not/exist"},
		{key: "CURRENCY", value: "roubles"},
		{key: "RATE_LIMIT", value: "-5"},
		{key: "TRUSTED_PROXIES", value: "10.0.0.0/99"},
		{key: "LOG_LEVEL", value: "loud"},
		{key: "LOG_FORMAT", value: "xml"},
	} {
		t.Run(c.key+"="+c.value, func(t *testing.T) {
			env := map[string]string{}
			maps.Copy(env, c.more)
			if c.value != "" {
				env[c.key] = c.value
			}
			code, _, stderr := pizza(t, env)
			flag := "--" + strings.ToLower(strings.ReplaceAll(c.key, "_", "-"))
			if code != exitUsage || !strings.Contains(stderr, c.key) && !strings.Contains(stderr, flag) {
				t.Errorf("exit %d, want %d and %s named; stderr: %s", code, exitUsage, c.key, stderr)
			}
		})
	}
}

func TestPortInUseNamesItsKey(t *testing.T) {
	for _, key := range []string{"HTTP_ADDR", "ADMIN_ADDR", "SANDBOX_ADDR", "SANDBOX_SMTP_ADDR", "KAFKA_LISTEN"} {
		t.Run(key, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			code, _, stderr := pizza(t, map[string]string{key: ln.Addr().String()})
			if code == exitDone || !strings.Contains(stderr, key) || !strings.Contains(stderr, "address already in use") {
				t.Errorf("exit %d; stderr: %s", code, stderr)
			}
		})
	}
}

func TestConfigAsJSON(t *testing.T) {
	code, stdout, _ := pizza(t, map[string]string{"DATABASE_URL": "postgres://cook:s3cret@127.0.0.1/pizza", "RETRY_DELAY": "7s"}, "config", "-o", "json")
	var options []pizzaflow.Option
	if err := json.Unmarshal([]byte(stdout), &options); err != nil || code != exitDone {
		t.Fatalf("exit %d: %v\n%s", code, err, stdout)
	}
	if strings.Contains(stdout, "s3cret") || !strings.Contains(stdout, `"postgres://127.0.0.1"`) {
		t.Error("the database's password is shown, or its host is not")
	}
	if !slices.ContainsFunc(options, func(o pizzaflow.Option) bool { return o.Env == "RETRY_DELAY" && o.Value == "7s" && o.Default == "5s" }) {
		t.Errorf("no RETRY_DELAY of 7s in %+v", options)
	}
	for _, o := range options {
		if o.Env == "" || o.Flag == "" || o.Help == "" {
			t.Errorf("option without name, flag or meaning: %+v", o)
		}
	}
}

func TestVersionAsJSON(t *testing.T) {
	code, stdout, _ := pizza(t, nil, "version", "-o", "json")
	var version struct{ Version, Go, Platform string }
	if err := json.Unmarshal([]byte(stdout), &version); err != nil || code != exitDone || version.Version == "" || version.Go == "" || version.Platform == "" {
		t.Errorf("exit %d: %v\n%s", code, err, stdout)
	}
}

func TestMigrate(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "data")
	for range 2 { // the second time there is nothing to do
		if code, _, stderr := pizza(t, map[string]string{"DATA_DIR": folder}, "migrate"); code != exitDone {
			t.Fatalf("exit %d: %s", code, stderr)
		}
	}
	for _, service := range []string{"order", "payment", "notification"} {
		if _, err := os.Stat(filepath.Join(folder, service+".db")); err != nil {
			t.Error(err)
		}
	}
}

// A transcript collects what a command prints, and signals the awaited words.
type transcript struct {
	awaited string
	said    chan struct{} // closed when what was awaited is said

	mu   sync.Mutex
	text bytes.Buffer
}

func (s *transcript) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := strings.Contains(s.text.String(), s.awaited)
	n, err := s.text.Write(b)
	if !before && strings.Contains(s.text.String(), s.awaited) {
		close(s.said)
	}
	return n, err
}

func (s *transcript) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// runUntil runs a command until it has printed the words, then stops it. It returns the addresses from stdout, by option, and
// stderr.
func runUntil(t *testing.T, words string, args ...string) (addresses map[string]string, stderr string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var stdout bytes.Buffer
	talk := &transcript{awaited: words, said: make(chan struct{})}
	ended := make(chan int, 1)
	go func() { ended <- run(ctx, args, &stdout, talk) }()
	select {
	case <-talk.said:
	case code := <-ended:
		t.Fatalf("ended with %d before it said %q: %s", code, words, talk)
	}
	cancel()
	if code := <-ended; code != exitDone {
		t.Errorf("exit %d: %s", code, talk)
	}
	addresses = map[string]string{}
	for line := range strings.Lines(stdout.String()) {
		key, address, _ := strings.Cut(strings.TrimSpace(line), "=")
		addresses[key] = address
	}
	return addresses, talk.String()
}

func TestRun(t *testing.T) {
	cleanEnvironment(t, map[string]string{"LOG_FORMAT": "json"})
	addresses, stderr := runUntil(t, "order-events -C -e")
	if keys := []string{"ADMIN_ADDR", "HTTP_ADDR", "KAFKA_LISTEN", "SANDBOX_ADDR", "SANDBOX_SMTP_ADDR"}; !slices.Equal(slices.Sorted(maps.Keys(addresses)), keys) {
		t.Fatalf("printed %v, want %v", addresses, keys)
	}
	for _, line := range []string{
		"http://" + addresses["HTTP_ADDR"] + "/", "http://" + addresses["HTTP_ADDR"] + "/orders/{order_id}",
		"http://" + addresses["SANDBOX_ADDR"] + "/", "kcat -b " + addresses["KAFKA_LISTEN"] + " -t order-events -C -e",
	} {
		if !strings.Contains(stderr, line) {
			t.Errorf("the welcome does not tell %q:\n%s", line, stderr)
		}
	}
	if info, err := os.Stat("pizza-data"); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("pizza-data: %v %v, want a folder of its owner alone", info, err)
	}
}

// TestReady asks before the process starts, while it runs, and after its end.
func TestReady(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	cleanEnvironment(t, map[string]string{"ADMIN_ADDR": ":" + port})
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1") // is not for this
	ask := func() int { return run(t.Context(), []string{"ready"}, io.Discard, io.Discard) }
	if code := ask(); code != exitFailed {
		t.Errorf("before the start: exit %d, want %d", code, exitFailed)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() { ended <- run(ctx, nil, io.Discard, io.Discard) }()
	for deadline := time.Now().Add(time.Minute); ask() != exitDone; {
		if time.Now().After(deadline) {
			t.Fatal("it does not get ready")
		}
	}
	cancel()
	if code := <-ended; code != exitDone || ask() != exitFailed {
		t.Errorf("the process ended with %d, and is ready afterwards: %v", code, ask() == exitDone)
	}
}

func TestSandboxAlone(t *testing.T) {
	cleanEnvironment(t, nil)
	addresses, stderr := runUntil(t, "what customers received", "sandbox")
	if len(addresses) != 2 || strings.Contains(stderr, "Shop") {
		t.Errorf("printed %v; said %s", addresses, stderr)
	}
}
