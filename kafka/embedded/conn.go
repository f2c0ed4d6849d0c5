package embedded

import (
	"context"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"time"
)

const (
	maxControl = 1 << 20 // bytes of a request that holds no records

	smallRequest = 16 << 10         // bytes; a larger one of an untrusted client counts towards maxUntrustedBytes
	idleLimit    = 10 * time.Minute // between two requests, as Apache Kafka's connections.max.idle.ms, and for the broker's answer
	requestLimit = 30 * time.Second // for a request to arrive whole
	answerLimit  = 60 * time.Second // for a client to read an answer
)

var (
	errNoAnswer = errors.New("the broker does not answer")
	errNoRoom   = errors.New("too many large requests at once")
)

// A requestConn is a connection of a client. The broker reads whole requests from it, one at a time, as the filter
// decides.
type requestConn struct {
	net.Conn
	l           *listener
	trusted     bool          // the client is in this process
	lastRequest atomic.Uint64 // the number of its last request among those of all untrusted clients

	buffer   []byte       // has the current request
	pending  []byte       // the part of it that the broker has not read yet
	reserved atomic.Int64 // bytes of the listener's memory

	queue   [][]byte // the next requests for the broker, whose answers are joined with that to the pending one
	answers [][]byte // to the requests before the pending one

	waiting    atomic.Bool // for the broker's answer
	noResponse bool        // the broker sends none to the current request
	answered   chan struct{}
	closed     context.Context
	close      context.CancelFunc
}

func newRequestConn(l *listener, conn net.Conn) *requestConn {
	c := &requestConn{Conn: conn, l: l, answered: make(chan struct{}, 1)}
	c.closed, c.close = context.WithCancel(context.Background())
	return c
}

// Read returns bytes of the current request, and waits for the next request after its end.
func (c *requestConn) Read(p []byte) (int, error) {
	if len(c.pending) == 0 {
		if err := c.nextRequest(); err != nil {
			return 0, err
		}
	}
	n := copy(p, c.pending)
	c.pending = c.pending[n:]
	return n, nil
}

// nextRequest waits for the answer to the last request, and then for the next request that the filter lets through. So
// the broker does not learn that a client has closed its connection before it has answered: a member of a group whose
// connection is closed when the broker answers its join would get no session, so that it would stay in the group for
// ever, with partitions that no consumer reads.
func (c *requestConn) nextRequest() error {
	for {
		if err := c.awaitAnswer(); err != nil {
			return err
		}
		if len(c.queue) > 0 {
			c.forward(c.queue)
			return nil
		}
		c.release()
		frame, err := c.readRequest()
		if err != nil {
			return err
		}
		decision, err := c.l.filter.decide(frame, c.trusted)
		if err != nil {
			c.l.log.Debug("embedded broker: refused a request", "client", c.RemoteAddr().String(), "error", err)
			return err
		}
		if decision.answer == nil {
			c.noResponse = decision.noResponse
			c.forward(decision.requests)
			return nil
		}
		if err := c.send(decision.answer); err != nil {
			return err
		}
	}
}

// forward lets the broker read the first of the requests, and queues the others.
func (c *requestConn) forward(requests [][]byte) {
	c.pending, c.queue = requests[0], requests[1:]
	c.waiting.Store(!c.noResponse)
}

// awaitAnswer waits until the broker has answered.
func (c *requestConn) awaitAnswer() error {
	if !c.waiting.Load() {
		return nil
	}
	limit := time.NewTimer(idleLimit)
	defer limit.Stop()
	for c.waiting.Load() {
		select {
		case <-c.answered:
		case <-c.closed.Done():
			return net.ErrClosed
		case <-limit.C:
			return errNoAnswer
		}
	}
	return nil
}

// Write sends an answer, which the broker writes with one call.
func (c *requestConn) Write(p []byte) (int, error) {
	err := c.answer(p)
	c.waiting.Store(false)
	select {
	case c.answered <- struct{}{}:
	default:
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// answer sends an answer, or keeps it until it can be joined with those to the queued requests. The reader waits
// meanwhile.
func (c *requestConn) answer(p []byte) error {
	if len(c.queue) == 0 && len(c.answers) == 0 {
		return c.send(p)
	}
	c.answers = append(c.answers, slices.Clone(p))
	if len(c.queue) > 0 {
		return nil
	}
	whole, err := joinProduce(c.answers)
	if c.answers = nil; err != nil {
		return err
	}
	return c.send(whole)
}

func (c *requestConn) send(p []byte) error {
	if err := c.SetWriteDeadline(time.Now().Add(answerLimit)); err != nil {
		return err
	}
	_, err := c.Conn.Write(p)
	return err
}

// readRequest returns the next request, which is valid until it is called again. It allocates memory only for bytes that
// have arrived.
func (c *requestConn) readRequest() ([]byte, error) {
	size, err := c.readHead()
	if err != nil {
		return nil, err
	}
	for len(c.buffer) < size {
		if len(c.buffer) == cap(c.buffer) {
			c.buffer = slices.Grow(c.buffer, min(size-len(c.buffer), max(len(c.buffer), smallRequest)))
		}
		n, err := c.Conn.Read(c.buffer[len(c.buffer):min(size, cap(c.buffer))])
		c.buffer = c.buffer[:len(c.buffer)+n]
		if err != nil {
			return nil, err
		}
		if err := c.reserve(size); err != nil {
			return nil, err
		}
	}
	return c.buffer, nil
}

// readHead waits for a request and reads its first bytes; it returns the size of the whole request.
func (c *requestConn) readHead() (int, error) {
	if cap(c.buffer) > smallRequest {
		c.buffer = nil
	}
	c.buffer = slices.Grow(c.buffer[:0], 256)[:8]
	if err := c.SetReadDeadline(time.Now().Add(idleLimit)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(c.buffer)
	if err != nil {
		return 0, err
	}
	if err := c.SetReadDeadline(time.Now().Add(requestLimit)); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(c.Conn, c.buffer[n:]); err != nil {
		return 0, err
	}
	if !c.trusted && subtle.ConstantTimeCompare(c.buffer, c.l.password[:len(c.buffer)]) == 1 {
		if err := c.readPassword(); err != nil {
			return 0, err
		}
		return c.readHead()
	}
	size := binary.BigEndian.Uint32(c.buffer)
	kind, _ := kindOf(c.buffer)
	rule, ok := rules[kind]
	if !ok {
		return 0, errNotOffered
	}
	if size < requestHead-4 || size > uint32(rule.limit) {
		return 0, errNotKafka
	}
	c.l.countRequest(c)
	return int(size) + 4, nil
}

// readPassword reads the rest of the password, and makes the connection a trusted one.
func (c *requestConn) readPassword() error {
	password := make([]byte, passwordBytes)
	if _, err := io.ReadFull(c.Conn, password[copy(password, c.buffer):]); err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(password, c.l.password[:]) != 1 {
		return errNotKafka
	}
	c.trusted = true
	c.l.remove(c)
	return nil
}

// reserve takes memory for a large request of an untrusted client, once more than smallRequest has arrived. It waits while
// others have all memory.
func (c *requestConn) reserve(size int) error {
	if c.trusted || c.reserved.Load() > 0 || len(c.buffer) <= smallRequest {
		return nil
	}
	ctx, cancel := context.WithTimeout(c.closed, requestLimit)
	defer cancel()
	if err := c.l.memory.Acquire(ctx, int64(size)); err != nil {
		return errNoRoom
	}
	c.reserved.Store(int64(size))
	if c.closed.Err() != nil { // after Close, which would have released it
		c.release()
	}
	return c.SetReadDeadline(time.Now().Add(requestLimit))
}

// release gives reserved memory back.
func (c *requestConn) release() {
	if n := c.reserved.Swap(0); n > 0 {
		c.l.memory.Release(n)
	}
}

// evictionRank orders connections by which is closed first.
func (c *requestConn) evictionRank() uint64 {
	if c.waiting.Load() {
		return c.lastRequest.Load() | 1<<63
	}
	return c.lastRequest.Load()
}

// Close closes the connection and makes room for another.
func (c *requestConn) Close() error {
	c.close()
	c.release()
	c.l.remove(c)
	return c.Conn.Close()
}
