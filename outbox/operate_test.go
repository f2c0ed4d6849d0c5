package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pizzaflow/internal/testkit"
	"pizzaflow/outbox"
	"pizzaflow/outbox/admin"
	"pizzaflow/outbox/inbox"
	"pizzaflow/sqldb"
)

// An operator sees a blocked key, has it tried again, gives the event up, and
// what waited behind it follows, while the relay runs.
func TestOperatorMendsABlockedKey(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		testkit.Run(t, f.relay().Run)
		op := admin.New(f.db)
		large := func(version int, note string) {
			err := f.out.Tx(t.Context(), func(tx *outbox.Tx) error {
				tx.Add(int64(version), Moved{Account: "big", To: version, Note: note})
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		large(1, "")
		large(2, strings.Repeat("x", 2<<20))
		large(3, "")
		f.move("other", 1)
		f.consume("moves", 2)
		var s admin.Status
		testkit.Eventually(t, "the operator sees it", func() (ok bool) {
			var err error
			if s, err = op.Status(t.Context()); err != nil {
				t.Fatal(err)
			}
			return s.Blocked == 2 && s.Unpublished == 0 // a record on the topic is not marked at once
		})
		if s.Holder == "" {
			t.Errorf("status %+v", s)
		}
		by := admin.Action{By: "test", Why: "to see", DryRun: true}
		if n, err := op.Retry(t.Context(), admin.BlockedFilter{}, by); err != nil || len(n) != 2 {
			t.Fatalf("dry retry: %v, %v", n, err)
		}
		if n := f.count(`SELECT COUNT(*) FROM operator_actions`); n != 0 {
			t.Errorf("%d actions are noted of a dry run", n)
		}
		by.DryRun = false
		if n, err := op.Retry(t.Context(), admin.BlockedFilter{Topic: "moves", Key: "big"}, by); err != nil || len(n) != 2 {
			t.Fatalf("retry: %v, %v", n, err)
		}
		testkit.Eventually(t, "it is blocked again, for it is as large as it was", func() bool {
			return f.count(`SELECT COUNT(*) FROM outbox_blocked`) == 2
		})
		if _, err := op.Skip(t.Context(), admin.BlockedFilter{}, by); !errors.Is(err, admin.ErrNothingSelected) {
			t.Errorf("skip of nothing: %v", err)
		}
		skipped, err := op.Skip(t.Context(), admin.BlockedFilter{Key: "big"}, by)
		if err != nil || len(skipped) != 1 {
			t.Fatalf("skip: %v, %v", skipped, err)
		}
		large(4, "")
		var got string
		for _, r := range f.consume("moves", 4) {
			if string(r.Key) == "big" {
				got += header(r, "aggregate_version")
			}
		}
		if got != "134" {
			t.Errorf("versions %s, want 1, 3, 4", got)
		}
		testkit.Eventually(t, "the low watermark passes the skipped one", func() bool {
			s, err := op.Status(t.Context())
			return err == nil && s.Blocked == 0 && s.Skipped == 1 && s.Floor == 5
		})
		if n := f.count(`SELECT COUNT(*) FROM operator_actions WHERE operator = 'test'`); n != 2 {
			t.Errorf("%d actions are noted, want 2", n)
		}
	})
}

// A topic that takes nothing is shown, and what waits for it can be given up.
func TestOperatorGivesUpARefusedTopic(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		testkit.Run(t, f.relay().Run)
		op := admin.New(f.db)
		err := f.out.Tx(t.Context(), func(tx *outbox.Tx) error {
			tx.Add(1, Strayed{Moved{Account: "a"}})
			tx.Add(2, Strayed{Moved{Account: "a"}})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, "the operator sees the paused topic", func() bool {
			s, err := op.Status(t.Context())
			return err == nil && s.Unpublished == 2 && len(s.Paused) == 1 && s.Paused[0].Topic == "nowhere" && s.Paused[0].Waiting == 2
		})
		if n, err := op.SkipRefused(t.Context(), "nowhere", admin.Action{By: "test"}); err != nil || n != 2 {
			t.Fatalf("skip: %d, %v", n, err)
		}
		testkit.Eventually(t, "nothing is left", func() bool {
			s, err := op.Status(t.Context())
			return err == nil && s.Unpublished == 0 && len(s.Paused) == 0 && s.Skipped == 2
		})
	})
}

// Republishing repeats the records in order from a time on, and no effect.
func TestOperatorRepublishes(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		testkit.Run(t, f.relay().Run)
		var effects atomic.Int64
		testkit.Run(t, f.consumer(func(_ context.Context, tx *outbox.Tx, _ inbox.Delivery[Moved]) error {
			tx.AfterCommit(func() { effects.Add(1) })
			return nil
		}).Run)
		f.move("a", 2)
		since := sqldb.Now()
		f.move("a", 2)
		testkit.Eventually(t, "all are handled and marked", func() bool {
			return effects.Load() == 4 && f.count(`SELECT COUNT(*) FROM outbox WHERE published_at IS NULL`) == 0
		})
		op := admin.New(f.db)
		if n, err := op.Republish(t.Context(), since.Add(time.Hour), admin.Action{By: "test"}); err != nil || n != 0 {
			t.Errorf("nothing is that young: %d, %v", n, err)
		}
		if n, err := op.Republish(t.Context(), since, admin.Action{By: "test"}); err != nil || n != 2 {
			t.Fatalf("republish: %d, %v", n, err)
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
		testkit.Eventually(t, "only the new one has an effect", func() bool { return effects.Load() == 5 })
	})
}

// Replayed, a dead record is handled by its group and its followers after it;
// discarded, it lets them go. Of two operators one finds nothing left.
func TestOperatorReplaysAndDiscards(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		var mended atomic.Bool
		var got received
		stop := testkit.Run(t, f.consumer(func(_ context.Context, _ *outbox.Tx, d inbox.Delivery[Moved]) error {
			if d.Event.To == 1 && !mended.Load() {
				return inbox.Permanent(errors.New("broken"))
			}
			got.add(d)
			return nil
		}).Run)
		for _, account := range []string{"replayed", "discarded"} {
			f.produce(moved(account, 1), moved(account, 2), moved(account, 3))
		}
		op := admin.New(f.db)
		parked := func(state string) []admin.ParkedRecord {
			t.Helper()
			list, err := op.Parked(t.Context(), admin.ParkedFilter{Group: "readers", State: state}, 100)
			if err != nil {
				t.Fatal(err)
			}
			return list
		}
		testkit.Eventually(t, "they are parked", func() bool { return len(parked("dead")) == 2 && len(parked("waiting")) == 4 })
		if r := parked("dead")[0]; r.Followers != 2 || r.ErrorClass != "permanent" || !strings.Contains(r.Error, "broken") {
			t.Errorf("parked record %+v", r)
		}
		shown, err := op.Show(t.Context(), "readers", parked("dead")[0].EventID)
		if err != nil || !strings.Contains(string(shown.Value), `"to":1`) {
			t.Errorf("show: %s, %v", shown.Value, err)
		}
		stop() // nothing needs the service to run
		if _, err := op.Replay(t.Context(), admin.ParkedFilter{}, admin.Action{}); !errors.Is(err, admin.ErrNothingSelected) {
			t.Errorf("replay of nothing: %v", err)
		}
		if _, err := op.Replay(t.Context(), admin.ParkedFilter{EventID: "x"}, admin.Action{}); !errors.Is(err, admin.ErrEventID) {
			t.Errorf("replay of x: %v", err)
		}
		filter := admin.ParkedFilter{Key: "replayed"}
		if dry, err := op.Replay(t.Context(), filter, admin.Action{DryRun: true}); err != nil || len(dry) != 1 || len(parked("dead")) != 2 {
			t.Errorf("dry replay: %v, %v", dry, err)
		}
		won := make(chan int, 2)
		for range 2 {
			go func() {
				moved, err := admin.New(f.db).Replay(context.Background(), filter, admin.Action{By: "test"})
				if err != nil {
					t.Error(err)
				}
				won <- len(moved)
			}()
		}
		if n := <-won + <-won; n != 1 {
			t.Errorf("two operators replayed it %d times", n)
		}
		if gone, err := op.Discard(t.Context(), admin.ParkedFilter{Key: "discarded"}, admin.Action{By: "test", Why: "spilt"}); err != nil || len(gone) != 1 {
			t.Fatalf("discard: %v, %v", gone, err)
		}
		mended.Store(true)
		testkit.Run(t, f.consumer(func(_ context.Context, _ *outbox.Tx, d inbox.Delivery[Moved]) error { got.add(d); return nil }).Run)
		testkit.Eventually(t, "all that was not discarded is handled", func() bool {
			return len(got.of("replayed")) == 3 && len(got.of("discarded")) == 2
		})
		if s := fmt.Sprint(got.of("replayed"), got.of("discarded")); s != "[1 2 3] [2 3]" {
			t.Errorf("handled %s", s)
		}
	})
}
