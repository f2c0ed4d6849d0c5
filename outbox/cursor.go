package outbox

import (
	"cmp"
	"slices"
)

// A span is a stretch of seqs, both ends included.
type span struct{ lo, hi int64 }

// A gap is a stretch below the head that was not seen. Its numbers belong to
// transactions that are still open, or were rolled back, or to rows that could
// not be published yet.
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
// the head and those in the gaps below it. Together with the rows in flight,
// between read and marked, that is all that is not published.
type cursor struct {
	head     int64
	gaps     []gap // in order, disjoint
	inFlight []span
	aside    []aside // in order of seq: refused for now, and not read again before their time
}

// An aside is a row that could not be published yet.
type aside struct {
	seq   int64
	queue string
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

// floor is the highest seq up to which everything is published or dead.
func (c *cursor) floor() int64 {
	f := c.head
	if len(c.gaps) > 0 {
		f = min(f, c.gaps[0].lo-1)
	}
	if len(c.inFlight) > 0 {
		f = min(f, c.inFlight[0].lo-1)
	}
	if len(c.aside) > 0 {
		f = min(f, c.aside[0].seq-1)
	}
	return f
}

// read takes note of the seqs, in order, that a read of gaps and head has
// returned: they are in flight now. A read that was cut off by its limit says
// nothing about what lies above its last row; any other says that the gaps
// left are still missing, and those whose holders had all ended are dropped.
func (c *cursor) read(seqs []int64, cut bool) {
	complete := int64(1<<63 - 1) // up to where the read has looked
	if cut {
		complete = seqs[len(seqs)-1]
	}
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
	c.inFlight = spans(seqs)
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

// landed is the cursor after the rows in flight have been dealt with: those
// that were refused are set aside, so that they fill no further round.
func (c *cursor) landed(refused []aside) *cursor {
	after := &cursor{head: c.head, gaps: slices.Clone(c.gaps), aside: append(slices.Clone(c.aside), refused...)}
	slices.SortFunc(after.aside, func(a, b aside) int { return cmp.Compare(a.seq, b.seq) })
	return after
}

// recall has the first n rows that were set aside read again.
func (c *cursor) recall(n int) {
	n = min(n, len(c.aside))
	for _, a := range c.aside[:n] {
		c.gaps = append(c.gaps, gap{span: span{a.seq, a.seq}})
	}
	c.aside = slices.Clone(c.aside[n:])
	slices.SortFunc(c.gaps, func(a, b gap) int { return cmp.Compare(a.lo, b.lo) })
}

// firstAside is the first row set aside of each queue: nothing of the queue may
// be sent that comes after it.
func (c *cursor) firstAside() map[string]int64 {
	first := map[string]int64{}
	for _, a := range c.aside {
		if _, ok := first[a.queue]; !ok {
			first[a.queue] = a.seq
		}
	}
	return first
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
