package testkit

import (
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A Proxy is a TCP proxy: an address that stays while the server behind it goes
// away, falls silent, becomes slow or is replaced by another one.
type Proxy struct {
	address string

	mu     sync.Mutex
	target string // "" for none
	cut    bool
	silent bool // new connections are silent
	delay  time.Duration
	open   map[*flow]bool
}

// A flow is a connection through a proxy.
type flow struct {
	client, server net.Conn
	silent         atomic.Bool
	delay          time.Duration
}

// NewProxy starts a proxy that ends with the test. Until Lead names a server it
// closes each connection at once.
func NewProxy(t testing.TB) *Proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{address: listener.Addr().String(), open: map[*flow]bool{}}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { p.serve(&flow{client: conn}) })
		}
	})
	t.Cleanup(func() {
		if err := listener.Close(); err != nil {
			t.Error(err)
		}
		p.Cut()
		serving.Wait()
	})
	return p
}

// NewURLProxy starts a proxy before the server of a URL, and returns the URL that
// leads through the proxy.
func NewURLProxy(t testing.TB, rawURL string) (p *Proxy, through string) {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	p = NewProxy(t)
	p.Lead(u.Host)
	u.Host = p.Addr()
	return p, u.String()
}

// Addr is the address of the proxy.
func (p *Proxy) Addr() string { return p.address }

// Lead lets new connections go to a server at host:port, and ends Cut. Open
// connections stay as they are.
func (p *Proxy) Lead(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target, p.cut = target, false
}

// Cut closes all connections, and closes new ones at once until Restore or Lead.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = true
	for f := range p.open {
		f.close()
	}
}

// Restore ends Cut.
func (p *Proxy) Restore() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = false
}

// Silence drops from now on all bytes on open connections, either way, like a
// firewall that forgot them: not even the end of one side gets to the other. With
// newOnes it does so on new connections, too, until EndSilence.
func (p *Proxy) Silence(newOnes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.silent = newOnes
	for f := range p.open {
		f.silent.Store(true)
	}
}

// EndSilence lets new connections through again; silent ones stay silent.
func (p *Proxy) EndSilence() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.silent = false
}

// Delay lets the answers on new connections take so much longer.
func (p *Proxy) Delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

func (p *Proxy) serve(f *flow) {
	if !p.connect(f) {
		_ = f.client.Close() // never fails
		return
	}
	var both sync.WaitGroup
	both.Go(func() { f.copy(f.server, f.client, 0) })
	both.Go(func() { f.copy(f.client, f.server, f.delay) })
	both.Wait()
	p.mu.Lock()
	delete(p.open, f)
	p.mu.Unlock()
	f.close()
}

// connect connects the flow to the server, and reports whether it could.
func (p *Proxy) connect(f *flow) bool {
	p.mu.Lock()
	target, cut := p.target, p.cut
	p.mu.Unlock()
	if target == "" || cut {
		return false
	}
	server, err := net.Dial("tcp", target)
	if err != nil {
		return false
	}
	f.server = server
	p.mu.Lock()
	defer p.mu.Unlock()
	f.silent.Store(p.silent)
	f.delay = p.delay
	p.open[f] = true
	if p.cut { // meanwhile
		f.close()
	}
	return true
}

// close closes both sides, which may be closed already.
func (f *flow) close() {
	_ = f.client.Close()
	_ = f.server.Close()
}

// copy passes on the bytes of one side, after a delay. The end of a side closes
// both, unless the flow is silent.
func (f *flow) copy(to, from net.Conn, delay time.Duration) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if delay > 0 {
			time.Sleep(delay)
		}
		if !f.silent.Load() {
			if n > 0 {
				_, _ = to.Write(buf[:n]) // if that fails the other copy of the flow sees the end
			}
			if err != nil {
				f.close()
			}
		}
		if err != nil {
			return
		}
	}
}
