package outbox_test

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/internal/testkit"
	"pizzaflow/kafka/kafkatest"
	"pizzaflow/outbox"
	"pizzaflow/outbox/relay"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

func (f *fixture) admin() *kadm.Client {
	f.t.Helper()
	client, err := kgo.NewClient(f.kafka...)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(client.Close)
	return kadm.NewClient(client)
}

// patient is a relay that finds nothing by its own poll.
func (f *fixture) patient(out *outbox.Outbox) *relay.Relay {
	return relay.New(relay.Config{Outbox: out, Service: "accounts", Kafka: f.kafka, Poll: time.Hour, Log: f.log})
}

// What another process commits wakes the relay that leads, although neither
// polls.
func TestOtherProcessesWakeTheRelay(t *testing.T) {
	f := newFixture(t, sqltest.Open(t, sqldb.Postgres, sqltest.Schema{Name: "outbox", FS: outbox.Schema}), kafkatest.Start(t, topics()...))
	testkit.Run(t, f.patient(f.out).Run)
	f.move("a", 1)
	f.consume("moves", 1)
	other := *f
	other.out = outbox.New(f.db, "/accounts") // offers its events to its own relay
	testkit.Run(t, f.patient(other.out).Run)
	other.move("b", 3)
	testkit.Eventually(t, "it is published", func() bool {
		return f.count(`SELECT COUNT(*) FROM outbox WHERE aggregate_id = 'b' AND published_at IS NOT NULL`) == 3
	})
}

// A topic that was deleted and created again lacks everything: all events are
// published again, the old before the new.
func TestTopicCreatedAnewGetsEverything(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		stop := testkit.Run(t, f.relay().Run)
		f.move("a", 3)
		f.consume("moves", 3)
		testkit.Eventually(t, "they are marked", func() bool { return f.count(`SELECT COUNT(*) FROM outbox WHERE published_at IS NULL`) == 0 })
		stop()
		f.recreate("moves")
		testkit.Run(t, f.relay().Run)
		f.move("a", 1)
		for i, r := range f.consume("moves", 4) {
			if v := header(r, "aggregate_version"); v != fmt.Sprint(i+1) {
				t.Errorf("record %d is version %s", i, v)
			}
		}
		f.recreate("moves") // under its hands
		f.move("a", 1)
		for i, r := range f.consume("moves", 5) {
			if v := header(r, "aggregate_version"); v != fmt.Sprint(i+1) {
				t.Errorf("record %d is version %s", i, v)
			}
		}
	})
}

// What was published since the broker was last known to be whole is published
// again when the relay starts, and only then.
func TestRelayRepeatsWhatTheBrokerMayHaveLost(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		stop := testkit.Run(t, f.relay().Run)
		f.move("a", 2)
		testkit.Eventually(t, "they are marked", func() bool { return f.count(`SELECT COUNT(*) FROM outbox WHERE published_at IS NULL`) == 0 })
		since := sqldb.Now()
		f.move("a", 2)
		testkit.Eventually(t, "all are marked", func() bool { return f.count(`SELECT COUNT(*) FROM outbox WHERE published_at IS NULL`) == 0 })
		stop()
		rewound := make(chan int, 1)
		testkit.Run(t, relay.New(relay.Config{Outbox: f.out, Service: "accounts", Kafka: f.kafka, RepublishSince: since, Log: f.log, Rewound: func() {
			rewound <- f.count(`SELECT COUNT(*) FROM outbox WHERE published_at IS NULL`)
		}}).Run)
		if n := <-rewound; n != 2 {
			t.Errorf("it says that they will be published again, and %d will", n)
		}
		f.move("b", 1)
		var got string
		for _, r := range f.consume("moves", 7) {
			if string(r.Key) == "a" {
				got += header(r, "aggregate_version")
			}
		}
		if got != "123434" {
			t.Errorf("versions %s, want 3 and 4 once more", got)
		}
		testkit.Eventually(t, "nothing is left", func() bool { return f.count(`SELECT COUNT(*) FROM outbox WHERE published_at IS NULL`) == 0 })
	})
}

func (f *fixture) recreate(topic string) {
	f.t.Helper()
	adm := f.admin()
	if _, err := adm.DeleteTopic(f.t.Context(), topic); err != nil {
		f.t.Fatal(err)
	}
	testkit.Eventually(f.t, "the topic can be created again", func() bool {
		_, err := adm.CreateTopic(f.t.Context(), 3, 1, nil, topic)
		return err == nil
	})
}

// A partition whose broker is away keeps its own events, in order, and nothing
// else waits for it.
func TestAbsentLeaderStopsNobodyElse(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		many := topics()
		many[0].Partitions = 12 // which of the two leads each is drawn by lot
		pair := kafkatest.StartPair(t, many...)
		f := newFixture(t, db, pair.Config)
		f.log = slog.New(slog.DiscardHandler)
		testkit.Run(t, f.relay().Run)
		const accounts = 40
		moveAll := func() {
			for i := range accounts {
				f.move(fmt.Sprint("account-", i), 1)
			}
		}
		moveAll()
		leaders := f.leaders("moves")
		near := 0 // accounts that the second broker has nothing to do with
		for _, r := range f.consume("moves", accounts) {
			if leaders[r.Partition] == 0 {
				near++
			}
		}
		if near == 0 || near == accounts {
			t.Fatalf("%d of %d accounts are the first broker's", near, accounts)
		}
		pair.Cut(true)
		for n := range 2 {
			moveAll()
			testkit.Eventually(t, "what the first broker takes is published", func() bool {
				return f.count(`SELECT COUNT(*) FROM outbox WHERE published_at IS NOT NULL`) == accounts+(n+1)*near
			})
		}
		pair.Cut(false)
		moveAll()
		versions := map[string]string{}
		for _, r := range f.consume("moves", 4*accounts) {
			versions[string(r.Key)] += header(r, "aggregate_version")
		}
		for account, v := range versions {
			if v != "1234" {
				t.Errorf("%s: versions %s", account, v)
			}
		}
	}, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
}

// leaders says which broker leads each partition.
func (f *fixture) leaders(topic string) map[int32]int32 {
	f.t.Helper()
	meta, err := f.admin().Metadata(f.t.Context(), topic)
	if err != nil {
		f.t.Fatal(err)
	}
	leaders := map[int32]int32{}
	for _, p := range meta.Topics[topic].Partitions.Sorted() {
		leaders[p.Partition] = p.Leader
	}
	return leaders
}

// header is a record's header, "" without it.
func header(r *kgo.Record, key string) string {
	for _, h := range r.Headers {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}
