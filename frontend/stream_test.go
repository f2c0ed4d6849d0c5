package frontend

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// deadline of every wait, for a broker and the race detector on a busy machine.
const deadline = 30 * time.Second

type streamEvent struct {
	ID   int64
	Data struct {
		OrderID string `json:"order_id"`
		step
	}
}

// openStream opens an event stream and passes on its events until the test ends.
func openStream(t testing.TB, server *httptest.Server, id, last string) (*http.Response, <-chan streamEvent) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/api/v1/orders/"+id+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	if last != "" {
		r.Header.Set("Last-Event-ID", last)
	}
	resp, err := server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	events, done := make(chan streamEvent, 100), make(chan struct{})
	go func() {
		defer close(done)
		defer close(events)
		var e streamEvent
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			name, value, _ := strings.Cut(lines.Text(), ": ")
			switch name {
			case "id":
				if _, err := fmt.Sscan(value, &e.ID); err != nil {
					t.Errorf("id %q: %v", value, err)
				}
			case "data":
				if err := json.Unmarshal([]byte(value), &e.Data); err != nil {
					t.Errorf("data %q: %v", value, err)
				}
				events <- e
				e = streamEvent{}
			case "event":
				t.Errorf("event: %q, want the default", value)
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		resp.Body.Close()
		<-done
	})
	return resp, events
}

func nextEvent(t testing.TB, events <-chan streamEvent) streamEvent {
	t.Helper()
	select {
	case e, open := <-events:
		if !open {
			t.Fatal("the stream ended")
		}
		return e
	case <-time.After(deadline):
		t.Fatal("nothing came")
	}
	return streamEvent{}
}

// eventually polls a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end, every := time.After(deadline), time.Tick(5*time.Millisecond); !ok(); {
		select {
		case <-end:
			t.Fatalf("never: %s", what)
		case <-every:
		}
	}
}

func TestStreamBeginsWithHistory(t *testing.T) {
	api := newOrderAPI(t)
	s := newService(t, api, noBroker)
	server := site(t, s)
	id := api.place(t)
	api.advance(id, statusPaid, "")
	resp, events := openStream(t, server, id, "")
	for header, want := range map[string]string{"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store", "X-Accel-Buffering": "no"} {
		if got := resp.Header.Get(header); got != want {
			t.Errorf("%s: %q", header, got)
		}
	}
	o, err := s.readOrder(t.Context(), httptest.NewRequest(http.MethodGet, "/", nil), id)
	if err != nil {
		t.Fatal(err)
	}
	for i, status := range []string{statusPending, statusPaid} {
		e := nextEvent(t, events)
		if e.ID != int64(i+1) || e.Data.Version != e.ID || e.Data.OrderID != id || e.Data.Status != status || !e.Data.At.Equal(o.History[i].At) {
			t.Errorf("event %d: %+v", i, e)
		}
	}
	_, events = openStream(t, server, id, "1")
	if e := nextEvent(t, events); e.ID != 2 {
		t.Errorf("resumed after 1 with %d", e.ID)
	}
}

func TestStreamRefusals(t *testing.T) {
	api := newOrderAPI(t)
	s := newService(t, api, noBroker)
	server := site(t, s)
	id := api.place(t)
	check := func(id, last string, want int) {
		t.Helper()
		resp, _ := openStream(t, server, id, last)
		if resp.StatusCode != want || !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/problem+json") {
			t.Errorf("%s after %q: %s %s, want %d", id, last, resp.Status, resp.Header.Get("Content-Type"), want)
		}
	}
	for _, last := range []string{"x", "-1", "1.0", "99999999999999999999", "0x1"} {
		check(id, last, http.StatusBadRequest)
	}
	check("00000000-0000-4000-8000-000000000000", "", http.StatusNotFound)
	check("%2e%2e", "", http.StatusNotFound)
	api.set(func() { api.away = true })
	check(id, "", http.StatusServiceUnavailable)
	api.set(func() { api.away = false })

	s.hub.limit = 2
	var streams []<-chan streamEvent
	for range 2 {
		_, events := openStream(t, server, id, "")
		streams = append(streams, events)
	}
	for _, events := range streams {
		nextEvent(t, events)
	}
	check(id, "", http.StatusServiceUnavailable)
}

func TestStreamsAreCountedAndForgotten(t *testing.T) {
	api := newOrderAPI(t)
	reg := prometheus.NewRegistry()
	s, err := New(Config{API: api, Kafka: noBroker, Metrics: reg})
	if err != nil {
		t.Fatal(err)
	}
	server := site(t, s)
	id := api.place(t)
	_, events := openStream(t, server, id, "")
	nextEvent(t, events)
	want := "# HELP pizza_frontend_streams Trackers that are being sent an order's steps.\n# TYPE pizza_frontend_streams gauge\npizza_frontend_streams 1\n"
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "pizza_frontend_streams"); err != nil {
		t.Error(err)
	}
	server.CloseClientConnections()
	eventually(t, "the stream is let go", func() bool {
		s.hub.mu.Lock()
		defer s.hub.mu.Unlock()
		return s.hub.open == 0 && len(s.hub.orders) == 0
	})
}

// TestNothingIsMissed changes orders while streams are being opened. Each change has
// one hint, and no stream lives until the first tick, which would find a lost one.
func TestNothingIsMissed(t *testing.T) {
	api := newOrderAPI(t)
	s := newService(t, api, noBroker)
	for range 300 {
		id := api.place(t)
		var wg sync.WaitGroup
		wg.Go(func() {
			api.advance(id, "baking", "")
			s.hub.hint(id)
			api.advance(id, statusPaid, "")
			s.hub.hint(id)
		})
		for range 4 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), tick/2)
				defer cancel()
				w := &recorder{header: http.Header{}, full: func(body string) bool { return strings.Contains(body, `"status":"paid"`) }, done: cancel}
				s.Handler().ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, "/api/v1/orders/"+id+"/events", nil))
				if got := w.count("data:"); got != 3 || w.count("id: 2\n") != 1 {
					t.Errorf("%d steps:\n%s", got, w.body)
				}
			})
		}
		wg.Wait()
	}
}

// A recorder records an answer and calls done when full reports true of it.
type recorder struct {
	header http.Header
	full   func(body string) bool
	done   func()

	mu   sync.Mutex
	body string
}

func (w *recorder) count(what string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Count(w.body, what)
}

func (w *recorder) Header() http.Header { return w.header }
func (w *recorder) WriteHeader(int)     {}
func (w *recorder) FlushError() error   { return nil }

func (w *recorder) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.body += string(b)
	if w.full != nil && w.full(w.body) {
		w.done()
	}
	return len(b), nil
}

// TestOneReadForAll: a change of an order is one read from the order API, however
// many streams watch the order.
func TestOneReadForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newOrderAPI(t)
		s := newService(t, api, noBroker)
		s.pulse.OnBrokerE2E(kgoMeta, 1, kgoAnswer) // Kafka answers, so no stream polls
		id := api.place(t)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		streams := make([]*recorder, 50)
		for i := range streams {
			streams[i] = &recorder{header: http.Header{}}
			wg.Go(func() {
				s.Handler().ServeHTTP(streams[i], httptest.NewRequestWithContext(ctx, http.MethodGet, "/api/v1/orders/"+id+"/events", nil))
			})
		}
		synctest.Wait()
		api.advance(id, statusPaid, "")
		s.hub.hint(id)
		synctest.Wait()
		if n := api.countReads(); n != 2 {
			t.Errorf("%d reads, want one for the first and one for the change", n)
		}
		for _, st := range streams {
			if st.count("data:") != 2 {
				t.Errorf("a stream has\n%s", st.body)
			}
		}
		cancel()
		wg.Wait()
	})
}

// TestClockOfAStream runs a stream for minutes of virtual time.
func TestClockOfAStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newOrderAPI(t)
		s := newService(t, api, noBroker)
		id := api.place(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		w := &recorder{header: http.Header{}}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			s.Handler().ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, "/api/v1/orders/"+id+"/events", nil))
		}()
		pass := func(d time.Duration) {
			<-time.After(d)
			synctest.Wait()
		}
		for i := 1; i <= 4; i++ {
			pass(heartbeat)
			if n := w.count(":\n\n"); n != i {
				t.Errorf("%d heartbeats after %d × 15 s", n, i)
			}
		}
		// Kafka is away: the order is read again every few seconds.
		if n := api.countReads(); n < 15 || n > 30 {
			t.Errorf("%d reads in a minute without Kafka", n)
		}
		api.set(func() { api.away = true })
		pass(heartbeat)
		api.set(func() { api.away = false })
		api.advance(id, statusPaid, "")
		pass(2 * tick)
		if w.count("data:") != 2 {
			t.Errorf("a change that nobody told of:\n%s", w.body)
		}
		reads := api.countReads()
		pass(lingerTime / 2)
		if api.countReads() != reads {
			t.Error("a finished order is read again")
		}
		select {
		case <-ended:
			t.Error("ended too early for a client to see the last step")
		default:
		}
		pass(lingerTime/2 + 2*tick)
		select {
		case <-ended:
		default:
			t.Error("still there long after the last step")
		}
	})
}
