package inbox

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestPace has more records waiting than any transaction takes. How many go in
// is asked of the second hundred, on the average.
func TestPace(t *testing.T) {
	for name, c := range map[string]struct {
		fixed, each, noise time.Duration // the noise is added, evenly distributed
		least, most        int
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
				p := pace{longest: 100 * time.Millisecond, most: 512, limit: 64}
				sum := 0
				for i := range 200 {
					n := p.limit
					if i >= 100 {
						sum += n
					}
					p.note(n, c.fixed+time.Duration(n)*c.each+time.Duration(random.Float64()*float64(c.noise)))
				}
				if got := sum / 100; got < c.least || got > c.most {
					t.Errorf("seed %d: %d records in a transaction, want %d to %d", seed, got, c.least, c.most)
				}
			}
		})
	}
}

// TestPaceAfterAStall has the database away for a minute while all four workers
// are in a transaction, and come back with everything that has piled up.
func TestPaceAfterAStall(t *testing.T) {
	for _, stall := range []time.Duration{2 * time.Second, time.Minute} {
		p := pace{longest: 100 * time.Millisecond, most: 512, limit: 512}
		for range 16 {
			p.note(512, 60*time.Millisecond)
		}
		for range 4 {
			p.note(512, stall)
		}
		for range 40 {
			p.note(p.limit, 3*time.Millisecond+time.Duration(p.limit)*100*time.Microsecond)
		}
		if p.limit < 256 {
			t.Errorf("40 transactions after a stall of %v: %d records in each", stall, p.limit)
		}
	}
}
