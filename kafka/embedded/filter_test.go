package embedded_test

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"pizzaflow/internal/testkit"
	"pizzaflow/kafka"
	"pizzaflow/kafka/embedded"
	"pizzaflow/kafka/kafkatest"
)

// framed is a request as an untrusted client sends it.
func framed(r kmsg.Request, version int16) []byte {
	r.SetVersion(version)
	return kmsg.NewRequestFormatter(kmsg.FormatterClientID("untrusted")).AppendRequest(nil, r, 1)
}

// exchange sends frames on one connection and reads the answers, until the connection is closed.
func exchange(t testing.TB, address string, frames ...[]byte) (answers [][]byte) {
	t.Helper()
	conn := dial(t, address)
	defer conn.Close()
	for _, f := range frames {
		if _, err := conn.Write(f); err != nil {
			return answers
		}
		var size [4]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("20 s after %.200x the connection has neither an answer nor an end", f)
			}
			return answers
		}
		answer := make([]byte, binary.BigEndian.Uint32(size[:]))
		if _, err := io.ReadFull(conn, answer); err != nil {
			t.Error(err)
		}
		answers = append(answers, answer)
	}
	return answers
}

func dial(t testing.TB, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// sealed is a request to produce a batch to order-events, or to the topics with these ids, with valid checksums.
func sealed(batch kmsg.RecordBatch, acks int16, ids ...[16]byte) []byte {
	b := batch.AppendTo(nil)
	binary.BigEndian.PutUint32(b[8:], uint32(len(b)-12))
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
	r := kmsg.NewPtrProduceRequest()
	r.Acks = acks
	partitions := []kmsg.ProduceRequestTopicPartition{{Records: b}}
	for _, id := range ids {
		r.Topics = append(r.Topics, kmsg.ProduceRequestTopic{TopicID: id, Partitions: partitions})
	}
	if len(ids) > 0 {
		return framed(r, 13)
	}
	r.Topics = []kmsg.ProduceRequestTopic{{Topic: "order-events", Partitions: partitions}}
	return framed(r, 9)
}

func oneRecord() kmsg.RecordBatch {
	record := kmsg.Record{Value: []byte("theirs")}
	record.Length = int32(len(record.AppendTo(nil)) - 1)
	return kmsg.RecordBatch{Magic: 2, NumRecords: 1, FirstTimestamp: 1000, MaxTimestamp: 1000, ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1, Records: record.AppendTo(nil)}
}

// Each of these requests once made the broker panic, or kept it busy for ever.
func TestRequestsThatEndedTheBroker(t *testing.T) {
	config, kill := spawn(t, t.TempDir())
	defer kill()
	kafkatest.Ensure(t, config, single())
	unknownIDs, err := hex.DecodeString("000000440000000d00000001ffff0000000100003a980300000000000000000000000000000001020000000000000000000000000000000000000000000002020000000000000000")
	if err != nil {
		t.Fatal(err)
	}
	byID := sealed(oneRecord(), -1, [16]byte{15: 1}, [16]byte{15: 2})
	join := func(protocols ...string) []byte {
		r := kmsg.NewPtrJoinGroupRequest()
		r.Group, r.ProtocolType, r.SessionTimeoutMillis, r.RebalanceTimeoutMillis = "theirs", "consumer", 10_000, 10_000
		for _, p := range protocols {
			r.Protocols = append(r.Protocols, kmsg.JoinGroupRequestProtocol{Name: p})
		}
		return framed(r, 3)
	}
	lying := oneRecord()
	lying.Records = append([]byte{0xfe, 0xff, 0x03}, lying.Records[1:]...) // a length far behind its end
	atTime := kmsg.NewPtrListOffsetsRequest()
	atTime.Topics = []kmsg.ListOffsetsRequestTopic{{Topic: "order-events", Partitions: []kmsg.ListOffsetsRequestTopicPartition{{Timestamp: 500, CurrentLeaderEpoch: -1}}}}
	neverClean := kmsg.NewPtrIncrementalAlterConfigsRequest()
	neverClean.Resources = []kmsg.IncrementalAlterConfigsRequestResource{{
		ResourceType: kmsg.ConfigResourceTypeBroker, Configs: []kmsg.IncrementalAlterConfigsRequestResourceConfig{{Name: "log.cleaner.backoff.ms", Value: new("0")}},
	}}
	retained := kmsg.NewPtrCreateTopicsRequest()
	retained.Topics = []kmsg.CreateTopicsRequestTopic{{
		Topic: "retained", NumPartitions: 1, ReplicationFactor: 1, Configs: []kmsg.CreateTopicsRequestTopicConfig{{Name: "retention.ms", Value: new("1000")}},
	}}
	manyTags := append(framed(kmsg.NewPtrListGroupsRequest(), 3), 0xff, 0xff, 0xff, 0xff, 0x0f)
	manyTags = slices.Delete(manyTags, len(manyTags)-6, len(manyTags)-5)
	binary.BigEndian.PutUint32(manyTags, uint32(len(manyTags)-4))
	for name, frames := range map[string][][]byte{
		"two topics that do not exist, by id":     {unknownIDs},
		"the same with whole batches, by id":      {byID},
		"a protocol of a group twice":             {join("range", "range")},
		"no protocol of a group":                  {join("range"), join()},
		"a batch that lies, looked for by time":   {sealed(lying, -1), framed(atTime, 5)},
		"the same without an answer":              {sealed(lying, 0), framed(atTime, 5)},
		"no pause of the cleaner":                 {framed(neverClean, 1), framed(retained, 4)},
		"four thousand million optional fields":   {manyTags},
		"a share group, which nobody offers here": {framed(kmsg.NewPtrShareFetchRequest(), 1)},
		"topics by pages, which is not whole":     {framed(kmsg.NewPtrDescribeTopicPartitionsRequest(), 0)},
		"a version that is not offered":           {framed(kmsg.NewPtrProduceRequest(), 14)},
	} {
		t.Run(name, func(t *testing.T) {
			answers := exchange(t, config.Brokers[0], frames...)
			if strings.Contains(name, "by id") {
				checkUnknownIDs(t, answers)
			}
			c := kafkatest.Client(t, config)
			defer c.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := c.ProduceSync(ctx, &kgo.Record{Topic: "order-events", Value: []byte("still here")}).FirstErr(); err != nil {
				t.Error(err)
			}
		})
	}
	if t.Failed() {
		return
	}
	if got := read(t, config); len(got) != 11 || slices.ContainsFunc(got, func(s string) bool { return s != "still here" }) {
		t.Errorf("records: %q", got)
	}
}

// checkUnknownIDs checks that the answer has an error for each of the two topics.
func checkUnknownIDs(t *testing.T, answers [][]byte) {
	t.Helper()
	resp := kmsg.NewPtrProduceResponse()
	resp.SetVersion(13)
	if len(answers) != 1 || resp.ReadFrom(answers[0][5:]) != nil || len(resp.Topics) != 2 {
		t.Fatalf("answers %x, want one about two topics", answers)
	}
	for i, topic := range resp.Topics {
		if topic.TopicID[15] != byte(i+1) || topic.Partitions[0].ErrorCode == 0 {
			t.Errorf("topic %x: error %d", topic.TopicID, topic.Partitions[0].ErrorCode)
		}
	}
}

// The broker allocates memory for bytes that have arrived, not for sizes that requests claim, and does not decode
// millions of names.
func TestClaimsCostNothing(t *testing.T) {
	config, _ := open(t, embedded.Config{Dir: t.TempDir()})
	kafkatest.Ensure(t, config, single())
	kafkatest.Produce(t, kafkatest.Client(t, config), "order-events", "a")
	before := allocated()
	for _, size := range []uint32{12 << 20, 100 << 20} {
		for range 100 {
			conn := dial(t, config.Brokers[0])
			t.Cleanup(func() { _ = conn.Close() })
			if _, err := conn.Write(request(size, 0, 9, strings.Repeat("abcdef", 100))); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, names := range []int{8 << 20, 100_000, 10_001} {
		r := kmsg.NewPtrMetadataRequest()
		r.Topics = make([]kmsg.MetadataRequestTopic, names)
		body := framed(r, 1)
		before += uint64(names) * 100 // this test allocates
		if answers := exchange(t, config.Brokers[0], body); len(answers) > 0 {
			t.Errorf("%d names are answered", names)
		}
	}
	kafkatest.Produce(t, kafkatest.Client(t, config), "order-events", "b")
	if grown := int64(allocated() - before); grown > 64<<20 {
		t.Errorf("%d MiB were allocated", grown>>20)
	}
}

// Many connections at once send kilobytes that unpack to 60 MiB each.
func TestSmallBatchesThatUnpackToMuch(t *testing.T) {
	config, _ := open(t, embedded.Config{Dir: t.TempDir()})
	kafkatest.Ensure(t, config, single())
	z, err := zstd.NewWriter(nil, zstd.WithWindowSize(64<<20), zstd.WithSingleSegment(false))
	if err != nil {
		t.Fatal(err)
	}
	record := kmsg.Record{Value: make([]byte, 60<<20)}
	record.Length = int32(len(record.AppendTo(nil)) - 1 + 3) // which takes four bytes instead of one
	packed := oneRecord()
	packed.Attributes, packed.Records = 4, z.EncodeAll(record.AppendTo(nil), nil)
	frame := sealed(packed, -1)
	before := heapSize()
	var all sync.WaitGroup
	for range 12 { // each takes 128 MiB
		all.Go(func() {
			if answers := exchange(t, config.Brokers[0], frame); len(answers) != 1 {
				t.Errorf("%d answers", len(answers))
			}
		})
	}
	all.Wait()
	if grown := int64(heapSize() - before); grown > 200<<20 {
		t.Errorf("the heap grew by %d MiB for %d bytes from each", grown>>20, len(frame))
	}
}

// heapSize is the largest size that the heap has had.
func heapSize() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapSys
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// However many idle connections untrusted clients have, the next untrusted client is served, and so are trusted ones.
func TestIdleConnectionsLockNobodyOut(t *testing.T) {
	config := trusted(t)
	kafkatest.Produce(t, kafkatest.Client(t, config), "order-events", "before")
	own, err := config.Dial(t.Context(), "tcp", config.Brokers[0])
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if n := talk(t, own); n == 0 {
		t.Fatal("a trusted client is not served")
	}
	var closed atomic.Int32
	for range manyConnections {
		conn := dial(t, config.Brokers[0])
		t.Cleanup(func() { _ = conn.Close() })
		go func() {
			if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				closed.Add(1)
			}
		}()
	}
	if answers := exchange(t, config.Brokers[0], framed(kmsg.NewPtrMetadataRequest(), 4)); len(answers) != 1 {
		t.Error("the next untrusted client is not served")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := kafkatest.Client(t, config).ProduceSync(ctx, &kgo.Record{Topic: "order-events", Value: []byte("after")}).FirstErr(); err != nil {
		t.Errorf("a new trusted client: %v", err)
	}
	if n := talk(t, own); n == 0 {
		t.Error("the connection of a trusted client was closed")
	}
	testkit.Eventually(t, "half of the idle connections are closed", func() bool { return closed.Load() >= manyConnections/2 })
}

// talk asks for metadata on a connection and returns the length of the answer, 0 when there is none.
func talk(t *testing.T, conn net.Conn) uint32 {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(framed(kmsg.NewPtrMetadataRequest(), 4)); err != nil {
		return 0
	}
	var size [4]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return 0
	}
	n := binary.BigEndian.Uint32(size[:])
	if _, err := io.CopyN(io.Discard, conn, int64(n)); err != nil {
		return 0
	}
	return n
}

// trusted starts a broker with one topic, and returns how clients of its own process reach it.
func trusted(t *testing.T) kafka.Config {
	t.Helper()
	b, err := embedded.Start(embedded.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	config := kafka.Config{Brokers: b.Addrs(), Dial: b.Dialer(nil)}
	kafkatest.Ensure(t, config, single())
	return config
}

// Untrusted clients close their connections: after a record that wants no answer, in the middle of a request, and while
// they wait for records. Nothing is left of them.
func TestClosedConnectionsLeaveNothing(t *testing.T) {
	config := trusted(t)
	wait := kmsg.NewPtrFetchRequest()
	wait.MaxWaitMillis, wait.MinBytes, wait.MaxBytes = 1000, 1<<30, 1<<30
	wait.Topics = []kmsg.FetchRequestTopic{{Topic: "order-events", Partitions: []kmsg.FetchRequestTopicPartition{{CurrentLeaderEpoch: -1, PartitionMaxBytes: 1 << 30}}}}
	kafkatest.Produce(t, kafkatest.Client(t, config), "order-events", "ours")
	const each = 40
	before := runtime.NumGoroutine()
	for _, frame := range [][]byte{sealed(oneRecord(), 0), request(1000, 0, 9, "abc"), framed(wait, 11)} {
		for range each {
			conn := dial(t, config.Brokers[0])
			if _, err := conn.Write(frame); err != nil {
				t.Fatal(err)
			}
			if err := conn.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	testkit.Eventually(t, "the goroutines of closed connections end", func() bool { return runtime.NumGoroutine() < before+each/2 })
	want := append(slices.Repeat([]string{"theirs"}, each), "ours")
	slices.Sort(want)
	if got := read(t, config); !slices.Equal(got, want) {
		t.Errorf("records: %q, want %q", got, want)
	}
}

// A group keeps its protocol: with members of both protocols no member could commit.
func TestAGroupKeepsItsProtocol(t *testing.T) {
	dir := t.TempDir()
	heartbeat := func() []byte {
		r := kmsg.NewPtrConsumerGroupHeartbeatRequest()
		r.Group, r.MemberID, r.RebalanceTimeoutMillis, r.SubscribedTopicNames, r.Topics = group, "theirs", 10_000, []string{"order-events"}, []kmsg.ConsumerGroupHeartbeatRequestTopic{}
		return framed(r, 0)
	}
	for range 2 { // and after a restart
		config, stop := open(t, embedded.Config{Dir: dir})
		kafkatest.Ensure(t, config, single())
		for range 2 {
			c := kafkatest.Client(t, config, kgo.ConsumerGroup(group), kgo.ConsumeTopics("order-events"))
			kafkatest.Produce(t, c, "order-events", "a")
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			if fetches := c.PollFetches(ctx); fetches.NumRecords() == 0 {
				t.Errorf("a classic member reads nothing: %v", fetches.Err())
			}
			exchange(t, config.Brokers[0], heartbeat()) // while the group has a member
			if err := c.CommitUncommittedOffsets(ctx); err != nil {
				t.Errorf("a classic member cannot commit: %v", err)
			}
			cancel()
			c.Close()
			exchange(t, config.Brokers[0], heartbeat()) // while it has none
		}
		stop()
	}
}

// A reserved group takes no member of the consumer protocol, even while it is empty.
func TestReservedGroups(t *testing.T) {
	config, _ := open(t, embedded.Config{Dir: t.TempDir(), Groups: []string{"ours"}})
	kafkatest.Ensure(t, config, single())
	for name, want := range map[string]int16{"ours": kerr.GroupIDNotFound.Code, "theirs": 0} {
		r := kmsg.NewPtrConsumerGroupHeartbeatRequest()
		r.Group, r.MemberID, r.RebalanceTimeoutMillis, r.SubscribedTopicNames, r.Topics = name, "untrusted", 10_000, []string{"order-events"}, []kmsg.ConsumerGroupHeartbeatRequestTopic{}
		resp, err := r.RequestWith(t.Context(), kafkatest.Client(t, config))
		if err != nil || resp.ErrorCode != want {
			t.Errorf("%s: %v, code %d, want %d", name, err, resp.ErrorCode, want)
		}
	}
}

// A topic may have what Apache Kafka allows, as far as one process can bear it.
func TestTopicsAreBounded(t *testing.T) {
	config, _ := open(t, embedded.Config{Dir: t.TempDir()})
	kafkatest.Ensure(t, config, single())
	admin := kadm.NewClient(kafkatest.Client(t, config))
	for name, c := range map[string]struct {
		partitions int32
		replicas   int16
		topic      string
		configs    map[string]*string
		want       error
	}{
		"a million partitions": {1_000_000, 1, "many", nil, kerr.InvalidPartitions},
		"no partition":         {0, 1, "none", nil, kerr.InvalidPartitions},
		"three copies":         {1, 3, "copies", nil, kerr.InvalidReplicationFactor},
		"a path":               {1, 1, "../there", nil, kerr.InvalidTopicException},
		"the folder":           {1, 1, "..", nil, kerr.InvalidTopicException},
		"no number":            {1, 1, "number", map[string]*string{"retention.ms": new("soon")}, kerr.InvalidConfig},
		"compaction":           {1, 1, "compact", map[string]*string{"cleanup.policy": new("compact")}, kerr.InvalidConfig},
		"tiny segments":        {1, 1, "segments", map[string]*string{"segment.bytes": new("1")}, kerr.InvalidConfig},
		"as they are":          {2, 1, "fine", map[string]*string{"retention.ms": new("60000")}, nil},
	} {
		resp, err := admin.CreateTopic(t.Context(), c.partitions, c.replicas, c.configs, c.topic)
		if err == nil {
			err = resp.Err
		}
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	added, err := admin.UpdatePartitions(t.Context(), 1_000_000, "fine")
	if err == nil {
		err = added.Error()
	}
	if !errors.Is(err, kerr.InvalidPartitions) {
		t.Errorf("a million partitions more: %v", err)
	}
	altered, err := admin.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "retention.ms", Value: new("never")}}, "fine")
	if err == nil {
		err = altered[0].Err
	}
	if !errors.Is(err, kerr.InvalidConfig) {
		t.Errorf("a retention that is no number: %v", err)
	}
	var full error
	for i := 0; full == nil && i < 100; i++ {
		resp, err := admin.CreateTopic(t.Context(), embedded.MaxPartitions, 1, nil, fmt.Sprintf("fill-%d", i))
		if full = err; full == nil {
			full = resp.Err
		}
	}
	if !errors.Is(full, kerr.PolicyViolation) {
		t.Errorf("topics without end: %v", full)
	}
}

// Topics are deleted and created again, fourteen times, while clients write and read them.
func TestTopicsCreatedAnewUnderLoad(t *testing.T) {
	config, kill := spawn(t, t.TempDir())
	defer kill()
	topics := []kafka.Topic{single(), kafka.DeadLetters(single())}
	kafkatest.Ensure(t, config, topics...)
	admin := kadm.NewClient(kafkatest.Client(t, config))
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	reader := kafkatest.Client(t, config, kgo.ConsumerGroup(group), kgo.ConsumeTopics(topics[0].Name))
	opts, err := config.Options()
	if err != nil {
		t.Fatal(err)
	}
	var load sync.WaitGroup
	defer load.Wait()
	defer stop()
	load.Go(func() {
		for ctx.Err() == nil {
			reader.PollFetches(ctx)
		}
	})
	load.Go(func() { // to both topics at once, so that both are in one request
		for ctx.Err() == nil {
			writer, err := kgo.NewClient(opts...) // a client that knew the old topics does not find the new ones
			if err != nil {
				t.Error(err)
				return
			}
			for err == nil {
				err = writer.ProduceSync(ctx, &kgo.Record{Topic: topics[0].Name, Value: []byte("load")}, &kgo.Record{Topic: topics[1].Name, Value: []byte("load")}).FirstErr()
			}
			writer.Close()
		}
	})
	for round := range 14 {
		if _, err := admin.DeleteTopics(ctx, topics[0].Name, topics[1].Name); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		kafkatest.Ensure(t, config, topics...)
		testkit.Eventually(t, fmt.Sprintf("round %d is written", round), func() bool {
			ends, err := admin.ListEndOffsets(ctx, topics[0].Name, topics[1].Name)
			if err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			first, _ := ends.Lookup(topics[0].Name, 0)
			second, _ := ends.Lookup(topics[1].Name, 0)
			return first.Err == nil && second.Err == nil && first.Offset > 0 && second.Offset > 0
		})
	}
}

// The broker does not offer what Java's clients cannot use, and finds groups by types that Java's clients capitalise.
func TestOfferedRequestsWork(t *testing.T) {
	config, _ := open(t, embedded.Config{Dir: t.TempDir()})
	kafkatest.Ensure(t, config, single())
	c := kafkatest.Client(t, config)
	kafkatest.Produce(t, c, "order-events", "a")
	commitOffset(t, c, 1)
	offered, err := kmsg.NewPtrApiVersionsRequest().RequestWith(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range offered.ApiKeys {
		switch kmsg.Key(k.ApiKey) {
		case kmsg.DescribeTopicPartitions, kmsg.ShareFetch, kmsg.AlterClientQuotas, kmsg.CreateACLs:
			t.Errorf("%s is offered", kmsg.NameForKey(k.ApiKey))
		case kmsg.CreateTopics:
			if k.MaxVersion > 4 {
				t.Errorf("CreateTopics is offered up to version %d", k.MaxVersion)
			}
		default:
		}
	}
	list := kmsg.NewPtrListGroupsRequest()
	list.TypesFilter, list.StatesFilter = []string{"Classic"}, []string{"empty"}
	groups, err := list.RequestWith(t.Context(), c)
	if err != nil || len(groups.Groups) != 1 || groups.Groups[0].GroupType != "classic" || groups.Groups[0].GroupState != "Empty" {
		t.Errorf("groups %+v, %v", groups, err)
	}
}
