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

	smallRequest = 16 << 10         // bytes; above it a stranger's request counts towards what all of them may hold
	idleLimit    = 10 * time.Minute // between two requests, as Apache Kafka's connections.max.idle.ms, and for an answer
	requestLimit = 30 * time.Second // for a request to arrive whole
	answerLimit  = 60 * time.Second // for an answer to be taken
)

var (
	errNoAnswer = errors.New("the broker does not answer")
	errNoRoom   = errors.New("too much is being asked at once")
)

// requestConn is a connection of a client. It lets the broker see whole requests, one at a time, as far as the door
// admits them.
type requestConn struct {
	net.Conn
	l       *listener
	trusted bool          // the client is in this process
	turn    atomic.Uint64 // when it was used last, in turns of the listener

	buffer  []byte       // of the current request
	pending []byte       // what of it the broker has not read yet
	held    atomic.Int64 // bytes of what all strangers together may hold

	queue   [][]byte // requests for the broker that have one answer together with the pending one
	answers [][]byte // to those before

	waiting  atomic.Bool // the broker has a request that it has not answered
	silent   bool        // it will not answer the current one
	answered chan struct{}
	closed   context.Context
	close    context.CancelFunc
}

func newRequestConn(l *listener, conn net.Conn) *requestConn {
	c := &requestConn{Conn: conn, l: l, answered: make(chan struct{}, 1)}
	c.closed, c.close = context.WithCancel(context.Background())
	return c
}

// Read returns bytes of the current request, and waits for the next when that is done.
func (c *requestConn) Read(p []byte) (int, error) {
	if len(c.pending) == 0 {
		if err := c.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, c.pending)
	c.pending = c.pending[n:]
	return n, nil
}

// next waits for the answer to one request and then for the next one that the broker is to see. So the end of a client
// is kept from the broker until it has answered. A member of a group whose connection the broker knows to be gone when
// it answers the join gets no session: it would never be missed, and what it is to read would be read by nobody for ever.
func (c *requestConn) next() error {
	for {
		if err := c.awaitAnswer(); err != nil {
			return err
		}
		if len(c.queue) > 0 {
			c.hand(c.queue)
			return nil
		}
		c.giveBack()
		frame, err := c.receive()
		if err != nil {
			return err
		}
		passage, err := c.l.door.admit(frame, c.trusted)
		if err != nil {
			c.l.log.Debug("the embedded broker refuses a client", "client", c.RemoteAddr().String(), "error", err)
			return err
		}
		if passage.answer == nil {
			c.silent = passage.silent
			c.hand(passage.requests)
			return nil
		}
		if err := c.send(passage.answer); err != nil {
			return err
		}
	}
}

// hand gives the broker the first of the requests to read, and keeps the others for later.
func (c *requestConn) hand(requests [][]byte) {
	c.pending, c.queue = requests[0], requests[1:]
	c.waiting.Store(!c.silent)
}

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

// Write sends an answer: the broker writes each at once.
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

// answer sends an answer, or keeps it until those to the requests behind it are there, too. The reader waits meanwhile.
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

// receive returns the next request, which is valid until it is called again. What a request claims to be costs nothing
// until it has arrived.
func (c *requestConn) receive() ([]byte, error) {
	size, err := c.head()
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
		if err := c.hold(size); err != nil {
			return nil, err
		}
	}
	return c.buffer, nil
}

// head waits for a request and reads how it begins; it returns the size of all of it.
func (c *requestConn) head() (int, error) {
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
		return c.head()
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
	c.l.used(c)
	return int(size) + 4, nil
}

// readPassword reads the rest of what a client of this process says first.
func (c *requestConn) readPassword() error {
	said := make([]byte, passwordBytes)
	if _, err := io.ReadFull(c.Conn, said[copy(said, c.buffer):]); err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(said, c.l.password[:]) != 1 {
		return errNotKafka
	}
	c.trusted = true
	c.l.leave(c)
	return nil
}

// hold counts a large request of a stranger as soon as enough of it has arrived, and waits while they hold too much.
func (c *requestConn) hold(size int) error {
	if c.trusted || c.held.Load() > 0 || len(c.buffer) <= smallRequest {
		return nil
	}
	ctx, cancel := context.WithTimeout(c.closed, requestLimit)
	defer cancel()
	if err := c.l.held.Acquire(ctx, int64(size)); err != nil {
		return errNoRoom
	}
	c.held.Store(int64(size))
	if c.closed.Err() != nil { // and so nobody gives it back any more
		c.giveBack()
	}
	return c.SetReadDeadline(time.Now().Add(requestLimit))
}

func (c *requestConn) giveBack() {
	if n := c.held.Swap(0); n > 0 {
		c.l.held.Release(n)
	}
}

// rank orders connections by who has to go first.
func (c *requestConn) rank() uint64 {
	if c.waiting.Load() {
		return c.turn.Load() | 1<<63
	}
	return c.turn.Load()
}

// Close ends the connection and makes room for another.
func (c *requestConn) Close() error {
	c.close()
	c.giveBack()
	c.l.leave(c)
	return c.Conn.Close()
}
