package embedded_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/kafka"
	"pizzaflow/kafka/embedded"
	"pizzaflow/kafka/kafkatest"
)

// brokerDirectory, when set in the environment, makes the test binary run a broker in that directory.
const brokerDirectory = "PIZZA_TEST_BROKER_DIRECTORY"

func TestMain(m *testing.M) {
	if dir := os.Getenv(brokerDirectory); dir != "" {
		os.Exit(serve(dir))
	}
	os.Exit(m.Run())
}

// serve runs a broker, prints its address, and ends when the parent does.
func serve(dir string) int {
	b, err := embedded.Start(embedded.Config{Dir: dir, Listen: "127.0.0.1:0", Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(b.Addrs()[0])
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 1
}

// spawn starts a broker in a process of its own; kill ends it with SIGKILL.
func spawn(t *testing.T, dir string) (config kafka.Config, kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), brokerDirectory+"="+dir)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // "signal: killed"
		_ = stdin.Close()
	})
	t.Cleanup(kill)
	address := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(stdout).ReadString('\n') // "" when the process ended
		address <- strings.TrimSpace(line)
	}()
	select {
	case a := <-address:
		if a == "" {
			t.Fatal("the broker's process ended before it printed its address")
		}
		return kafka.Config{Brokers: []string{a}}, kill
	case <-time.After(30 * time.Second):
		t.Fatal("the broker's process did not print its address within 30 s")
	}
	return kafka.Config{}, kill
}

func TestAcknowledgedRecordsSurviveSIGKILL(t *testing.T) {
	dir := t.TempDir()
	acked := make(map[string]bool)
	var lastCommit int64
	for round := range 3 {
		config, kill := spawn(t, dir)
		kafkatest.Ensure(t, config, orders)
		maps.Copy(acked, produceUntilKilled(t, config, round, kill, &lastCommit))
	}
	config, _ := open(t, embedded.Config{Dir: dir})
	stored := make(map[string]bool)
	for _, v := range read(t, config) {
		stored[v] = true
	}
	for v := range acked {
		if !stored[v] {
			t.Errorf("record %q was acknowledged and is gone", v)
		}
	}
	if got := committed(t, config); got < lastCommit {
		t.Errorf("committed offset %d, but %d was acknowledged", got, lastCommit)
	}
	t.Logf("%d acknowledged, %d different ones stored, committed offset %d", len(acked), len(stored), lastCommit)
}

// produceUntilKilled produces and commits without pause, kills the broker meanwhile, and returns the records that were
// acknowledged.
func produceUntilKilled(t *testing.T, config kafka.Config, round int, kill func(), lastCommit *int64) map[string]bool {
	t.Helper()
	const enough = 400
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := kafkatest.Client(t, config, kgo.RequiredAcks(kgo.AllISRAcks()), kgo.ProducerLinger(0), kgo.MaxBufferedRecords(64))

	var (
		mu      sync.Mutex
		acked   = make(map[string]bool)
		reached = make(chan struct{})
		ends    = make(chan int64, 1) // the acknowledged end of partition 0
		all     sync.WaitGroup
	)
	acknowledge := func(r *kgo.Record, err error) {
		if err != nil {
			return // by the kill: not acknowledged
		}
		mu.Lock()
		defer mu.Unlock()
		if acked[string(r.Value)] = true; len(acked) == enough {
			close(reached)
		}
		if r.Partition == 0 {
			select {
			case ends <- r.Offset + 1:
			default:
			}
		}
	}
	all.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			v := []byte(fmt.Sprintf("round %d record %d", round, i))
			c.Produce(ctx, &kgo.Record{Topic: "order-events", Key: v, Value: v}, acknowledge)
		}
	})
	all.Go(func() {
		for ctx.Err() == nil {
			select {
			case end := <-ends:
				offsets := kadm.Offsets{}
				offsets.AddOffset("order-events", 0, end, -1)
				if kadm.NewClient(c).CommitAllOffsets(ctx, group, offsets) == nil {
					*lastCommit = end
				}
			case <-ctx.Done():
			}
		}
	})
	select {
	case <-reached:
	case <-time.After(30 * time.Second):
		t.Errorf("fewer than %d records were acknowledged within 30 s", enough)
	}
	kill()
	cancel()
	all.Wait()
	c.Close()
	mu.Lock()
	defer mu.Unlock()
	return maps.Clone(acked)
}

// crash returns a copy of the directory of a running broker, as a kill at this moment would leave it.
func crash(t *testing.T, dir string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "broker")
	if err := os.CopyFS(image, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return image
}

func TestATornEntryHidesNoLaterCommit(t *testing.T) {
	dir := t.TempDir()
	config, _ := open(t, embedded.Config{Dir: dir})
	kafkatest.Ensure(t, config, single())
	c := kafkatest.Client(t, config)
	kafkatest.Produce(t, c, "order-events", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
	commitOffset(t, c, 5)

	// A kill while an entry is written.
	first := crash(t, dir)
	log := readLog(t, first)
	writeLog(t, first, append(log, log[len(log)-40:len(log)-7]...))
	config, _ = open(t, embedded.Config{Dir: first})
	if got := committed(t, config); got != 5 {
		t.Fatalf("committed offset %d behind a torn tail, want 5", got)
	}
	commitOffset(t, kafkatest.Client(t, config), 9)

	// A kill right after the commit was acknowledged.
	second := crash(t, first)
	config, _ = open(t, embedded.Config{Dir: second})
	if got := committed(t, config); got != 9 {
		t.Fatalf("committed offset %d after the second crash, want 9", got)
	}
}

func TestATornEntryInTheMiddleHidesNothing(t *testing.T) {
	dir := t.TempDir()
	config, _ := open(t, embedded.Config{Dir: dir})
	kafkatest.Ensure(t, config, single())
	c := kafkatest.Client(t, config)
	kafkatest.Produce(t, c, "order-events", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
	commitOffset(t, c, 5)
	before := readLog(t, crash(t, dir))
	commitOffset(t, c, 9)

	// As after a disk that was full for a while.
	image := crash(t, dir)
	whole := readLog(t, image)
	torn := slices.Concat(before, whole[len(before):len(before)+15], whole[len(before):])
	writeLog(t, image, torn)
	config, _ = open(t, embedded.Config{Dir: image})
	if got := committed(t, config); got != 9 {
		t.Fatalf("committed offset %d, want 9", got)
	}
}

func readLog(t *testing.T, dir string) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "groups.log"))
	if err != nil {
		t.Fatal(err)
	}
	if len(raw) < 60 {
		t.Fatalf("groups.log has %d bytes: does the broker keep commits in another file now?", len(raw))
	}
	return raw
}

func writeLog(t *testing.T, dir string, raw []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "groups.log"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestATornRecordIsCutOff(t *testing.T) {
	dir := t.TempDir()
	config, _ := open(t, embedded.Config{Dir: dir})
	kafkatest.Ensure(t, config, single())
	c := kafkatest.Client(t, config)
	kafkatest.Produce(t, c, "order-events", "a", "b")
	image := crash(t, dir)
	segment := filepath.Join(image, "partitions", "order-events-0", "0.dat")
	info, err := os.Stat(segment)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(segment, info.Size()-5); err != nil {
		t.Fatal(err)
	}
	config, _ = open(t, embedded.Config{Dir: image})
	kafkatest.Produce(t, kafkatest.Client(t, config), "order-events", "c")
	if got := read(t, config); !slices.Equal(got, []string{"a", "c"}) {
		t.Errorf("records: %q", got)
	}
}

func TestFilesOfAForgottenTopicAreSetAside(t *testing.T) {
	for _, lost := range []string{"topics.json", "meta.json"} {
		t.Run(lost, func(t *testing.T) {
			dir := t.TempDir()
			config, stop := open(t, embedded.Config{Dir: dir})
			kafkatest.Ensure(t, config, single())
			c := kafkatest.Client(t, config)
			kafkatest.Produce(t, c, "order-events", "old 1", "old 2")
			commitOffset(t, c, 2)
			c.Close()
			stop()
			if err := os.Remove(filepath.Join(dir, lost)); err != nil {
				t.Fatal(err)
			}

			config, _ = open(t, embedded.Config{Dir: dir})
			kafkatest.Ensure(t, config, single())
			kafkatest.Produce(t, kafkatest.Client(t, config), "order-events", "new")
			if got := read(t, config); !slices.Equal(got, []string{"new"}) {
				t.Errorf("records: %q", got)
			}
			if got := committed(t, config); got > 0 {
				t.Errorf("the group begins at %d of a new log", got)
			}
			kept, err := filepath.Glob(filepath.Join(dir, "set-aside", "*", "order-events-0", "0.dat"))
			if err != nil || len(kept) != 1 {
				t.Errorf("the old records: %q, %v", kept, err)
			}
		})
	}
}

func TestADamagedDirectoryIsNamed(t *testing.T) {
	dir := t.TempDir()
	config, stop := open(t, embedded.Config{Dir: dir})
	kafkatest.Ensure(t, config, single())
	kafkatest.Produce(t, kafkatest.Client(t, config), "order-events", "a")
	stop()
	if err := os.WriteFile(filepath.Join(dir, "topics.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := embedded.Start(embedded.Config{Dir: dir, Listen: "127.0.0.1:0"})
	if err == nil || !strings.Contains(err.Error(), filepath.Join(dir, "topics.json")) || !strings.Contains(err.Error(), "restore") {
		t.Fatalf("%v, want the name of the file, and what to do", err)
	}
}
