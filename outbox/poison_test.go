//go:build synctests

package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/internal/testkit"
	"pizzaflow/kafka/kafkatest"
	"pizzaflow/outbox"
	"pizzaflow/outbox/inbox"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// One record in a hundred that can never be handled, tried three times over
// fifteen seconds each, changes nothing for the other keys: neither the median
// nor the longest of their delays.
func TestPoisonDelaysNobodyElse(t *testing.T) {
	for name, many := range map[string]bool{"On": false, "OnBatch": true} {
		t.Run(name, func(t *testing.T) {
			var without, with []time.Duration
			kafkatest.Bubble(t, func(t *testing.T) { without = delays(t, many, false) })
			kafkatest.Bubble(t, func(t *testing.T) { with = delays(t, many, true) })
			median := func(d []time.Duration) time.Duration { return d[len(d)/2] }
			t.Logf("median %v and longest %v without, %v and %v with poison", median(without), without[len(without)-1], median(with), with[len(with)-1])
			const unchanged = 20 * time.Millisecond // the network and the database take no time here
			if median(with) > median(without)+unchanged || with[len(with)-1] > without[len(without)-1]+unchanged {
				t.Error("poison delays the others")
			}
		})
	}
}

// delays writes 30 records of 20 good keys a second for 25 seconds and returns
// how long each took to be handled, sorted.
func delays(t *testing.T, many, poison bool) []time.Duration {
	f := newFixture(t, sqltest.Open(t, sqldb.SQLite, sqltest.Schema{Name: "outbox", FS: outbox.Schema}), kafkatest.Virtual(t, topics()...))
	const seconds, rate = 25, 30
	var mu sync.Mutex
	sent := map[int]time.Time{}
	var took []time.Duration
	c := inbox.New(inbox.Config{Outbox: f.out, Group: "readers", Kafka: f.kafka, Log: slog.New(slog.DiscardHandler)})
	handle := func(ctx context.Context, tx *outbox.Tx, d inbox.Delivery[Moved]) error {
		if strings.HasPrefix(d.Event.Account, "bad") {
			return errors.New("no luck")
		}
		_, err := bump(tx, d.Event.Account)
		tx.AfterCommit(func() {
			mu.Lock()
			defer mu.Unlock()
			took = append(took, time.Since(sent[d.Event.To]))
		})
		return err
	}
	if many {
		inbox.OnBatch(c, func(ctx context.Context, tx *outbox.Tx, ds []inbox.Delivery[Moved]) error {
			for _, d := range ds {
				if err := handle(ctx, tx, d); err != nil {
					return err
				}
			}
			return nil
		})
	} else {
		inbox.On(c, handle)
	}
	stop := testkit.Run(t, c.Run)
	client, err := kgo.NewClient(append(f.kafka, kgo.ProducerLinger(0))...)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	f.produce(moved("first", 0)) // the group is joined when this is handled
	testkit.Eventually(t, "it has begun", func() bool { return f.count(`SELECT COUNT(*) FROM inbox_events`) == 1 })
	tick := time.NewTicker(time.Second / rate)
	defer tick.Stop()
	for i := range seconds * rate {
		<-tick.C
		records := []*kgo.Record{moved(fmt.Sprint("good-", i%20), i)}
		if poison && i%100 == 50 {
			records = append(records, moved(fmt.Sprint("bad-", i%7), i))
		}
		mu.Lock()
		sent[i] = time.Now()
		mu.Unlock()
		if err := client.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Eventually(t, "all good ones are handled", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(took) == seconds*rate+1
	})
	if n := f.count(`SELECT COUNT(*) FROM parked_records WHERE state = 'dead' AND attempts = 3`); poison != (n > 0) {
		t.Errorf("%d dead records", n)
	}
	stop()
	mu.Lock()
	defer mu.Unlock()
	took = took[1:] // the first began it
	slices.Sort(took)
	return took
}
