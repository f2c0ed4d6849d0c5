package embedded

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/semaphore"
)

const (
	maxConnections = 512      // of strangers
	maxHeld        = 64 << 20 // bytes of their large requests together, and of the answers to their fetches
	acceptPause    = 50 * time.Millisecond
	lookupTimeout  = 10 * time.Second // for this machine's own name
)

// listener stands in front of the embedded broker, which trusts its peers: it would set aside whatever size a
// request claims and die of one it does not expect. Anybody on the machine can connect, so what the door does not admit
// ends here, and what strangers can hold is bounded. Clients of this process are known by a password, and not counted.
type listener struct {
	net.Listener
	log      *slog.Logger
	address  net.Addr // how clients reach it; the protocol tells them
	door     *door
	password [passwordBytes]byte
	held     *semaphore.Weighted // bytes of large requests
	ready    chan struct{}       // closed by serve
	closed   chan struct{}
	once     sync.Once

	mu        sync.Mutex
	strangers map[*requestConn]struct{}
	turns     uint64
}

func listen(cfg Config, door *door, log *slog.Logger) (*listener, error) {
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
	l := &listener{
		Listener: ln, log: log, address: advertised, door: door, held: semaphore.NewWeighted(maxHeld),
		ready: make(chan struct{}), closed: make(chan struct{}), strangers: make(map[*requestConn]struct{}),
	}
	_, _ = rand.Read(l.password[:]) // never fails
	l.password[0] |= 0x80           // no request is that large
	return l, nil
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
	ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
	defer cancel()
	if _, err := net.DefaultResolver.LookupHost(ctx, name); err != nil {
		return nil, fmt.Errorf("clients would be told to connect to %s, which does not resolve: listen on one address: %w", name, err)
	}
	return advertised(net.JoinHostPort(name, fmt.Sprint(tcp.Port))), nil
}

func (l *listener) serve() { close(l.ready) }

// Addr returns the address that clients are told.
func (l *listener) Addr() net.Addr { return l.address }

// Accept returns the next connection; it waits for serve. What fails for a moment (no file descriptor left) is tried
// again, for the broker stops for good at the first error.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.ready:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	for {
		conn, err := l.Listener.Accept()
		if err == nil {
			c := newRequestConn(l, conn)
			l.enter(c)
			return c, nil
		}
		select {
		case <-l.closed:
			return nil, err
		case <-time.After(acceptPause):
			l.log.Warn("accept a connection", "error", err)
		}
	}
}

// enter counts a connection, a stranger's until it says otherwise. When there are too many strangers, one of them has to
// go: of those who wait for no answer the one that has been silent for longest, or else of them all.
func (l *listener) enter(c *requestConn) {
	l.mu.Lock()
	var out *requestConn
	if len(l.strangers) >= maxConnections {
		for s := range l.strangers {
			if out == nil || s.rank() < out.rank() {
				out = s
			}
		}
		delete(l.strangers, out)
	}
	l.turns++
	c.turn.Store(l.turns)
	l.strangers[c] = struct{}{}
	l.door.strangers.Store(int32(len(l.strangers)))
	l.mu.Unlock()
	if out != nil {
		_ = out.Conn.Close() // the broker is told when it has answered, see next
	}
}

// used notes that a connection has sent a request.
func (l *listener) used(c *requestConn) {
	if !c.trusted {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.turns++
		c.turn.Store(l.turns)
	}
}

// leave counts c no longer among the strangers.
func (l *listener) leave(c *requestConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.strangers, c)
	l.door.strangers.Store(int32(len(l.strangers)))
}

// Close stops accepting; open connections stay.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// passwordBytes is the length of the password. It stands where a request would have its size, and is none.
const passwordBytes = 32

// dialer returns a dial function for clients of this process: it lets the broker know them, so that no number of
// strangers keeps them out.
func (l *listener) dialer(dial func(context.Context, string, string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil || address != l.address.String() {
			return conn, err
		}
		if _, err := conn.Write(l.password[:]); err != nil {
			_ = conn.Close() // the first error is the one to tell
			return nil, err
		}
		return conn, nil
	}
}
