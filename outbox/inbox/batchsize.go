package inbox

import (
	"time"
)

// A batchSizer adapts how many records go into one transaction: as many as take no
// longer than target. The fixed cost of a transaction does not count: on a busy
// machine it alone may exceed the target, and smaller batches would only add
// transactions. (With a limit on the whole transaction a consumer that fell behind
// shrank its batches to single records, and fell further behind.)
type batchSizer struct {
	target time.Duration // for the records of a transaction, without its fixed cost
	max    int           // records
	size   int           // records in the next transaction

	samples  [20]sample // a ring of the last transactions: an older stall has no weight
	observed int        // transactions until now
}

// A sample is the size and duration of one transaction.
type sample struct{ records, seconds float64 }

// observe adds a transaction of n records to the samples and adapts the size.
func (b *batchSizer) observe(n int, took time.Duration) {
	b.samples[b.observed%len(b.samples)] = sample{float64(n), took.Seconds()}
	b.observed++
	samples := b.samples[:min(b.observed, len(b.samples))]
	var sn, ss, snn, sns float64 // sums of records, seconds, records squared, records times seconds
	for _, t := range samples {
		sn, ss, snn, sns = sn+t.records, ss+t.seconds, snn+t.records*t.records, sns+t.records*t.seconds
	}

	long, short := took > b.target && b.size > 1, true
	// The time of one record more is known (by least squares) once the sizes of the
	// samples differ by a quarter. Until then the size changes, so that they will.
	count := float64(len(samples))
	if spread := count*snn - sn*sn; spread > sn*sn/16 {
		each := (count*sns - sn*ss) / spread
		total := each * float64(b.size)
		long, short = total > b.target.Seconds(), total < b.target.Seconds()/2
	}
	switch {
	case long:
		b.size = max(b.size/2, 1)
	case short && n == b.size:
		b.size = min(b.size*2, b.max)
	}
}
