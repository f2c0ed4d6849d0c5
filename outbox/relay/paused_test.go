package relay

import (
	"log/slog"
	"maps"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"pizzaflow/outbox"
	"pizzaflow/outbox/admin"
	"pizzaflow/outbox/internal/store"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// An event that an operator has just released is not deleted by a term that has
// not noticed yet that it is over.
func TestPruneOfAnEarlierTerm(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		old := sqldb.Now().Add(-48 * time.Hour)
		_, err := db.ExecContext(t.Context(), `
			INSERT INTO outbox_events (id, aggregate_id, event_type, topic, key, headers, value, created_at)
			VALUES ($1, 'a', 'Moved', 'moves', $2, '[]', $2, $3)`, newID(t), []byte("a"), old)
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range []string{
			`INSERT INTO outbox_blocked (seq, topic, key, reason, since) VALUES (1, 'moves', NULL, 'too large', CURRENT_TIMESTAMP)`,
			`UPDATE outbox_lease SET holder = 'me', epoch = 1, floor = 1`,
		} {
			if _, err := db.ExecContext(t.Context(), q); err != nil {
				t.Fatal(err)
			}
		}
		term := &term{Relay: New(Config{Outbox: outbox.New(db, "/accounts"), Log: slog.New(slog.DiscardHandler)}), cursor: newCursor(1, nil), lease: &lease{epoch: 1}}
		if _, err := admin.New(db).Retry(t.Context(), admin.BlockedFilter{}, admin.Action{By: "test"}); err != nil {
			t.Fatal(err)
		}
		if n, err := term.pruneOnce(t.Context(), old.Add(time.Hour)); err != nil || n != 0 {
			t.Errorf("%d deleted that were never published, %v", n, err)
		}
		if n, err := term.deleteEvents(t.Context(), []int64{1}, []int64{1}); err != nil || n != 0 {
			t.Errorf("%d deleted by what was read before the term was over, %v", n, err)
		}
	}, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
}

// What is refused before the partitions of its topic are known waits where
// everything that follows under its key finds it.
func TestLaneOfAKeyWithoutAPlace(t *testing.T) {
	r := store.Row{Seq: 1, Topic: "moves", Key: []byte("a"), Partition: -1}
	term := &term{
		Relay: &Relay{cfg: Config{Log: slog.New(slog.DiscardHandler)}, metrics: newRelayMetrics(Config{})},
		lanes: map[string]*lane{}, laneDue: make(chan struct{}, 1),
	}
	term.openLane(&r, kerr.LeaderNotAvailable)
	next := store.Row{Seq: 2, Topic: "moves", Key: []byte("a"), Partition: -1}
	if !term.waits(&next) {
		t.Error("the next event of the key overtakes the first")
	}
}

// The rows that were tried are taken out of a long lane in no time: everything
// waits for the lock meanwhile.
func TestLongLaneIsClosedQuickly(t *testing.T) {
	l := &lane{limit: roundRows}
	for seq := range int64(2_000_000) {
		l.seqs = append(l.seqs, seq)
	}
	term := &term{Relay: &Relay{}, lanes: map[string]*lane{}}
	began := time.Now()
	for range 100 {
		tried := append([]int64(nil), l.seqs[:roundRows]...)
		term.closeLane(l, tried, map[int64]bool{tried[7]: true}, nil)
	}
	// it takes less than a millisecond; to look at every row takes hundreds
	if d := time.Since(began) / 100; d > 20*time.Millisecond {
		t.Errorf("%v", d)
	}
	if l.first() != 197908 || len(l.seqs) != 1_800_100 {
		t.Error(l.first(), len(l.seqs))
	}
}

// Records without a key have a lane each, and one series together: there may be
// as many of them as records.
func TestLanesOfNobodyAreOneSeries(t *testing.T) {
	at := sqldb.Now()
	term := &term{lanes: map[string]*lane{}}
	for i, name := range []string{"moves", "moves/3", "moves#3", "moves#4", "turns#5"} {
		l := &lane{name: name}
		l.take(&store.Row{Seq: int64(i) + 3, CreatedAt: at.Add(time.Duration(-i) * time.Second)})
		term.lanes[name] = l
	}
	s := term.standing()
	if want := map[string]int{"moves": 1, "moves/3": 1, "moves#": 2, "turns#": 1}; !maps.Equal(s.refused, want) || s.unpublished != 5 {
		t.Errorf("%d in %v", s.unpublished, s.refused)
	}
	if want := at.Add(-4 * time.Second); !s.oldest.Equal(want) {
		t.Errorf("the oldest is of %v, want %v", s.oldest, want)
	}
}

// What may share a partition with another lane is not sent together with it, and
// a lane that is taken again finds a hand although all others are refused.
func TestLanesOfATry(t *testing.T) {
	now := time.Now()
	term := &term{lanes: map[string]*lane{}}
	add := func(name, topic string, partition bool) *lane {
		l := &lane{name: name, topic: topic, partition: partition, seqs: []int64{int64(len(term.lanes) + 1)}, due: now.Add(time.Duration(len(term.lanes)-1000) * time.Second)}
		term.lanes[name] = l
		return l
	}
	names := func(lanes []*lane) (s string) {
		for _, l := range lanes {
			s += l.name + " "
		}
		return s
	}
	add("a/0", "a", true)
	add("a#", "a", false)
	add("a/1", "a", true).single = true
	add("b", "b", false)
	add("b/2", "b", true)
	add("a/3", "a", true)
	moving := add("c/1", "c", true)
	moving.moving = true
	for _, want := range []string{"c/1 ", "a/0 b a/3 ", "a# b/2 "} {
		if lanes, _ := term.dueLanes(now); names(lanes) != want {
			t.Errorf("a try of %q, want %q", names(lanes), want)
		}
	}
	if lanes, wait := term.dueLanes(now); len(lanes) != 0 || wait != time.Hour {
		t.Errorf("the last hand takes %q, %v", names(lanes), wait)
	}
	moving.busy = false
	if lanes, _ := term.dueLanes(now); names(lanes) != "c/1 " {
		t.Errorf("what is taken again waits: %q", names(lanes))
	}
	term.handsBusy = 0
	if lanes, _ := term.dueLanes(now); names(lanes) != "a/1 " {
		t.Errorf("one by one goes %q", names(lanes))
	}
}
