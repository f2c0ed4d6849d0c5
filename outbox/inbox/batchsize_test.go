package inbox

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestBatchSize has always more records ready than fit in a transaction, and checks
// the mean size of transactions 101 to 200.
func TestBatchSize(t *testing.T) {
	for name, c := range map[string]struct {
		fixed, each, noise time.Duration // the noise is added, evenly distributed
		least, max         int
	}{
		"nothing takes time":           {0, 0, 0, 400, 512},
		"a quick handler":              {3 * time.Millisecond, 100 * time.Microsecond, time.Millisecond, 300, 512},
		"a slow handler":               {3 * time.Millisecond, 20 * time.Millisecond, time.Millisecond, 2, 6},
		"a handler slower than it may": {3 * time.Millisecond, time.Second, time.Millisecond, 1, 2},
		"a slow machine":               {150 * time.Millisecond, 200 * time.Microsecond, 20 * time.Millisecond, 200, 512},
		"a machine that has much else": {30 * time.Millisecond, 200 * time.Microsecond, 120 * time.Millisecond, 100, 512},
		"slow in all":                  {150 * time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond, 4, 14},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(50) {
				random := rand.New(rand.NewPCG(seed, 0))
				b := batchSizer{target: 100 * time.Millisecond, max: 512, size: 64}
				sum := 0
				for i := range 200 {
					n := b.size
					if i >= 100 {
						sum += n
					}
					b.observe(n, c.fixed+time.Duration(n)*c.each+time.Duration(random.Float64()*float64(c.noise)))
				}
				if got := sum / 100; got < c.least || got > c.max {
					t.Errorf("seed %d: %d records in a transaction, want %d to %d", seed, got, c.least, c.max)
				}
			}
		})
	}
}

// TestBatchSizeAfterAStall has all four workers in a transaction while the database
// is unavailable for a minute, and then work off what piled up.
func TestBatchSizeAfterAStall(t *testing.T) {
	for _, stall := range []time.Duration{2 * time.Second, time.Minute} {
		b := batchSizer{target: 100 * time.Millisecond, max: 512, size: 512}
		for range 16 {
			b.observe(512, 60*time.Millisecond)
		}
		for range 4 {
			b.observe(512, stall)
		}
		for range 40 {
			b.observe(b.size, 3*time.Millisecond+time.Duration(b.size)*100*time.Microsecond)
		}
		if b.size < 256 {
			t.Errorf("40 transactions after a stall of %v: %d records in each", stall, b.size)
		}
	}
}
