package e2e

import (
	"io"
	"net"
	"sync"
	"testing"
)

// A proxy is an address that stays while what is behind it goes and comes back
// elsewhere. Without a target it hangs up at once.
type proxy struct {
	address string

	mu     sync.Mutex
	target string
	open   map[net.Conn]bool
}

func newProxy(t *testing.T) *proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{address: ln.Addr().String(), open: map[net.Conn]bool{}}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { p.serve(conn) })
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
		for conn := range p.open {
			conn.Close()
		}
	}
}

func (p *proxy) serve(client net.Conn) {
	defer client.Close()
	p.mu.Lock()
	target := p.target
	p.open[client] = true
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.open, client)
		p.mu.Unlock()
	}()
	if target == "" {
		return
	}
	server, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer server.Close()
	var both sync.WaitGroup
	for _, way := range []struct{ from, to net.Conn }{{client, server}, {server, client}} {
		both.Go(func() {
			_, _ = io.Copy(way.to, way.from) // an end of either side is the end of both
			way.from.Close()
			way.to.Close()
		})
	}
	both.Wait()
}
