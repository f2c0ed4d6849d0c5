package outbox

import "time"

// A pace is how many records go into one transaction: as many as take no longer
// by themselves than it should. What a transaction takes however small it is
// does not count. On a busy machine that alone may be longer, and then smaller
// transactions are only more of them: with a limit on the whole a consumer that
// fell behind went down to single records, and further behind.
type pace struct {
	longest time.Duration // that the records of a transaction should take
	most    int           // of them
	limit   int           // how many go in now

	// of the last transactions, the later the more: how many, their records and
	// seconds, the records squared and multiplied by the seconds
	count, n, s, nn, ns float64
}

// note learns from a transaction of n records.
func (p *pace) note(n int, took time.Duration) {
	const kept = 0.95 // with the next one: twenty of them decide
	x, y := float64(n), took.Seconds()
	p.count, p.n, p.s = kept*p.count+1, kept*p.n+x, kept*p.s+y
	p.nn, p.ns = kept*p.nn+x*x, kept*p.ns+x*y

	long, short := took > p.longest && p.limit > 1, true
	// what one record more takes is known (least squares) once they differed by a
	// quarter; until then the limit goes up or down, so that they do
	if spread := p.count*p.nn - p.n*p.n; spread > p.n*p.n/16 {
		each := (p.count*p.ns - p.n*p.s) / spread
		all := each * float64(p.limit)
		long, short = all > p.longest.Seconds(), all < p.longest.Seconds()/2
	}
	switch {
	case long:
		p.limit = max(p.limit/2, 1)
	case short && n == p.limit:
		p.limit = min(p.limit*2, p.most)
	}
}
