package kafka

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	maxConnections = 1024
	maxRequest     = 100 << 20        // bytes, as Apache Kafka's socket.request.max.bytes
	idleLimit      = 10 * time.Minute // between two requests, as Apache Kafka's connections.max.idle.ms
	requestLimit   = 30 * time.Second // for a request to arrive whole
	acceptPause    = 50 * time.Millisecond
)

// listener stands in front of the embedded broker, which trusts its peers: it would set aside whatever size a
// request claims and die of one it does not know. Anybody on the machine can connect, so what is not a request
// of the protocol ends the connection here.
type listener struct {
	net.Listener
	log     *slog.Logger
	address net.Addr // how clients reach it; the protocol tells them
	slots   chan struct{}
	ready   chan struct{} // closed by serve
	closed  chan struct{}
	once    sync.Once
}

func listen(cfg BrokerConfig, log *slog.Logger) (*listener, error) {
	address, open := cfg.Listen, cfg.ListenFn
	if address == "" {
		address = DefaultListen
	}
	if open == nil {
		open = net.Listen
	}
	ln, err := open("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s is in use by another program: stop it, or listen on another port: %w", address, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	advertised, err := advertise(ln.Addr())
	if err != nil {
		_ = ln.Close() // the first error is the one to tell
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	if tcp, ok := ln.Addr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() {
		log.Warn("the embedded broker asks nobody for a password, and is open to the network",
			"listen", ln.Addr().String(), "advertised", advertised.String())
	}
	return &listener{
		Listener: ln, log: log, address: advertised, slots: make(chan struct{}, maxConnections),
		ready: make(chan struct{}), closed: make(chan struct{}),
	}, nil
}

// advertised is an address given by name.
type advertised string

func (advertised) Network() string  { return "tcp" }
func (a advertised) String() string { return string(a) }

// advertise returns the address that clients are told to connect to: the one listened on, but "all interfaces"
// is none, so there it is the name of the machine.
func advertise(addr net.Addr) (net.Addr, error) {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() {
		return addr, nil
	}
	name, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("clients need a name to connect to, and this machine has none: listen on one address: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	if _, err := net.DefaultResolver.LookupHost(ctx, name); err != nil {
		return nil, fmt.Errorf("clients would be told to connect to %s, which does not resolve: listen on one address: %w", name, err)
	}
	return advertised(net.JoinHostPort(name, fmt.Sprint(tcp.Port))), nil
}

func (l *listener) serve() { close(l.ready) }

// Addr returns the address that clients are told.
func (l *listener) Addr() net.Addr { return l.address }

// Accept returns the next connection. It waits for serve, and while maxConnections are open for one to end. What
// fails for a moment (no file descriptor left) is tried again, for the broker stops for good at the first error.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.ready:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	for {
		conn, err := l.Listener.Accept()
		if err == nil {
			return &requestConn{Conn: conn, release: func() { <-l.slots }, answered: make(chan struct{}, 1), closed: make(chan struct{})}, nil
		}
		select {
		case <-l.closed:
			<-l.slots
			return nil, err
		case <-time.After(acceptPause):
			l.log.Warn("accept a connection", "error", err)
		}
	}
}

// Close stops accepting; open connections stay.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// requestConn lets requests through that are known and of a bounded size, and nothing else.
type requestConn struct {
	net.Conn
	release func()
	once    sync.Once

	head    [8]byte // of the current request: its size, kind and version
	pending []byte  // what of head was not handed on yet
	left    int     // bytes of the request behind head that were not read yet

	waiting  atomic.Int32 // requests without an answer
	answered chan struct{}
	closed   chan struct{}
}

var errNotKafka = errors.New("not a request of the Kafka protocol")

// Read returns bytes of the current request, and begins the next when that is done.
func (c *requestConn) Read(p []byte) (int, error) {
	n, err := c.read(p)
	if err != nil {
		c.awaitAnswers()
	}
	return n, err
}

// awaitAnswers keeps the end of a client from the broker until it has answered. A member of a group whose
// connection the broker knows to be gone when it answers the join gets no session: it would never be missed,
// and what it is to read would be read by nobody for ever.
func (c *requestConn) awaitAnswers() {
	limit := time.NewTimer(idleLimit)
	defer limit.Stop()
	for c.waiting.Load() > 0 {
		select {
		case <-c.answered:
		case <-c.closed:
			return
		case <-limit.C: // some requests have no answer
			return
		}
	}
}

// Write sends an answer: the broker writes each at once.
func (c *requestConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.waiting.Add(-1)
	select {
	case c.answered <- struct{}{}:
	default:
	}
	return n, err
}

func (c *requestConn) read(p []byte) (int, error) {
	if len(c.pending) == 0 && c.left == 0 {
		if err := c.next(); err != nil {
			return 0, err
		}
	}
	if len(c.pending) > 0 {
		n := copy(p, c.pending)
		c.pending = c.pending[n:]
		return n, nil
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

// next waits for a request and looks at its head.
func (c *requestConn) next() error {
	if err := c.SetReadDeadline(time.Now().Add(idleLimit)); err != nil {
		return err
	}
	if _, err := io.ReadFull(c.Conn, c.head[:1]); err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(requestLimit)); err != nil {
		return err
	}
	if _, err := io.ReadFull(c.Conn, c.head[1:]); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(c.head[0:])
	kind := int16(binary.BigEndian.Uint16(c.head[4:]))
	if size < 8 || size > maxRequest || kmsg.RequestForKey(kind) == nil { // 8: kind, version and a number for the answer
		return errNotKafka
	}
	c.pending, c.left = c.head[:], int(size)-4
	c.waiting.Add(1)
	return nil
}

// Close ends the connection and makes room for another.
func (c *requestConn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		c.release()
	})
	return c.Conn.Close()
}
