package embedded_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/kafka"
	"pizzaflow/kafka/embedded"
	"pizzaflow/kafka/kafkatest"
)

const group = "payment-service"

// open starts a broker and returns how to reach it. The test's end stops it, unless stop was called before.
func open(t testing.TB, c embedded.Config) (config kafka.Config, stop func()) {
	t.Helper()
	if c.Listen == "" {
		c.Listen = "127.0.0.1:0"
	}
	c.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	b, err := embedded.Start(c)
	if err != nil {
		t.Fatal(err)
	}
	stop = func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return kafka.Config{Brokers: b.Addrs()}, stop
}

var orders = kafka.Topic{
	Name: "order-events", Partitions: 3, Replicas: -1,
	Retention: 7 * 24 * time.Hour, RetentionBytes: 64 << 20, MaxMessageBytes: 1 << 20,
}

// single is a topic with one partition, whose offsets are known.
func single() kafka.Topic {
	t := orders
	t.Partitions = 1
	return t
}

// read returns the values of the topic from its start to its end, sorted.
func read(t testing.TB, config kafka.Config) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c := kafkatest.Client(t, config, kgo.ConsumeTopics("order-events"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	defer c.Close()
	ends, err := kadm.NewClient(c).ListEndOffsets(ctx, "order-events")
	if err != nil {
		t.Fatal(err)
	}
	starts, err := kadm.NewClient(c).ListStartOffsets(ctx, "order-events")
	if err != nil {
		t.Fatal(err)
	}
	want := int64(0)
	ends.Each(func(o kadm.ListedOffset) { want += o.Offset })
	starts.Each(func(o kadm.ListedOffset) { want -= o.Offset })
	var values []string
	for int64(len(values)) < want {
		fetches := c.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("after %d of %d records: %v", len(values), want, err)
		}
		fetches.EachRecord(func(r *kgo.Record) { values = append(values, string(r.Value)) })
	}
	slices.Sort(values)
	return values
}

// commitOffset commits for partition 0 of order-events.
func commitOffset(t testing.TB, c *kgo.Client, offset int64) {
	t.Helper()
	offsets := kadm.Offsets{}
	offsets.AddOffset("order-events", 0, offset, -1)
	if err := kadm.NewClient(c).CommitAllOffsets(t.Context(), group, offsets); err != nil {
		t.Fatal(err)
	}
}

// committed returns the committed offset of partition 0 of order-events, −1 without one.
func committed(t testing.TB, config kafka.Config) int64 {
	t.Helper()
	c := kafkatest.Client(t, config)
	defer c.Close()
	offsets, err := kadm.NewClient(c).FetchOffsets(t.Context(), group)
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		t.Fatal(err)
	}
	if o, ok := offsets.Lookup("order-events", 0); ok {
		return o.At
	}
	return -1
}

func TestCleanRestartKeepsEverything(t *testing.T) {
	dir := t.TempDir()
	config, stop := open(t, embedded.Config{Dir: dir})
	kafkatest.Ensure(t, config, single())
	c := kafkatest.Client(t, config)
	kafkatest.Produce(t, c, "order-events", "a", "b", "c")
	commitOffset(t, c, 2)
	before := identity(t, c)
	c.Close()
	stop()

	config, _ = open(t, embedded.Config{Dir: dir})
	kafkatest.Ensure(t, config, single())
	if got := read(t, config); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("records: %q", got)
	}
	if got := committed(t, config); got != 2 {
		t.Errorf("committed offset: %d, want 2", got)
	}
	if after := identity(t, kafkatest.Client(t, config)); after != before {
		t.Errorf("cluster, topic and settings: %q, before %q", after, before)
	}
	topics, err := kafka.DescribeTopics(t.Context(), config, "order-events")
	if err != nil || topics[0].Settings["retention.ms"] != "604800000" {
		t.Errorf("topics %+v, want retention.ms 604800000 (%v)", topics, err)
	}
}

// identity is the ids of cluster and topic.
func identity(t testing.TB, c *kgo.Client) string {
	t.Helper()
	m, err := kadm.NewClient(c).Metadata(t.Context(), "order-events")
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(m.Cluster, " ", m.Topics["order-events"].ID)
}

func TestEveryDirectoryIsAnotherCluster(t *testing.T) {
	var seen []string
	for range 2 {
		config, _ := open(t, embedded.Config{Dir: t.TempDir()})
		m, err := kadm.NewClient(kafkatest.Client(t, config)).BrokerMetadata(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, m.Cluster)
	}
	if seen[0] == seen[1] || len(seen[0]) != 22 {
		t.Errorf("cluster ids %q, want two different ones of 22 characters", seen)
	}
}

func TestTopicsAreCreatedOnlyByRequest(t *testing.T) {
	config, _ := open(t, embedded.Config{Dir: t.TempDir()})
	c := kafkatest.Client(t, config, kgo.AllowAutoTopicCreation(), kgo.UnknownTopicRetries(1))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err := c.ProduceSync(ctx, &kgo.Record{Topic: "order-evnets", Value: []byte("x")}).FirstErr()
	if err == nil || ctx.Err() != nil {
		t.Fatalf("%v, want that the misspelt topic does not exist", err)
	}
}

func TestPortInUse(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dir := t.TempDir()
	_, err = embedded.Start(embedded.Config{Dir: dir, Listen: ln.Addr().String()})
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("%v, want address in use", err)
	}
	open(t, embedded.Config{Dir: dir}) // the failed start has released the directory
}

func TestOneProcessForOneDirectory(t *testing.T) {
	dir := t.TempDir()
	_, stop := open(t, embedded.Config{Dir: dir})
	_, err := embedded.Start(embedded.Config{Dir: dir, Listen: "127.0.0.1:0"})
	if !errors.Is(err, embedded.ErrDirectoryInUse) {
		t.Fatalf("%v, want that the directory is in use", err)
	}
	stop()
	open(t, embedded.Config{Dir: dir})
}

func TestTheDirectoryIsPrivate(t *testing.T) {
	base := t.TempDir()
	loose := filepath.Join(base, "loose")
	if err := os.Mkdir(loose, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(loose, 0o777); err != nil {
		t.Fatal(err)
	}
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	for _, umask := range []int{0, 0o022, 0o277} {
		syscall.Umask(umask)
		fresh := filepath.Join(base, fmt.Sprint("data-", umask), "broker")
		if umask != 0o277 {
			open(t, embedded.Config{Dir: fresh})
		} else if b, err := embedded.Start(embedded.Config{Dir: fresh, Listen: "127.0.0.1:0"}); err == nil {
			_ = b.Close() // unless root runs the test the broker cannot enter its own subfolders
		}
		for _, dir := range []string{fresh, filepath.Dir(fresh)} {
			wantMode(t, dir, 0o700)
		}
	}
	syscall.Umask(0o022)
	open(t, embedded.Config{Dir: loose})
	wantMode(t, loose, 0o700)
}

func wantMode(t *testing.T, path string, want os.FileMode) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != want {
		t.Errorf("%s has mode %o, want %o", path, got, want)
	}
}

func TestCloseTwice(t *testing.T) {
	b, err := embedded.Start(embedded.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.Close(), b.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestMembersOfTheLastRunAreNotWaitedFor(t *testing.T) {
	dir := t.TempDir()
	config, stop := open(t, embedded.Config{Dir: dir})
	kafkatest.Ensure(t, config, single())
	kafkatest.Produce(t, kafkatest.Client(t, config), "order-events", "a")
	first := member(t, config)
	wantRecord(t, first, "a")
	stop() // while the member is in its group, as when the broker is stopped first
	first.CloseAllowingRebalance()

	config, _ = open(t, embedded.Config{Dir: dir})
	begun := time.Now()
	kafkatest.Produce(t, kafkatest.Client(t, config), "order-events", "b")
	wantRecord(t, member(t, config), "a")
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("the group had no partitions for %v", took)
	}
}

func member(t testing.TB, config kafka.Config) *kgo.Client {
	return kafkatest.Client(t, config, kgo.ConsumerGroup(group), kgo.ConsumeTopics("order-events"), kgo.DisableAutoCommit(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.SessionTimeout(10*time.Second))
}

func wantRecord(t testing.TB, c *kgo.Client, value string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	fetches := c.PollRecords(ctx, 1)
	if err := fetches.Err(); err != nil {
		t.Fatal(err)
	}
	if got := string(fetches.Records()[0].Value); got != value {
		t.Fatalf("the member got %q, want %q", got, value)
	}
}
