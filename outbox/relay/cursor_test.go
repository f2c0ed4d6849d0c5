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

func (w *table) writers() []string {
	var out []string
	for tx := range w.open {
		out = append(out, tx)
	}
	return out
}

// read is what the relay's statement returns: the lowest rows in the gaps and
// above the high watermark.
func (w *table) read(c *cursor, limit int) (seqs []int64, cut bool) {
	slices.Sort(w.visible)
	for _, seq := range w.visible {
		wanted := seq > c.highWatermark || slices.ContainsFunc(c.gaps, func(g gap) bool { return g.lo <= seq && seq <= g.hi })
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

// However writers, rollbacks, refusals and restarts interleave, every committed row
// is published, none twice without a restart, and at the end the low watermark has
// passed all numbers, the rolled-back ones too.
func TestCursorMissesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &table{open: map[string][]int64{}}
		term := &term{cursor: newCursor(0, nil), paused: map[string]*pausedPartition{}}
		var committed []int64
		published := map[int64]int{}
		restarts := 0
		limit := rapid.IntRange(1, 6).Draw(t, "limit")

		// acknowledge has the oldest batch in flight acknowledged and marked, or refused in part
		acknowledge := func(refuse bool) {
			b := term.inFlight[0]
			for _, row := range b.rows {
				if refuse && rapid.Bool().Draw(t, "refused") {
					if term.paused["x"] == nil {
						term.paused["x"] = &pausedPartition{}
					}
					term.paused["x"].insert(row.Seq)
				} else {
					published[row.Seq]++
				}
			}
			if low := term.lowWatermark(); low >= b.rows[0].Seq {
				t.Fatalf("low watermark %d while %d is in flight", low, b.rows[0].Seq)
			}
			term.inFlight = term.inFlight[1:]
		}
		// retry has the first rows of the paused partition published
		retry := func(n int) {
			p := term.paused["x"]
			if p == nil {
				return
			}
			for _, seq := range p.seqs[:min(n, len(p.seqs))] {
				published[seq]++
			}
			if p.seqs = p.seqs[min(n, len(p.seqs)):]; len(p.seqs) == 0 {
				delete(term.paused, "x")
			}
		}
		readBatch := func(refuse, ask bool) {
			seqs, cut := w.read(term.cursor, limit)
			complete := everywhere
			if cut {
				complete = seqs[len(seqs)-1]
			}
			term.startBatch(rowsOf(seqs...), complete)
			if ask {
				term.cursor.noteWriters(w.writers())
			}
			for len(term.inFlight) > 0 && (!refuse || rapid.Bool().Draw(t, "acknowledged")) {
				acknowledge(refuse)
			}
			retry(rapid.IntRange(0, 3).Draw(t, "retried"))
		}
		t.Repeat(map[string]func(*rapid.T){
			"draw": func(t *rapid.T) {
				tx := fmt.Sprint("tx", rapid.IntRange(0, 3).Draw(t, "tx"), w.begun)
				w.next++
				w.open[tx] = append(w.open[tx], w.next)
			},
			"end": func(t *rapid.T) {
				txs := w.writers()
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
			"batch": func(t *rapid.T) { readBatch(true, rapid.Bool().Draw(t, "listed")) },
			"offer": func(t *rapid.T) { // rows that were just committed
				var fresh []int64
				for _, seq := range w.visible {
					if term.cursor.wants(seq) {
						fresh = append(fresh, seq)
					}
				}
				if len(fresh) == 0 {
					t.Skip("nothing is new")
				}
				term.startBatch(rowsOf(rapid.SampledFrom(fresh).Draw(t, "offered")), nowhere)
			},
			"restart": func(*rapid.T) { // from the tables: the low watermark and the ranges above it
				lowWatermark := term.lowWatermark()
				var marked []int64
				for seq := range published {
					if seq > lowWatermark {
						marked = append(marked, seq)
					}
				}
				slices.Sort(marked)
				term.cursor, term.inFlight, term.paused = newCursor(lowWatermark, spans(marked)), nil, map[string]*pausedPartition{}
				restarts++
			},
			"": func(t *rapid.T) {
				for _, seq := range committed {
					if published[seq] == 0 && seq <= term.lowWatermark() {
						t.Fatalf("%d is not published and the low watermark is %d", seq, term.lowWatermark())
					}
				}
			},
		})
		for tx, seqs := range w.open {
			w.visible, committed = append(w.visible, seqs...), append(committed, seqs...)
			delete(w.open, tx)
		}
		for range 3 + len(committed) { // two idle reads more than it takes, for the dead gaps
			readBatch(false, true)
		}
		retry(len(committed))
		for _, seq := range committed {
			if published[seq] != 1 {
				t.Fatalf("%d was published %d times, with %d restarts", seq, published[seq], restarts)
			}
		}
		if c := term.cursor; term.lowWatermark() != c.highWatermark || len(c.gaps) != 0 {
			t.Fatalf("low watermark %d, high watermark %d, gaps %v, want none", term.lowWatermark(), c.highWatermark, c.gaps)
		}
	})
}

func TestSpansHaveNoHoles(t *testing.T) {
	got := spans([]int64{3, 4, 5, 8, 10, 11})
	if want := []span{{3, 5}, {8, 8}, {10, 11}}; !slices.Equal(got, want) {
		t.Errorf("spans %v, want %v", got, want)
	}
}
