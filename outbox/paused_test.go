package outbox_test

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/internal/testkit"
	"pizzaflow/kafka"
	"pizzaflow/kafka/kafkatest"
	"pizzaflow/outbox"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// A topic that takes records again does not wait for the partitions that have no
// leader, of which there are many.
func TestStalledPartitionsStopNoOther(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		many := topics()
		many[0].Partitions = 60 // which of the two brokers leads each is drawn by lot
		pair := kafkatest.StartPair(t, many...)
		f := newFixture(t, db, pair.Config)
		f.log = slog.New(slog.DiscardHandler)
		reaching := pair.Config
		reaching.Dial = nil
		admin := (&fixture{t: t, kafka: options(t, reaching)}).admin() // from where both brokers can be reached
		testkit.Run(t, f.relay().Run)
		f.move("first", 1)
		f.consume("moves", 1)
		pair.Cut(true)
		moveAll := func() {
			err := f.out.Tx(t.Context(), func(tx *outbox.Tx) error {
				for i := range 300 {
					tx.Add(1, Moved{Account: fmt.Sprint("account-", i)})
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		moveAll()
		for i := range 40 {
			f.strayed(fmt.Sprint("account-", i))
		}
		testkit.Eventually(t, "many partitions wait", func() bool { return f.count(`SELECT COUNT(*) FROM outbox_lanes WHERE topic = 'moves'`) >= 20 })
		for _, what := range []string{"begins", "is over"} {
			now := sqldb.Now()
			testkit.Eventually(t, "a try of the absent topic "+what, func() bool {
				return f.count(`SELECT COUNT(*) FROM outbox_lanes WHERE lane = 'nowhere' AND tried_at > $1`, now) == 1
			})
		}
		if _, err := admin.CreateTopic(t.Context(), 12, 1, nil, "nowhere"); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		testkit.Eventually(t, "what the first broker takes is published", func() bool {
			return f.count(`SELECT COUNT(*) FROM outbox WHERE topic = 'nowhere' AND published_at IS NOT NULL`) > 0
		})
		// 10 s at most until it is tried again, and 3 s for those that are tried with it
		if d := time.Since(began); d > 35*time.Second {
			t.Errorf("it was published after %v", d)
		}
		pair.Cut(false)
		f.consume("moves", 301)
		f.consume("nowhere", 40)
	}, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
}

// Rows without a key whose partitions have no leader wait together, and are tried
// together.
func TestRowsWithoutKeyAreTriedTogether(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		pair := kafkatest.StartPair(t, topics()...)
		f := newFixture(t, db, pair.Config)
		f.log = slog.New(slog.DiscardHandler)
		var topic string
		for i := 0; ; i++ { // until one is led by the broker that can be cut off
			topic = fmt.Sprint("letters-", i)
			if _, err := f.admin().CreateTopic(t.Context(), 1, 1, nil, topic); err != nil {
				t.Fatal(err)
			}
			if f.leaders(topic)[0] == 1 {
				break
			}
		}
		testkit.Run(t, f.relay().Run)
		f.move("first", 1)
		f.consume("moves", 1)
		pair.Cut(true)
		const rows = 2000
		err := sqldb.Chunks(rows, 256, func(from, to int) error {
			var args []any
			for i := from; i < to; i++ {
				args = append(args, newID(), fmt.Sprint("letter-", i), "Moved", topic, []byte("x"), "[]", sqldb.Now())
			}
			_, err := db.Exec(`INSERT INTO outbox_events (id, aggregate_id, event_type, topic, value, headers, created_at) VALUES `+sqldb.Values(7, to-from), args...)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, "all wait together", func() bool {
			return f.count(`SELECT COUNT(*) FROM outbox_lanes`) == 1 && f.count(`SELECT waiting FROM outbox_lanes WHERE lane = $1`, topic+"#") == rows
		})
		pair.Cut(false)
		f.consume(topic, rows)
		testkit.Eventually(t, "they are resumed", func() bool { return f.count(`SELECT COUNT(*) FROM outbox_lanes`) == 0 })
	}, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
}

func options(t *testing.T, cfg kafka.Config) []kgo.Opt {
	t.Helper()
	opts, err := cfg.Options()
	if err != nil {
		t.Fatal(err)
	}
	return opts
}
