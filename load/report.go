package load

import (
	"maps"
	"math"
	"slices"
	"sync"
	"time"
)

// kindNotSent is the result of an order that was not sent; it is in no log.
const kindNotSent = "not sent"

// Report has the results of a run.
type Report struct {
	Orders   int            `json:"orders"`   // scheduled; the sum of the next four
	Placed   int            `json:"placed"`   // answered 201, and in the log
	Refused  int            `json:"refused"`  // answered with a final 4xx
	Unknown  int            `json:"unknown"`  // given up without an answer of either kind
	NotSent  int            `json:"not_sent"` // too many orders were under way, or the log could not be written
	Tries    int            `json:"tries"`
	Answers  map[string]int `json:"answers"`      // tries by HTTP status, or by the reason why there was none
	Wanted   float64        `json:"rate_wanted"`  // orders a second
	Rate     float64        `json:"rate_reached"` // placed orders a second, until the last was placed
	Latency  Latency        `json:"latency"`      // from the scheduled time to the 201
	Followed *Followed      `json:"followed,omitempty"`
}

// Followed has the final states of placed orders.
type Followed struct {
	Paid          int     `json:"paid"`
	PaymentFailed int     `json:"payment_failed"`
	Pending       int     `json:"pending"` // not final after Config.Follow
	Missing       int     `json:"missing"` // promised, and not found
	Latency       Latency `json:"latency"` // from the order's creation to its final state, by the system's clock
}

// Latency has percentiles by nearest rank, in milliseconds.
type Latency struct {
	P50  float64 `json:"p50_ms"`
	P90  float64 `json:"p90_ms"`
	P99  float64 `json:"p99_ms"`
	P999 float64 `json:"p99_9_ms"`
	Max  float64 `json:"max_ms"`
}

// OK reports whether every scheduled order was placed and, if followed, became paid or
// payment_failed.
func (r *Report) OK() bool {
	return r.Placed == r.Orders && (r.Followed == nil || r.Followed.Pending+r.Followed.Missing == 0)
}

// Progress counts the orders of a run so far.
type Progress struct {
	Wanted   int // orders of the whole run
	Begun    int // sent or about to be sent
	Placed   int
	Refused  int
	Unknown  int
	NotSent  int
	UnderWay int // begun and without a result
	Open     int // placed, followed and not final
}

// Progress returns the counts so far.
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

// tally counts the results. It keeps every latency, eight bytes an order, so that no
// percentile is an estimate.
type tally struct {
	mu             sync.Mutex
	begun          int
	settled        int            // of the orders begun
	ends           map[string]int // orders by kind, and followed orders by state
	tries          int
	answers        map[string]int
	latencies      []time.Duration // of placed orders
	finalLatencies []time.Duration // of followed orders
	last           time.Time       // when the last order was placed
	err            error           // the first error, which ended the run
}

func (t *tally) count(end string) int { return t.ends[end] }

func (t *tally) increment(end string) {
	if t.ends == nil {
		t.ends = map[string]int{}
	}
	t.ends[end]++
}

func (t *tally) addBegun() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begun++
}

func (t *tally) addNotSent() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.increment(kindNotSent)
}

func (t *tally) addTry(outcome string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tries++
	t.answers[outcome]++
}

func (t *tally) addResult(end Line, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.settled++
	t.increment(end.Kind)
	if end.Kind == KindPlaced {
		t.latencies = append(t.latencies, took)
		if end.At.After(t.last) {
			t.last = end.At
		}
	}
}

func (t *tally) addFollowed(state string, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.increment(state)
	if state == statePaid || state == stateFailed {
		t.finalLatencies = append(t.finalLatencies, took)
	}
}

func (t *tally) setError(err error) {
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
		Tries: t.tries, Answers: maps.Clone(t.answers), Wanted: cfg.Rate, Latency: latency(t.latencies),
	}
	r.Orders = r.Placed + r.Refused + r.Unknown + r.NotSent
	// the schedule includes the interval after its last order: no run is faster than its schedule
	schedule := time.Duration(float64(r.Orders) / cfg.Rate * float64(time.Second))
	if took := max(schedule, t.last.Sub(start)); took > 0 {
		r.Rate = math.Round(float64(r.Placed)/took.Seconds()*100) / 100
	}
	if cfg.Follow > 0 {
		r.Followed = &Followed{
			Paid: t.count(statePaid), PaymentFailed: t.count(stateFailed),
			Pending: t.count(statePending), Missing: t.count(stateMissing), Latency: latency(t.finalLatencies),
		}
	}
	return r
}

// latency sorts took and returns its percentiles.
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
