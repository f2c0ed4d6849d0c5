package outbox_test

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/internal/testkit"
	"pizzaflow/kafka/kafkatest"
	"pizzaflow/outbox"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// A transaction that drew its number early and commits late is neither missed
// nor waited for; one that rolls back does not hold the low watermark back for ever.
func TestLateCommitIsNotMissed(t *testing.T) {
	f := newFixture(t, sqltest.Open(t, sqldb.Postgres, sqltest.Schema{Name: "outbox", FS: outbox.Schema}), kafkatest.Start(t, topics()...))
	testkit.Run(t, f.relay().Run)
	begin := func(account string) (end func(commit bool)) {
		drawn, end1, ended := make(chan struct{}), make(chan bool), make(chan struct{})
		go func() {
			defer close(ended)
			_ = f.db.Tx(context.Background(), func(tx *sql.Tx) error {
				if _, err := tx.Exec(insertEvent, newID(), account, 1, `{"account":"`+account+`"}`, sqldb.Now(), []byte(account)); err != nil {
					t.Error(err)
				}
				close(drawn)
				if <-end1 {
					return nil
				}
				return context.Canceled
			})
		}()
		<-drawn
		return func(commit bool) { end1 <- commit; <-ended }
	}
	late, rolledBack := begin("late"), begin("rolled-back")
	f.move("early", 3)
	for _, r := range f.consume("moves", 3) {
		if string(r.Key) != "early" {
			t.Errorf("%s was published before its commit", r.Key)
		}
	}
	testkit.Eventually(t, "committed events are marked", func() bool { return f.count(`SELECT COUNT(*) FROM outbox_published`) > 0 })
	if floor := f.count(`SELECT floor FROM outbox_lease`); floor != 0 {
		t.Errorf("low watermark %d: it has passed numbers whose fate is open", floor)
	}
	late(true)
	testkit.Eventually(t, "the late commit is published", func() bool {
		return f.count(`SELECT COUNT(*) FROM outbox WHERE aggregate_id = 'late' AND published_at IS NOT NULL`) == 1
	})
	rolledBack(false)
	f.move("early", 1)
	testkit.Eventually(t, "the low watermark passes the number that was rolled back", func() bool { return f.count(`SELECT floor FROM outbox_lease`) == 6 })
}

// Sixteen writers with rollbacks, savepoints and several events a transaction,
// while the relay is stopped, or loses its lease between sending and marking:
// nothing is missing and the first occurrences of each key are in order.
func TestRelayUnderConcurrentWriters(t *testing.T) {
	f := newFixture(t, sqltest.Open(t, sqldb.Postgres, sqltest.Schema{Name: "outbox", FS: outbox.Schema}), kafkatest.Start(t, topics()...))
	const writers, rounds, accounts = 16, 60, 24
	var wg sync.WaitGroup
	stop := testkit.Run(t, f.relay().Run)
	for w := range writers {
		rng := rand.New(rand.NewPCG(1, uint64(w)))
		wg.Go(func() {
			for range rounds {
				abort, savepoint := rng.IntN(4) == 0, rng.IntN(4) == 0
				picked := rng.Perm(accounts)[:1+rng.IntN(3)]
				slices.Sort(picked) // no deadlocks, which would only take time
				err := f.out.Tx(context.Background(), func(tx *outbox.Tx) error {
					for _, n := range picked {
						account := fmt.Sprint("account-", n)
						v, err := bump(tx, account)
						if err != nil {
							return err
						}
						tx.Add(v, Moved{Account: account, To: int(v)})
					}
					if savepoint {
						if _, err := tx.Exec(`SAVEPOINT s`); err != nil {
							return err
						}
						if _, err := tx.Exec(insertEvent, newID(), newID(), 1, `{"account":"never"}`, sqldb.Now(), []byte("never")); err != nil {
							return err
						}
						if _, err := tx.Exec(`ROLLBACK TO SAVEPOINT s`); err != nil {
							return err
						}
					}
					if abort {
						return context.Canceled
					}
					return nil
				})
				if err != nil && !abort {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for restarts := 0; ; restarts++ {
		epoch := f.count(`SELECT epoch FROM outbox_lease`)
		if restarts%2 == 0 { // a clean stop, and another takes over
			stop()
			stop = testkit.Run(t, f.relay().Run)
		} else if _, err := f.db.Exec(`UPDATE outbox_lease SET epoch = epoch + 1, holder = ''`); err != nil { // as if taken over in mid-batch
			t.Fatal(err)
		}
		testkit.Eventually(t, "somebody leads again", func() bool {
			return f.count(`SELECT COALESCE(MAX(epoch), 0) FROM outbox_lease WHERE holder <> ''`) > epoch
		})
		select {
		case <-done:
			total := f.count(`SELECT COUNT(*) FROM outbox_events`)
			testkit.Eventually(t, "all is marked", func() bool { return f.count(`SELECT COUNT(*) FROM outbox WHERE published_at IS NULL`) == 0 })
			records := f.consumeAll("moves")
			f.inOrder(records)
			seen := map[string]bool{}
			for _, r := range records {
				seen[string(r.Value)] = true
			}
			if len(seen) != total {
				t.Errorf("%d events on the topic, want %d, after %d restarts", len(seen), total, restarts)
			}
			return
		default:
		}
	}
}

const insertEvent = `INSERT INTO outbox_events (id, aggregate_id, aggregate_version, event_type, event_data, topic, key, headers, created_at)
	VALUES ($1, $2, $3, 'Moved', $4, 'moves', $6, '[]', $5)`

func newID() string { return uuid.NewString() }

// consumeAll reads a topic from its start to its end.
func (f *fixture) consumeAll(topic string) []*kgo.Record {
	f.t.Helper()
	client, err := kgo.NewClient(f.kafka...)
	if err != nil {
		f.t.Fatal(err)
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(context.Background(), topic)
	if err != nil {
		f.t.Fatal(err)
	}
	total := 0
	ends.Each(func(o kadm.ListedOffset) { total += int(o.Offset) })
	return f.consume(topic, total)
}
