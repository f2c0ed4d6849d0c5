package relay

import (
	"log/slog"
	"maps"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"pizzaflow/outbox/internal/store"
	"pizzaflow/sqldb"
)

// A row of a topic whose partitions are not known is refused: the later rows of its
// key find the paused topic.
func TestPauseBeforePartitionsAreKnown(t *testing.T) {
	r := store.Row{Seq: 1, Topic: "moves", Key: []byte("a"), Partition: -1}
	term := &term{
		Relay:  &Relay{cfg: Config{Log: slog.New(slog.DiscardHandler)}, metrics: newRelayMetrics(Config{})},
		paused: map[string]*pausedPartition{}, pausedDue: make(chan struct{}, 1),
	}
	term.pause(&r, kerr.LeaderNotAvailable)
	next := store.Row{Seq: 2, Topic: "moves", Key: []byte("a"), Partition: -1}
	if term.pausedFor(&next) == nil {
		t.Error("the next event of the key overtakes the first")
	}
}

// The rows that were tried are taken out of a long paused partition at once: all
// parts of the term wait for the lock meanwhile.
func TestTryOfALongPausedPartitionEndsQuickly(t *testing.T) {
	p := &pausedPartition{limit: batchRows}
	for seq := range int64(2_000_000) {
		p.seqs = append(p.seqs, seq)
	}
	term := &term{Relay: &Relay{}, paused: map[string]*pausedPartition{}}
	began := time.Now()
	for range 100 {
		tried := append([]int64(nil), p.seqs[:batchRows]...)
		term.releaseTried(p, tried, map[int64]bool{tried[7]: true}, nil)
	}
	// it takes less than a millisecond; to look at every row takes hundreds
	if d := time.Since(began) / 100; d > 20*time.Millisecond {
		t.Errorf("%v", d)
	}
	if p.first() != 197908 || len(p.seqs) != 1_800_100 {
		t.Error(p.first(), len(p.seqs))
	}
}

// The progress of a term counts the rows of each paused partition, and knows the
// oldest of all.
func TestProgressOfPausedPartitions(t *testing.T) {
	at := sqldb.Now()
	term := &term{paused: map[string]*pausedPartition{}}
	for i, name := range []string{"moves", "moves/3", "moves#", "moves#", "turns#"} {
		if term.paused[name] == nil {
			term.paused[name] = &pausedPartition{name: name}
		}
		term.paused[name].add(&store.Row{Seq: int64(i) + 3, CreatedAt: at.Add(time.Duration(-i) * time.Second)})
	}
	s := term.progress()
	if want := map[string]int{"moves": 1, "moves/3": 1, "moves#": 2, "turns#": 1}; !maps.Equal(s.paused, want) || s.unpublished != 5 {
		t.Errorf("%d in %v", s.unpublished, s.paused)
	}
	if want := at.Add(-4 * time.Second); !s.oldest.Equal(want) {
		t.Errorf("the oldest is of %v, want %v", s.oldest, want)
	}
}

// Rows that may share a partition are not tried together, and a partition that is
// resuming is tried although as many tries as may run have failed partitions.
func TestPartitionsOfATry(t *testing.T) {
	now := time.Now()
	term := &term{paused: map[string]*pausedPartition{}}
	add := func(name, topic string, single bool) *pausedPartition {
		p := &pausedPartition{name: name, topic: topic, single: single, seqs: []int64{int64(len(term.paused) + 1)}, due: now.Add(time.Duration(len(term.paused)-1000) * time.Second)}
		term.paused[name] = p
		return p
	}
	names := func(paused []*pausedPartition) (s string) {
		for _, p := range paused {
			s += p.name + " "
		}
		return s
	}
	add("a/0", "a", true)
	add("a#", "a", false)
	add("a/1", "a", true).oneByOne = true
	add("b", "b", false)
	add("b/2", "b", true)
	add("a/3", "a", true)
	resuming := add("c/1", "c", true)
	resuming.resuming = true
	for _, want := range []string{"c/1 ", "a/0 b a/3 ", "a# b/2 "} {
		if chosen, _ := term.beginTry(now); names(chosen) != want {
			t.Errorf("a try of %q, want %q", names(chosen), want)
		}
	}
	if chosen, wait := term.beginTry(now); len(chosen) != 0 || wait != time.Hour {
		t.Errorf("the last try is of %q, %v", names(chosen), wait)
	}
	resuming.trying = false
	if chosen, _ := term.beginTry(now); names(chosen) != "c/1 " {
		t.Errorf("a partition that is resuming waits: %q", names(chosen))
	}
	term.runningTries = 0
	if chosen, _ := term.beginTry(now); names(chosen) != "a/1 " {
		t.Errorf("one by one goes %q", names(chosen))
	}
}
