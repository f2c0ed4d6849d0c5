package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"pizzaflow/internal/retry"
)

// customer is the request of guest number i of a load. Each guest has contacts of
// their own, so that charges and messages can be counted. The tag says what the
// sandbox does with the card.
func customer(i int, tag string) orderRequest {
	r := ivan(fmt.Sprintf("guest%d%s@example.com", i, tag))
	r.CustomerPhone = guestPhone(i)
	return r
}

// A load is orders placed by several clients at once, each of which repeats a request
// under its key until it is accepted.
type load struct {
	requests []orderRequest
	done     chan struct{} // closed when all are accepted or one is refused

	mu       sync.Mutex
	cond     *sync.Cond // accepted has grown, or err is set
	accepted int
	orders   []order // by request
	err      error
}

func (d *deployment) startLoad(ctx context.Context, requests []orderRequest, clients int) *load {
	l := &load{requests: requests, orders: make([]order, len(requests)), done: make(chan struct{})}
	l.cond = sync.NewCond(&l.mu)
	var working sync.WaitGroup
	for c := range clients {
		working.Go(func() {
			for i := c; i < len(requests); i += clients {
				if err := l.place(ctx, d, i); err != nil {
					l.record(i, order{}, err)
					return
				}
			}
		})
	}
	go func() {
		working.Wait()
		close(l.done)
	}()
	return l
}

// place repeats request i until it is accepted. The customer's address is its
// Idempotency-Key.
func (l *load) place(ctx context.Context, d *deployment, i int) error {
	for {
		o, err := d.post(ctx, l.requests[i], l.requests[i].CustomerEmail)
		if err == nil {
			l.record(i, o, nil)
			return nil
		}
		if errors.Is(err, errRefused) {
			return err
		}
		if !retry.Sleep(ctx, 20*time.Millisecond) {
			return fmt.Errorf("order %d is not accepted: %w: %w", i, ctx.Err(), err)
		}
	}
}

func (l *load) record(i int, o order, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.err = errors.Join(l.err, err)
	} else {
		l.orders[i] = o
		l.accepted++
	}
	l.cond.Broadcast()
}

// awaitAccepted waits until n orders are accepted, as long as the load's context lasts.
func (l *load) awaitAccepted(t *testing.T, n int) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.accepted < n && l.err == nil {
		l.cond.Wait()
	}
	if l.err != nil {
		t.Fatal(l.err)
	}
}

// count is how many are accepted.
func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.accepted
}

// wait waits until all orders are accepted, as long as the load's context lasts, and
// returns them by request.
func (l *load) wait(t *testing.T) []order {
	t.Helper()
	<-l.done
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		t.Fatal(l.err)
	}
	return l.orders
}

// seededRand is a source of random numbers whose seed is printed; PIZZA_TEST_SEED
// repeats a run, but for the timing of the machine.
func seededRand(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if s := os.Getenv("PIZZA_TEST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("PIZZA_TEST_SEED: %v", err)
		}
	}
	t.Logf("PIZZA_TEST_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, seed))
}

// pauseUpTo waits for a random time up to d.
func pauseUpTo(r *rand.Rand, d time.Duration) { <-time.After(time.Duration(r.Int64N(int64(d)))) }
