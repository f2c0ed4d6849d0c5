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
	maxConnections    = 512      // of untrusted clients
	maxUntrustedBytes = 64 << 20 // of their large requests together, and of the answers to their fetches
	acceptPause       = 50 * time.Millisecond
	lookupTimeout     = 10 * time.Second // for this machine's own name
)

// A listener protects the embedded broker, which trusts its clients: it would allocate any size that a request claims, and
// panic at a request that it does not expect. Any process on the machine can connect, so connections whose requests the
// filter refuses are closed, and connections and memory of untrusted clients are limited. Clients of this process
// authenticate by a password and are not limited.
type listener struct {
	net.Listener
	log      *slog.Logger
	address  net.Addr // that the protocol tells clients
	filter   *filter
	password [passwordBytes]byte
	memory   *semaphore.Weighted // maxUntrustedBytes, for large requests
	ready    chan struct{}       // closed by serve
	closed   chan struct{}
	once     sync.Once

	mu        sync.Mutex
	untrusted map[*requestConn]struct{}
	requests  uint64 // of untrusted clients
}

// listen opens the listener, from which nothing is accepted before serve.
func listen(cfg Config, filter *filter, log *slog.Logger) (*listener, error) {
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
		_ = ln.Close() // only the first error is returned
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	if tcp, ok := ln.Addr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() {
		log.Warn("embedded broker: open to the network without authentication",
			"listen", ln.Addr().String(), "advertised", advertised.String())
	}
	l := &listener{
		Listener: ln, log: log, address: advertised, filter: filter, memory: semaphore.NewWeighted(maxUntrustedBytes),
		ready: make(chan struct{}), closed: make(chan struct{}), untrusted: make(map[*requestConn]struct{}),
	}
	_, _ = rand.Read(l.password[:]) // never fails
	l.password[0] |= 0x80           // so that it is not the size of a request
	return l, nil
}

// An advertised address has the name of a host.
type advertised string

func (advertised) Network() string  { return "tcp" }
func (a advertised) String() string { return string(a) }

// advertise returns the address that clients are told to connect to: that of the listener, or for "all interfaces" the
// name of the machine.
func advertise(addr net.Addr) (net.Addr, error) {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() {
		return addr, nil
	}
	name, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("clients need a host name to connect to, and this machine has none: listen on one address: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
	defer cancel()
	if _, err := net.DefaultResolver.LookupHost(ctx, name); err != nil {
		return nil, fmt.Errorf("clients would be told to connect to %s, which does not resolve: listen on one address: %w", name, err)
	}
	return advertised(net.JoinHostPort(name, fmt.Sprint(tcp.Port))), nil
}

// serve lets Accept return connections.
func (l *listener) serve() { close(l.ready) }

// Addr returns the address that clients are told.
func (l *listener) Addr() net.Addr { return l.address }

// Accept returns the next connection; it waits for serve. It tries again after a temporary error (no file descriptor
// left), because the broker would stop for good.
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
			l.add(c)
			return c, nil
		}
		select {
		case <-l.closed:
			return nil, err
		case <-time.After(acceptPause):
			l.log.Warn("embedded broker: cannot accept a connection", "error", err)
		}
	}
}

// add counts a connection, which is untrusted until it sends the password. If there are too many untrusted connections it
// closes the least recently used one: of those that wait for no answer, or else of all.
func (l *listener) add(c *requestConn) {
	l.mu.Lock()
	var evicted *requestConn
	if len(l.untrusted) >= maxConnections {
		for other := range l.untrusted {
			if evicted == nil || other.evictionRank() < evicted.evictionRank() {
				evicted = other
			}
		}
		delete(l.untrusted, evicted)
	}
	l.requests++
	c.lastRequest.Store(l.requests)
	l.untrusted[c] = struct{}{}
	l.filter.untrusted.Store(int32(len(l.untrusted)))
	l.mu.Unlock()
	if evicted != nil {
		_ = evicted.Conn.Close() // the broker learns it when it has answered, see nextRequest
	}
}

// countRequest makes c the most recently used connection.
func (l *listener) countRequest(c *requestConn) {
	if !c.trusted {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.requests++
		c.lastRequest.Store(l.requests)
	}
}

// remove stops counting c among the untrusted connections.
func (l *listener) remove(c *requestConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.untrusted, c)
	l.filter.untrusted.Store(int32(len(l.untrusted)))
}

// Close stops accepting; open connections stay.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// passwordBytes is the length of the password, which a client sends before its first request.
const passwordBytes = 32

// dialer returns a dial function for clients of this process: it sends the password.
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
			_ = conn.Close() // only the first error is returned
			return nil, err
		}
		return conn, nil
	}
}
