package sandbox

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// errNoAnswer ends a request without an answer: the connection is cut.
var errNoAnswer = errors.New("no answer")

// request is one entry of the request log, written when it arrives.
type request struct {
	Seq            int64     `json:"seq"`
	Method         string    `json:"method"`
	Path           string    `json:"path"`
	IdempotencyKey string    `json:"idempotency_key"`
	OrderReference string    `json:"order_reference"`
	ReceivedAt     time.Time `json:"received_at"`
}

// answer is the status of a request, stored before it is sent.
type answer struct {
	Seq    int64 `json:"seq"`
	Status int   `json:"status"`
}

// loggedRequest is an entry as the list shows it; status 0 means no answer.
type loggedRequest struct {
	Method         string    `json:"method"`
	Path           string    `json:"path"`
	IdempotencyKey string    `json:"idempotency_key"`
	OrderReference string    `json:"order_reference"`
	Status         int       `json:"status"`
	ReceivedAt     time.Time `json:"received_at"`
}

// requestLog has the status of each request; the rest is in the file.
type requestLog struct {
	mu       sync.Mutex
	statuses []uint16 // by seq - 1
}

// appendEntry numbers a request and writes its entry under one lock, so that the
// entries are in the file in the order of their numbers.
func (l *requestLog) appendEntry(write func(seq int64) error) (seq int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	seq = int64(len(l.statuses)) + 1
	if err := write(seq); err != nil {
		return 0, err
	}
	l.statuses = append(l.statuses, 0)
	return seq, nil
}

func (l *requestLog) extendTo(seq int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for int64(len(l.statuses)) < seq {
		l.statuses = append(l.statuses, 0)
	}
}

func (l *requestLog) setStatus(a answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a.Seq >= 1 && a.Seq <= int64(len(l.statuses)) {
		l.statuses[a.Seq-1] = uint16(a.Status)
	}
}

func (l *requestLog) status(seq int64) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int(l.statuses[seq-1])
}

// exchange is one request to the provider from its arrival to its answer.
type exchange struct {
	p    *payments
	w    http.ResponseWriter
	r    *http.Request
	key  string // Idempotency-Key
	seq  int64  // in the request log; 0 before logRequest
	lost bool   // the answer will be lost: the connection is cut instead
}

// handleExchange serves requests with h. It answers with the error that h returns; at
// errNoAnswer it cuts the connection.
func (p *payments) handleExchange(h func(*exchange) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		x := &exchange{p: p, w: w, r: r, key: r.Header.Get("Idempotency-Key")}
		err := h(x)
		if err != nil && !errors.Is(err, errNoAnswer) {
			err = x.answerError(err)
		}
		if errors.Is(err, errNoAnswer) {
			panic(http.ErrAbortHandler) // how net/http cuts a connection
		}
		if err != nil {
			writeError(w, p.log, err)
		}
	}
}

// logRequest writes the request's entry in the log, with status 0 until there is an
// answer.
func (x *exchange) logRequest(order string) error {
	seq, err := x.p.requests.appendEntry(func(seq int64) error {
		line, err := encodeLine(record{Request: &request{
			Seq: seq, Method: x.r.Method, Path: x.r.URL.Path,
			IdempotencyKey: x.key, OrderReference: order, ReceivedAt: now(),
		}})
		if err != nil {
			return err
		}
		return x.p.journal.appendUnsynced(line)
	})
	x.seq = seq
	return err
}

// answer stores the facts and the status together and then sends the body.
func (x *exchange) answer(status int, body any, facts record) error {
	if x.lost {
		if err := x.p.append(facts); err != nil {
			return err
		}
		return errNoAnswer
	}
	reads := x.r.Method == http.MethodGet && facts == (record{})
	facts.Answer = &answer{Seq: x.seq, Status: status}
	if err := x.appendFacts(facts, reads); err != nil {
		return err
	}
	writeJSON(x.w, x.p.log, status, body)
	return nil
}

// appendFacts appends the facts. It appends lazily, without waiting for the disk, the
// facts of a lookup.
func (x *exchange) appendFacts(facts record, lazily bool) error {
	if !lazily {
		return x.p.append(facts)
	}
	line, err := encodeLine(facts)
	if err != nil {
		return err
	}
	if err := x.p.journal.appendUnsynced(line); err != nil {
		return err
	}
	x.p.apply(facts)
	return nil
}

// answerError answers with cause if it is an apiError, and else returns it.
func (x *exchange) answerError(cause error) error {
	var e *apiError
	if !errors.As(cause, &e) {
		return cause
	}
	if x.seq == 0 {
		if err := x.logRequest(""); err != nil {
			return err
		}
	}
	return x.answer(e.status, e, e.facts)
}

// hang returns without an answer when the client leaves or the sandbox stops.
func (x *exchange) hang() error {
	select {
	case <-x.r.Context().Done():
	case <-x.p.stop:
	}
	return errNoAnswer
}

// delay waits for d. It returns errNoAnswer when the client leaves or the sandbox stops.
func (x *exchange) delay(d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-x.r.Context().Done():
		return errNoAnswer
	case <-x.p.stop:
		return errNoAnswer
	}
}

// handleListRequests streams the log from the file; only the statuses are in memory.
func (p *payments) handleListRequests(w http.ResponseWriter, _ *http.Request) {
	streamList(w, p.log, func(item func(any) error) error {
		return eachLine(p.journal.newReader(), func(line []byte) error {
			if !bytes.HasPrefix(line, []byte(`{"request":`)) {
				return nil
			}
			var rec record
			if err := json.Unmarshal(line, &rec); err != nil {
				return fmt.Errorf("read request log: %w", err)
			}
			q := rec.Request
			return item(loggedRequest{
				Method: q.Method, Path: q.Path, IdempotencyKey: q.IdempotencyKey,
				OrderReference: q.OrderReference, Status: p.requests.status(q.Seq), ReceivedAt: q.ReceivedAt,
			})
		})
	})
}

func eachLine(r *bufio.Reader, do func(line []byte) error) error {
	var buf []byte
	for {
		line, err := readLine(r, &buf)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := do(line); err != nil {
			return err
		}
	}
}
