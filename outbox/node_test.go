//go:build unix

package outbox_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"pizzaflow/internal/crash"
	"pizzaflow/internal/testkit"
	"pizzaflow/job"
	"pizzaflow/job/jobtest"
	"pizzaflow/kafka"
	"pizzaflow/outbox"
	"pizzaflow/outbox/inbox"
	"pizzaflow/outbox/relay"
	"pizzaflow/sqldb"
)

// nodeEnvironment, when set, makes the test binary a node and nothing else.
const nodeEnvironment = "PIZZA_TEST_NODE"

// A node is a process of a service: what it writes, its relay, its consumer,
// its work. What it does is decided by the database, so that one that was
// killed can be followed by another.
type node struct {
	Database string
	Brokers  []string
	Writes   map[string]int // how far each account is to be moved
	Relay    bool
	Consumer bool
	Work     bool
	TTL      time.Duration
	Crash    crashPlan
}

// A crashPlan says where a process is to die.
type crashPlan struct {
	Point string // "" is nowhere
	Nth   int    // how often it must be passed for that: 1, 2, …
	Then  string // this point is still to be passed by another goroutine …
	Times int    // … so many times, while the one at Point stands still
	Stop  bool   // stop with SIGSTOP instead of dying, to be woken by SIGCONT
}

// A crasher counts the points that are passed and dies as planned.
type crasher struct {
	plan   crashPlan
	mu     sync.Mutex
	moved  *sync.Cond
	passed map[string]int
}

func newCrasher(plan crashPlan) *crasher {
	c := &crasher{plan: plan, passed: map[string]int{}}
	c.moved = sync.NewCond(&c.mu)
	return c
}

func (c *crasher) pass(point string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.passed[point]++
	c.moved.Broadcast()
	if point != c.plan.Point || c.passed[point] != c.plan.Nth {
		return
	}
	for enough := c.passed[c.plan.Then] + c.plan.Times; c.passed[c.plan.Then] < enough; {
		c.moved.Wait()
	}
	if c.plan.Stop {
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // until the signal has come through
}

// OnBrokerWrite and OnBrokerRead make crash points of the requests sent to the
// broker and of its answers: the kernel has the request, and this process has not
// seen the answer.
func (c *crasher) OnBrokerWrite(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, err error) {
	if key == 0 && err == nil {
		c.pass("relay: sent")
	}
}

func (c *crasher) OnBrokerRead(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, err error) {
	if key == 0 && err == nil {
		c.pass("relay: answered")
	}
}

// serveNode runs a node until it dies, or its parent does.
func serveNode(raw string) int {
	var n node
	err := json.Unmarshal([]byte(raw), &n)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
		<-time.After(20 * time.Second)
		os.Exit(3)
	}()
	if err == nil {
		crasher := newCrasher(n.Crash)
		crash.Point = crasher.pass
		err = n.open(ctx, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})), crasher)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// open opens the node's database and runs it.
func (n node) open(ctx context.Context, log *slog.Logger, c *crasher) error {
	db, err := sqldb.Open(ctx, n.Database)
	if err != nil {
		return err
	}
	return errors.Join(n.run(ctx, db, log, c), db.Close())
}

// run runs the node until ctx ends.
func (n node) run(ctx context.Context, db *sqldb.DB, log *slog.Logger, c *crasher) error {
	opts, err := kafka.Config{Brokers: n.Brokers}.Options()
	if err != nil {
		return err
	}
	out := outbox.New(db, "/accounts")
	g, ctx := errgroup.WithContext(ctx)
	for account, to := range n.Writes {
		g.Go(func() error { return moveTo(ctx, out, account, to) })
	}
	if n.Relay {
		g.Go(func() error {
			return relay.New(relay.Config{
				Outbox: out, Service: "accounts", Kafka: append(slices.Clip(opts), kgo.WithHooks(c)),
				Poll: 200 * time.Millisecond, TTL: n.TTL, Log: log,
			}).Run(ctx)
		})
	}
	if n.Consumer {
		g.Go(func() error {
			c := inbox.New(inbox.Config{Outbox: out, Group: "readers", Kafka: opts, Delay: 50 * time.Millisecond, Log: log})
			inbox.On(c, book)
			c.OnDead(recordDead)
			return c.Run(ctx)
		})
	}
	if n.Work {
		g.Go(func() error {
			return job.New(job.Config{DB: db, Table: "jobs", Limit: 1, Lease: time.Second, Log: log, Do: callOutside(db, c)}).Run(ctx)
		})
	}
	return g.Wait()
}

// moveTo moves an account until it stands at a version, one transaction each.
func moveTo(ctx context.Context, out *outbox.Outbox, account string, to int) error {
	for ctx.Err() == nil {
		done := false
		err := out.Tx(ctx, func(tx *outbox.Tx) error {
			v, err := bump(tx, account)
			if err != nil {
				return err
			}
			if done = v > int64(to); done {
				return errDone
			}
			tx.Add(v, Moved{Account: account, To: int(v)})
			return nil
		})
		if err != nil && ctx.Err() == nil && !errors.Is(err, errDone) {
			return err
		}
		if done {
			return nil
		}
	}
	return nil
}

var errDone = errors.New("done")

// Booked is the event that the handler of Moved adds.
type Booked struct {
	Account string `json:"account"`
	Moved   string `json:"moved"`
}

func (Booked) EventType() string     { return "Booked" }
func (Booked) Topic() string         { return "bookings" }
func (b Booked) AggregateID() string { return "booking-" + b.Account }

// book is the handler of Moved: an effect that counts itself, and an event.
// The account "poison" can never be booked, "shaky" not at once.
func book(ctx context.Context, tx *outbox.Tx, d inbox.Delivery[Moved]) error {
	switch {
	case d.Event.Account == "poison":
		return inbox.Permanent(errors.New("never"))
	case d.Event.Account == "shaky" && d.Event.To == 1 && d.Attempt == 1:
		return errors.New("not yet")
	}
	b := Booked{Account: d.Event.Account, Moved: d.EventID}
	n, err := bump(tx, b.AggregateID())
	if err != nil {
		return err
	}
	tx.Add(n, b)
	_, err = tx.ExecContext(ctx, `INSERT INTO effects (event_id, account, version, n) VALUES ($1, $2, $3, $4)`, d.EventID, d.Event.Account, d.Event.To, n)
	return err
}

func recordDead(ctx context.Context, tx *outbox.Tx, d inbox.Dead) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO deaths (event_id) VALUES ($1)`, d.EventID)
	return err
}

// callOutside is a call to another system, which notes it at once under the
// job's id, even when the caller dies.
func callOutside(db *sqldb.DB, crasher *crasher) func(context.Context, job.Job) error {
	return func(ctx context.Context, c job.Job) error {
		if _, err := db.ExecContext(ctx, `INSERT INTO calls (job, attempt) VALUES ($1, $2)`, c.ID, c.Attempt); err != nil {
			return err
		}
		crasher.pass("work: called")
		_, err := jobtest.Settle(ctx, db, c)
		return err
	}
}

// ownRace finds what the race detector says of this module in a node's log.
// The client's Ping shares one request among brokers; a node that was stopped
// in the middle of it is told so.
var ownRace = regexp.MustCompile(`(?m)(Read|Write|Previous read|Previous write) at .*\n\s+pizzaflow/`)

// A child is a node in a process of its own.
type child struct {
	t     *testing.T
	cmd   *exec.Cmd
	log   *bytes.Buffer
	ended chan struct{}
}

// spawn starts a node in a process of its own, which is killed when the test ends.
func spawn(t *testing.T, n node) *child {
	t.Helper()
	raw, err := json.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	c := &child{t: t, cmd: exec.Command(os.Args[0]), log: &bytes.Buffer{}, ended: make(chan struct{})}
	c.cmd.Env = append(os.Environ(), nodeEnvironment+"="+string(raw))
	c.cmd.Stdout, c.cmd.Stderr = c.log, c.log
	stdin, err := c.cmd.StdinPipe() // closes when this process ends, however it does
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(c.ended)
		_ = c.cmd.Wait() // a test that cares asks for the exit code
		_ = stdin.Close()
	}()
	t.Cleanup(func() {
		c.kill()
		if ownRace.Match(c.log.Bytes()) {
			t.Errorf("a node said:\n%s", c.log)
		}
	})
	return c
}

// kill ends the process with SIGKILL, stopped or not.
func (c *child) kill() {
	_ = c.cmd.Process.Kill() // it may be gone already
	<-c.ended
}

func (c *child) signal(s syscall.Signal) {
	c.t.Helper()
	if err := c.cmd.Process.Signal(s); err != nil {
		c.t.Fatalf("%v to a node: %v\n%s", s, err, c.log)
	}
}

// awaitCrash waits until the node has died where it was to die.
func (c *child) awaitCrash() {
	c.t.Helper()
	select {
	case <-c.ended:
	case <-time.After(time.Minute):
		c.kill()
		c.t.Fatalf("the node never came to the point\n%s", c.log)
	}
	if status, ok := c.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		c.t.Fatalf("the node ended by itself: %s\n%s", c.cmd.ProcessState, c.log)
	}
}

// awaitStopped waits until the process is stopped by SIGSTOP.
func (c *child) awaitStopped() {
	c.t.Helper()
	testkit.Eventually(c.t, "the node is stopped", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
		if err != nil {
			c.t.Skipf("no /proc to see a stopped process in: %v", err)
		}
		_, rest, _ := bytes.Cut(stat, []byte(") "))
		return bytes.HasPrefix(rest, []byte("T"))
	})
}
