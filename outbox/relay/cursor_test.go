package relay

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"pizzaflow/outbox/internal/store"
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
		if wanted != c.wants(seq) {
			panic(fmt.Sprintf("the cursor wants %d: %v, its gaps say otherwise", seq, c.wants(seq)))
		}
		if wanted && len(seqs) < limit {
			seqs = append(seqs, seq)
		}
	}
	return seqs, len(seqs) == limit
}

func rowsOf(seqs ...int64) []store.Row {
	rows := make([]store.Row, len(seqs))
	for i := range seqs {
		rows[i].Seq = seqs[i]
	}
	return rows
}

// Whatever the interleaving of writers, rollbacks, refusals and restarts, every
// committed row is published, none twice without a restart, and at the end the
// floor has passed everything, the rolled-back numbers too.
func TestCursorMissesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &table{open: map[string][]int64{}}
		term := &term{cursor: newCursor(0, nil), lanes: map[string]*lane{}}
		var committed []int64
		published := map[int64]int{}
		restarts := 0
		limit := rapid.IntRange(1, 6).Draw(t, "limit")

		// land has the oldest round in flight acknowledged and marked, or refused in part
		land := func(refuse bool) {
			rd := term.flights[0]
			for _, row := range rd.rows {
				if refuse && rapid.Bool().Draw(t, "refused") {
					if term.lanes["x"] == nil {
						term.lanes["x"] = &lane{}
					}
					term.lanes["x"].add(row.Seq)
				} else {
					published[row.Seq]++
				}
			}
			if f := term.floor(); f >= rd.rows[0].Seq {
				t.Fatalf("floor %d while %d is in flight", f, rd.rows[0].Seq)
			}
			term.flights = term.flights[1:]
		}
		// mend has the first rows of the lane published
		mend := func(n int) {
			l := term.lanes["x"]
			if l == nil {
				return
			}
			for _, seq := range l.seqs[:min(n, len(l.seqs))] {
				published[seq]++
			}
			if l.seqs = l.seqs[min(n, len(l.seqs)):]; len(l.seqs) == 0 {
				delete(term.lanes, "x")
			}
		}
		round := func(refuse, ask bool) {
			seqs, cut := w.read(term.cursor, limit)
			complete := everywhere
			if cut {
				complete = seqs[len(seqs)-1]
			}
			term.take(rowsOf(seqs...), complete)
			if ask {
				term.cursor.locks(w.holders())
			}
			for len(term.flights) > 0 && (!refuse || rapid.Bool().Draw(t, "landed")) {
				land(refuse)
			}
			mend(rapid.IntRange(0, 3).Draw(t, "mended"))
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
			"round": func(t *rapid.T) { round(true, rapid.Bool().Draw(t, "asked")) },
			"hand over": func(t *rapid.T) { // rows that were just committed, by those who did it
				var fresh []int64
				for _, seq := range w.visible {
					if term.cursor.wants(seq) {
						fresh = append(fresh, seq)
					}
				}
				if len(fresh) == 0 {
					t.Skip("nothing is new")
				}
				term.take(rowsOf(rapid.SampledFrom(fresh).Draw(t, "handed over")), nowhere)
			},
			"restart": func(*rapid.T) { // with what the tables say: the floor and the ranges above it
				floor := term.floor()
				var marked []int64
				for seq := range published {
					if seq > floor {
						marked = append(marked, seq)
					}
				}
				slices.Sort(marked)
				term.cursor, term.flights, term.lanes = newCursor(floor, spans(marked)), nil, map[string]*lane{}
				restarts++
			},
			"": func(t *rapid.T) {
				for _, seq := range committed {
					if published[seq] == 0 && seq <= term.floor() {
						t.Fatalf("%d is not published and the floor is %d", seq, term.floor())
					}
				}
			},
		})
		for tx, seqs := range w.open {
			w.visible, committed = append(w.visible, seqs...), append(committed, seqs...)
			delete(w.open, tx)
		}
		for range 3 + len(committed) { // two idle rounds more than it takes, for the dead
			round(false, true)
		}
		mend(len(committed))
		for _, seq := range committed {
			if published[seq] != 1 {
				t.Fatalf("%d was published %d times, with %d restarts", seq, published[seq], restarts)
			}
		}
		if c := term.cursor; term.floor() != c.head || len(c.gaps) != 0 {
			t.Fatalf("floor %d, head %d, gaps %v, want none", term.floor(), c.head, c.gaps)
		}
	})
}

func TestSpansHaveNoHoles(t *testing.T) {
	got := spans([]int64{3, 4, 5, 8, 10, 11})
	if want := []span{{3, 5}, {8, 8}, {10, 11}}; !slices.Equal(got, want) {
		t.Errorf("spans %v, want %v", got, want)
	}
}
