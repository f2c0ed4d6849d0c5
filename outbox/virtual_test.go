//go:build synctests

package outbox_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"pizzaflow/kafka/kafkatest"
	"pizzaflow/outbox"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// Three attempts, 5 and 10 seconds apart with up to 20 % more, then the dead
// letter; meanwhile another key is handled at once.
func TestRetriesKeepTheirDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := sqltest.Open(t, sqldb.SQLite, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
		f := newFixture(t, db, kafkatest.Virtual(t, topics()...))
		var attempts []time.Time
		good := make(chan time.Time, 1)
		c := outbox.NewConsumer(outbox.ConsumerConfig{Outbox: f.out, Group: "readers", Kafka: f.kafka, Log: f.log})
		outbox.On(c, func(_ context.Context, _ *outbox.Tx, d outbox.Delivery[Moved]) error {
			if d.Event.Account == "bad" {
				attempts = append(attempts, time.Now())
				return errors.New("no luck")
			}
			good <- time.Now()
			return nil
		})
		stopConsumer := run(t, c.Run)
		r := outbox.NewRelay(outbox.RelayConfig{Outbox: f.out, Service: "accounts", Kafka: f.kafka, Log: f.log})
		stopRelay := run(t, r.Run)
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
