package web

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// A Gate takes the place of a handler until the handler is ready. A closed gate
// answers 503 with Retry-After: a page to browsers, a problem to other clients. At
// first it lets requests wait, because a start usually takes a moment only.
type Gate struct {
	next        atomic.Pointer[http.Handler]
	waiting     context.Context // ends when requests no longer wait
	stopWaiting context.CancelFunc
}

// NewGate returns a closed gate at which requests wait up to moment from now.
func NewGate(moment time.Duration) *Gate {
	g := &Gate{}
	g.waiting, g.stopWaiting = context.WithTimeout(context.Background(), moment)
	return g
}

// Open makes h answer the waiting requests and all further ones.
func (g *Gate) Open(h http.Handler) {
	g.next.Store(&h)
	g.stopWaiting()
}

// StopWaiting makes a closed gate answer at once: it will not be opened soon.
func (g *Gate) StopWaiting() { g.stopWaiting() }

// ServeHTTP implements http.Handler.
func (g *Gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if g.next.Load() == nil {
		select {
		case <-g.waiting.Done():
		case <-r.Context().Done():
		}
	}
	if h := g.next.Load(); h != nil {
		(*h).ServeHTTP(w, r)
		return
	}
	p := Unavailable("The service is starting.")
	if !strings.Contains(r.Header.Get("Accept"), "text/html") {
		writeProblem(w, r, p)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("Retry-After", strconv.Itoa(int(p.RetryAfter.Seconds())))
	w.WriteHeader(p.Status)
	_, _ = io.WriteString(w, startingPage) // the only error is a client that is gone
}

// startingPage reloads itself every five seconds.
const startingPage = `<!doctype html>
<html lang="ru">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><meta http-equiv="refresh" content="5"><title>Pizzaflow</title></head>
<body>
<p>Мы открываемся. Страница обновится сама через несколько секунд.</p>
<p lang="en">We are opening. This page comes back by itself in a few seconds.</p>
</body>
</html>
`
