package kafkatest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
)

const (
	pipeBytes      = 1 << 20 // that are written and not read yet in one direction, before a writer waits
	firstFreePort  = 20000   // for listeners on port 0
	firstLocalPort = 50000   // for connections
	backlog        = 128     // connections that wait to be accepted
)

// A Network is a network in memory, for tests in a bubble of testing/synctest,
// where a socket would keep the clock from moving. Unlike net.Pipe it buffers,
// takes time, and can be cut. Every host name means 127.0.0.1.
type Network struct {
	// Latency returns how long the bytes of a write take to arrive; they arrive in
	// order all the same. Nil means no time. It must be set before use.
	Latency func() time.Duration

	mu        sync.Mutex
	listeners map[uint16]*listener
	conns     map[*conn]uint16 // the dialling end of each connection, with the port dialled
	state     map[uint16]state
	ports     uint16 // how many ports were given to listeners on port 0
	locals    uint16 // how many ports were given to connections
}

type state int

const (
	healthy state = iota
	cut
	frozen
)

// NewNetwork makes a network without latency.
func NewNetwork() *Network {
	return &Network{listeners: map[uint16]*listener{}, conns: map[*conn]uint16{}, state: map[uint16]state{}}
}

// Listen is net.Listen on this network. Port 0 is any free one.
func (n *Network) Listen(_, address string) (net.Listener, error) {
	port, err := portOf(address)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if port == 0 {
		n.ports++
		port = firstFreePort + n.ports
	}
	if n.listeners[port] != nil {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Addr: addr(port), Err: syscall.EADDRINUSE}
	}
	l := &listener{network: n, port: port, incoming: make(chan *conn, backlog), closed: make(chan struct{})}
	n.listeners[port] = l
	return l, nil
}

// Dial is net.Dialer.DialContext on this network.
func (n *Network) Dial(ctx context.Context, _, address string) (net.Conn, error) {
	port, err := portOf(address)
	if err != nil {
		return nil, err
	}
	if n.Latency != nil {
		if err := pause(ctx, n.Latency()); err != nil {
			return nil, err
		}
	}
	for n.stateOf(port) == frozen {
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: addr(port), Err: err}
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.listeners[port]
	if l == nil || n.state[port] == cut {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: addr(port), Err: syscall.ECONNREFUSED}
	}
	n.locals++
	near, far := n.pipe(addr(firstLocalPort+n.locals%10000), addr(port))
	select {
	case l.incoming <- far:
	default:
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: addr(port), Err: syscall.ECONNREFUSED}
	}
	n.conns[near] = port
	return near, nil
}

// Cut breaks every connection to an address and refuses new ones until Heal. Neither
// end learns how many of its bytes have arrived.
func (n *Network) Cut(address string) { n.set(address, cut) }

// Freeze holds back all bytes to and from an address, and new connections, until Heal
// lets them arrive. Neither end gets an error.
func (n *Network) Freeze(address string) { n.set(address, frozen) }

// Heal ends a Cut or a Freeze.
func (n *Network) Heal(address string) { n.set(address, healthy) }

func (n *Network) set(address string, s state) {
	port, err := portOf(address)
	if err != nil {
		panic(err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.state[port] = s
	for c, p := range n.conns {
		if p != port {
			continue
		}
		for _, h := range []*half{c.in, c.out} {
			h.mu.Lock()
			h.frozen = s == frozen
			if s == cut {
				h.broken = syscall.ECONNRESET
			}
			h.changed.Broadcast()
			h.mu.Unlock()
		}
	}
}

func (n *Network) stateOf(port uint16) state {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.state[port]
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func portOf(address string) (uint16, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return 0, err
	}
	p, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("network in memory: %w", err)
	}
	return uint16(p), nil
}

func addr(port uint16) net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port))
}

type listener struct {
	network  *Network
	port     uint16
	incoming chan *conn
	closed   chan struct{}
	once     sync.Once
}

// Accept waits for the next connection.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.incoming:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close closes the listener, and the connections that were not accepted yet.
func (l *listener) Close() error {
	l.once.Do(func() {
		l.network.mu.Lock()
		delete(l.network.listeners, l.port)
		l.network.mu.Unlock()
		close(l.closed)
		for {
			select {
			case c := <-l.incoming:
				_ = c.Close() // never fails
			default:
				return
			}
		}
	})
	return nil
}

// Addr is where the listener is reached.
func (l *listener) Addr() net.Addr { return addr(l.port) }

// pipe makes the two ends of a connection.
func (n *Network) pipe(local, remote net.Addr) (near, far *conn) {
	there, back := newHalf(n.Latency), newHalf(n.Latency)
	near = &conn{in: back, out: there, local: local, remote: remote}
	far = &conn{in: there, out: back, local: remote, remote: local}
	near.forget = func() {
		n.mu.Lock()
		delete(n.conns, near)
		n.mu.Unlock()
	}
	return near, far
}

// A conn is one end of a connection.
type conn struct {
	in, out       *half
	local, remote net.Addr
	forget        func()
}

// A half is one direction of a connection.
type half struct {
	latency func() time.Duration

	mu            sync.Mutex
	changed       *sync.Cond
	chunks        []chunk
	size          int
	last          time.Time // when the last chunk arrives
	frozen        bool
	broken        error // the connection was cut
	writerClosed  bool
	readerClosed  bool
	readDeadline  deadline
	writeDeadline deadline
}

type chunk struct {
	at   time.Time
	data []byte
}

func newHalf(latency func() time.Duration) *half {
	h := &half{latency: latency}
	h.changed = sync.NewCond(&h.mu)
	return h
}

// A deadline wakes the goroutines that wait when it has passed.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) set(at time.Time, changed *sync.Cond) {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	if d.at = at; !at.IsZero() {
		d.timer = time.AfterFunc(time.Until(at), changed.Broadcast)
	}
	changed.Broadcast()
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

// Read waits for bytes that have arrived.
func (c *conn) Read(p []byte) (int, error) {
	h := c.in
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.readerClosed:
			return 0, net.ErrClosed
		case h.broken != nil:
			return 0, h.broken
		case h.readDeadline.passed():
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		case h.frozen:
		case len(h.chunks) > 0:
			wait := time.Until(h.chunks[0].at)
			if wait <= 0 {
				return h.take(p), nil
			}
			arrival := time.AfterFunc(wait, h.changed.Broadcast)
			h.changed.Wait()
			arrival.Stop()
			continue
		case h.writerClosed:
			return 0, io.EOF
		}
		h.changed.Wait()
	}
}

func (h *half) take(p []byte) int {
	n := copy(p, h.chunks[0].data)
	if h.chunks[0].data = h.chunks[0].data[n:]; len(h.chunks[0].data) == 0 {
		h.chunks = h.chunks[1:]
	}
	h.size -= n
	h.changed.Broadcast()
	return n
}

// Write sends a copy of p, all of it or nothing.
func (c *conn) Write(p []byte) (int, error) {
	h := c.out
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.writerClosed:
			return 0, net.ErrClosed
		case h.broken != nil:
			return 0, h.broken
		case h.readerClosed:
			return 0, syscall.EPIPE
		case h.writeDeadline.passed():
			return 0, os.ErrDeadlineExceeded
		case h.size < pipeBytes:
			at := time.Now()
			if h.latency != nil {
				at = at.Add(h.latency())
			}
			if at.Before(h.last) {
				at = h.last
			}
			h.last = at
			h.chunks = append(h.chunks, chunk{at, append([]byte(nil), p...)})
			h.size += len(p)
			h.changed.Broadcast()
			return len(p), nil
		}
		h.changed.Wait()
	}
}

// Close lets the written bytes arrive and discards the bytes that were not read.
func (c *conn) Close() error {
	c.in.mu.Lock()
	c.in.readerClosed = true
	c.in.readDeadline.set(time.Time{}, c.in.changed)
	c.in.mu.Unlock()
	c.out.mu.Lock()
	c.out.writerClosed = true
	c.out.writeDeadline.set(time.Time{}, c.out.changed)
	c.out.mu.Unlock()
	if c.forget != nil {
		c.forget()
	}
	return nil
}

// LocalAddr is this end's address.
func (c *conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr is the other end's address.
func (c *conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline is for reads and writes.
func (c *conn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t) // neither fails
	return c.SetWriteDeadline(t)
}

// SetReadDeadline ends reads at a time.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	c.in.readDeadline.set(t, c.in.changed)
	return nil
}

// SetWriteDeadline ends writes at a time.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	c.out.writeDeadline.set(t, c.out.changed)
	return nil
}
