package outbox_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kversion"

	"pizzaflow/internal/testkit"
	"pizzaflow/kafka"
	"pizzaflow/kafka/embedded"
	"pizzaflow/kafka/kafkatest"
	"pizzaflow/outbox"
	"pizzaflow/outbox/inbox"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// A watched is a consumer of "moves" on a broker, whose handled events can be
// counted.
type watched struct {
	*fixture
	cfg     kafka.Config
	group   string
	metrics *prometheus.Registry
	adm     *kadm.Client
}

func (w *watched) start() (stop func()) {
	w.metrics = prometheus.NewRegistry()
	c := inbox.New(inbox.Config{Outbox: w.out, Group: w.group, Kafka: w.kafka, Delay: 30 * time.Millisecond, Log: w.log, Metrics: w.metrics})
	inbox.On(c, func(ctx context.Context, tx *outbox.Tx, d inbox.Delivery[Moved]) error {
		_, err := bump(tx, d.Event.Account)
		return err
	})
	return testkit.Run(w.t, c.Run)
}

// handled waits until n events of an account were handled.
func (w *watched) handled(account string, n int) {
	w.t.Helper()
	testkit.Eventually(w.t, fmt.Sprintf("%d of %s are handled", n, account), func() bool {
		return w.count(`SELECT COALESCE(SUM(version), 0) FROM accounts WHERE id = $1`, account) == n
	})
}

func (w *watched) send(account string, n int) {
	w.t.Helper()
	var records []*kgo.Record
	for i := range n {
		records = append(records, moved(account, i))
	}
	w.produce(records...)
}

// watch gives a test the embedded broker, and where KAFKA_BROKERS tells of
// one, a real one.
func watch(t *testing.T, fn func(t *testing.T, w *watched)) {
	brokers := map[string]func(testing.TB) kafka.Config{"embedded": func(t testing.TB) kafka.Config { return kafkatest.Start(t) }}
	if addrs := os.Getenv("KAFKA_BROKERS"); addrs != "" {
		brokers["kafka"] = func(testing.TB) kafka.Config { return kafka.Config{Brokers: strings.Split(addrs, ",")} }
	}
	for name, broker := range brokers {
		t.Run(name, func(t *testing.T) {
			cfg := broker(t)
			w := &watched{fixture: newFixture(t, sqltest.Open(t, sqldb.SQLite, sqltest.Schema{Name: "outbox", FS: outbox.Schema}), cfg), cfg: cfg, group: rand.Text()}
			w.adm = w.admin()
			w.delete() // a server that outlives the tests may have it from another
			w.create()
			w.adm = w.admin() // which does not remember that it was gone
			t.Cleanup(func() { w.delete() })
			fn(t, w)
		})
	}
}

// create creates the topic with one partition.
func (w *watched) create() {
	w.t.Helper()
	testkit.Eventually(w.t, "the topic is there", func() bool {
		all := topics()
		all[0].Partitions, all[1].Partitions = 1, 1
		return kafka.EnsureTopics(context.Background(), w.cfg, slog.New(slog.DiscardHandler), all...) == nil
	})
}

func (w *watched) delete() {
	w.t.Helper()
	if _, err := w.adm.DeleteTopics(context.Background(), "moves", "moves-dlq"); err != nil {
		w.t.Fatal(err)
	}
	testkit.Eventually(w.t, "the topic is gone", func() bool {
		details, err := w.adm.ListTopics(context.Background(), "moves")
		return err == nil && !details.Has("moves")
	})
}

func (w *watched) topicID() string {
	details, err := w.adm.ListTopics(w.t.Context(), "moves")
	if err != nil {
		w.t.Fatal(err)
	}
	id := details["moves"].ID
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}

func (w *watched) committed() (kadm.OffsetResponse, bool) {
	offsets, err := w.adm.FetchOffsets(w.t.Context(), w.group)
	if err != nil {
		w.t.Fatal(err)
	}
	return offsets.Lookup("moves", 0)
}

// commit commits an offset by the topic's name, as before topics had ids.
func (w *watched) commit(o kadm.Offset) {
	w.t.Helper()
	client, err := kgo.NewClient(append(w.kafka, kgo.MaxVersions(kversion.V3_6_0()))...)
	if err != nil {
		w.t.Fatal(err)
	}
	defer client.Close()
	offsets := kadm.Offsets{}
	offsets.Add(o)
	if err := kadm.NewClient(client).CommitAllOffsets(w.t.Context(), w.group, offsets); err != nil {
		w.t.Fatal(err)
	}
}

// A topic that is deleted and created again is taken up from its start,
// whichever offset was committed for the old one.
func TestTopicCreatedAnew(t *testing.T) {
	watch(t, func(t *testing.T, w *watched) {
		stop := w.start()
		w.send("old", 10)
		w.handled("old", 10)
		old := w.topicID()
		testkit.Eventually(t, "the offset is committed for the topic", func() bool {
			c, ok := w.committed()
			return ok && c.At == 10 && c.Metadata == old
		})
		w.delete()
		w.create()
		w.send("new", 3)
		w.handled("new", 3) // by the consumer that runs
		stop()
		w.delete()
		w.create()
		w.send("newer", 4)
		w.commit(kadm.Offset{Topic: "moves", Partition: 0, At: 2, LeaderEpoch: -1, Metadata: old}) // as one who has not noticed
		w.start()
		w.handled("newer", 4) // by one that is started
		w.handled("old", 10)
	})
}

// Deleted records are not skipped in silence, whether the consumer was there or
// not.
func TestSkippedRecordsRaiseTheAlarm(t *testing.T) {
	watch(t, func(t *testing.T, w *watched) {
		stop := w.start()
		w.send("a", 2)
		w.handled("a", 2)
		stop()
		w.send("a", 5)
		until := kadm.Offsets{}
		until.Add(kadm.Offset{Topic: "moves", Partition: 0, At: 6})
		if _, err := w.adm.DeleteRecords(t.Context(), until); err != nil {
			t.Fatal(err)
		}
		w.start()
		w.handled("a", 3)
		if n := gauge(w.metrics, "consumer_skipped_total"); n != 4 {
			t.Errorf("consumer_skipped_total is %v, want 4", n)
		}
	})
}

// A batch that unpacks to too much is dead-lettered by its place, and what
// stands behind it is handled, also by one who starts there.
func TestBatchTooLargeIsSteppedOver(t *testing.T) {
	watch(t, func(t *testing.T, w *watched) {
		stop := w.start()
		testkit.Run(t, w.relay().Run)
		w.send("a", 2)
		client, err := kgo.NewClient(append(w.kafka, kgo.ProducerBatchMaxBytes(40<<20), kgo.BrokerMaxWriteBytes(100<<20), kgo.MaxBufferedBytes(80<<20), kgo.ProducerBatchCompression(kgo.GzipCompression()), kgo.ManualFlushing())...)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		for range 3 {
			client.Produce(t.Context(), &kgo.Record{Topic: "moves", Key: []byte("bomb"), Value: bytes.Repeat([]byte("x"), 6<<20)}, nil)
		}
		if err := client.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, "the offset behind it is committed", func() bool { c, ok := w.committed(); return ok && c.At == 5 })
		w.send("a", 2)
		w.handled("a", 4)
		var letter map[string]any
		if err := json.Unmarshal(w.consume("moves-dlq", 1)[0].Value, &letter); err != nil {
			t.Fatal(err)
		}
		if letter["original_offset"] != 2.0 || letter["original_message"] != nil || letter["error_reason"] != "a batch of 3 records unpacks to more than 16 MiB" {
			t.Errorf("dead letter %v", letter)
		}
		stop()
		if n := w.count(`SELECT COUNT(*) FROM parked_records WHERE state = 'dead' AND record_offset = 2 AND value IS NULL`); n != 1 {
			t.Errorf("%d parked records", n)
		}
	})
}

// The lag is that of now, also while nothing is fetched or done.
func TestLagIsAlive(t *testing.T) {
	watch(t, func(t *testing.T, w *watched) {
		var away atomic.Bool
		reg := prometheus.NewRegistry()
		c := inbox.New(inbox.Config{Outbox: w.out, Group: w.group, Kafka: w.kafka, Log: slog.New(slog.DiscardHandler), Metrics: reg})
		inbox.On(c, func(context.Context, *outbox.Tx, inbox.Delivery[Moved]) error {
			if away.Load() {
				return inbox.Unavailable(os.ErrNotExist)
			}
			return nil
		})
		testkit.Run(t, c.Run)
		w.send("a", 10)
		testkit.Eventually(t, "all are handled", func() bool { return w.count(`SELECT COUNT(*) FROM inbox_events`) == 10 })
		testkit.Eventually(t, "there is no lag, and nothing to commit", func() bool {
			c, ok := w.committed()
			return gauge(reg, "consumer_lag") == 0 && ok && c.At == 10
		})
		away.Store(true)
		w.send("a", 7)
		testkit.Eventually(t, "the lag is seen while nothing moves", func() bool { return gauge(reg, "consumer_lag") == 7 })
		away.Store(false)
		testkit.Eventually(t, "there is no lag again", func() bool { return gauge(reg, "consumer_lag") == 0 })
	})
}

// A broker that lost all its data, and the offsets with it, is read from the
// start by a consumer that was there before and has noticed nothing.
func TestBrokerWiped(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "broker")
	log := slog.New(slog.DiscardHandler)
	open := func(listen string) *embedded.Broker {
		b, err := embedded.Start(embedded.Config{Dir: dir, Listen: listen, Log: log})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	b := open("127.0.0.1:0")
	cfg := kafka.Config{Brokers: b.Addrs()}
	w := &watched{fixture: newFixture(t, sqltest.Open(t, sqldb.SQLite, sqltest.Schema{Name: "outbox", FS: outbox.Schema}), cfg), cfg: cfg, group: "readers"}
	w.create()
	stop := w.start()
	w.send("old", 10)
	w.handled("old", 10)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	b = open(cfg.Brokers[0])
	t.Cleanup(func() {
		stop()
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	w.create()
	w.send("new", 3)
	w.handled("new", 3)
}
