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

// A Gate stands where a handler will be. Until it is opened every request is
// answered with a 503 that says when to come back: a problem, or a page for
// whoever asks for one. A start that goes well takes a moment, which those who
// come in it wait; once it is known that it will take longer, nobody waits.
type Gate struct {
	next   atomic.Pointer[http.Handler]
	moment context.Context // ends when nobody is to wait any more
	end    context.CancelFunc
}

// NewGate makes a Gate at which requests wait for the moment from now on.
func NewGate(moment time.Duration) *Gate {
	g := &Gate{}
	g.moment, g.end = context.WithTimeout(context.Background(), moment)
	return g
}

// Open has all further requests, and those that wait, answered by h.
func (g *Gate) Open(h http.Handler) {
	g.next.Store(&h)
	g.end()
}

// Delay says that it will not be opened soon: nobody waits for it any more.
func (g *Gate) Delay() { g.end() }

// ServeHTTP answers the request.
func (g *Gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if g.next.Load() == nil {
		select {
		case <-g.moment.Done():
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

// startingPage asks for itself again until something else comes.
const startingPage = `<!doctype html>
<html lang="ru">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><meta http-equiv="refresh" content="5"><title>Pizzaflow</title></head>
<body>
<p>Мы открываемся. Страница обновится сама через несколько секунд.</p>
<p lang="en">We are opening. This page comes back by itself in a few seconds.</p>
</body>
</html>
`
