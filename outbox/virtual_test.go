//go:build synctests

package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pizzaflow/internal/testkit"
	"pizzaflow/kafka/kafkatest"
	"pizzaflow/outbox"
	"pizzaflow/outbox/inbox"
	"pizzaflow/outbox/relay"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// Three attempts, 5 and 10 seconds apart with up to 20 % more, then the dead
// letter; meanwhile another key is handled at once.
func TestRetriesKeepTheirDelays(t *testing.T) {
	kafkatest.Bubble(t, func(t *testing.T) {
		db := sqltest.Open(t, sqldb.SQLite, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
		f := newFixture(t, db, kafkatest.Virtual(t, topics()...))
		var attempts []time.Time
		good := make(chan time.Time, 1)
		c := inbox.New(inbox.Config{Outbox: f.out, Group: "readers", Kafka: f.kafka, Log: f.log})
		inbox.On(c, func(_ context.Context, _ *outbox.Tx, d inbox.Delivery[Moved]) error {
			if d.Event.Account == "bad" {
				attempts = append(attempts, time.Now())
				return errors.New("no luck")
			}
			good <- time.Now()
			return nil
		})
		stopConsumer := testkit.Run(t, c.Run)
		r := relay.New(relay.Config{Outbox: f.out, Service: "accounts", Kafka: f.kafka, Log: f.log})
		stopRelay := testkit.Run(t, r.Run)
		f.produce(moved("bad", 1))
		f.produce(moved("good", 1))
		handled := <-good
		letter := f.consume("moves-dlq", 1)[0]
		if len(attempts) != 3 {
			t.Fatalf("%d attempts", len(attempts))
		}
		for i, base := range []time.Duration{5 * time.Second, 10 * time.Second} {
			if d := attempts[i+1].Sub(attempts[i]); d < base || d > base*6/5+time.Second {
				t.Errorf("attempt %d came %v after the one before, want %v and up to 20 %% more", i+2, d, base)
			}
		}
		if handled.Sub(attempts[0]) > 3*time.Second {
			t.Errorf("the other key waited %v", handled.Sub(attempts[0]))
		}
		if string(letter.Key) != "bad" {
			t.Errorf("dead letter of %q", letter.Key)
		}
		stopConsumer()
		stopRelay()
	})
}

// A second member joins while a handler is at work: within the time a drain
// has, and long beyond it, on partitions that stay and that are taken away.
// Every event has its effect once, in whichever process.
func TestRebalanceInMidHandler(t *testing.T) {
	for n, takes := range []time.Duration{3 * time.Second, 3 * time.Second, 3 * time.Second, 3 * time.Second, 15 * time.Second, 15 * time.Second} {
		slow := fmt.Sprint("slow-", n)
		t.Run(fmt.Sprint(slow, " ", takes), func(t *testing.T) {
			kafkatest.Bubble(t, func(t *testing.T) {
				db := sqltest.Open(t, sqldb.SQLite, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
				f := newFixture(t, db, kafkatest.Virtual(t, topics()...))
				begun, calls, handled := make(chan struct{}, 100), map[string]int{}, map[string]int{}
				var mu sync.Mutex
				metrics := map[string]*prometheus.Registry{"first": prometheus.NewRegistry(), "second": prometheus.NewRegistry()}
				member := func(name string) (stop func()) {
					c := inbox.New(inbox.Config{Outbox: f.out, Group: "readers", Kafka: f.kafka, Log: f.log, Metrics: metrics[name]})
					inbox.On(c, func(ctx context.Context, tx *outbox.Tx, d inbox.Delivery[Moved]) error {
						mu.Lock()
						calls[d.Event.Account]++
						mu.Unlock()
						if d.Event.Account == slow {
							begun <- struct{}{}
							time.Sleep(takes) // of virtual time
						}
						_, err := bump(tx, d.Event.Account)
						tx.AfterCommit(func() {
							mu.Lock()
							defer mu.Unlock()
							handled[name]++
						})
						return err
					})
					return testkit.Run(t, c.Run)
				}
				first := member("first")
				f.produce(moved(slow, 1))
				<-begun
				second := member("second")
				time.Sleep(takes + 20*time.Second) // the group has come to rest
				const more = 30
				for i := range more {
					f.produce(moved(fmt.Sprint("quick-", i), 1))
				}
				time.Sleep(time.Minute)
				second()
				first()
				if n := f.count(`SELECT COUNT(*) FROM accounts WHERE version <> 1`); n != 0 {
					t.Errorf("%d events had another effect than one", n)
				}
				if n := f.count(`SELECT COUNT(*) FROM inbox_events`); n != more+1 {
					t.Errorf("%d events are in the inbox, want %d", n, more+1)
				}
				if handled["first"] == 0 || handled["second"] == 0 || handled["first"]+handled["second"] != more+1 {
					t.Errorf("handled: %v", handled)
				}
				if again := processed(metrics["second"], "duplicate"); takes < 6*time.Second && (calls[slow] != 1 || again != 0) {
					t.Errorf("a handler that was given the time to end was called %d times, and its record came %v times again", calls[slow], again)
				}
			})
		})
	}
}

// processed is how many records came to that result.
func processed(reg *prometheus.Registry, result string) (n float64) {
	families, _ := reg.Gather() // a scrape asks no database
	for _, family := range families {
		for _, m := range family.GetMetric() {
			for _, label := range m.GetLabel() {
				if family.GetName() == "consumer_processed_total" && label.GetName() == "result" && label.GetValue() == result {
					n += m.GetCounter().GetValue()
				}
			}
		}
	}
	return n
}
