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
	tick         = 3 * time.Second  // between looks at the clock
	heartbeat    = 15 * time.Second // between comments on a quiet stream, and between re-reads in case a hint was lost
	impatience   = 2 * time.Second  // between re-reads while Kafka is away
	lingering    = time.Minute      // for which a stream stays after the final step
	writeTimeout = 10 * time.Second // of one write to one client
)

// A hub knows which orders are being watched, and wakes their streams.
type hub struct {
	limit int

	mu     sync.Mutex
	open   int
	orders map[string]*watch
}

// A watch is what all streams of one order share: they are woken together and
// read the order once for all. No stream has a queue: what a slow client has
// missed is in the order's history when it is ready to go on.
type watch struct {
	id string

	// Guarded by the hub's mutex.
	streams int
	hints   int64         // how often the order was said to have changed
	changed chan struct{} // closed with the next hint
	asked   time.Time     // when the order was last read, or tried to be

	// Guarded by turn, which one stream at a time holds.
	turn  chan struct{}
	known int64 // the hints that were there before order was read; -1 at first
	order order
}

func newHub(limit int) *hub { return &hub{limit: limit, orders: map[string]*watch{}} }

// join adds a stream to the order's watch; nil when there are too many.
func (h *hub) join(id string) *watch {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open >= h.limit {
		return nil
	}
	w := h.orders[id]
	if w == nil {
		w = &watch{id: id, changed: make(chan struct{}), turn: make(chan struct{}, 1), known: -1}
		h.orders[id] = w
	}
	w.streams++
	h.open++
	return w
}

func (h *hub) leave(w *watch) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open--
	if w.streams--; w.streams == 0 {
		delete(h.orders, w.id)
	}
}

func (h *hub) streams() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.open
}

// hint says that an order may have changed.
func (h *hub) hint(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if w := h.orders[id]; w != nil {
		w.wake()
	}
}

// refresh gives the hint by itself if the order has not been read for age.
func (h *hub) refresh(w *watch, age time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Since(w.asked) >= age {
		w.asked = time.Now()
		w.wake()
	}
}

func (w *watch) wake() {
	w.hints++
	close(w.changed)
	w.changed = make(chan struct{})
}

// look returns the hints so far and what the next one closes. Whoever looks first
// and then reads misses nothing.
func (h *hub) look(w *watch) (hints int64, changed <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return w.hints, w.changed
}

// read returns the order as it is after the given number of hints. If another
// stream has read it since, that is it.
func (h *hub) read(ctx context.Context, w *watch, hints int64, read func() (order, error)) (order, error) {
	select {
	case w.turn <- struct{}{}:
	case <-ctx.Done():
		return order{}, ctx.Err()
	}
	defer func() { <-w.turn }()
	if w.known >= hints {
		return w.order, nil
	}
	h.mu.Lock()
	now := w.hints
	w.asked = time.Now()
	h.mu.Unlock()
	o, err := read()
	if err != nil {
		return order{}, err
	}
	w.known, w.order = now, o
	return o, nil
}

// handleGetEvents sends the steps of an order above Last-Event-ID, and every
// further one when it comes.
func (s *Service) handleGetEvents(w http.ResponseWriter, r *http.Request) {
	last, ok := lastEventID(r)
	if !ok {
		web.Error(w, r, s.log, web.NewProblem(http.StatusBadRequest, "last-event-id-malformed",
			"Last-Event-ID is malformed", "Send the id of the last event that was received, a version, or none."))
		return
	}
	watched := s.hub.join(r.PathValue("id"))
	if watched == nil {
		web.Error(w, r, s.log, web.Unavailable("Too many orders are being watched at the moment."))
		return
	}
	defer s.hub.leave(watched)
	st := &stream{w: w, rc: http.NewResponseController(w), last: last}
	if err := s.follow(r, watched, st); err != nil {
		switch {
		case !st.begun:
			web.Error(w, r, s.log, err)
		case r.Context().Err() == nil:
			s.log.Debug("stream broke off", "order_id", watched.id, "error", err.Error())
		}
	}
}

// lastEventID reads the version that the client has; 0 when it does not say.
func lastEventID(r *http.Request) (int64, bool) {
	values := r.Header.Values("Last-Event-ID")
	if len(values) == 0 {
		return 0, true
	}
	n, err := strconv.ParseInt(values[0], 10, 64)
	return n, len(values) == 1 && err == nil && n >= 0
}

// follow sends steps until the client leaves, or a while after the final one.
func (s *Service) follow(r *http.Request, w *watch, st *stream) error {
	ctx := r.Context()
	clock := time.NewTicker(tick)
	defer clock.Stop()
	read := func() (order, error) { return s.readOrder(ctx, r, w.id) }
	var ended time.Time // when the final step was sent
	for {
		hints, changed := s.hub.look(w)
		o, err := s.hub.read(ctx, w, hints, read)
		switch {
		case err != nil && !st.begun:
			return err // there is no such order, or nobody who knows
		case err == nil:
			if err := st.send(o); err != nil {
				return err
			}
			if final(o.Status) && ended.IsZero() {
				ended = time.Now()
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-clock.C:
			if err := st.beat(); err != nil {
				return err
			}
			switch {
			case ended.IsZero():
				s.hub.refresh(w, s.patience())
			case time.Since(ended) >= lingering:
				return nil
			}
		}
	}
}

// patience is how long an order may go without being read again.
func (s *Service) patience() time.Duration {
	if s.pulse.alive() {
		return heartbeat - tick/2 // ticks are not exact
	}
	return impatience
}

// A stream is one client that is being sent an order's steps.
type stream struct {
	w     http.ResponseWriter
	rc    *http.ResponseController
	begun bool
	last  int64     // the version sent last
	spoke time.Time // when something was sent last
}

// send sends the order's steps above the last one sent. It begins the stream.
func (st *stream) send(o order) error {
	var b []byte
	if !st.begun {
		h := st.w.Header()
		h.Set("Content-Type", "text/event-stream; charset=utf-8")
		h.Set("Cache-Control", "no-store")
		h.Set("X-Accel-Buffering", "no")
		st.begun = true
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

// beat keeps a quiet connection from being taken for a dead one.
func (st *stream) beat() error {
	if time.Since(st.spoke) < heartbeat-tick/2 {
		return nil
	}
	return st.write([]byte(":\n\n"))
}

func (st *stream) write(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	st.spoke = time.Now()
	if err := st.rc.SetWriteDeadline(st.spoke.Add(writeTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
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
