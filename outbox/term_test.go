package outbox_test

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"pizzaflow/internal/testkit"
	"pizzaflow/kafka/kafkatest"
	"pizzaflow/outbox"
	"pizzaflow/outbox/admin"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

func (f *fixture) strayed(account string) {
	f.t.Helper()
	err := f.out.Tx(f.t.Context(), func(tx *outbox.Tx) error {
		tx.Add(1, Strayed{Moved{Account: account}})
		return nil
	})
	if err != nil {
		f.t.Fatal(err)
	}
}

// A failed read of a paused topic ends the term: else the topic would stay paused
// until the process is started again.
func TestPausedTopicOutlivesItsConnection(t *testing.T) {
	f := newFixture(t, sqltest.Open(t, sqldb.Postgres, sqltest.Schema{Name: "outbox", FS: outbox.Schema}), kafkatest.Start(t, topics()...))
	testkit.Run(t, f.relay().Run)
	f.strayed("a")
	const session = `SELECT pid FROM pg_stat_activity WHERE query LIKE '%seq = ANY (%' AND query NOT LIKE '%pg_stat%'
		AND application_name = current_setting('application_name') LIMIT 1`
	testkit.Eventually(t, "the paused topic is tried", func() bool { return f.count(`SELECT COUNT(*) FROM (`+session+`) s`) == 1 })
	f.count(fmt.Sprintf(`SELECT COUNT(pg_terminate_backend(pid)) FROM (%s) s`, session))
	if _, err := f.admin().CreateTopic(t.Context(), 1, 1, nil, "nowhere"); err != nil {
		t.Fatal(err)
	}
	f.consume("nowhere", 1)
}

// A try of a paused topic that was created anew sends nothing there before the
// events of the old one.
func TestPausedTopicIsCreatedAnew(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		f.log = slog.New(slog.DiscardHandler)
		testkit.Run(t, f.relay().Run)
		f.move("a", 3)
		f.consume("moves", 3)
		testkit.Eventually(t, "they are marked", func() bool { return f.count(`SELECT COUNT(*) FROM outbox WHERE published_at IS NULL`) == 0 })
		adm := f.admin()
		if _, err := adm.DeleteTopic(t.Context(), "moves"); err != nil {
			t.Fatal(err)
		}
		f.move("a", 1)
		testkit.Eventually(t, "the topic is paused", func() bool { return f.count(`SELECT COUNT(*) FROM outbox_lanes`) == 1 })
		if _, err := adm.CreateTopic(t.Context(), 3, 1, nil, "moves"); err != nil {
			t.Fatal(err)
		}
		var got string
		for _, r := range f.consume("moves", 4) {
			got += header(r, "aggregate_version")
		}
		if got != "1234" {
			t.Errorf("versions %s, want 1234", got)
		}
	})
}

// What was published before an event that is blocked can be published again.
func TestRepublishBeforeABlockedEvent(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		f.log = slog.New(slog.DiscardHandler)
		testkit.Run(t, f.relay().Run)
		f.add("big", 1, "")
		f.add("big", 2, strings.Repeat("x", 2<<20))
		f.add("big", 3, "")
		testkit.Eventually(t, "two are blocked", func() bool { return f.count(`SELECT COUNT(*) FROM outbox_blocked`) == 2 })
		since := sqldb.Now().Add(-1e12)
		if _, err := admin.New(f.db).Republish(t.Context(), since, admin.Action{By: "test"}); err != nil {
			t.Fatal(err)
		}
		f.move("other", 1)
		testkit.Eventually(t, "all is settled", func() bool {
			return f.count(`SELECT COUNT(*) FROM outbox e WHERE published_at IS NULL AND NOT EXISTS (SELECT 1 FROM outbox_blocked b WHERE b.seq = e.seq)`) == 0
		})
		if n := f.count(`SELECT COUNT(*) FROM outbox_blocked`); n != 2 {
			t.Errorf("%d are blocked, want 2", n)
		}
		f.consume("moves", 3)
	})
}

// Of a blocked key the first event can be tried again, with what waits behind
// it, and given up when that was in vain.
func TestRetryOfOneBlockedEvent(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		f.log = slog.New(slog.DiscardHandler)
		testkit.Run(t, f.relay().Run)
		f.add("big", 1, strings.Repeat("x", 2<<20))
		f.add("big", 2, "")
		testkit.Eventually(t, "two are blocked", func() bool { return f.count(`SELECT COUNT(*) FROM outbox_blocked`) == 2 })
		op := admin.New(f.db)
		if got, err := op.Retry(t.Context(), admin.BlockedFilter{Seq: 1}, admin.Action{By: "test"}); err != nil || len(got) != 2 {
			t.Fatal(got, err)
		}
		testkit.Eventually(t, "it is blocked again", func() bool { return f.count(`SELECT COUNT(*) FROM outbox_blocked`) == 2 })
		if got, err := op.Skip(t.Context(), admin.BlockedFilter{Key: "big"}, admin.Action{By: "test"}); err != nil || len(got) != 1 {
			t.Fatalf("skip: %v, %v", got, err)
		}
		f.consume("moves", 1)
	})
}

func (f *fixture) add(account string, version int, note string) {
	f.t.Helper()
	err := f.out.Tx(f.t.Context(), func(tx *outbox.Tx) error {
		tx.Add(int64(version), Moved{Account: account, To: version, Note: note})
		return nil
	})
	if err != nil {
		f.t.Fatal(err)
	}
}
