package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/internal/testkit"
	"pizzaflow/outbox"
	"pizzaflow/outbox/admin"
	"pizzaflow/outbox/inbox"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

var deed = admin.Action{By: "anna@kitchen", Why: "mended"}

// note adds an event of at least that size.
func (f *fixture) note(account string, size int) {
	f.t.Helper()
	err := f.out.Tx(context.Background(), func(tx *outbox.Tx) error {
		v, err := bump(tx, account)
		if err != nil {
			return err
		}
		var b strings.Builder
		for i := 0; b.Len() < size; i++ { // no compression makes it small
			fmt.Fprintf(&b, "%08x", uint32(i)*2654435761)
		}
		tx.Add(v, Moved{Account: account, To: int(v), Note: b.String()})
		return nil
	})
	if err != nil {
		f.t.Fatal(err)
	}
}

// limitTopic sets what the broker takes.
func (f *fixture) limitTopic(topic string, size int) {
	f.t.Helper()
	client, err := kgo.NewClient(f.kafka...)
	if err != nil {
		f.t.Fatal(err)
	}
	defer client.Close()
	value := strconv.Itoa(size)
	altered, err := kadm.NewClient(client).AlterTopicConfigs(f.t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: &value}}, topic)
	if err != nil || altered[0].Err != nil {
		f.t.Fatal(err, altered)
	}
}

func (f *fixture) status() admin.Status {
	f.t.Helper()
	s, err := admin.New(f.db).Status(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

func versionsOf(records []*kgo.Record, account string) (versions string) {
	for _, r := range records {
		if string(r.Key) == account {
			versions += header(r, "aggregate_version")
		}
	}
	return versions
}

// A key that the broker refused is published in order once its topic takes it:
// whichever of its events is named, while the relay runs, and while nothing
// does. One that is retried too early is as it was.
func TestRetryBringsTheKeyAlong(t *testing.T) {
	for _, c := range []struct {
		name    string
		running bool
		filter  admin.BlockedFilter
	}{
		{"running, by the event that is refused", true, admin.BlockedFilter{Seq: 2}},
		{"stopped, by one that waits behind", false, admin.BlockedFilter{Seq: 3}},
		{"running, all", true, admin.BlockedFilter{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			each(t, func(t *testing.T, f *fixture) {
				op := admin.New(f.db)
				f.limitTopic("moves", 4000)
				stop := testkit.Run(t, f.relay().Run)
				f.move("big", 1)
				f.note("big", 8000)
				f.move("big", 1)
				f.move("small", 1)
				testkit.Eventually(t, "it is blocked", func() bool { s := f.status(); return s.Blocked == 2 && s.Unpublished == 0 && s.Floor == 4 })
				epoch := f.status().Epoch
				if done, err := op.Retry(t.Context(), c.filter, deed); err != nil || len(done) != 2 {
					t.Errorf("retried %+v, %v; want both events of the key", done, err)
				}
				testkit.Eventually(t, "it is blocked again", func() bool {
					s := f.status()
					return s.Epoch > epoch+1 && s.Blocked == 2 && s.Unpublished == 0 && s.Floor == 4
				})
				if b, err := op.Blocked(t.Context(), admin.BlockedFilter{}, 10); err != nil || b[0].Seq != 2 || strings.Contains(b[0].Reason, "key is blocked") {
					t.Errorf("why it is blocked is forgotten: %+v, %v", b, err)
				}
				if !c.running {
					stop()
				}
				f.limitTopic("moves", 1<<20)
				if done, err := op.Retry(t.Context(), c.filter, deed); err != nil || len(done) != 2 {
					t.Errorf("retried %+v, %v", done, err)
				}
				if !c.running {
					testkit.Run(t, f.relay().Run)
				}
				if v := versionsOf(f.consume("moves", 4), "big"); v != "123" {
					t.Errorf("versions %s of the key", v)
				}
				testkit.Eventually(t, "all is marked", func() bool { s := f.status(); return s.Unpublished == 0 && s.Blocked == 0 && s.Floor == 4 })
				epoch = f.status().Epoch
				if again, err := op.Retry(t.Context(), admin.BlockedFilter{}, deed); err != nil || len(again) != 0 || f.status().Epoch != epoch {
					t.Errorf("a term was ended for nothing: %+v, %v", again, err)
				}
			})
		})
	}
}

// A skipped event stays skipped in later terms, and blocks nothing in them.
func TestSkippedStaysSkipped(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		op := admin.New(f.db)
		stop := testkit.Run(t, f.relay().Run)
		f.note("big", 1_100_000)
		f.move("big", 1)
		f.note("mad", 1_100_000)
		f.move("mad", 1)
		testkit.Eventually(t, "both keys are blocked", func() bool { return f.status().Blocked == 4 })
		stop()
		if done, err := op.Skip(t.Context(), admin.BlockedFilter{Key: "big"}, deed); err != nil || len(done) != 1 {
			t.Fatalf("skipped %+v, %v", done, err)
		}
		if s := f.status(); s.Blocked != 2 || s.Skipped != 1 || s.Unpublished != 1 {
			t.Errorf("one is skipped and one released of the one key, and nothing of the other: %+v", s)
		}
		stop = testkit.Run(t, f.relay().Run)
		f.consume("moves", 1)
		stop()
		if done, err := op.Retry(t.Context(), admin.BlockedFilter{Key: "big"}, deed); err != nil || len(done) != 0 {
			t.Errorf("skipped events are retried: %+v, %v", done, err)
		}
		if n, err := op.Republish(t.Context(), time.Unix(0, 0), deed); err != nil || n != 1 {
			t.Errorf("%d published again, %v; want all but the one that was given up", n, err)
		}
		testkit.Run(t, f.relay().Run)
		f.move("big", 1)
		if v := versionsOf(f.consume("moves", 3), "big"); v != "223" {
			t.Errorf("versions %s are published", v)
		}
	})
}

// A range that spans the event from which on all is published again is cut
// there, even when events before it were pruned.
func TestRepublishCutsRanges(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		stop := testkit.Run(t, f.relay().Run)
		err := f.out.Tx(t.Context(), func(tx *outbox.Tx) error {
			for v := range 12 {
				tx.Add(int64(v+1), Moved{Account: "a"})
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		f.consume("moves", 12)
		testkit.Eventually(t, "one range says so", func() bool {
			return f.count(`SELECT COUNT(*) FROM outbox_published WHERE first_seq = 1 AND last_seq = 12`) == 1
		})
		stop()
		young := sqldb.Now().Add(time.Hour)
		for _, q := range []string{`UPDATE outbox_events SET created_at = $1 WHERE seq >= 8`, `DELETE FROM outbox_events WHERE seq < 4 AND created_at < $1`} {
			if _, err := f.db.Exec(q, young); err != nil {
				t.Fatal(err)
			}
		}
		if n, err := admin.New(f.db).Republish(t.Context(), young, deed); err != nil || n != 5 {
			t.Errorf("%d published again, %v; want 5", n, err)
		}
		if s := f.status(); s.Unpublished != 5 || s.Floor != 7 {
			t.Errorf("status %+v", s)
		}
		testkit.Run(t, f.relay().Run)
		if v := versionsOf(f.consume("moves", 17), "a"); v != "12345678910111289101112" {
			t.Errorf("versions %s are published", v)
		}
	})
}

// Operators come and go while two relays publish new events: nothing is
// missed, the order of each key stands, and in the end all is marked.
func TestOperatorsUnderLoad(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		op := admin.New(f.db)
		testkit.Run(t, f.relay().Run)
		testkit.Run(t, f.relay().Run)
		const accounts, moves = 6, 60
		writing, written := context.WithCancel(t.Context())
		stop := testkit.Run(t, func(context.Context) error {
			defer written()
			for i := range moves {
				for a := range accounts {
					f.move(fmt.Sprint("account-", a), 1)
				}
				if i%10 == 0 {
					f.note(fmt.Sprint("big-", i), 1_100_000)
				}
			}
			return nil
		})
		for writing.Err() == nil {
			_, err1 := op.Republish(t.Context(), time.Now().Add(-300*time.Millisecond), deed)
			_, err2 := op.Retry(t.Context(), admin.BlockedFilter{}, deed)
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}
			testkit.Eventually(t, "somebody leads", func() bool { return writing.Err() != nil || f.status().Holder != "" })
		}
		stop()
		testkit.Eventually(t, "all is marked or blocked", func() bool {
			s := f.status()
			return s.Unpublished == 0 && s.Blocked == 6 && s.Floor == accounts*moves+6
		})
		last := f.inOrder(f.consumeAll("moves"))
		for a := range accounts {
			if account := fmt.Sprint("account-", a); last[account] != moves {
				t.Errorf("%s is published up to %d, want %d", account, last[account], moves)
			}
		}
	})
}

// Status counts unpublished events between ranges and above them, without
// looking at all that is published.
func TestStatusCountsGaps(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		f.move("a", 9)
		for _, q := range []string{
			`UPDATE outbox_lease SET floor = 2`,
			`INSERT INTO outbox_published VALUES (1, 3, CURRENT_TIMESTAMP), (5, 5, CURRENT_TIMESTAMP), (7, 7, CURRENT_TIMESTAMP)`,
			`INSERT INTO outbox_blocked (seq, topic, reason, since) VALUES (6, 'moves', 'too large', CURRENT_TIMESTAMP)`,
		} {
			if _, err := f.db.Exec(q); err != nil {
				t.Fatal(err)
			}
		}
		if s := f.status(); s.Unpublished != 3 || s.OldestWaiting.IsZero() { // 4, 8 and 9
			t.Errorf("status %+v", s)
		}
		if _, err := f.db.Exec(`UPDATE outbox_lease SET floor = 9`); err != nil {
			t.Fatal(err)
		}
		if s := f.status(); s.Unpublished != 0 || !s.OldestWaiting.IsZero() {
			t.Errorf("status %+v", s)
		}
	})
}

// A replayed record gets as many attempts as a new one.
func TestReplayedGetsFreshAttempts(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		var got received
		testkit.Run(t, f.consumer(func(_ context.Context, _ *outbox.Tx, d inbox.Delivery[Moved]) error {
			got.add(d)
			if len(got.of("bad")) < 6 {
				return errors.New("no luck")
			}
			return nil
		}).Run)
		testkit.Run(t, f.relay().Run)
		f.produce(moved("bad", 1))
		f.consume("moves-dlq", 1)
		op := admin.New(f.db)
		if done, err := op.Replay(t.Context(), admin.ParkedFilter{All: true}, deed); err != nil || len(done) != 1 {
			t.Fatalf("replayed %+v, %v", done, err)
		}
		testkit.Eventually(t, "it is handled at its third attempt", func() bool {
			return f.count(`SELECT COUNT(*) FROM parked_records WHERE state = 'handled' AND attempts = 3`) == 1
		})
		if n := len(got.of("bad")); n != 6 {
			t.Errorf("%d attempts, want three and three", n)
		}
	})
}

// Of many operators who replay at once each record finds one.
func TestManyOperatorsReplay(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		var records []*kgo.Record
		const n = 200
		for i := range n {
			records = append(records, &kgo.Record{Topic: "moves", Key: fmt.Append(nil, "key-", i), Value: []byte("junk")})
		}
		stop := testkit.Run(t, f.consumer(func(context.Context, *outbox.Tx, inbox.Delivery[Moved]) error { return nil }).Run)
		f.produce(records...)
		testkit.Eventually(t, "all are dead", func() bool { return f.count(`SELECT COUNT(*) FROM parked_records WHERE state = 'dead'`) == n })
		stop()
		var replayed atomic.Int64
		var hands sync.WaitGroup
		for range 8 {
			hands.Go(func() {
				for range 5 {
					done, err := admin.New(f.db).Replay(context.Background(), admin.ParkedFilter{All: true}, deed)
					if err != nil {
						t.Error(err)
					}
					replayed.Add(int64(len(done)))
				}
			})
		}
		hands.Wait()
		if noted := f.count(`SELECT COUNT(*) FROM operator_actions`); noted != n || replayed.Load() != n {
			t.Errorf("%d records replayed %d times, and noted %d times", n, replayed.Load(), noted)
		}
	})
}

// To decide about very many dead records holds up no relay, and says of each who
// did it.
func TestManyDeadRecords(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		op := admin.New(db)
		const n = 2000
		var ids []string
		for from := 0; from < n; from += 25 {
			var args []any
			for range 25 {
				id := uuid.NewString()
				ids = append(ids, id)
				args = append(args, "readers", "dead", "moves", 0, 0, "[]", id, "Moved", 3, "transient", "no luck")
			}
			_, err := db.Exec(`INSERT INTO parked_records (consumer, state, topic, partition, record_offset, headers, event_id, event_type, attempts, error_class, error) VALUES `+sqldb.Values(11, 25), args...)
			if err != nil {
				t.Fatal(err)
			}
		}
		if db.Engine == sqldb.Postgres { // a relay in the middle of a mark
			tx, err := db.Begin()
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback() //nolint:errcheck // it has changed nothing
			if _, err := tx.Exec(`UPDATE outbox_lease SET floor = floor`); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		replayed, err := op.Replay(ctx, admin.ParkedFilter{ErrorClass: "transient"}, deed)
		if err != nil || len(replayed) != n {
			t.Fatalf("%d replayed, %v", len(replayed), err)
		}
		if again, err := op.Replay(ctx, admin.ParkedFilter{All: true}, deed); err != nil || len(again) != 0 {
			t.Errorf("%d replayed twice, %v", len(again), err)
		}
		if gone, err := op.Discard(ctx, admin.ParkedFilter{EventID: ids[7]}, deed); err != nil || len(gone) != 1 {
			t.Errorf("discarded %+v, %v", gone, err)
		}
		rows, err := db.Query(`SELECT action FROM operator_actions WHERE target LIKE $1 AND operator = 'anna@kitchen' ORDER BY id`, "%"+ids[7]+"%")
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		var actions []string
		for rows.Next() {
			var action string
			if err := rows.Scan(&action); err != nil {
				t.Fatal(err)
			}
			actions = append(actions, action)
		}
		if err := rows.Err(); err != nil || !slices.Equal(actions, []string{"replay", "discard"}) {
			t.Errorf("of one of them is noted %v, %v", actions, err)
		}
	}, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
}
