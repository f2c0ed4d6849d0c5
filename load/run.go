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
	// lead is how long before its scheduled time an order is prepared: its line is
	// on disk by then, so that the latency does not include this disk's.
	lead = 100 * time.Millisecond

	firstPause = 50 * time.Millisecond // before the second try; doubled for each further one, half of it at random
	maxPause   = 2 * time.Second
)

// Config configures a run. All fields but Declined, Log and Follow are required.
type Config struct {
	URLs     []string      // the addresses of order APIs or frontends, such as http://127.0.0.1:8080
	Rate     float64       // orders a second
	Orders   int           // how many are scheduled
	Declined float64       // percent of orders whose card the sandbox's provider declines
	InFlight int           // limit of orders under way; orders above it are not sent
	Patience time.Duration // from an order's scheduled time until it is given up as unknown
	Timeout  time.Duration // of one try
	Follow   time.Duration // how long after its 201 an order is polled until it is paid or payment_failed; 0 for not at all
	Log      *Log          // of the promises; nil for none
}

// A Run places orders.
type Run struct {
	cfg  Config
	api  *api
	menu []item

	start time.Time // the scheduled time of the first order, by the monotonic clock
	slots chan struct{}
	polls chan struct{} // limits the polls under way
	done  chan struct{}

	stopSchedule context.CancelFunc // ends the schedule
	work         sync.WaitGroup     // orders under way, and those followed
	tally        tally
}

// Start reads the menu and begins to place orders. When ctx ends the schedule ends;
// orders under way go on until their result.
func Start(ctx context.Context, cfg Config) (*Run, error) {
	r := &Run{
		cfg: cfg, api: newAPI(cfg), done: make(chan struct{}),
		slots: make(chan struct{}, cfg.InFlight), polls: make(chan struct{}, maxPolls),
		tally: tally{answers: map[string]int{}},
	}
	var err error
	if r.menu, err = r.api.readMenu(ctx); err != nil {
		return nil, fmt.Errorf("read menu: %w", err)
	}
	scheduled, stop := context.WithCancel(ctx)
	r.stopSchedule = stop
	r.start = time.Now().Add(lead)
	// orders under way outlive ctx: each ends by its patience
	go r.schedule(scheduled, context.WithoutCancel(ctx))
	return r, nil
}

// Done returns a channel that is closed when the last order has its result.
func (r *Run) Done() <-chan struct{} { return r.done }

// scheduledTime returns the scheduled time of order n.
func (r *Run) scheduledTime(n int) time.Time {
	return r.start.Add(time.Duration(float64(n) / r.cfg.Rate * float64(time.Second)))
}

// schedule begins every order shortly before its scheduled time, independent of the
// results of earlier orders.
func (r *Run) schedule(scheduled, ctx context.Context) {
	defer close(r.done)
	defer r.api.close()
	defer r.work.Wait()
	defer r.stopSchedule()
	for n := range r.cfg.Orders {
		if !retry.Sleep(scheduled, time.Until(r.scheduledTime(n).Add(-lead))) {
			return
		}
		select {
		case r.slots <- struct{}{}:
			r.tally.addBegun()
			r.work.Go(func() { r.runOrder(ctx, n) })
		default:
			r.tally.addNotSent()
		}
	}
}

// runOrder places order n and, if Config.Follow says so, follows it.
func (r *Run) runOrder(ctx context.Context, n int) {
	due := r.scheduledTime(n)
	end, err := r.placeLogged(ctx, n, due)
	<-r.slots
	if err != nil {
		r.tally.setError(err)
		r.stopSchedule() // without the log there must be no more promises
	}
	r.tally.addResult(end, end.At.Sub(due))
	if end.Kind == KindPlaced && r.cfg.Follow > 0 {
		r.followOrder(ctx, end.OrderID, end.At)
	}
}

// placeLogged logs the attempt, places order n and logs the result. Without the line of
// the attempt it places nothing.
func (r *Run) placeLogged(ctx context.Context, n int, due time.Time) (Line, error) {
	key := uuid.NewString()
	if err := r.cfg.Log.Append(&Line{Kind: KindAttempt, Key: key, At: due}); err != nil {
		return Line{Kind: kindNotSent}, err
	}
	body, err := r.encodeOrder(n)
	if err != nil {
		return Line{Kind: kindNotSent}, err
	}
	retry.Sleep(ctx, time.Until(due))
	end := r.placeOrder(ctx, n, due, key, body)
	if err := r.cfg.Log.Append(&end); err != nil {
		return Line{Kind: KindUnknown, Key: key, At: end.At}, err
	}
	return end, nil
}

// placeOrder sends the order until it is placed, refused, or given up as unknown.
func (r *Run) placeOrder(ctx context.Context, n int, due time.Time, key string, body []byte) Line {
	ctx, cancel := context.WithDeadline(ctx, due.Add(r.cfg.Patience))
	defer cancel()
	end := Line{Kind: KindUnknown, Key: key}
	uncertain := false // an earlier try may have placed the order
	for try := 0; ; try++ {
		a := r.api.postOrder(ctx, n+try, key, body)
		r.tally.addTry(a.outcome())
		end.At = time.Now()
		if a.status != 0 { // the last try is often cut off, and has no status
			end.Status = a.status
		}
		switch {
		case a.isPlaced():
			end.Kind, end.OrderID, end.OrderNumber = KindPlaced, a.order.ID, a.order.Number
			end.Total, end.OrderStatus = int64(a.order.Total), a.order.Status
			return end
		case a.isFinal():
			// a refusal says nothing about an earlier try without an answer
			if !uncertain {
				end.Kind = KindRefused
			}
			return end
		case a.status != http.StatusTooManyRequests:
			uncertain = true
		}
		pause := retry.Backoff(try+1, firstPause, maxPause)
		if (try+1)%len(r.cfg.URLs) == 0 { // all addresses were tried: the next one has asked for the pause
			pause = max(pause, a.retryAfter)
		}
		if !retry.Sleep(ctx, pause) {
			end.At = time.Now()
			return end
		}
	}
}

// isDeclined reports whether order n is one of the percentage, which is evenly spread.
func isDeclined(n int, percent float64) bool {
	share := percent / 100
	return math.Floor(float64(n+1)*share) > math.Floor(float64(n)*share)
}

// Wait returns the report when the last order has its result. An error means that the
// log could not be written: the run ended early, and orders whose result is not in the
// log count as unknown.
func (r *Run) Wait() (Report, error) {
	<-r.done
	return r.tally.report(r.cfg, r.start), r.tally.err
}
