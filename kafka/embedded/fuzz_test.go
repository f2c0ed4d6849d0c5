package embedded_test

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"pizzaflow/kafka"
	"pizzaflow/kafka/kafkatest"
)

const (
	fuzzWorkers = 4
	fuzzAnswer  = 150 * time.Millisecond // the wait for an answer, which some requests do not have
)

// TestNoRequestEndsTheBroker sends odd requests of every kind and version that the broker offers, which must live and take
// a record after each batch of them. The broker runs in a process of its own, so that the test can name the request
// that ended it. PIZZA_TEST_FUZZ is the number of requests of each version, PIZZA_TEST_SEED chooses others.
func TestNoRequestEndsTheBroker(t *testing.T) {
	count, seed := fuzzNumber(t, "PIZZA_TEST_FUZZ", 200), fuzzNumber(t, "PIZZA_TEST_SEED", 1)
	config, kill := spawn(t, t.TempDir())
	defer kill()
	survivor := kafka.Topic{Name: "survivor", Partitions: 1, Replicas: 1}
	kafkatest.Ensure(t, config, survivor, kafka.Topic{Name: "fuzzed", Partitions: 2, Replicas: 1})
	f := &fuzzing{t: t, config: config, producer: kafkatest.Client(t, config), topic: survivor, count: count, seed: uint64(seed), known: map[string][]reflect.Value{}}
	kinds := make(chan kmsg.ApiVersionsResponseApiKey)
	var workers sync.WaitGroup
	for range fuzzWorkers {
		workers.Go(func() {
			for k := range kinds {
				for version := k.MinVersion; version <= k.MaxVersion && !t.Failed(); version++ {
					f.batch(k.ApiKey, version)
				}
			}
		})
	}
	total := 0
	for _, k := range f.offered() {
		total += int(k.MaxVersion-k.MinVersion+1) * count
		kinds <- k
	}
	close(kinds)
	workers.Wait()
	t.Logf("%d requests", total)
}

func fuzzNumber(t *testing.T, name string, otherwise int) int {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return otherwise
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

type fuzzing struct {
	t        *testing.T
	config   kafka.Config
	producer *kgo.Client
	topic    kafka.Topic
	count    int
	seed     uint64

	mu    sync.Mutex
	known map[string][]reflect.Value // ids of members, producers and topics in answers, by field
	last  [fuzzWorkers * 8]string    // the latest requests
	sent  int
}

// offered asks the broker for the kinds and versions that it offers.
func (f *fuzzing) offered() []kmsg.ApiVersionsResponseApiKey {
	f.t.Helper()
	resp, err := kmsg.NewPtrApiVersionsRequest().RequestWith(f.t.Context(), f.producer)
	if err != nil {
		f.t.Fatal(err)
	}
	if len(resp.ApiKeys) < 20 {
		f.t.Fatalf("only %d kinds of requests are offered", len(resp.ApiKeys))
	}
	return resp.ApiKeys
}

// batch sends odd requests of one kind and version, and then a record.
func (f *fuzzing) batch(kind, version int16) {
	rng := rand.New(rand.NewPCG(f.seed, uint64(kind)<<16|uint64(version)))
	var conn net.Conn
	for range f.count {
		if conn == nil {
			var err error
			if conn, err = net.Dial("tcp", f.config.Brokers[0]); err != nil {
				f.dead(kind, version, err)
				return
			}
		}
		if !f.try(conn, f.make(rng, kind, version)) {
			_ = conn.Close() // the request may have closed it
			conn = nil
		}
	}
	if conn != nil {
		_ = conn.Close()
	}
	ctx, cancel := context.WithTimeout(f.t.Context(), 20*time.Second)
	defer cancel()
	err := kafka.EnsureTopics(ctx, f.config, nil, f.topic) // some requests delete topics
	if err == nil {
		err = f.producer.ProduceSync(ctx, &kgo.Record{Topic: f.topic.Name, Value: []byte("still here")}).FirstErr()
	}
	if err != nil {
		f.dead(kind, version, err)
	}
}

func (f *fuzzing) dead(kind, version int16, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.t.Errorf("after requests of %s, version %d: %v\nthe last ones:\n%s", kmsg.NameForKey(kind), version, err, strings.Join(f.last[:], "\n"))
}

// try sends a request and reads its answer; it returns false when the connection cannot be used any more.
func (f *fuzzing) try(conn net.Conn, frame []byte) bool {
	f.mu.Lock()
	f.last[f.sent%len(f.last)] = hex.EncodeToString(frame[:min(len(frame), 4096)])
	f.sent++
	f.mu.Unlock()
	if conn.SetDeadline(time.Now().Add(fuzzAnswer)) != nil {
		return false
	}
	if _, err := conn.Write(frame); err != nil {
		return false
	}
	var size [4]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return false
	}
	answer := make([]byte, binary.BigEndian.Uint32(size[:]))
	if _, err := io.ReadFull(conn, answer); err != nil {
		return false
	}
	if len(frame) > 8 {
		f.learn(int16(binary.BigEndian.Uint16(frame[4:])), int16(binary.BigEndian.Uint16(frame[6:])), answer[4:])
	}
	return true
}

// make returns a request with the right layout and odd values, and sometimes with odd bytes.
func (f *fuzzing) make(rng *rand.Rand, kind, version int16) []byte {
	r := kmsg.RequestForKey(kind)
	r.SetVersion(version)
	f.mu.Lock()
	f.fill(rng, "", reflect.ValueOf(r).Elem())
	f.mu.Unlock()
	r.SetVersion(version)
	var frame []byte
	func() {
		defer func() { _ = recover() }() // some values cannot be encoded
		frame = kmsg.NewRequestFormatter(kmsg.FormatterClientID("fuzz")).AppendRequest(nil, r, rng.Int32())
	}()
	if len(frame) < 12 || rng.IntN(3) == 0 {
		frame = mutate(rng, append(frame, make([]byte, max(0, 12-len(frame)))...))
	}
	return frame
}

// mutate changes bytes, mostly those behind the header, and corrects the size, mostly.
func mutate(rng *rand.Rand, b []byte) []byte {
	from := 8
	if rng.IntN(10) == 0 {
		from = 4
	}
	for range 1 + rng.IntN(4) {
		at := from + rng.IntN(len(b)-from)
		switch rng.IntN(5) {
		case 0:
			b[at] ^= 1 << rng.IntN(8)
		case 1:
			b[at] = []byte{0, 1, 0x7f, 0x80, 0xff}[rng.IntN(5)]
		case 2:
			for i := at; i < min(at+5, len(b)); i++ {
				b[i] = 0xff
			}
		case 3:
			b = slices.Insert(b, at, b[at:at+rng.IntN(min(16, len(b)-at)+1)]...)
		case 4:
			b = b[:max(at, from+1)]
		}
	}
	if rng.IntN(20) > 0 {
		binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	}
	return b
}

// words are texts with a meaning in some request.
var words = []string{
	"fuzzed", "fuzzed2", "fuzzed-3", "group", "group2", "consumer", "range", "uniform", "", ".", "..", "/", "\x00", "ä", "cooperative-sticky",
	"retention.ms", "max.message.bytes", "cleanup.policy", "segment.bytes", "compact", "delete", "-1", "0", "9223372036854775807", "0x", "Stable", "classic",
	"log.cleaner.backoff.ms", "offsets.retention.check.interval.ms", "consumer.session.timeout.ms", strings.Repeat("long", 80), "(a{1000}){1000}", "fuzz.*",
}

var numbers = []int64{0, 1, 2, -1, -2, -3, 3, 10, 100, 127, 128, 10_000, 45_000, 1 << 20, math.MaxInt8, math.MaxInt16, math.MaxInt16 - 1, math.MaxInt32, math.MinInt32, math.MaxInt64, math.MinInt64}

// fill gives v odd values; name is the name of its field.
func (f *fuzzing) fill(rng *rand.Rand, name string, v reflect.Value) {
	if known := f.known[name]; len(known) > 0 && rng.IntN(3) > 0 {
		if k := known[rng.IntN(len(known))]; k.Type().AssignableTo(v.Type()) {
			v.Set(k)
			return
		}
	}
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(rng.IntN(2) == 0)
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n := numbers[rng.IntN(len(numbers))]
		if rng.IntN(2) == 0 {
			n = usual[name]
		}
		v.SetInt(n << (64 - v.Type().Bits()) >> (64 - v.Type().Bits()))
	case reflect.String:
		word := words[rng.IntN(len(words))]
		if u, ok := usualWords[name]; ok && rng.IntN(2) == 0 {
			word = u
		}
		v.SetString(word)
	case reflect.Array:
		for i := range v.Len() {
			v.Index(i).SetUint(rng.Uint64() % 256)
		}
	case reflect.Pointer:
		if rng.IntN(3) > 0 {
			v.Set(reflect.New(v.Type().Elem()))
			f.fill(rng, name, v.Elem())
		}
	case reflect.Slice:
		f.fillSlice(rng, name, v)
	case reflect.Struct:
		for i := range v.NumField() {
			if n := v.Type().Field(i).Name; n != "UnknownTags" && n != "Version" && v.Field(i).CanSet() {
				f.fill(rng, n, v.Field(i))
			}
		}
	}
}

// usual are valid values, without which a request is refused at once.
var usual = map[string]int64{
	"Acks": -1, "SessionTimeoutMillis": 10_000, "RebalanceTimeoutMillis": 10_000, "ReplicaID": -1, "MaxBytes": 1 << 20, "PartitionMaxBytes": 1 << 20,
	"CurrentLeaderEpoch": -1, "NumPartitions": 1, "ReplicationFactor": 1, "ResourceType": 2, "TransactionTimeoutMillis": 1000, "Count": 3, "Generation": 1,
	"Timestamp": 1_700_000_000_000, // before the records
}

var usualWords = map[string]string{"Topic": "fuzzed", "Topics": "fuzzed", "Group": "group", "Groups": "group", "ProtocolType": "consumer", "ResourceName": "fuzzed"}

func (f *fuzzing) fillSlice(rng *rand.Rand, name string, v reflect.Value) {
	switch n := rng.IntN(8); {
	case v.Type().Elem().Kind() == reflect.Uint8:
		v.SetBytes(fuzzBytes(rng, name))
	case n == 0: // null
	case n <= 2: // two elements that are equal but for one field
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		f.fill(rng, name, v.Index(0))
		v.Index(1).Set(v.Index(0))
		if e := v.Index(1); e.Kind() == reflect.Struct && rng.IntN(2) == 0 {
			at := rng.IntN(e.NumField())
			if n := e.Type().Field(at).Name; n != "UnknownTags" {
				f.fill(rng, n, e.Field(at))
			}
		}
	case n == 3:
		v.Set(reflect.MakeSlice(v.Type(), 0, 0))
	default:
		v.Set(reflect.MakeSlice(v.Type(), n-3, n-3))
		for i := range v.Len() {
			f.fill(rng, name, v.Index(i))
		}
	}
}

// fuzzBytes are a batch of records for the field of one, with wrong values in it, or any bytes.
func fuzzBytes(rng *rand.Rand, name string) []byte {
	if name != "Records" || rng.IntN(10) == 0 {
		out := make([]byte, rng.IntN(40))
		for i := range out {
			out[i] = byte(rng.Uint32() >> 3)
		}
		return out
	}
	records := []byte(nil)
	count := rng.IntN(4)
	for i := range count {
		body := kmsg.Record{OffsetDelta: int32(i), Key: []byte("k"), Value: []byte("v")}
		b := body.AppendTo(nil)
		records = append(records, binary.AppendVarint(nil, int64(len(b)-1))...)
		records = append(records, b[1:]...)
	}
	if len(records) > 0 && rng.IntN(2) == 0 {
		records[rng.IntN(len(records))] = byte(rng.Uint32())
	}
	pick := func(usual int64) int64 {
		if rng.IntN(6) > 0 {
			return usual
		}
		return numbers[rng.IntN(len(numbers))]
	}
	batch := kmsg.RecordBatch{
		Magic: int8(pick(2)), Attributes: int16(pick(0)), NumRecords: int32(pick(int64(count))), FirstTimestamp: pick(1_800_000_000_000), MaxTimestamp: pick(1_800_000_000_000),
		ProducerID: pick(-1), ProducerEpoch: int16(pick(-1)), FirstSequence: int32(pick(-1)), Records: records,
	}
	batch.LastOffsetDelta = batch.NumRecords - 1
	b := batch.AppendTo(nil)
	binary.BigEndian.PutUint32(b[8:], uint32(len(b)-12))
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// learn collects the ids in an answer, so that later requests name what exists.
func (f *fuzzing) learn(kind, version int16, answer []byte) {
	r := kmsg.ResponseForKey(kind)
	if r == nil {
		return
	}
	r.SetVersion(version)
	if r.IsFlexible() && kind != int16(kmsg.ApiVersions) && len(answer) > 0 {
		answer = answer[1:]
	}
	if r.ReadFrom(answer) != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.collect("", reflect.ValueOf(r).Elem())
}

func (f *fuzzing) collect(name string, v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).Name != "UnknownTags" {
				f.collect(v.Type().Field(i).Name, v.Field(i))
			}
		}
		return
	case reflect.Slice:
		for i := range min(v.Len(), 3) {
			f.collect(name, v.Index(i))
		}
		return
	}
	switch name {
	case "MemberID", "ProducerID", "ProducerEpoch", "TopicID", "Generation", "MemberEpoch":
		known := append(f.known[name], v)
		f.known[name] = known[max(0, len(known)-16):]
	}
}
