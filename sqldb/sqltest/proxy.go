package sqltest

import (
	"net"
	"net/url"
	"sync"
	"testing"
)

// A Proxy is the way to a server: it can be cut, fall silent, or lead to
// another server.
type Proxy struct {
	t        testing.TB
	listener net.Listener
	copies   sync.WaitGroup

	mu     sync.Mutex
	target string
	cut    bool
	flows  []*flow
}

// A flow is one connection through the proxy.
type flow struct {
	client, server net.Conn
	silent         bool // what comes is thrown away
}

// NewProxy starts a proxy before the server of a URL and returns the URL that
// leads through it. It ends with the test.
func NewProxy(t testing.TB, rawURL string) (p *Proxy, through string) {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p = &Proxy{t: t, listener: l, target: u.Host}
	u.Host = l.Addr().String()
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		p.Cut()
		p.copies.Wait()
	})
	p.copies.Go(p.accept)
	return p, u.String()
}

// Cut closes all connections, and closes new ones at once.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = true
	for _, f := range p.flows {
		f.close()
	}
	p.flows = nil
}

// Pass lets new connections through again.
func (p *Proxy) Pass() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = false
}

// Lead has new connections go to the server of another URL. Those that there
// are stay where they are.
func (p *Proxy) Lead(rawURL string) {
	p.t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		p.t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = u.Host
}

// Silence swallows from now on what is sent on the connections that there are,
// either way, and closes none: a firewall that forgot them. New ones work.
func (p *Proxy) Silence() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.flows {
		f.silent = true
	}
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		target, cut := p.target, p.cut
		p.mu.Unlock()
		server, err := net.Dial("tcp", target)
		if err != nil || cut {
			f := flow{client: client, server: server}
			f.close()
			continue
		}
		f := &flow{client: client, server: server}
		p.mu.Lock()
		p.flows = append(p.flows, f)
		if p.cut { // meanwhile
			f.close()
		}
		p.mu.Unlock()
		p.copies.Go(func() { p.copy(f, client, server) })
		p.copies.Go(func() { p.copy(f, server, client) })
	}
}

// copy passes one way of a flow on.
func (p *Proxy) copy(f *flow, from, to net.Conn) {
	defer f.close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		p.mu.Lock()
		silent := f.silent
		p.mu.Unlock()
		if silent {
			continue
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// close closes what there is of a flow, of which an end may be closed already.
func (f *flow) close() {
	for _, c := range []net.Conn{f.client, f.server} {
		if c != nil {
			_ = c.Close() // closed already, or closed now
		}
	}
}
