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

// errNoAnswer ends a request without a word: the connection is cut.
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

// answer is the status of a request, written before it is sent.
type answer struct {
	Seq    int64 `json:"seq"`
	Status int   `json:"status"`
}

// loggedRequest is an entry as it is shown; status 0 means no answer.
type loggedRequest struct {
	Method         string    `json:"method"`
	Path           string    `json:"path"`
	IdempotencyKey string    `json:"idempotency_key"`
	OrderReference string    `json:"order_reference"`
	Status         int       `json:"status"`
	ReceivedAt     time.Time `json:"received_at"`
}

// requestLog remembers the status of each request; the rest is in the file.
type requestLog struct {
	mu       sync.Mutex
	statuses []uint16 // by seq - 1
}

// next numbers a request and writes its entry under one lock, so that the
// entries lie in the file in the order of their numbers.
func (l *requestLog) next(write func(seq int64) error) (seq int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	seq = int64(len(l.statuses)) + 1
	if err := write(seq); err != nil {
		return 0, err
	}
	l.statuses = append(l.statuses, 0)
	return seq, nil
}

func (l *requestLog) seen(seq int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for int64(len(l.statuses)) < seq {
		l.statuses = append(l.statuses, 0)
	}
}

func (l *requestLog) answered(a answer) {
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
	seq  int64  // in the request log; 0 before begin
	lost bool   // the answer is to be lost
}

// exchanged serves a request with h. What h returns instead of answering is
// answered as an error, or, as errNoAnswer, by cutting the connection.
func (p *payments) exchanged(h func(*exchange) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		x := &exchange{p: p, w: w, r: r, key: r.Header.Get("Idempotency-Key")}
		err := h(x)
		if err != nil && !errors.Is(err, errNoAnswer) {
			err = x.refuse(err)
		}
		if errors.Is(err, errNoAnswer) {
			panic(http.ErrAbortHandler) // how net/http cuts a connection
		}
		if err != nil {
			writeError(w, p.log, err)
		}
	}
}

// begin writes the entry of the request log, with status 0 as long as nothing
// is answered.
func (x *exchange) begin(order string) error {
	seq, err := x.p.requests.next(func(seq int64) error {
		line, err := encodeLine(record{Request: &request{
			Seq: seq, Method: x.r.Method, Path: x.r.URL.Path,
			IdempotencyKey: x.key, OrderReference: order, ReceivedAt: now(),
		}})
		if err != nil {
			return err
		}
		return x.p.journal.note(line)
	})
	x.seq = seq
	return err
}

// answer makes the facts and the status durable together, then sends the body.
func (x *exchange) answer(status int, body any, facts record) error {
	if x.lost {
		if err := x.p.append(facts); err != nil {
			return err
		}
		return errNoAnswer
	}
	reads := x.r.Method == http.MethodGet && facts == (record{})
	facts.Answer = &answer{Seq: x.seq, Status: status}
	if err := x.keep(facts, reads); err != nil {
		return err
	}
	writeJSON(x.w, x.p.log, status, body)
	return nil
}

// keep appends the facts; those of a mere lookup need not wait for the disk.
func (x *exchange) keep(facts record, lazily bool) error {
	if !lazily {
		return x.p.append(facts)
	}
	line, err := encodeLine(facts)
	if err != nil {
		return err
	}
	if err := x.p.journal.note(line); err != nil {
		return err
	}
	x.p.apply(facts)
	return nil
}

// refuse answers with an error: one of ours as it is, any other as a 500.
func (x *exchange) refuse(cause error) error {
	var e *apiError
	if !errors.As(cause, &e) {
		return cause
	}
	if x.seq == 0 {
		if err := x.begin(""); err != nil {
			return err
		}
	}
	return x.answer(e.status, e, e.facts)
}

// hold never answers; it returns when the client or the sandbox goes.
func (x *exchange) hold() error {
	select {
	case <-x.r.Context().Done():
	case <-x.p.stop:
	}
	return errNoAnswer
}

// pause delays the answer, unless the client or the sandbox goes meanwhile.
func (x *exchange) pause(d time.Duration) error {
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

// handleListRequests streams the log from the file, of which memory holds the
// statuses alone.
func (p *payments) handleListRequests(w http.ResponseWriter, _ *http.Request) {
	streamList(w, p.log, func(item func(any) error) error {
		return eachLine(p.journal.whole(), func(line []byte) error {
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
