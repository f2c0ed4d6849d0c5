package outbox

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// A table is a model of outbox_events under concurrent writers: numbers are
// drawn in order and become visible, or never, in any.
type table struct {
	next    int64
	open    map[string][]int64 // transaction: the numbers it has drawn
	visible []int64
	begun   int
}

func (w *table) holders() []string {
	var out []string
	for tx := range w.open {
		out = append(out, tx)
	}
	return out
}

// read is what the relay's statement returns: the lowest rows in the gaps and
// above the head.
func (w *table) read(c *cursor, limit int) (seqs []int64, cut bool) {
	slices.Sort(w.visible)
	for _, seq := range w.visible {
		wanted := seq > c.head || slices.ContainsFunc(c.gaps, func(g gap) bool { return g.lo <= seq && seq <= g.hi })
		if wanted && len(seqs) < limit {
			seqs = append(seqs, seq)
		}
	}
	return seqs, len(seqs) == limit
}

// Whatever the interleaving of writers, rollbacks, refusals and restarts, every
// committed row is published, none twice without a restart, and at the end the
// floor has passed everything, the rolled-back numbers too.
func TestCursorMissesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &table{open: map[string][]int64{}}
		c := newCursor(0, nil)
		var committed []int64
		published := map[int64]int{}
		restarts := 0
		limit := rapid.IntRange(1, 6).Draw(t, "limit")

		round := func(refuse bool) int {
			c.recall(rapid.IntRange(0, 3).Draw(t, "recalled"))
			seqs, cut := w.read(c, limit)
			c.read(seqs, cut)
			c.locks(w.holders())
			var failed []aside
			for _, seq := range seqs {
				if refuse && rapid.Bool().Draw(t, "refused") {
					failed = append(failed, aside{seq: seq})
				} else {
					published[seq]++
				}
			}
			if f := c.floor(); len(seqs) > 0 && f >= seqs[0] {
				t.Fatalf("floor %d while %d is in flight", f, seqs[0])
			}
			c = c.landed(failed)
			return len(seqs)
		}
		t.Repeat(map[string]func(*rapid.T){
			"draw": func(t *rapid.T) {
				tx := fmt.Sprint("tx", rapid.IntRange(0, 3).Draw(t, "tx"), w.begun)
				w.next++
				w.open[tx] = append(w.open[tx], w.next)
			},
			"end": func(t *rapid.T) {
				txs := w.holders()
				if len(txs) == 0 {
					t.Skip("nobody writes")
				}
				slices.Sort(txs)
				tx := rapid.SampledFrom(txs).Draw(t, "tx")
				if rapid.Bool().Draw(t, "commit") {
					w.visible = append(w.visible, w.open[tx]...)
					committed = append(committed, w.open[tx]...)
				}
				delete(w.open, tx)
				w.begun++
			},
			"round": func(*rapid.T) { round(true) },
			"restart": func(*rapid.T) { // with what the tables say: the floor and the ranges above it
				var marked []int64
				for seq := range published {
					if seq > c.floor() {
						marked = append(marked, seq)
					}
				}
				slices.Sort(marked)
				c = newCursor(c.floor(), spans(marked))
				restarts++
			},
			"": func(t *rapid.T) {
				for _, seq := range committed {
					if published[seq] == 0 && seq <= c.floor() {
						t.Fatalf("%d is not published and the floor is %d", seq, c.floor())
					}
				}
			},
		})
		for tx, seqs := range w.open {
			w.visible, committed = append(w.visible, seqs...), append(committed, seqs...)
			delete(w.open, tx)
		}
		c.recall(len(c.aside))
		for range 3 + len(committed) { // two idle rounds more than it takes, for the dead
			round(false)
		}
		for _, seq := range committed {
			if published[seq] != 1 {
				t.Fatalf("%d was published %d times, with %d restarts", seq, published[seq], restarts)
			}
		}
		if c.floor() != c.head || len(c.gaps) != 0 {
			t.Fatalf("floor %d, head %d, gaps %v, want none", c.floor(), c.head, c.gaps)
		}
	})
}

func TestSpansHaveNoHoles(t *testing.T) {
	got := spans([]int64{3, 4, 5, 8, 10, 11})
	if want := []span{{3, 5}, {8, 8}, {10, 11}}; !slices.Equal(got, want) {
		t.Errorf("spans %v, want %v", got, want)
	}
}
