package web

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a listener in memory: its connections live in the virtual time of a
// synctest bubble.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return pipeAddr{} }

func (p *pipes) dial(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case p.conns <- server:
		return client, nil
	case <-p.closed:
		return nil, errors.New("connection refused")
	}
}

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }

// served runs Serve in memory; stop ends its context, and wait returns its result.
type served struct {
	*pipes
	client *http.Client
	stop   context.CancelFunc
	wait   func() error
}

func serve(t *testing.T, h http.Handler) *served {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s := &served{pipes: newPipes(), stop: stop, wait: sync.OnceValue(func() error { return <-done })}
	transport := &http.Transport{DialContext: s.dial}
	s.client = &http.Client{Transport: transport}
	go func() { done <- Serve(ctx, s.pipes, h, nil) }()
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		stop()
		if err := s.wait(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// raw opens a connection and sends text on it.
func (s *served) raw(t *testing.T, text string) net.Conn {
	t.Helper()
	c, err := s.dial(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestServeTimeouts(t *testing.T) {
	for _, c := range []struct {
		name, sent string
		after      time.Duration
		status     string // of the last answer; "" for none
	}{
		{"nothing", "", 5 * time.Second, ""},
		{"half a header", "GET / HTTP/1.1\r\nHost: x\r\n", 5 * time.Second, ""},
		{"half a body", "POST /api/v1/orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{", 15 * time.Second, "HTTP/1.1 408"},
		{"half a chunk", "POST /api/v1/orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{", 15 * time.Second, "HTTP/1.1 408"},
		{"idle", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", 60 * time.Second, "HTTP/1.1 200"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := serve(t, routes(t, nil))
				began := time.Now()
				conn := s.raw(t, c.sent)
				defer conn.Close()
				answer, err := io.ReadAll(conn)
				if err != nil {
					t.Fatal(err)
				}
				took := time.Since(began)
				// net/http keeps a connection that it cut for half a second, so that the answer arrives.
				if took < c.after || took > c.after+time.Second {
					t.Errorf("closed after %v, want %v", took, c.after)
				}
				if !strings.HasPrefix(string(answer), c.status) || c.status == "" && len(answer) > 0 {
					t.Errorf("answered %s", answer)
				}
			})
		})
	}
}

func TestServeGivesUpOnAClientThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failed := make(chan time.Duration, 1)
		s := serve(t, Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			began := time.Now()
			for {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					failed <- time.Since(began)
					return
				}
			}
		}), HandlerConfig{}))
		conn := s.raw(t, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		defer conn.Close()
		if took := <-failed; took != 30*time.Second {
			t.Errorf("after %v", took)
		}
	})
}

// ticker is an event stream that sets no deadline and does not notice a stop: it sends
// an event every ten seconds until its request ends.
func ticker(ended chan<- error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		rc := http.NewResponseController(w)
		tick := time.NewTicker(10 * time.Second)
		defer tick.Stop()
		for n := 0; ; n++ {
			_, err := fmt.Fprintf(w, "id: %d\ndata: %s\n\n", n, strings.Repeat("x", 100))
			if err == nil {
				err = rc.Flush()
			}
			if err != nil {
				ended <- err
				return
			}
			select {
			case <-tick.C:
			case <-r.Context().Done():
				ended <- context.Cause(r.Context())
				return
			}
		}
	})
}

func TestEventStreamsOutliveTheTimeoutsAndEndAtTheStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan error, 1)
		s := serve(t, Handler(ticker(ended), HandlerConfig{}))
		began := time.Now()
		resp, err := s.client.Get("http://pizza/api/v1/orders/1/events")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		for n := range 31 {
			if !lines.Scan() || lines.Text() != fmt.Sprintf("id: %d", n) {
				t.Fatalf("event %d: %q, %v after %v", n, lines.Text(), lines.Err(), time.Since(began))
			}
			if took := time.Since(began); took != time.Duration(n)*10*time.Second {
				t.Fatalf("event %d came after %v", n, took)
			}
			lines.Scan()
			lines.Scan()
		}
		stopped := time.Now()
		s.stop()
		if lines.Scan() {
			t.Errorf("after the stop: %q", lines.Text())
		}
		if lines.Err() != nil {
			t.Errorf("the stream was cut, not ended: %v", lines.Err())
		}
		if err := <-ended; !errors.Is(err, errStopping) {
			t.Errorf("the stream ended by %v", err)
		}
		if err := s.wait(); err != nil {
			t.Error(err)
		}
		if took := time.Since(stopped); took > time.Second {
			t.Errorf("the stop took %v", took)
		}
	})
}

func TestEventStreamsMayFlushWhenTheyLike(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size, events = 8 << 10, 5 // larger than any buffer between handler and client
		s := serve(t, Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			for range events {
				if _, err := w.Write(make([]byte, size)); err != nil {
					t.Error(err)
				}
				time.Sleep(20 * time.Second)
			}
			_, _ = w.Write([]byte("end"))
			time.Sleep(40 * time.Second)
			if err := http.NewResponseController(w).Flush(); err != nil {
				t.Error(err)
			}
		}), HandlerConfig{}))
		resp, err := s.client.Get("http://pizza/")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != size*events+3 {
			t.Errorf("%d bytes, %v", n, err)
		}
	})
}

func TestAStalledEventStreamIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan error, 1)
		s := serve(t, Handler(ticker(ended), HandlerConfig{}))
		conn := s.raw(t, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		defer conn.Close()
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		err := <-ended
		if took := time.Since(began); err == nil || took != streamWriteTimeout {
			t.Errorf("%v after %v", err, took)
		}
	})
}

func TestAnEventStreamEndsWithItsClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan error, 1)
		s := serve(t, Handler(ticker(ended), HandlerConfig{}))
		resp, err := s.client.Get("http://pizza/")
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := resp.Body.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; !errors.Is(err, context.Canceled) || time.Since(began) > time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

// Early hints may precede an answer; the status recorded is the answer's.
func TestInformationalAnswersPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		s := serve(t, Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusAccepted)
		}), HandlerConfig{Log: slog.New(slog.NewJSONHandler(&out, nil))}))
		conn := s.raw(t, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		defer conn.Close()
		answer, err := io.ReadAll(conn)
		if hint, final, _ := strings.Cut(string(answer), "\r\n\r\n"); err != nil ||
			!strings.HasPrefix(hint, "HTTP/1.1 103 ") || !strings.HasPrefix(final, "HTTP/1.1 202 ") {
			t.Errorf("%v: %s", err, answer)
		}
		if !strings.Contains(out.String(), `"status":202`) {
			t.Errorf("logged %s", &out)
		}
	})
}

func TestServeLetsRequestsFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		entered := make(chan struct{})
		s := serve(t, Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(entered)
			select {
			case <-time.After(5 * time.Second):
				JSON(w, http.StatusCreated, "placed")
			case <-r.Context().Done():
				Error(w, r, nil, r.Context().Err())
			}
		}), HandlerConfig{}))
		got := make(chan string, 1)
		go func() { got <- fetch(s.client) }()
		<-entered
		began := time.Now()
		s.stop()
		synctest.Wait()
		if _, err := s.dial(t.Context(), "", ""); err == nil {
			t.Error("takes connections while it stops")
		}
		if answer := <-got; answer != "201 \"placed\"\n" {
			t.Errorf("the request in progress got %s", answer)
		}
		if err := s.wait(); err != nil || time.Since(began) > 6*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

// fetch gets a page and returns its status and body in one line.
func fetch(c *http.Client) string {
	resp, err := c.Get("http://pizza/")
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%d %s", resp.StatusCode, body)
}

func TestServeTellsSlowRequestsToHurryAndThenCutsThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		entered, release := make(chan struct{}, 2), make(chan struct{})
		mux := http.NewServeMux()
		mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
			entered <- struct{}{}
			<-r.Context().Done()
			Error(w, r, nil, fmt.Errorf("place order: %w", r.Context().Err()))
		})
		mux.HandleFunc("/deaf", func(http.ResponseWriter, *http.Request) {
			entered <- struct{}{}
			<-release
		})
		s := serve(t, Handler(mux, HandlerConfig{}))
		got := make(chan string, 1)
		go func() { got <- fetch(s.client) }()
		deaf := s.raw(t, "GET /deaf HTTP/1.1\r\nHost: x\r\n\r\n")
		defer deaf.Close()
		<-entered
		<-entered
		began := time.Now()
		s.stop()
		if answer := <-got; !strings.HasPrefix(answer, "503 ") || time.Since(began) != 8*time.Second {
			t.Errorf("%s after %v", answer, time.Since(began))
		}
		if err := s.wait(); err != nil || time.Since(began) != 10*time.Second {
			t.Errorf("stopped with %v after %v", err, time.Since(began))
		}
		if rest, err := io.ReadAll(deaf); err != nil || len(rest) > 0 {
			t.Errorf("the deaf one was answered %q, %v", rest, err)
		}
		close(release)
	})
}

func TestServeReturnsTheListenersError(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	err = Serve(t.Context(), ln, http.NotFoundHandler(), slog.New(slog.DiscardHandler))
	if !errors.Is(err, net.ErrClosed) || !strings.Contains(err.Error(), ln.Addr().String()) {
		t.Error(err)
	}
}

func TestServeStoppedBeforeItBegan(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Serve(ctx, ln, http.NotFoundHandler(), nil); err != nil {
		t.Error(err)
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener was left open: %v", err)
	}
}
