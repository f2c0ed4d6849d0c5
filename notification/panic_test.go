package notification

import (
	"context"
	"net"
	"sync/atomic"
	"testing"

	"pizzaflow/outbox"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// A panic on the way to a mail server leaves no connection counted as open.
func TestPanicsLeaveNoConnectionOpen(t *testing.T) {
	server := newWorld(t, sqltest.Open(t, sqldb.SQLite, sqltest.Schema{Name: "outbox", FS: outbox.Schema}, sqltest.Schema{Name: "notification", FS: Schema})).mail
	var panics atomic.Int32
	panicky := func(ctx context.Context, network, address string) (net.Conn, error) {
		if panics.Add(-1) >= 0 {
			panic("oops")
		}
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		return &panickyConn{conn, &panics}, err
	}
	sender, err := NewSMTP("smtp://"+server.addr, panicky)
	if err != nil {
		t.Fatal(err)
	}
	send := func() (r Result) {
		defer func() { _ = recover() }()
		return sender.Send(t.Context(), Message{ID: "m", From: "Pizza <orders@pizza.example>", To: "ivan@example.com", Subject: "Pizza", Text: "ready", HTML: "ready"})
	}
	pool := sender.(*smtpSender).pool
	for _, when := range []string{"while it is made", "while it is used"} {
		panics.Store(1)
		if r := send(); r.Outcome != "" {
			t.Errorf("%s: it came to %+v", when, r)
		}
		if pool.open != 0 {
			t.Errorf("%s: %d connections are open after a panic", when, pool.open)
		}
		if r := send(); r.Outcome != Accepted || pool.open != 1 {
			t.Errorf("%s: then it comes to %+v, with %d connections", when, r, pool.open)
		}
	}
}

// A panickyConn panics at its next word.
type panickyConn struct {
	net.Conn
	panics *atomic.Int32
}

func (c *panickyConn) Write(b []byte) (int, error) {
	if c.panics.Add(-1) >= 0 {
		panic("oops")
	}
	return c.Conn.Write(b)
}
