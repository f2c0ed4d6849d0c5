package inbox

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

	last  [20]effort // the last transactions, which decide; an older stall is forgotten
	noted int        // how many transactions there were
}

// An effort is what one transaction took.
type effort struct{ records, seconds float64 }

// note learns from a transaction of n records.
func (p *pace) note(n int, took time.Duration) {
	p.last[p.noted%len(p.last)] = effort{float64(n), took.Seconds()}
	p.noted++
	known := p.last[:min(p.noted, len(p.last))]
	var sn, ss, snn, sns float64 // sums of records, seconds, records squared, records times seconds
	for _, t := range known {
		sn, ss, snn, sns = sn+t.records, ss+t.seconds, snn+t.records*t.records, sns+t.records*t.seconds
	}

	long, short := took > p.longest && p.limit > 1, true
	// what one record more takes is known (least squares) once they differed by a
	// quarter; until then the limit goes up or down, so that they do
	count := float64(len(known))
	if spread := count*snn - sn*sn; spread > sn*sn/16 {
		each := (count*sns - sn*ss) / spread
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
