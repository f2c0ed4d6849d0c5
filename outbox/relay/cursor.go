package relay

import (
	"math"
	"slices"
)

// A span is a stretch of seqs, both ends included.
type span struct{ lo, hi int64 }

// A gap is a stretch below the head that was not seen. Its numbers belong to
// transactions that are still open, or were rolled back.
//
// An INSERT locks the table before it draws a number and keeps the lock until
// its commit can be seen. So a gap is dead, rolled back and never to be
// filled, once every transaction that held such a lock after the gap was
// noticed has ended and a read begun after that still misses it. No clock has
// a say in it: a transaction may stay open for as long as it likes.
type gap struct {
	span
	asked   bool     // whether the holders were listed since the gap was noticed
	holders []string // those of them that have not ended yet
}

// A cursor knows which rows of the outbox are still to be read: those above
// the head and those in the gaps below it.
type cursor struct {
	head int64
	gaps []gap // in order, disjoint
}

// newCursor starts from what is stored: everything up to floor is done with,
// and above it what the published ranges, in order, leave out is not.
func newCursor(floor int64, published []span) *cursor {
	c := &cursor{head: floor}
	for _, s := range published {
		if s.lo > c.head+1 {
			c.gaps = append(c.gaps, gap{span: span{c.head + 1, s.lo - 1}})
		}
		c.head = max(c.head, s.hi)
	}
	return c
}

// floor is the highest seq up to which everything was read or is dead.
func (c *cursor) floor() int64 {
	if len(c.gaps) > 0 {
		return c.gaps[0].lo - 1
	}
	return c.head
}

// wants reports whether the row was not read yet.
func (c *cursor) wants(seq int64) bool {
	if seq > c.head {
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

// How far a read has looked, when it was not cut off by its limit, or when it
// has not looked at all: rows that were handed over say nothing about others.
const (
	everywhere = int64(math.MaxInt64)
	nowhere    = int64(0)
)

// read takes note of the seqs, in order, that a read of gaps and head has
// returned. It has looked up to complete: what it misses there is still
// missing, and gaps whose holders had all ended before it are dropped.
func (c *cursor) read(seqs []int64, complete int64) {
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
		if seq > c.head {
			if seq > c.head+1 {
				left = append(left, gap{span: span{c.head + 1, seq - 1}})
			}
			c.head = seq
		}
	}
	c.gaps = left
}

// appendGap keeps what a read has left of g, unless it is dead.
func appendGap(gaps []gap, g gap, lo, hi, complete int64) []gap {
	if lo > hi || (g.asked && len(g.holders) == 0 && hi <= complete) {
		return gaps
	}
	return append(gaps, gap{span: span{lo, hi}, asked: g.asked, holders: g.holders})
}

// locks takes note of the transactions that hold a writer's lock on the table
// right now, listed after the last read.
func (c *cursor) locks(current []string) {
	for i := range c.gaps {
		g := &c.gaps[i]
		if !g.asked {
			g.asked, g.holders = true, current
			continue
		}
		g.holders = slices.DeleteFunc(slices.Clone(g.holders), func(h string) bool { return !slices.Contains(current, h) })
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
