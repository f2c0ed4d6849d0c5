package load

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"sync"
	"time"

	"github.com/google/uuid"

	"pizzaflow/internal/retry"
)

const (
	// lead is how long before its appointed time an order is prepared: its line
	// is on disk by then, so the latency is the system's and not this disk's.
	lead = 100 * time.Millisecond

	firstPause = 50 * time.Millisecond // before the second try; doubled for each further one, half of it at random
	maxPause   = 2 * time.Second
)

// Config is what a run is made of. All but Declined, Log and Follow is needed.
type Config struct {
	URLs     []string      // the addresses of order APIs or frontends, such as http://127.0.0.1:8080
	Rate     float64       // orders a second
	Orders   int           // how many are appointed
	Declined float64       // percent of orders whose card the sandbox's provider declines
	InFlight int           // orders under way at once; what exceeds that is not sent
	Patience time.Duration // after its appointed time an order is given up as unknown
	Timeout  time.Duration // of one try
	Follow   time.Duration // for so long after its 201 an order is watched until it is paid or not; 0 is not at all
	Log      *Log          // what was promised; nil keeps nothing
}

// Run is orders being placed.
type Run struct {
	cfg  Config
	api  *api
	menu []item

	start time.Time // the appointed time of the first order; no clock that is set moves it
	slots chan struct{}
	polls chan struct{} // bounds the questions asked at once
	done  chan struct{}

	ending context.CancelFunc // no order is appointed any more
	work   sync.WaitGroup     // orders under way, and those followed
	tally  tally
}

// Start reads the menu and begins to place orders. When ctx ends no more are
// appointed, and those under way are still settled.
func Start(ctx context.Context, cfg Config) (*Run, error) {
	r := &Run{
		cfg: cfg, api: newAPI(cfg), done: make(chan struct{}),
		slots: make(chan struct{}, cfg.InFlight), polls: make(chan struct{}, maxPolls),
		tally: tally{answers: map[string]int{}},
	}
	var err error
	if r.menu, err = r.api.menu(ctx); err != nil {
		return nil, fmt.Errorf("read menu: %w", err)
	}
	scheduled, ending := context.WithCancel(ctx)
	r.ending = ending
	r.start = time.Now().Add(lead)
	// the orders under way outlive ctx: each ends by its own patience
	go r.schedule(scheduled, context.WithoutCancel(ctx))
	return r, nil
}

// Done is closed when the last order is settled.
func (r *Run) Done() <-chan struct{} { return r.done }

// appointed is when order n is due.
func (r *Run) appointed(n int) time.Time {
	return r.start.Add(time.Duration(float64(n) / r.cfg.Rate * float64(time.Second)))
}

// schedule begins every order shortly before its appointed time, whatever came
// of those before it.
func (r *Run) schedule(scheduled, ctx context.Context) {
	defer close(r.done)
	defer r.api.close()
	defer r.work.Wait()
	defer r.ending()
	for n := range r.cfg.Orders {
		if !retry.Sleep(scheduled, time.Until(r.appointed(n).Add(-lead))) {
			return
		}
		select {
		case r.slots <- struct{}{}:
			r.tally.begin()
			r.work.Go(func() { r.order(ctx, n) })
		default:
			r.tally.notSent()
		}
	}
}

// order places order n and, if so wished, follows it.
func (r *Run) order(ctx context.Context, n int) {
	due := r.appointed(n)
	end, err := r.settle(ctx, n, due)
	<-r.slots
	if err != nil {
		r.tally.fail(err)
		r.ending() // what cannot be kept must not be promised
	}
	r.tally.settle(end, end.At.Sub(due))
	if end.Kind == KindPlaced && r.cfg.Follow > 0 {
		r.follow(ctx, end.OrderID, end.At)
	}
}

// settle returns what came of order n. That is in the log, unless it returns an
// error; nothing is placed then.
func (r *Run) settle(ctx context.Context, n int, due time.Time) (Line, error) {
	key := uuid.NewString()
	if err := r.cfg.Log.Append(&Line{Kind: KindAttempt, Key: key, At: due}); err != nil {
		return Line{Kind: kindNotSent}, err
	}
	body, err := r.body(n)
	if err != nil {
		return Line{Kind: kindNotSent}, err
	}
	retry.Sleep(ctx, time.Until(due))
	end := r.place(ctx, n, due, key, body)
	if err := r.cfg.Log.Append(&end); err != nil {
		return Line{Kind: KindUnknown, Key: key, At: end.At}, err
	}
	return end, nil
}

// place sends the order until it is placed, refused, or given up.
func (r *Run) place(ctx context.Context, n int, due time.Time, key string, body []byte) Line {
	ctx, cancel := context.WithDeadline(ctx, due.Add(r.cfg.Patience))
	defer cancel()
	end := Line{Kind: KindUnknown, Key: key}
	open := false // a try may have been taken, or be taken yet
	for try := 0; ; try++ {
		a := r.api.post(ctx, n+try, key, body)
		r.tally.tried(a.outcome())
		end.At = time.Now()
		if a.status != 0 { // the last try is often cut off by the patience
			end.Status = a.status
		}
		switch {
		case a.placed():
			end.Kind, end.OrderID, end.OrderNumber = KindPlaced, a.order.ID, a.order.Number
			end.Total, end.OrderStatus = int64(a.order.Total), a.order.Status
			return end
		case a.final():
			// a refusal says nothing about an earlier try that nobody answered
			if !open {
				end.Kind = KindRefused
			}
			return end
		case a.status != http.StatusTooManyRequests:
			open = true
		}
		pause := retry.Backoff(try+1, firstPause, maxPause)
		if (try+1)%len(r.cfg.URLs) == 0 { // the next address is one that asked for a pause, not another
			pause = max(pause, a.retryAfter)
		}
		if !retry.Sleep(ctx, pause) {
			end.At = time.Now()
			return end
		}
	}
}

// declined tells whether order n is one of the percentage, evenly spread.
func declined(n int, percent float64) bool {
	share := percent / 100
	return math.Floor(float64(n+1)*share) > math.Floor(float64(n)*share)
}

// Wait returns the report when the last order is settled. The error says that
// the log could not be written: the run ended early, and orders whose promise
// could not be kept are unknown.
func (r *Run) Wait() (Report, error) {
	<-r.done
	return r.tally.report(r.cfg, r.start), r.tally.err
}
