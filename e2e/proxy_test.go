package e2e

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A proxy is an address that stays while what is behind it goes and comes back
// elsewhere. Without a target it hangs up at once.
type proxy struct {
	address string

	mu     sync.Mutex
	target string
	deaf   bool // new connections are swallowed, too
	lag    time.Duration
	open   map[*flow]bool
}

// A flow is one connection through a proxy.
type flow struct {
	client, server net.Conn    // server is nil while there is none
	swallowed      atomic.Bool // nothing gets through any more, nor an end
	lag            time.Duration
}

func newProxy(t *testing.T) *proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{address: ln.Addr().String(), open: map[*flow]bool{}}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { p.serve(&flow{client: conn}) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		p.lead("")
		serving.Wait()
	})
	return p
}

// lead sends new connections to the target. With "" there is nobody behind the
// proxy any more, and what is open is cut.
func (p *proxy) lead(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
	if target == "" {
		for f := range p.open {
			f.cut()
		}
	}
}

// swallow lets nothing more through what is open, either way, and tells
// nobody: not even an end of one side gets to the other. With deaf the same
// happens to new connections, until lead or another swallow.
func (p *proxy) swallow(deaf bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deaf = deaf
	for f := range p.open {
		f.swallowed.Store(true)
	}
}

// hear ends the deafness for new connections; what was swallowed stays so.
func (p *proxy) hear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deaf = false
}

// delay has everything that is answered on new connections take so much longer.
func (p *proxy) delay(lag time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lag = lag
}

func (p *proxy) serve(f *flow) {
	if !p.connect(f) {
		f.client.Close()
		return
	}
	var both sync.WaitGroup
	both.Go(func() { f.carry(f.server, f.client, 0) })
	both.Go(func() { f.carry(f.client, f.server, f.lag) })
	both.Wait()
	p.mu.Lock()
	delete(p.open, f)
	p.mu.Unlock()
	f.cut()
}

// connect gives the flow its other side, and reports whether there is one.
func (p *proxy) connect(f *flow) bool {
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	if target == "" {
		return false
	}
	server, err := net.Dial("tcp", target)
	if err != nil {
		return false
	}
	f.server = server
	p.mu.Lock()
	defer p.mu.Unlock()
	f.swallowed.Store(p.deaf)
	f.lag = p.lag
	p.open[f] = true
	if p.target == "" { // cut meanwhile
		f.cut()
	}
	return true
}

func (f *flow) cut() {
	f.client.Close()
	f.server.Close()
}

// carry passes on what one side says, after a lag. An end of either side is the end of
// both, unless the flow is swallowed: then it is heard by nobody.
func (f *flow) carry(to, from net.Conn, lag time.Duration) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if lag > 0 {
			<-time.After(lag)
		}
		if !f.swallowed.Load() {
			if n > 0 {
				_, _ = to.Write(buf[:n]) // who does not take it ends, which the other way of the flow sees
			}
			if err != nil {
				f.cut()
			}
		}
		if err != nil {
			return
		}
	}
}
