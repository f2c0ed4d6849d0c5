package notification

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
)

// A gate stands between a sender and a server and can be shut, which refuses
// service, or cut, which breaks what is open. It can also swallow the answer
// to a mail: the server has taken it and the client never hears.
type gate struct {
	addr   string
	target string

	mu      sync.Mutex
	shut    bool
	swallow int // how many more answers to a final dot are lost
	conns   map[net.Conn]bool
	serving sync.WaitGroup
}

func newGate(t *testing.T, target string) *gate {
	t.Helper()
	ln := listen(t)
	g := &gate{addr: ln.Addr().String(), target: target, conns: map[net.Conn]bool{}}
	g.serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			g.serving.Go(func() { g.serve(conn) })
		}
	})
	t.Cleanup(func() {
		if err := ln.Close(); err != nil {
			t.Error(err)
		}
		g.set(func() { g.shut = true })
		g.cut()
		g.serving.Wait()
	})
	return g
}

func (g *gate) set(change func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change()
}

// cut breaks all open connections.
func (g *gate) cut() {
	g.set(func() {
		for c := range g.conns {
			_ = c.Close() // its reader notices
		}
	})
}

func (g *gate) serve(client net.Conn) {
	server, err := net.Dial("tcp", g.target)
	if err != nil {
		_ = client.Close() // so the client sees what we saw
		return
	}
	g.mu.Lock()
	shut := g.shut
	g.conns[client], g.conns[server] = true, true
	g.mu.Unlock()
	defer g.set(func() { delete(g.conns, client); delete(g.conns, server) })
	var copying sync.WaitGroup
	end := func() { _ = client.Close(); _ = server.Close() }
	if shut {
		end()
		return
	}
	w := &dotWatch{gate: g}
	copying.Go(func() { defer end(); _, _ = io.Copy(io.MultiWriter(w, server), client) })
	copying.Go(func() { defer end(); _, _ = io.Copy(client, io.TeeReader(server, answerWatch{w})) })
	copying.Wait()
}

// A dotWatch sees the client's final dots.
type dotWatch struct {
	gate *gate
	mu   sync.Mutex
	tail []byte
	dot  bool
}

func (w *dotWatch) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tail = append(w.tail, p...)
	w.tail = w.tail[max(0, len(w.tail)-5):]
	w.dot = bytes.Equal(w.tail, []byte("\r\n.\r\n"))
	return len(p), nil
}

// An answerWatch breaks the connection instead of passing on the answer to a
// final dot.
type answerWatch struct{ *dotWatch }

func (w answerWatch) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gate.mu.Lock()
	defer w.gate.mu.Unlock()
	if w.dot && w.gate.swallow > 0 {
		w.gate.swallow--
		return 0, io.ErrClosedPipe
	}
	return len(p), nil
}
