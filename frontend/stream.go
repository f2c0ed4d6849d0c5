package frontend

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"pizzaflow/web"
)

const (
	tick         = 3 * time.Second  // between two checks of the times below
	heartbeat    = 15 * time.Second // between comments on a quiet stream, and between re-reads in case a hint was lost
	pollInterval = 2 * time.Second  // between re-reads while Kafka is away
	lingerTime   = time.Minute      // how long a stream stays open after the final step
	writeTimeout = 10 * time.Second // of one write to one client
)

// A hub has the watched orders and wakes their streams.
type hub struct {
	limit int

	mu     sync.Mutex
	open   int
	orders map[string]*watch
}

// A watch is shared by all streams of one order: a hint wakes all of them, and one
// of them reads the order for all. A stream has no queue: a slow client finds the
// steps that it missed in the order's history.
type watch struct {
	id string

	// Guarded by the hub's mutex.
	streams int
	hints   int64         // how many hints there were
	changed chan struct{} // closed with the next hint
	readAt  time.Time     // when the last read of the order began

	// Guarded by readLock, a mutex that a context can interrupt.
	readLock  chan struct{}
	hintsRead int64 // hints before the read of order; -1 before the first read
	order     order
}

func newHub(limit int) *hub { return &hub{limit: limit, orders: map[string]*watch{}} }

// subscribe adds a stream to the order's watch. It returns nil at the limit of
// streams.
func (h *hub) subscribe(id string) *watch {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open >= h.limit {
		return nil
	}
	w := h.orders[id]
	if w == nil {
		w = &watch{id: id, changed: make(chan struct{}), readLock: make(chan struct{}, 1), hintsRead: -1}
		h.orders[id] = w
	}
	w.streams++
	h.open++
	return w
}

func (h *hub) unsubscribe(w *watch) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open--
	if w.streams--; w.streams == 0 {
		delete(h.orders, w.id)
	}
}

func (h *hub) countStreams() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.open
}

// hint wakes the streams of an order that may have changed.
func (h *hub) hint(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if w := h.orders[id]; w != nil {
		w.wake()
	}
}

// hintIfOlder wakes the streams of an order that was not read for age.
func (h *hub) hintIfOlder(w *watch, age time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Since(w.readAt) >= age {
		w.readAt = time.Now()
		w.wake()
	}
}

func (w *watch) wake() {
	w.hints++
	close(w.changed)
	w.changed = make(chan struct{})
}

// hintState returns the number of hints and the channel that the next hint closes.
// A stream that calls hintState before it reads the order misses no change.
func (h *hub) hintState(w *watch) (hints int64, changed <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return w.hints, w.changed
}

// readOrder returns the order as it was after that many hints or later: the copy of
// another stream, or what read returns.
func (h *hub) readOrder(ctx context.Context, w *watch, hints int64, read func() (order, error)) (order, error) {
	select {
	case w.readLock <- struct{}{}:
	case <-ctx.Done():
		return order{}, ctx.Err()
	}
	defer func() { <-w.readLock }()
	if w.hintsRead >= hints {
		return w.order, nil
	}
	h.mu.Lock()
	now := w.hints
	w.readAt = time.Now()
	h.mu.Unlock()
	o, err := read()
	if err != nil {
		return order{}, err
	}
	w.hintsRead, w.order = now, o
	return o, nil
}

// handleGetEvents streams the steps of an order whose versions are above
// Last-Event-ID, and each further step when it is taken.
func (s *Service) handleGetEvents(w http.ResponseWriter, r *http.Request) {
	last, ok := lastEventID(r)
	if !ok {
		web.Error(w, r, s.log, web.NewProblem(http.StatusBadRequest, "last-event-id-malformed",
			"Last-Event-ID is malformed", "Send the id of the last event that was received, a version, or none."))
		return
	}
	watched := s.hub.subscribe(r.PathValue("id"))
	if watched == nil {
		web.Error(w, r, s.log, web.Unavailable("Too many orders are being watched at the moment."))
		return
	}
	defer s.hub.unsubscribe(watched)
	st := &stream{w: w, rc: http.NewResponseController(w), last: last}
	if err := s.streamSteps(r, watched, st); err != nil {
		switch {
		case !st.started:
			web.Error(w, r, s.log, err)
		case r.Context().Err() == nil:
			s.log.Debug("stream broken", "order_id", watched.id, "error", err.Error())
		}
	}
}

// lastEventID reads Last-Event-ID, the last version that the client has; 0 without
// the header.
func lastEventID(r *http.Request) (int64, bool) {
	values := r.Header.Values("Last-Event-ID")
	if len(values) == 0 {
		return 0, true
	}
	n, err := strconv.ParseInt(values[0], 10, 64)
	return n, len(values) == 1 && err == nil && n >= 0
}

// streamSteps sends steps until the client leaves, or until lingerTime after the
// final step.
func (s *Service) streamSteps(r *http.Request, w *watch, st *stream) error {
	ctx := r.Context()
	clock := time.NewTicker(tick)
	defer clock.Stop()
	read := func() (order, error) { return s.readOrder(ctx, r, w.id) }
	var ended time.Time // when the final step was sent
	for {
		hints, changed := s.hub.hintState(w)
		o, err := s.hub.readOrder(ctx, w, hints, read)
		switch {
		case err != nil && !st.started:
			return err // still answered with a status: 404, or 503 while the order API is away
		case err == nil:
			if err := st.sendSteps(o); err != nil {
				return err
			}
			if isFinal(o.Status) && ended.IsZero() {
				ended = time.Now()
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-clock.C:
			if err := st.sendHeartbeat(); err != nil {
				return err
			}
			switch {
			case ended.IsZero():
				s.hub.hintIfOlder(w, s.rereadInterval())
			case time.Since(ended) >= lingerTime:
				return nil
			}
		}
	}
}

// rereadInterval is how long an order may go without a read.
func (s *Service) rereadInterval() time.Duration {
	if s.pulse.isAlive() {
		return heartbeat - tick/2 // ticks are not exact
	}
	return pollInterval
}

// A stream sends the steps of an order to one client.
type stream struct {
	w         http.ResponseWriter
	rc        *http.ResponseController
	started   bool
	last      int64 // the last version sent
	lastWrite time.Time
}

// sendSteps sends the steps of the order that were not sent yet. The first call
// sends the headers, too.
func (st *stream) sendSteps(o order) error {
	var b []byte
	if !st.started {
		h := st.w.Header()
		h.Set("Content-Type", "text/event-stream; charset=utf-8")
		h.Set("Cache-Control", "no-store")
		h.Set("X-Accel-Buffering", "no")
		st.started = true
		if err := st.rc.SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return fmt.Errorf("open stream: %w", err)
		}
		b = append(b, "retry: 2000\n\n"...)
	}
	for _, step := range o.History {
		if step.Version <= st.last {
			continue
		}
		data, err := json.Marshal(stepView{OrderID: o.OrderID, step: step})
		if err != nil {
			return fmt.Errorf("encode step: %w", err)
		}
		b = fmt.Appendf(b, "id: %d\ndata: %s\n\n", step.Version, data)
		st.last = step.Version
	}
	return st.write(b)
}

// stepView is the data of one event.
type stepView struct {
	OrderID string `json:"order_id"`
	step
}

// sendHeartbeat sends a comment on a quiet stream, so that no proxy closes it.
func (st *stream) sendHeartbeat() error {
	if time.Since(st.lastWrite) < heartbeat-tick/2 {
		return nil
	}
	return st.write([]byte(":\n\n"))
}

func (st *stream) write(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	st.lastWrite = time.Now()
	if err := st.rc.SetWriteDeadline(st.lastWrite.Add(writeTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("write to stream: %w", err)
	}
	if _, err := st.w.Write(b); err != nil {
		return fmt.Errorf("write to stream: %w", err)
	}
	if err := st.rc.Flush(); err != nil {
		return fmt.Errorf("write to stream: %w", err)
	}
	return nil
}
