package web

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// listen runs Serve on a port of this machine until the test ends.
func listen(t *testing.T, h http.Handler) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, ln, h, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String()
}

// exchange sends parts on a new connection and returns the statuses of all answers
// up to its end. Sending the parts after a refusal may fail.
func exchange(t *testing.T, addr string, parts ...string) (statuses []string) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	go func() {
		for _, part := range parts {
			if _, err := io.WriteString(conn, part); err != nil {
				return
			}
		}
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	in := bufio.NewReader(conn)
	for {
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			return statuses
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Errorf("answer %d: %v", len(statuses), err)
		}
		_ = resp.Body.Close()
		statuses = append(statuses, fmt.Sprint(resp.StatusCode))
	}
}

// TestOnTheWire sends malformed requests. Whatever the answers are, no more orders are
// placed than each case says: no request is smuggled.
func TestOnTheWire(t *testing.T) {
	var placed atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/v1/orders", func(w http.ResponseWriter, r *http.Request) {
		var v sample
		if _, err := Decode(w, r, &v); err != nil {
			Error(w, r, nil, err)
			return
		}
		placed.Add(1)
		JSON(w, http.StatusCreated, "placed")
	})
	addr := listen(t, Handler(mux, HandlerConfig{}))
	const head = "POST /api/v1/orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
	const order = head + "Content-Length: 2\r\n\r\n{}"
	const last = head + "Connection: close\r\nContent-Length: 2\r\n\r\n{}"
	for _, c := range []struct {
		name   string
		parts  []string
		want   string
		placed int64
	}{
		{"one", []string{last}, "201", 1},
		{"pipelined", []string{strings.Repeat(order, 100)}, strings.TrimSpace(strings.Repeat("201 ", 100)), 100},
		{"10 MiB", []string{head + "Content-Length: 10485760\r\n\r\n", strings.Repeat(" ", 10<<20)}, "413", 0},
		{"chunks without end", []string{head + "Transfer-Encoding: chunked\r\n\r\n", strings.Repeat("400\r\n"+strings.Repeat(" ", 1024)+"\r\n", 10<<10)}, "413", 0},
		{"64 KiB and 1 in chunks", []string{head + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\nffff\r\n" + strings.Repeat(" ", 65535) + "\r\n0\r\n\r\n"}, "413", 0},
		{"shorter than announced", []string{head + "Content-Length: 10\r\n\r\n{}"}, "400", 0},
		{"bad chunk size", []string{head + "Transfer-Encoding: chunked\r\n\r\nxyz\r\n{}\r\n0\r\n\r\n"}, "400", 0},
		{"two lengths", []string{head + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} "}, "400", 0},
		{"negative length", []string{head + "Content-Length: -1\r\n\r\n{}"}, "400", 0},
		{"unknown coding", []string{head + "Transfer-Encoding: xchunked\r\n\r\n{}"}, "501", 0},
		{"length and chunks", []string{head + "Connection: close\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n" + order}, "201", 1},
		{"space before the colon", []string{"POST /api/v1/orders HTTP/1.1\r\nHost : x\r\n\r\n"}, "400", 0},
		{"NUL in a header", []string{head + "X: a\x00b\r\nContent-Length: 2\r\n\r\n{}"}, "400", 0},
		{"no host", []string{"POST /api/v1/orders HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"}, "400", 0},
		{"two hosts", []string{head + "Host: y\r\nContent-Length: 2\r\n\r\n{}"}, "400", 0},
		{"foreign host", []string{strings.Replace(last, "Host: x", "Host: evil.example", 1)}, "201", 1},
		{"absolute form", []string{strings.Replace(last, "POST /", "POST http://evil.example/", 1)}, "201", 1},
		{"header of 1 MiB", []string{head + "X: " + strings.Repeat("a", 1<<20) + "\r\n\r\n"}, "431", 0},
		{"headers of 24 KiB", []string{head + strings.Repeat("X: "+strings.Repeat("a", 1019)+"\r\n", 24) + "Content-Length: 2\r\n\r\n{}"}, "431", 0},
		{"path of 1 MiB", []string{"GET /api/v1/" + strings.Repeat("a", 1<<20) + " HTTP/1.1\r\nHost: x\r\n\r\n"}, "431", 0},
		{"strange expectation", []string{head + "Expect: bogus\r\nContent-Length: 2\r\n\r\n{}"}, "417", 0},
		{"not HTTP", []string{"\x16\x03\x01\x02\x00\x01"}, "400", 0},
		{"method of our own making", []string{strings.Replace(last, "POST", "FOO", 1)}, "405", 0},
		{"dots in the path", []string{strings.Replace(last, "/api/v1/orders", "/api/../../etc/passwd", 1)}, "307", 0},
		{"escaped dots", []string{strings.Replace(last, "/api/v1/orders", "/api/%2e%2e%2fetc/passwd", 1)}, "404", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			placed.Store(0)
			got := strings.Join(exchange(t, addr, c.parts...), " ")
			if got != c.want || placed.Load() != c.placed {
				t.Errorf("answered %s, want %s; %d placed, want %d", got, c.want, placed.Load(), c.placed)
			}
		})
	}
}
