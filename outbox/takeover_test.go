//go:build unix

package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/internal/testkit"
	"pizzaflow/kafka/kafkatest"
	"pizzaflow/outbox"
	"pizzaflow/sqldb"
)

// relayOnly is a node that does nothing but publish.
func (w *world) relayOnly(ttl time.Duration, plan crashPlan) node {
	return node{Database: w.node.Database, Brokers: w.node.Brokers, Relay: true, TTL: ttl, Crash: plan}
}

// leads reports whether the child holds the lease.
func (w *world) leads(c *child) bool {
	holder := w.column(`SELECT holder FROM outbox_lease`)[0]
	return strings.Contains(holder, fmt.Sprintf("/%d/", c.cmd.Process.Pid))
}

func eachWorld(t *testing.T, fn func(t *testing.T, w *world)) {
	for _, engine := range []sqldb.Engine{sqldb.SQLite, sqldb.Postgres} {
		t.Run(string(engine), func(t *testing.T) {
			t.Parallel()
			fn(t, newWorld(t, engine, kafkatest.Start(t, worldTopics()...)))
		})
	}
}

// checkAllPublished wants every committed event on its topic from the given
// ends of the partitions on, and first occurrences in order.
func (w *world) checkAllPublished(from map[int32]int64) {
	w.t.Helper()
	records := w.consumeAll("moves")
	w.inOrder(records)
	there := map[string]bool{}
	for _, r := range records {
		if r.Offset < from[r.Partition] {
			continue
		}
		for _, h := range r.Headers {
			if h.Key == "ce_id" {
				there[string(h.Value)] = true
			}
		}
	}
	lost := 0
	for _, id := range w.column(`SELECT id FROM outbox_events ORDER BY seq`) {
		if there[id] {
			delete(there, id)
		} else if lost++; lost <= 5 {
			w.t.Errorf("event %s was committed and is not on the topic", id)
		}
	}
	if lost > 5 || len(there) > 0 {
		w.t.Errorf("%d events are lost, %d were never committed", lost, len(there))
	}
}

func (w *world) awaitMarked() {
	w.t.Helper()
	w.until(func() string {
		if n := w.count(`SELECT COUNT(*) FROM outbox WHERE published_at IS NULL`); n > 0 {
			return fmt.Sprintf("%d events are not marked", n)
		}
		return ""
	})
}

// ends are the ends of the topic's partitions.
func (w *world) ends() map[int32]int64 {
	w.t.Helper()
	client, err := kgo.NewClient(w.kafka...)
	if err != nil {
		w.t.Fatal(err)
	}
	defer client.Close()
	listed, err := kadm.NewClient(client).ListEndOffsets(w.t.Context(), "moves")
	if err != nil {
		w.t.Fatal(err)
	}
	ends := map[int32]int64{}
	listed.Each(func(o kadm.ListedOffset) { ends[o.Partition] = o.Offset })
	return ends
}

// A relay that is stopped in mid-batch, and wakes up when another has taken
// over, repeats what it had on its way and changes nothing else: not even when
// everything is to be published again meanwhile, which a late mark would undo.
func TestStoppedInMidBatch(t *testing.T) {
	for _, point := range []string{"relay: read", "relay: produced", "relay: acked"} {
		t.Run(point, func(t *testing.T) {
			eachWorld(t, func(t *testing.T, w *world) {
				w.move("a", 5)
				w.move("b", 5)
				// after some renewals: on SQLite it should not be stopped with the writer in its hands
				sleeper := spawn(t, w.relayOnly(w.node.TTL, crashPlan{Point: point, Nth: 1, Then: "lease: renewed", Times: 3, Stop: true}))
				sleeper.awaitStopped()
				if !w.leads(sleeper) {
					t.Fatal("the relay that was stopped did not lead")
				}
				w.move("a", 5)
				successor := spawn(t, w.relayOnly(w.node.TTL, crashPlan{}))
				w.awaitMarked()
				if !w.leads(successor) {
					t.Error("all is marked, but not by the one that took over")
				}
				successor.kill()
				w.checkAllPublished(nil)
				before := w.ends()
				w.rewind()
				sleeper.signal(syscall.SIGCONT)
				w.awaitMarked()
				sleeper.kill()
				w.checkAllPublished(before)
			})
		})
	}
}

// rewind has everything published again, as after the loss of a topic: the
// lease is free, nothing is marked.
func (w *world) rewind() {
	w.t.Helper()
	err := w.db.Tx(w.t.Context(), func(tx *sql.Tx) error {
		if _, err := tx.Exec(`UPDATE outbox_lease SET holder = '', epoch = epoch + 1, renewal = renewal + 1, floor = 0`); err != nil {
			return err
		}
		_, err := tx.Exec(`DELETE FROM outbox_published`)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// A relay that has nothing to do notices by its renewals that its term is over.
func TestIdleLeaderNoticesItsEnd(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world) {
		w.move("a", 5)
		testkit.Run(t, w.relay().Run)
		w.awaitMarked()
		before := w.ends()
		w.rewind()
		w.awaitMarked()
		w.checkAllPublished(before)
	})
}

// A row that was offered in an earlier term may stand on no server any more, and
// its number be given to another event: it is neither published nor does it
// hide that one.
func TestNothingIsOfferedToALaterTerm(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world) {
		outbox.CommitElsewhere(w.out, 1, Moved{Account: "ghost"})
		testkit.Run(t, w.relay().Run)
		w.until(func() string {
			if w.column(`SELECT holder FROM outbox_lease`)[0] == "" {
				return "nobody leads"
			}
			return ""
		})
		w.move("a", 1)
		w.awaitMarked()
		w.checkAllPublished(nil)
	})
}

// Two relays on one database under load, of which the one that leads is
// stopped past its lease and woken again, time after time.
func TestStoppedRelaysUnderLoad(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world) {
		relays := []*child{spawn(t, w.relayOnly(w.node.TTL, crashPlan{})), spawn(t, w.relayOnly(w.node.TTL, crashPlan{}))}
		stop := w.load(8)
		takeovers := 0
		for round := 0; round < kills(6) || takeovers < 2 && round < 30; round++ { // the other cannot take over each time
			leader, other := relays[0], relays[1]
			w.until(func() string {
				if w.leads(relays[1]) {
					leader, other = relays[1], relays[0]
				}
				if !w.leads(leader) {
					return "nobody leads"
				}
				return ""
			})
			w.publishMore(50)
			leader.signal(syscall.SIGSTOP)
			if w.takesOver(other) {
				takeovers++
				w.publishMore(50)
			}
			leader.signal(syscall.SIGCONT)
			if round%2 == 0 {
				w.publishMore(50)
			}
		}
		stop()
		w.awaitMarked()
		t.Logf("%d take-overs, %d events, %d records", takeovers, w.count(`SELECT COUNT(*) FROM outbox_events`), len(w.consumeAll("moves")))
		if takeovers < 2 {
			t.Errorf("%d take-overs: too few to say anything", takeovers)
		}
		w.checkAllPublished(nil)
	})
}

// takesOver waits until the child leads. On SQLite it cannot when the other was
// stopped with the one writer in its hands; then nobody else writes either.
func (w *world) takesOver(c *child) bool {
	patience := time.After(map[sqldb.Engine]time.Duration{sqldb.Postgres: 30 * time.Second, sqldb.SQLite: 2 * time.Second}[w.db.Engine])
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !w.leads(c) {
		select {
		case <-tick.C:
		case <-patience:
			if w.db.Engine == sqldb.Postgres {
				w.t.Error("nobody has taken over from a stopped relay")
			}
			return false
		}
	}
	return true
}

// load has accounts moved until stop is called, not much faster than that is
// published: on SQLite the relays are other processes that want the writer too.
func (w *world) load(accounts int) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var writers sync.WaitGroup
	for a := range accounts {
		writers.Go(func() {
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for ctx.Err() == nil {
				w.move(fmt.Sprint("account-", a), 4)
				for ctx.Err() == nil && w.count(`SELECT COUNT(*) FROM outbox WHERE seq > (SELECT floor FROM outbox_lease)`) > 500 {
					<-tick.C
				}
				<-tick.C
			}
		})
	}
	stop = sync.OnceFunc(func() { cancel(); writers.Wait() })
	w.t.Cleanup(stop)
	return stop
}

// publishMore waits until n more events are published.
func (w *world) publishMore(n int) {
	w.t.Helper()
	const published = `SELECT COALESCE(MAX(last_seq), 0) FROM outbox_published`
	want := w.count(published) + n
	w.until(func() string {
		if got := w.count(published); got < want {
			return fmt.Sprintf("published up to %d, want %d", got, want)
		}
		return ""
	})
}

// kills is how often a process is killed: n, or what PIZZA_TEST_KILLS says.
func kills(n int) int {
	if more, err := strconv.Atoi(os.Getenv("PIZZA_TEST_KILLS")); err == nil {
		return more
	}
	return n
}

// Another relay leads, and publishes committed events, within 3 s of the death
// of the one that led, with the settings of production.
func TestTakeOverWithinSeconds(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world) {
		leader := spawn(t, w.relayOnly(0, crashPlan{}))
		w.move("a", 1)
		w.awaitMarked()
		var led, published []time.Duration
		const limit = 5 * time.Second // 3 s on a machine that does nothing else; one that does is asked again
		for n := 0; n < kills(3) || n < 9 && median(published) > limit; n++ {
			standby := spawn(t, w.relayOnly(0, crashPlan{}))
			w.move("a", 20)
			w.awaitMarked()
			began := time.Now()
			leader.kill()
			w.move("a", 1)
			w.until(func() string {
				if !w.leads(standby) {
					return "no relay has taken over from the dead one"
				}
				return ""
			})
			led = append(led, time.Since(began))
			w.awaitMarked()
			published = append(published, time.Since(began))
			leader = standby
		}
		t.Logf("another leads after %v (median), and has published after %v; all: %v", median(led), median(published), led)
		if median(published) > limit {
			t.Errorf("an event waited %v for another relay, want 3 s at most", median(published))
		}
		w.checkAllPublished(nil)
	})
}

func median(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2].Round(time.Millisecond)
}

// Sixteen writers with rollbacks, savepoints, and transactions that stay open
// for seconds after they drew their numbers, while the relay is killed again
// and again.
func TestGapsUnderKills(t *testing.T) {
	w := newWorld(t, sqldb.Postgres, kafkatest.Start(t, worldTopics()...))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var writers sync.WaitGroup
	var late atomic.Int64 // commits of transactions that were open for seconds
	const slow = 4
	for n := range 16 {
		rng := rand.New(rand.NewPCG(7, uint64(n)))
		writers.Go(func() {
			for ctx.Err() == nil {
				open := time.Duration(rng.IntN(20)) * time.Millisecond
				if n < slow {
					open = 2200*time.Millisecond + time.Duration(rng.IntN(1500))*time.Millisecond
				}
				if w.write(n, rng, open) && n < slow {
					late.Add(1)
				}
			}
		})
	}
	restarts := kills(10)
	for i := range restarts {
		relay := spawn(t, w.relayOnly(300*time.Millisecond, crashPlan{}))
		w.until(func() string {
			if !w.leads(relay) {
				return "the next relay does not lead"
			}
			return ""
		})
		if i%3 == 0 { // one that lives to see late commits
			seen := late.Load()
			w.until(func() string {
				if late.Load() < seen+2 {
					return "no late commits"
				}
				return ""
			})
		} else {
			w.publishMore(20 * i)
		}
		relay.kill()
	}
	cancel()
	writers.Wait()
	spawn(t, w.relayOnly(300*time.Millisecond, crashPlan{}))
	w.awaitMarked()
	last := w.count(`SELECT MAX(seq) FROM outbox_events`)
	w.until(func() string {
		if floor := w.count(`SELECT floor FROM outbox_lease`); floor < last {
			return fmt.Sprintf("the low watermark is %d, the last event %d", floor, last)
		}
		return ""
	})
	t.Logf("%d events up to number %d, %d late commits, %d kills", w.count(`SELECT COUNT(*) FROM outbox_events`), last, late.Load(), restarts)
	w.checkAllPublished(nil)
}

// write is one transaction of writer n: a few accounts of its own, or of all
// when it is a short one, perhaps a savepoint that is rolled back, perhaps
// rolled back as a whole. It reports whether it has committed.
func (w *world) write(n int, rng *rand.Rand, open time.Duration) bool {
	abort, savepoint := rng.IntN(4) == 0, rng.IntN(4) == 0
	var accounts []string
	for range 1 + rng.IntN(3) {
		if open > time.Second { // nobody shall wait for its locks
			accounts = append(accounts, fmt.Sprint("slow-", n, "-", rng.IntN(4)))
		} else {
			accounts = append(accounts, fmt.Sprint("quick-", rng.IntN(24)))
		}
	}
	slices.Sort(accounts) // no deadlocks, which would only take time
	err := w.db.Tx(context.Background(), func(tx *sql.Tx) error {
		for _, account := range slices.Compact(accounts) {
			v, err := bump(&outbox.Tx{Tx: tx}, account)
			if err == nil { // the row as Add writes it, but now, while the transaction goes on
				_, err = tx.Exec(insertEvent, newID(), account, v, `{"account":"`+account+`"}`, sqldb.Now(), []byte(account))
			}
			if err != nil {
				return err
			}
		}
		if savepoint {
			_, err := tx.Exec(`SAVEPOINT s`)
			if err == nil {
				_, err = tx.Exec(insertEvent, newID(), newID(), 1, `{"account":"never"}`, sqldb.Now(), []byte("never"))
			}
			if err == nil {
				_, err = tx.Exec(`ROLLBACK TO SAVEPOINT s`)
			}
			if err != nil {
				return err
			}
		}
		<-time.After(open) // that it is open for so long is the point
		if abort {
			return errDone
		}
		return nil
	})
	if err != nil && !errors.Is(err, errDone) {
		w.t.Error(err)
	}
	return err == nil
}
