//go:build synctests

package embedded_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"pizzaflow/kafka"
	"pizzaflow/kafka/embedded"
	"pizzaflow/kafka/kafkatest"
)

// A member dies while the group waits for the other member before it answers the
// join. The broker must remove it when its session ends, or no consumer would ever
// read its partitions. That does not happen each time, so the test runs it often.
func TestMemberThatDiesWhileItJoins(t *testing.T) {
	for range 12 {
		kafkatest.Bubble(t, memberDies)
	}
}

func memberDies(t *testing.T) {
	const address = "127.0.0.1:9092"
	network := kafkatest.NewNetwork()
	config, stop := open(t, embedded.Config{Dir: t.TempDir(), Listen: address, ListenFn: network.Listen})
	defer stop()
	config.Dial = network.Dial
	topic := kafka.Topic{Name: "events", Partitions: 4, Replicas: 1}
	kafkatest.Ensure(t, config, topic)
	survivor := joining(t, config, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	defer survivor.Close()
	survivor.PollFetches(timeout(t, 5*time.Second)) // it is the only member

	v := &victim{network: network}
	config.Dial = v.dial
	dying := joining(t, config, kgo.WithHooks(v))
	dying.PollFetches(timeout(t, 2*time.Minute)) // sessions end after ten seconds
	if v.joins < 2 {
		t.Fatalf("the member died after %d joins, want 2", v.joins)
	}
	dying.Close()

	seen := map[int32]bool{}
	for p := range topic.Partitions {
		record := &kgo.Record{Topic: "events", Partition: int32(p), Value: []byte("hello")}
		if err := survivor.ProduceSync(timeout(t, time.Minute), record).FirstErr(); err != nil {
			t.Fatalf("produce to partition %d: %v", p, err)
		}
	}
	for ctx := timeout(t, time.Minute); ctx.Err() == nil && len(seen) < topic.Partitions; {
		survivor.PollFetches(ctx).EachRecord(func(r *kgo.Record) { seen[r.Partition] = true })
	}
	if len(seen) != topic.Partitions {
		t.Errorf("of 4 partitions only %v are read", seen)
	}
}

func timeout(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// joining is a client in the group.
func joining(t *testing.T, config kafka.Config, more ...kgo.Opt) *kgo.Client {
	t.Helper()
	opts, err := config.Options()
	if err != nil {
		t.Fatal(err)
	}
	c, err := kgo.NewClient(append(append(opts, kgo.ConsumerGroup(group), kgo.ConsumeTopics("events"), kgo.Balancers(kgo.RangeBalancer()),
		kgo.SessionTimeout(10*time.Second), kgo.HeartbeatInterval(2*time.Second)), more...)...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A victim loses its connections for good when it sends the second join, with the
// member id that the answer to the first one gave it.
type victim struct {
	network *kafkatest.Network
	mu      sync.Mutex
	conns   []net.Conn
	joins   int
}

func (v *victim) dial(ctx context.Context, network, address string) (net.Conn, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.joins >= 2 {
		return nil, net.ErrClosed
	}
	c, err := v.network.Dial(ctx, network, address)
	v.conns = append(v.conns, c)
	return c, err
}

// OnBrokerWrite counts the joins.
func (v *victim) OnBrokerWrite(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, _ error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if key != int16(kmsg.JoinGroup) {
		return
	}
	if v.joins++; v.joins == 2 {
		for _, c := range v.conns {
			_ = c.Close() // never fails
		}
	}
}
