package inbox

import (
	"time"
)

// A pace is how many records go into one transaction: as many as take no longer
// by themselves than it should. What a transaction takes however small it is
// does not count. On a busy machine that alone may be longer, and then smaller
// transactions are only more of them: with a limit on the whole a consumer that
// fell behind went down to single records, and further behind.
type batchSizer struct {
	target time.Duration // that the records of a transaction should take
	max    int           // of them
	size   int           // how many go in now

	samples  [20]sample // the last transactions, which decide; an older stall is forgotten
	observed int        // how many transactions there were
}

// An effort is what one transaction took.
type sample struct{ records, seconds float64 }

// note learns from a transaction of n records.
func (b *batchSizer) observe(n int, took time.Duration) {
	b.samples[b.observed%len(b.samples)] = sample{float64(n), took.Seconds()}
	b.observed++
	known := b.samples[:min(b.observed, len(b.samples))]
	var sn, ss, snn, sns float64 // sums of records, seconds, records squared, records times seconds
	for _, t := range known {
		sn, ss, snn, sns = sn+t.records, ss+t.seconds, snn+t.records*t.records, sns+t.records*t.seconds
	}

	long, short := took > b.target && b.size > 1, true
	// what one record more takes is known (least squares) once they differed by a
	// quarter; until then the limit goes up or down, so that they do
	count := float64(len(known))
	if spread := count*snn - sn*sn; spread > sn*sn/16 {
		each := (count*sns - sn*ss) / spread
		all := each * float64(b.size)
		long, short = all > b.target.Seconds(), all < b.target.Seconds()/2
	}
	switch {
	case long:
		b.size = max(b.size/2, 1)
	case short && n == b.size:
		b.size = min(b.size*2, b.max)
	}
}
