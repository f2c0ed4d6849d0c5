package load

import (
	"maps"
	"math"
	"slices"
	"sync"
	"time"
)

// kindNotSent is what comes of an order that was never sent; no log has it.
const kindNotSent = "not sent"

// Report is what came of a run.
type Report struct {
	Orders   int            `json:"orders"`   // appointed; the sum of the next four
	Placed   int            `json:"placed"`   // answered 201, and in the log
	Refused  int            `json:"refused"`  // answered with a final 4xx
	Unknown  int            `json:"unknown"`  // given up without either
	NotSent  int            `json:"not_sent"` // too many were under way, or the log could not be written
	Tries    int            `json:"tries"`
	Answers  map[string]int `json:"answers"`      // tries by HTTP status, or by why there was none
	Wanted   float64        `json:"rate_wanted"`  // orders a second
	Rate     float64        `json:"rate_reached"` // placed orders a second, until the last was placed
	Latency  Latency        `json:"latency"`      // from the appointed time to the 201
	Followed *Followed      `json:"followed,omitempty"`
}

// Followed is what became of placed orders.
type Followed struct {
	Paid          int     `json:"paid"`
	PaymentFailed int     `json:"payment_failed"`
	Pending       int     `json:"pending"` // neither when their time was up
	Missing       int     `json:"missing"` // not known to the system that promised them
	Latency       Latency `json:"latency"` // from the order's creation to its final state, by the system's clock
}

// Latency is percentiles by nearest rank, in milliseconds.
type Latency struct {
	P50  float64 `json:"p50_ms"`
	P90  float64 `json:"p90_ms"`
	P99  float64 `json:"p99_ms"`
	P999 float64 `json:"p99_9_ms"`
	Max  float64 `json:"max_ms"`
}

// OK tells whether every order appointed was placed and, if followed, became
// paid or payment_failed.
func (r *Report) OK() bool {
	return r.Placed == r.Orders && (r.Followed == nil || r.Followed.Pending+r.Followed.Missing == 0)
}

// Progress is how far a run is.
type Progress struct {
	Wanted   int // orders of the whole run
	Begun    int // sent or about to be
	Placed   int
	Refused  int
	Unknown  int
	NotSent  int
	UnderWay int // begun and not settled
	Open     int // placed, followed and not final
}

// Progress returns how far the run is.
func (r *Run) Progress() Progress {
	t := &r.tally
	t.mu.Lock()
	defer t.mu.Unlock()
	p := Progress{
		Wanted: r.cfg.Orders, Begun: t.begun, Placed: t.count(KindPlaced), Refused: t.count(KindRefused),
		Unknown: t.count(KindUnknown), NotSent: t.count(kindNotSent),
	}
	p.UnderWay = t.begun - t.settled
	if r.cfg.Follow > 0 {
		p.Open = p.Placed - t.count(statePaid) - t.count(stateFailed) - t.count(statePending) - t.count(stateMissing)
	}
	return p
}

// tally counts what happens. Latencies are kept whole, eight bytes an order:
// no percentile is an estimate.
type tally struct {
	mu      sync.Mutex
	begun   int
	settled int            // of those begun
	ends    map[string]int // orders by kind, and followed ones by state
	tries   int
	answers map[string]int
	waits   []time.Duration // of placed orders
	finals  []time.Duration // of followed ones
	last    time.Time       // when the last was placed
	err     error           // the first that ended the run
}

func (t *tally) count(end string) int { return t.ends[end] }

func (t *tally) add(end string) {
	if t.ends == nil {
		t.ends = map[string]int{}
	}
	t.ends[end]++
}

func (t *tally) begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begun++
}

func (t *tally) notSent() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.add(kindNotSent)
}

func (t *tally) tried(outcome string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tries++
	t.answers[outcome]++
}

func (t *tally) settle(end Line, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.settled++
	t.add(end.Kind)
	if end.Kind == KindPlaced {
		t.waits = append(t.waits, took)
		if end.At.After(t.last) {
			t.last = end.At
		}
	}
}

func (t *tally) followed(state string, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.add(state)
	if state == statePaid || state == stateFailed {
		t.finals = append(t.finals, took)
	}
}

func (t *tally) fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil {
		t.err = err
	}
}

func (t *tally) report(cfg Config, start time.Time) Report {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := Report{
		Placed: t.count(KindPlaced), Refused: t.count(KindRefused), Unknown: t.count(KindUnknown), NotSent: t.count(kindNotSent),
		Tries: t.tries, Answers: maps.Clone(t.answers), Wanted: cfg.Rate, Latency: latency(t.waits),
	}
	r.Orders = r.Placed + r.Refused + r.Unknown + r.NotSent
	// the schedule has room for its last order, too: a short run is not faster than it
	room := time.Duration(float64(r.Orders) / cfg.Rate * float64(time.Second))
	if took := max(room, t.last.Sub(start)); took > 0 {
		r.Rate = math.Round(float64(r.Placed)/took.Seconds()*100) / 100
	}
	if cfg.Follow > 0 {
		r.Followed = &Followed{
			Paid: t.count(statePaid), PaymentFailed: t.count(stateFailed),
			Pending: t.count(statePending), Missing: t.count(stateMissing), Latency: latency(t.finals),
		}
	}
	return r
}

// latency sorts what it is given.
func latency(took []time.Duration) Latency {
	if len(took) == 0 {
		return Latency{}
	}
	slices.Sort(took)
	at := func(perMille int) float64 {
		rank := (perMille*len(took) + 999) / 1000
		return float64(took[rank-1].Microseconds()) / 1000
	}
	return Latency{P50: at(500), P90: at(900), P99: at(990), P999: at(999), Max: at(1000)}
}
