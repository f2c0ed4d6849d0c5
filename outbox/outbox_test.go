package outbox_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/internal/testkit"
	"pizzaflow/kafka"
	"pizzaflow/kafka/kafkatest"
	"pizzaflow/outbox"
	"pizzaflow/outbox/inbox"
	"pizzaflow/outbox/relay"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// Moved is the event of these tests: a counter of an account has a new value.
type Moved struct {
	Account string `json:"account"`
	To      int    `json:"to"`
	Note    string `json:"note"`
}

func (Moved) EventType() string     { return "Moved" }
func (Moved) Topic() string         { return "moves" }
func (m Moved) AggregateID() string { return m.Account }
func (m Moved) Validate() error {
	if m.Account == "" {
		return errors.New("account is missing")
	}
	return nil
}

func topics() []kafka.Topic {
	t := kafka.Topic{Name: "moves", Partitions: 3, Replicas: 1, Retention: time.Hour, MaxMessageBytes: 1 << 20}
	return []kafka.Topic{t, kafka.DeadLetters(t)}
}

// A fixture is a database, a broker and what runs on them.
type fixture struct {
	t     testing.TB
	db    *sqldb.DB
	out   *outbox.Outbox
	kafka []kgo.Opt
	log   *slog.Logger
}

func newFixture(t testing.TB, db *sqldb.DB, cfg kafka.Config) *fixture {
	t.Helper()
	opts, err := cfg.Options()
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.ExecContext(t.Context(), `CREATE TABLE accounts (id TEXT PRIMARY KEY, version BIGINT NOT NULL, value BIGINT NOT NULL)`)
	if err != nil {
		t.Fatal(err)
	}
	return &fixture{t: t, db: db, out: outbox.New(db, "/accounts"), kafka: opts, log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))}
}

func each(t *testing.T, fn func(t *testing.T, f *fixture)) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		fn(t, newFixture(t, db, kafkatest.Start(t, topics()...)))
	}, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
}

// move adds n versions to an account, one transaction each.
func (f *fixture) move(account string, n int) {
	f.t.Helper()
	for range n {
		err := f.out.Tx(context.Background(), func(tx *outbox.Tx) error {
			v, err := bump(tx, account)
			if err != nil {
				return err
			}
			tx.Add(v, Moved{Account: account, To: int(v)})
			return nil
		})
		if err != nil {
			f.t.Fatal(err)
		}
	}
}

func bump(tx *outbox.Tx, account string) (version int64, err error) {
	err = tx.QueryRow(`INSERT INTO accounts (id, version, value) VALUES ($1, 1, 0)
		ON CONFLICT (id) DO UPDATE SET version = accounts.version + 1 RETURNING version`, account).Scan(&version)
	return version, err
}

// consume reads n records of a topic from its start.
func (f *fixture) consume(topic string, n int) []*kgo.Record {
	f.t.Helper()
	client, err := kgo.NewClient(append(slices.Clone(f.kafka), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
	if err != nil {
		f.t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var out []*kgo.Record
	for len(out) < n {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			f.t.Fatalf("%d records on %s, want %d", len(out), topic, n)
		}
		out = append(out, fetches.Records()...)
	}
	return out
}

func (f *fixture) count(query string, args ...any) (n int) {
	f.t.Helper()
	if err := f.db.Read().QueryRow(query, args...).Scan(&n); err != nil {
		f.t.Fatal(err)
	}
	return n
}

func (f *fixture) relay() *relay.Relay {
	return relay.New(relay.Config{Outbox: f.out, Service: "accounts", Kafka: f.kafka, Poll: 200 * time.Millisecond, TTL: 400 * time.Millisecond, Log: f.log, Metrics: prometheus.NewRegistry()})
}

func TestRelayPublishesWhatIsCommitted(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		testkit.Run(t, f.relay().Run)
		undone := errors.New("undone")
		err := f.out.Tx(t.Context(), func(tx *outbox.Tx) error {
			tx.Add(1, Moved{Account: "ghost"})
			return undone
		})
		if !errors.Is(err, undone) {
			t.Fatal(err)
		}
		ctx := outbox.WithTraceparent(t.Context(), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
		err = f.out.Tx(ctx, func(tx *outbox.Tx) error {
			tx.Add(1, Moved{Account: "a<b", To: 7, Note: "пицца & <b>"})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		rec := f.consume("moves", 1)[0]
		if string(rec.Key) != "a<b" {
			t.Errorf("key %q, want the aggregate's id", rec.Key)
		}
		var id, at string
		if _, err := fmt.Sscanf(strings.ReplaceAll(string(rec.Value), `"`, " "), "{ event_id : %s , event_type", &id); err != nil {
			t.Errorf("value %s: %v", rec.Value, err)
		}
		var m struct{ Timestamp string }
		if err := json.Unmarshal(rec.Value, &m); err != nil {
			t.Fatal(err)
		}
		at = m.Timestamp
		want := `{"event_id":"` + id + `","event_type":"Moved","aggregate_id":"a<b","event_data":{"account":"a<b","to":7,"note":"пицца & <b>"},"timestamp":"` + at + `"}`
		if string(rec.Value) != want {
			t.Errorf("value\n%s, want\n%s", rec.Value, want)
		}
		headers := map[string]string{}
		for _, h := range rec.Headers {
			headers[h.Key] = string(h.Value)
		}
		for key, want := range map[string]string{
			"ce_specversion": "1.0", "ce_id": id, "ce_type": "Moved", "ce_source": "/accounts", "ce_subject": "a<b", "ce_time": at,
			"content-type": "application/json", "schema_version": "1", "aggregate_version": "1",
			"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
		} {
			if headers[key] != want {
				t.Errorf("header %s = %q, want %q", key, headers[key], want)
			}
		}
		testkit.Eventually(t, "the view shows published_at", func() bool {
			return f.count(`SELECT COUNT(*) FROM outbox WHERE published_at IS NOT NULL`) == 1
		})
		if n := f.count(`SELECT COUNT(*) FROM outbox_events`); n != 1 {
			t.Errorf("%d events, want 1: the other was rolled back", n)
		}
	})
}

func TestRelayKeepsTheOrderOfEachKey(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		testkit.Run(t, f.relay().Run)
		const accounts, moves = 8, 40
		var writers sync.WaitGroup
		for a := range accounts {
			writers.Go(func() { f.move(fmt.Sprint("account-", a), moves) })
		}
		writers.Wait()
		f.inOrder(f.consume("moves", accounts*moves))
		testkit.Eventually(t, "all are marked", func() bool {
			return f.count(`SELECT COUNT(*) FROM outbox WHERE published_at IS NULL`) == 0
		})
	})
}

// inOrder checks that the first occurrences of each key have the versions 1, 2, 3….
func (f *fixture) inOrder(records []*kgo.Record) map[string]int {
	f.t.Helper()
	last := map[string]int{}
	for _, r := range records {
		var v int
		for _, h := range r.Headers {
			if h.Key == "aggregate_version" {
				fmt.Sscan(string(h.Value), &v) //nolint:errcheck // v stays 0
			}
		}
		key := string(r.Key)
		if v > last[key]+1 || v == 0 {
			f.t.Errorf("%s: version %d follows %d", key, v, last[key])
		}
		last[key] = max(last[key], v)
	}
	return last
}

func TestSecondRelayTakesOver(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		stop := testkit.Run(t, f.relay().Run)
		f.move("a", 3)
		f.consume("moves", 3)
		testkit.Run(t, f.relay().Run)
		stop()
		f.move("a", 3)
		f.inOrder(f.consume("moves", 6))
		if epoch := f.count(`SELECT epoch FROM outbox_lease`); epoch != 2 {
			t.Errorf("epoch %d, want 2", epoch)
		}
		testkit.Eventually(t, "all are marked once", func() bool {
			return f.count(`SELECT COUNT(*) FROM outbox WHERE published_at IS NULL`) == 0
		})
	})
}

// A holder that died in mid-batch leaves records sent and not marked: they are
// sent again, and the lease is taken although nobody gave it back.
func TestTakeOverFromTheDead(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		f.move("a", 5)
		if _, err := f.db.Exec(`UPDATE outbox_lease SET holder = 'dead', epoch = 7, renewal = 40, floor = 0`); err != nil {
			t.Fatal(err)
		}
		if _, err := f.db.Exec(`INSERT INTO outbox_published (first_seq, last_seq, published_at) VALUES (1, 1, $1), (3, 3, $1)`, sqldb.Now()); err != nil {
			t.Fatal(err)
		}
		testkit.Run(t, f.relay().Run)
		var versions []string
		for _, r := range f.consume("moves", 3) {
			for _, h := range r.Headers {
				if h.Key == "aggregate_version" {
					versions = append(versions, string(h.Value))
				}
			}
		}
		if got := strings.Join(versions, " "); got != "2 4 5" {
			t.Errorf("published versions %s, want those outside of the ranges: 2 4 5", got)
		}
		if epoch := f.count(`SELECT epoch FROM outbox_lease`); epoch != 8 {
			t.Errorf("epoch %d, want 8", epoch)
		}
	})
}

func TestOversizedEventStopsItsKeyOnly(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		stop := testkit.Run(t, f.relay().Run)
		err := f.out.Tx(t.Context(), func(tx *outbox.Tx) error {
			if _, err := bump(tx, "big"); err != nil {
				return err
			}
			if _, err := bump(tx, "big"); err != nil {
				return err
			}
			tx.Add(1, Moved{Account: "big", Note: strings.Repeat("x", 1_100_000)})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		err = f.out.Tx(t.Context(), func(tx *outbox.Tx) error {
			tx.Add(2, Moved{Account: "big"})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		f.move("small", 3)
		for _, r := range f.consume("moves", 3) {
			if string(r.Key) != "small" {
				t.Errorf("%s was published", r.Key)
			}
		}
		testkit.Eventually(t, "the big one and the one behind it are blocked, the rest is marked", func() bool {
			return f.count(`SELECT COUNT(*) FROM outbox_blocked`) == 2 && f.count(`SELECT COUNT(*) FROM outbox WHERE published_at IS NULL`) == 2
		})
		if floor := f.count(`SELECT floor FROM outbox_lease`); floor != 5 {
			t.Errorf("low watermark %d, want 5: blocked rows must not hold it back", floor)
		}
		stop()
		testkit.Run(t, f.relay().Run)
		f.move("big", 1)
		f.move("small", 1)
		f.consume("moves", 4)
		testkit.Eventually(t, "the block outlives the relay", func() bool { return f.count(`SELECT COUNT(*) FROM outbox_blocked`) == 3 })
	})
}

// received collects what a handler was given.
type received struct {
	mu   sync.Mutex
	list []inbox.Delivery[Moved]
}

func (r *received) add(d inbox.Delivery[Moved]) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, d)
}

func (r *received) of(account string) (to []int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range r.list {
		if d.Event.Account == account {
			to = append(to, d.Event.To)
		}
	}
	return to
}

func (f *fixture) consumer(h func(context.Context, *outbox.Tx, inbox.Delivery[Moved]) error) *inbox.Consumer {
	c := inbox.New(inbox.Config{Outbox: f.out, Group: "readers", Kafka: f.kafka, Delay: 30 * time.Millisecond, Log: f.log, Metrics: prometheus.NewRegistry()})
	inbox.On(c, h)
	return c
}

// produce writes records as a stranger would.
func (f *fixture) produce(records ...*kgo.Record) {
	f.t.Helper()
	client, err := kgo.NewClient(f.kafka...)
	if err != nil {
		f.t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	fresh := make([]*kgo.Record, len(records)) // the client keeps its own state in a record
	for i, r := range records {
		fresh[i] = &kgo.Record{Topic: r.Topic, Key: r.Key, Value: r.Value, Headers: r.Headers}
	}
	if err := client.ProduceSync(ctx, fresh...).FirstErr(); err != nil {
		f.t.Fatal(err)
	}
}

func moved(account string, to int) *kgo.Record {
	id, _ := uuid.NewV7()
	data, _ := json.Marshal(Moved{Account: account, To: to})
	value := fmt.Sprintf(`{"event_id":%q,"event_type":"Moved","aggregate_id":%q,"event_data":%s,"timestamp":"2024-01-15T10:30:00Z","more":1}`, id, account, data)
	return &kgo.Record{Topic: "moves", Key: []byte(account), Value: []byte(value)}
}

func TestEffectHappensOnce(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		testkit.Run(t, f.consumer(func(ctx context.Context, tx *outbox.Tx, d inbox.Delivery[Moved]) error {
			_, err := tx.ExecContext(ctx, `INSERT INTO accounts (id, version, value) VALUES ($1, 0, $2)
				ON CONFLICT (id) DO UPDATE SET value = accounts.value + $2`, d.Event.Account, d.Event.To)
			return err
		}).Run)
		var records []*kgo.Record
		for i := range 100 {
			r := moved(fmt.Sprint("a", i%7), 1)
			twin := *r
			records = append(records, r, &twin)
		}
		f.produce(records...)
		records[0] = moved("end", 1)
		f.produce(records...)
		testkit.Eventually(t, "every event was handled", func() bool { return f.count(`SELECT COUNT(*) FROM inbox_events`) == 101 })
		if n := f.count(`SELECT SUM(value) FROM accounts`); n != 101 {
			t.Errorf("effects of 101 events come to %d", n)
		}
	})
}

func TestFailingRecordIsRetriedThenDead(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		var got received
		c := f.consumer(func(_ context.Context, tx *outbox.Tx, d inbox.Delivery[Moved]) error {
			got.add(d)
			if d.Event.Account == "bad" && d.Event.To == 1 {
				if _, err := tx.Exec(`INSERT INTO accounts (id, version, value) VALUES ('half-done', 0, 0)`); err != nil {
					return err
				}
				return errors.New("no luck")
			}
			return nil
		})
		var onDead inbox.Dead
		c.OnDead(func(_ context.Context, _ *outbox.Tx, d inbox.Dead) error { onDead = d; return nil })
		testkit.Run(t, c.Run)
		testkit.Run(t, f.relay().Run)
		bad := moved("bad", 1)
		bad.Headers = []kgo.RecordHeader{{Key: "odd", Value: []byte{0xff, 0}}, {Key: "odd", Value: nil}}
		f.produce(bad, moved("good", 1), moved("bad", 2), moved("good", 2))

		dead := f.consume("moves-dlq", 1)[0]
		if to := got.of("bad"); !slices.Equal(to, []int{1, 1, 1}) {
			t.Errorf("attempts %v, want three at the first and none at what waits behind it", to)
		}
		testkit.Eventually(t, "the other key got both", func() bool { return len(got.of("good")) >= 2 }) // it may come from another partition
		if to := got.of("good"); !slices.Equal(to, []int{1, 2}) {
			t.Errorf("the other key got %v", to)
		}
		if string(dead.Key) != "bad" || len(dead.Headers) != 2 || !bytes.Equal(dead.Headers[0].Value, []byte{0xff, 0}) {
			t.Errorf("dead letter has key %q, headers %v", dead.Key, dead.Headers)
		}
		var letter struct {
			OriginalTopic     string          `json:"original_topic"`
			OriginalPartition int32           `json:"original_partition"`
			OriginalOffset    *int64          `json:"original_offset"`
			OriginalMessage   json.RawMessage `json:"original_message"`
			ErrorReason       string          `json:"error_reason"`
			FailedAt          time.Time       `json:"failed_at"`
			RetryCount        int             `json:"retry_count"`
			ConsumerGroup     string          `json:"consumer_group"`
		}
		if err := json.Unmarshal(dead.Value, &letter); err != nil {
			t.Fatal(err)
		}
		if letter.OriginalTopic != "moves" || letter.OriginalOffset == nil || string(letter.OriginalMessage) != string(bad.Value) ||
			letter.ErrorReason != "no luck" || letter.FailedAt.IsZero() || letter.RetryCount != 3 || letter.ConsumerGroup != "readers" {
			t.Errorf("dead letter %s", dead.Value)
		}
		if onDead.Attempts != 3 || string(onDead.Value) != string(bad.Value) {
			t.Errorf("OnDead got %+v", onDead)
		}
		testkit.Eventually(t, "one is dead and one waits", func() bool {
			return f.count(`SELECT COUNT(*) FROM parked_records WHERE state = 'dead' AND attempts = 3`) == 1 &&
				f.count(`SELECT COUNT(*) FROM parked_records WHERE state = 'waiting' AND attempts = 0`) == 1
		})
		if n := f.count(`SELECT COUNT(*) FROM accounts`); n != 0 {
			t.Errorf("%d effects of failed attempts", n)
		}
	})
}

func TestRecordsBehindARetriedOneFollowInOrder(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		var got received
		testkit.Run(t, f.consumer(func(_ context.Context, _ *outbox.Tx, d inbox.Delivery[Moved]) error {
			if d.Event.To == 1 && d.Attempt < 3 {
				return errors.New("not yet")
			}
			got.add(d)
			return nil
		}).Run)
		for i := 1; i <= 20; i++ {
			f.produce(moved("a", i))
		}
		testkit.Eventually(t, "all were handled", func() bool { return len(got.of("a")) == 20 })
		if to := got.of("a"); !slices.IsSorted(to) {
			t.Errorf("handled in the order %v", to)
		}
	})
}

func TestHopelessRecordsAreDeadAtOnce(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		testkit.Run(t, f.consumer(func(_ context.Context, _ *outbox.Tx, d inbox.Delivery[Moved]) error {
			switch d.Event.Account {
			case "panics":
				panic("at the disco")
			case "permanent":
				return inbox.Permanent(errors.New("never"))
			}
			return nil
		}).Run)
		testkit.Run(t, f.relay().Run)
		future := moved("future", 1)
		future.Headers = []kgo.RecordHeader{{Key: "schema_version", Value: []byte("2")}}
		other := moved("other", 1)
		other.Value = bytes.Replace(other.Value, []byte(`"Moved"`), []byte(`"Sung"`), 1)
		f.produce(
			&kgo.Record{Topic: "moves", Key: []byte("junk"), Value: []byte("\xff not JSON")},
			&kgo.Record{Topic: "moves", Value: nil},
			future, other, moved("permanent", 1), moved("panics", 1), moved("", 1), moved("fine", 1),
		)
		letters := map[string]map[string]any{}
		for _, r := range f.consume("moves-dlq", 6) {
			var l map[string]any
			if err := json.Unmarshal(r.Value, &l); err != nil {
				t.Fatal(err)
			}
			letters[string(r.Key)] = l
			if r.Key == nil {
				letters["no key"] = l
			}
		}
		for key, want := range map[string]float64{"junk": 1, "no key": 1, "future": 1, "permanent": 1, "panics": 3, "": 1} {
			if letters[key] == nil || letters[key]["retry_count"] != want {
				t.Errorf("dead letter of %q: %v, want %v attempts", key, letters[key], want)
			}
		}
		if l := letters["junk"]; l["original_message"] != nil || l["original_value_base64"] != "/yBub3QgSlNPTg==" {
			t.Errorf("dead letter of a value that is not JSON: %v", l)
		}
		testkit.Eventually(t, "the good one is handled", func() bool { return f.count(`SELECT COUNT(*) FROM inbox_events`) >= 7 })
		if n := f.count(`SELECT COUNT(*) FROM inbox_events`); n != 7 {
			t.Errorf("%d events in the inbox, want 7: all but the one nobody asked for", n)
		}
	})
}

// Two members of a group share the partitions; when one leaves the other takes
// over where it stopped, and nothing is handled twice.
func TestMembersComeAndGo(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		var got received
		h := func(ctx context.Context, tx *outbox.Tx, d inbox.Delivery[Moved]) error {
			_, err := tx.ExecContext(ctx, `INSERT INTO accounts (id, version, value) VALUES ($1, 0, 1) ON CONFLICT (id) DO UPDATE SET value = accounts.value + 1`, d.Event.Account)
			got.add(d)
			return err
		}
		stop := testkit.Run(t, f.consumer(h).Run)
		total := 0
		send := func() {
			for i := range 50 {
				f.produce(moved(fmt.Sprint("a", i), 1))
			}
			total += 50
		}
		send()
		testkit.Run(t, f.consumer(h).Run)
		send()
		stop()
		send()
		testkit.Eventually(t, "all were handled", func() bool { return f.count(`SELECT COUNT(*) FROM inbox_events`) == total })
		if n := f.count(`SELECT SUM(value) FROM accounts`); n != total {
			t.Errorf("%d effects of %d events", n, total)
		}
	})
}
