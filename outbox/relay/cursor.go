package relay

import (
	"math"
	"slices"
)

// A span is a stretch of seqs, both ends included.
type span struct{ lo, hi int64 }

// A gap is a stretch below the high watermark whose rows no read has returned. Its
// numbers belong to transactions that are still open, or were rolled back.
//
// An INSERT locks the table before it draws a number and keeps the lock until its
// commit is visible. So a gap is dead, which means that its numbers were rolled
// back, once every transaction that held such a lock after the gap was noticed has
// ended and a read begun after that still misses its rows. No clock decides it: a
// transaction may stay open for any length of time.
type gap struct {
	span
	listed  bool     // the writers were listed since the gap was noticed
	writers []string // the transactions among them that have not ended yet
}

// A cursor knows which rows of the outbox are still to be read: those above the
// high watermark and those in the gaps below it.
type cursor struct {
	highWatermark int64
	gaps          []gap // in order, disjoint
}

// newCursor makes the cursor of what is stored: nothing up to the low watermark is
// to be read, and above it the numbers between the published ranges, in order, are.
func newCursor(lowWatermark int64, published []span) *cursor {
	c := &cursor{highWatermark: lowWatermark}
	for _, s := range published {
		if s.lo > c.highWatermark+1 {
			c.gaps = append(c.gaps, gap{span: span{c.highWatermark + 1, s.lo - 1}})
		}
		c.highWatermark = max(c.highWatermark, s.hi)
	}
	return c
}

// lowWatermark is the highest seq up to which every row was read or its number
// rolled back.
func (c *cursor) lowWatermark() int64 {
	if len(c.gaps) > 0 {
		return c.gaps[0].lo - 1
	}
	return c.highWatermark
}

// wants reports whether the row was not read yet.
func (c *cursor) wants(seq int64) bool {
	if seq > c.highWatermark {
		return true
	}
	i, found := slices.BinarySearchFunc(c.gaps, seq, func(g gap, seq int64) int {
		switch {
		case g.hi < seq:
			return -1
		case g.lo > seq:
			return 1
		}
		return 0
	})
	return found && i >= 0
}

// How far a read is complete when its limit did not cut it off, and when the rows
// were offered and not read: offered rows say nothing about others.
const (
	everywhere = int64(math.MaxInt64)
	nowhere    = int64(0)
)

// noteRead takes note of the seqs, in order, that a read of the gaps and above the
// high watermark has returned. The read is complete up to a seq: up to there rows
// that it did not return were not visible, and gaps whose writers had all ended
// before it are dropped.
func (c *cursor) noteRead(seqs []int64, complete int64) {
	var left []gap
	for _, g := range c.gaps {
		i, _ := slices.BinarySearch(seqs, g.lo)
		lo := g.lo
		for ; i < len(seqs) && seqs[i] <= g.hi; i++ {
			left = appendGap(left, g, lo, seqs[i]-1, complete)
			lo = seqs[i] + 1
		}
		left = appendGap(left, g, lo, g.hi, complete)
	}
	for _, seq := range seqs {
		if seq > c.highWatermark {
			if seq > c.highWatermark+1 {
				left = append(left, gap{span: span{c.highWatermark + 1, seq - 1}})
			}
			c.highWatermark = seq
		}
	}
	c.gaps = left
}

// appendGap appends the part of g from lo to hi, which a read has not returned,
// unless it is dead.
func appendGap(gaps []gap, g gap, lo, hi, complete int64) []gap {
	if lo > hi || (g.listed && len(g.writers) == 0 && hi <= complete) {
		return gaps
	}
	return append(gaps, gap{span: span{lo, hi}, listed: g.listed, writers: g.writers})
}

// noteWriters takes note of the transactions that hold a writer's lock on the
// table, listed after the last read.
func (c *cursor) noteWriters(current []string) {
	for i := range c.gaps {
		g := &c.gaps[i]
		if !g.listed {
			g.listed, g.writers = true, current
			continue
		}
		g.writers = slices.DeleteFunc(slices.Clone(g.writers), func(h string) bool { return !slices.Contains(current, h) })
	}
}

// spans folds seqs, in order, into stretches without holes.
func spans(seqs []int64) []span {
	var out []span
	for _, seq := range seqs {
		if n := len(out); n > 0 && out[n-1].hi == seq-1 {
			out[n-1].hi = seq
		} else {
			out = append(out, span{seq, seq})
		}
	}
	return out
}
