package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pizzaflow/internal/retry"
)

// answerLimit is how long a customer may wait for an answer, whatever state the
// database is in: the deadline of a statement is 10 s.
const answerLimit = 20 * time.Second

// A stream is orders placed at a steady rate by customers that repeat a request under
// its key until it is accepted, as a 503 asks them to. An answer that is neither 201
// nor a 503 with Retry-After fails the test.
type stream struct {
	d      *deployment
	cancel context.CancelFunc
	placed sync.WaitGroup
	breaks atomic.Bool  // connections may break, because processes are killed
	paused atomic.Bool  // no new orders are placed
	open   atomic.Int64 // orders that are not accepted yet

	mu       sync.Mutex
	requests []orderRequest // that were accepted
	orders   []order        // by request
	refused  int            // requests with 503
	wrong    []string       // other answers
}

// startStream places perSecond orders a second until it is finished.
func (d *deployment) startStream(t *testing.T, perSecond int) *stream {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s := &stream{d: d, cancel: cancel}
	tick := time.NewTicker(time.Second / time.Duration(perSecond))
	s.placed.Go(func() {
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if !s.paused.Load() {
					s.open.Add(1)
					s.placed.Go(func() { s.place(t.Context(), customer(i, "")) })
				}
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		s.placed.Wait()
	})
	return s
}

// place repeats the request until the order is accepted.
func (s *stream) place(ctx context.Context, r orderRequest) {
	defer s.open.Add(-1)
	for {
		asked := time.Now()
		status, header, body, err := s.d.postWithKey(ctx, r)
		took := time.Since(asked)
		if ctx.Err() != nil {
			return
		}
		s.mu.Lock()
		var o order
		switch {
		case err != nil && s.breaks.Load():
		case err != nil:
			s.wrong = append(s.wrong, err.Error())
		case status == http.StatusCreated:
			if err := json.Unmarshal(body, &o); err != nil {
				s.wrong = append(s.wrong, err.Error())
			}
			s.requests, s.orders = append(s.requests, r), append(s.orders, o)
		case status == http.StatusServiceUnavailable && header.Get("Retry-After") != "":
			s.refused++
		default:
			s.wrong = append(s.wrong, fmt.Sprintf("%d, Retry-After %q, after %s: %s", status, header.Get("Retry-After"), took, body))
		}
		if took > answerLimit {
			s.wrong = append(s.wrong, fmt.Sprintf("an answer (%d) took %s", status, took))
		}
		s.mu.Unlock()
		if o.OrderID != "" || !retry.Sleep(ctx, time.Second) {
			return
		}
	}
}

// ask posts an order under its customer's key and returns the whole answer.
func (d *deployment) postWithKey(ctx context.Context, r orderRequest) (int, http.Header, []byte, error) {
	raw, err := json.Marshal(r)
	if err != nil {
		return 0, nil, nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.shop("/api/v1/orders"), bytes.NewReader(raw))
	if err != nil {
		return 0, nil, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", r.CustomerEmail)
	return send(req)
}

// pause stops placing new orders, and waits until the placed ones are accepted.
func (s *stream) pause(t *testing.T) {
	t.Helper()
	s.paused.Store(true)
	eventually(t, paidLimit, func() string {
		if n := s.open.Load(); n > 0 {
			return fmt.Sprintf("%d orders are not accepted yet", n)
		}
		return ""
	})
}

// resume ends the pause.
func (s *stream) resume() { s.paused.Store(false) }

// expect adds an order that was placed beside the stream.
func (s *stream) expect(r orderRequest, o order) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests, s.orders = append(s.requests, r), append(s.orders, o)
}

// counts are how many orders were accepted, and how many requests refused.
func (s *stream) counts() (accepted, refused int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.orders), s.refused
}

// awaitRefused waits until so many more requests are refused.
func (s *stream) awaitRefused(t *testing.T, n int) {
	t.Helper()
	_, before := s.counts()
	eventually(t, answerLimit, func() string {
		if _, now := s.counts(); now < before+n {
			return fmt.Sprintf("%d requests got 503, want %d", now-before, n)
		}
		return ""
	})
}

// awaitServed waits until an order that is accepted from now on is paid, and returns
// how long that took.
func (s *stream) awaitServed(t *testing.T, within time.Duration) time.Duration {
	t.Helper()
	began := time.Now()
	s.mu.Lock()
	from := len(s.orders)
	s.mu.Unlock()
	eventually(t, within, func() string {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, o := range s.orders[from:] {
			if now, err := s.d.getOrder(t.Context(), o.OrderID); err == nil && now.Status == "paid" {
				return ""
			}
		}
		return fmt.Sprintf("of %d orders accepted meanwhile none is paid", len(s.orders)-from)
	})
	return time.Since(began)
}

// finish ends the stream and wants the same result as without incidents: each order
// accepted, paid once and its messages sent, no record parked and no attempt spent.
func (s *stream) finish(t *testing.T) {
	t.Helper()
	s.settle(t, nil)
	s.d.checkNothingParked(t)
	s.d.checkNothingSpent(t)
}

// settle ends the stream and wants each order accepted, paid once and its messages
// sent; messages whose delivery a kill interrupted may have been sent again.
func (s *stream) settle(t *testing.T, inFlight map[string]int) {
	t.Helper()
	s.cancel()
	s.placed.Wait()
	for i, wrong := range s.wrong {
		if i == 5 {
			t.Errorf("… and %d more", len(s.wrong)-i)
			break
		}
		t.Errorf("a customer got: %s", wrong)
	}
	t.Logf("%d orders, %d times 503", len(s.orders), s.refused)
	began := time.Now()
	s.d.awaitSettled(t, len(s.orders))
	t.Logf("settled %s after the last order", time.Since(began).Round(100*time.Millisecond))
	s.d.checkLoad(t, s.requests, s.orders, inFlight)
	for _, name := range s.d.setup.processes {
		p := s.d.process(name)
		if !p.alive() {
			t.Errorf("pizza %s has ended: %s", name, p.cmd.ProcessState)
		} else if wrong := waitFor(t.Context(), answerLimit, func() string { return p.ready(t.Context()) }); wrong != "" {
			t.Errorf("pizza %s is not ready again: %s", name, wrong)
		}
	}
}

// checkNothingParked wants no parked record, except those of obstructed.
func (d *deployment) checkNothingParked(t *testing.T) {
	t.Helper()
	for _, service := range domain {
		if rows := d.rows(t, service, `SELECT state, attempts, event_type, error FROM parked_records WHERE error NOT LIKE '%obstructed%'`); len(rows) > 0 {
			t.Errorf("%s: %d records were parked, among them %v", service, len(rows), rows[0])
		}
	}
}

// checkNothingSpent wants no second charge because of the database, and no failed
// message. If the answer to a COMMIT was lost, the committed row is taken only when
// its lease has run out: such a payment is charged once a lookup has found nothing,
// such a delivery is sent at its second attempt.
func (d *deployment) checkNothingSpent(t *testing.T) {
	t.Helper()
	rows := d.rows(t, "payment", `
		SELECT payment_id, charges, absent FROM (
			SELECT payment_id, COUNT(CASE WHEN kind = 'charge' THEN 1 END) charges, COUNT(CASE WHEN outcome = 'absent' THEN 1 END) absent
			FROM payment_attempts GROUP BY payment_id) made
		WHERE charges <> 1 + absent`)
	if len(rows) > 0 {
		t.Errorf("%d payments were charged again, or never, among them %v", len(rows), rows[0])
	}
	for _, result := range []string{"temporary", "unknown", "permanent", "expired", "abandoned"} {
		if n := d.metric(t.Context(), "pizza_notification_deliveries_total", fmt.Sprintf("result=%q", result)); n > 0 {
			t.Errorf("%v attempts to deliver were %s", n, result)
		}
	}
}

// metric is the sum of the series with the labels over all processes. A process
// without metrics adds nothing.
func (d *deployment) metric(ctx context.Context, name string, labels ...string) (sum float64) {
	for _, process := range d.setup.processes {
		admin := d.process(process).address("ADMIN_ADDR")
		if admin == "" {
			continue
		}
		status, body, err := fetch(ctx, "http://"+admin+"/metrics")
		if err != nil || status != http.StatusOK {
			continue
		}
		series := map[string]float64{}
		for line := range strings.Lines(string(body)) {
			if at := strings.LastIndexByte(line, ' '); at > 0 && line[0] != '#' {
				series[line[:at]], _ = strconv.ParseFloat(strings.TrimSpace(line[at:]), 64)
			}
		}
		sum += sumOf(series, name, labels...)
	}
	return sum
}
