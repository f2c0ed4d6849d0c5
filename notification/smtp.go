package notification

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/wneessen/go-mail"
	"github.com/wneessen/go-mail/smtp"
)

const (
	dialTimeout  = 10 * time.Second // connecting, greeting, TLS and login, each
	resetTimeout = 5 * time.Second  // asking an idle connection whether it works
	resetAfter   = time.Second      // idle for less, a connection is not asked
	quitTimeout  = 2 * time.Second
	idleLimit    = 30 * time.Second // servers hang up on silent clients after minutes
	mailsPerConn = 100              // many servers allow no more
	limitFor     = time.Minute      // how long a server's limit of connections is kept to
)

// An smtpPool keeps connections to one mail server for the next mails. It opens as
// many as are in use at once, or as the server allows: when the server refuses one
// more (Postfix allows a client 50 by default), mails wait for the open ones, and the
// refusal is no failure of a mail.
type smtpPool struct {
	host    string
	options []mail.Option
	connect mail.DialContextFunc

	mu         sync.Mutex
	idle       []*smtpConn // the one released last is reserved first
	closed     bool
	open       int           // connections, with those being made
	limit      int           // of open connections, as the server has it
	limitUntil time.Time     // when the limit is not kept to any more
	freed      chan struct{} // closed when a connection is released or ends; nil when no mail waits
}

// An smtpConn is a connection that is greeted, encrypted and logged in.
type smtpConn struct {
	pool   *smtpPool
	ended  sync.Once
	client *smtp.Client
	raw    net.Conn
	mails  int         // begun on it
	since  time.Time   // when it became idle
	expiry *time.Timer // while idle

	unfinished bool // the last transaction did not end
}

// acquire returns an idle connection that still works, or a new one.
func (p *smtpPool) acquire(ctx context.Context) (*smtpConn, error) {
	for {
		c, freed := p.reserve()
		if freed != nil {
			select {
			case <-freed:
				continue
			case <-ctx.Done():
				return nil, fmt.Errorf("connect: wait for one of the connections that the server allows: %w", ctx.Err())
			}
		}
		if c == nil {
			c, err := p.dial(ctx)
			if err != nil && p.keepToLimit(err) {
				continue
			}
			return c, err
		}
		if !c.unfinished && time.Since(c.since) < resetAfter || c.reset(ctx) {
			c.mails++
			return c, nil
		}
	}
}

// reserve takes an idle connection out of the pool. Without one it counts a new
// connection as open, which the caller has to make, or returns what to wait for when
// the server allows no more.
func (p *smtpPool) reserve() (c *smtpConn, freed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.idle) == 0 {
		if p.open >= p.limit && time.Now().Before(p.limitUntil) {
			if p.freed == nil {
				p.freed = make(chan struct{})
			}
			return nil, p.freed
		}
		p.open++
		return nil, nil
	}
	c = p.idle[len(p.idle)-1]
	p.idle = p.idle[:len(p.idle)-1]
	c.expiry.Stop()
	return c, nil
}

// keepToLimit limits the connections to those that are open, when the server refused
// one more with err. It returns false for other errors, and when none is open that
// could be waited for.
func (p *smtpPool) keepToLimit(err error) bool {
	if replyCode(err) != 421 {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open == 0 {
		return false // the server serves nobody just now: its limit is not known
	}
	p.limit, p.limitUntil = p.open, time.Now().Add(limitFor)
	return true
}

// wakeWaiting wakes the mails that wait for a connection; the caller has locked mu.
func (p *smtpPool) wakeWaiting() {
	if p.freed != nil {
		close(p.freed)
		p.freed = nil
	}
}

// connEnded counts a connection as no longer open.
func (p *smtpPool) connEnded() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open--
	p.wakeWaiting()
}

// release keeps a connection for the next mail, or ends it after mailsPerConn.
func (p *smtpPool) release(c *smtpConn) {
	p.mu.Lock()
	keep := !p.closed && c.mails < mailsPerConn
	if keep {
		c.since = time.Now()
		c.expiry = time.AfterFunc(idleLimit, func() { p.expire(c) })
		p.idle = append(p.idle, c)
		p.wakeWaiting()
	}
	p.mu.Unlock()
	if !keep {
		c.quit()
	}
}

// expire ends a connection that has been idle for idleLimit.
func (p *smtpPool) expire(c *smtpConn) {
	p.mu.Lock()
	i := slices.Index(p.idle, c)
	if i >= 0 { // else it was acquired at the last moment
		p.idle = slices.Delete(p.idle, i, i+1)
	}
	p.mu.Unlock()
	if i >= 0 {
		c.quit()
	}
}

func (p *smtpPool) close() {
	p.mu.Lock()
	idle := p.idle
	p.idle, p.closed = nil, true
	p.mu.Unlock()
	var quitting sync.WaitGroup
	for _, c := range idle {
		c.expiry.Stop()
		quitting.Go(c.quit)
	}
	quitting.Wait()
}

// dial makes a new connection, or counts it as no longer open when that fails or the
// library panics. The library heeds ctx only until the socket is connected, and
// leaves the socket open when the server refuses it later, so dial closes it itself.
func (p *smtpPool) dial(ctx context.Context) (made *smtpConn, err error) {
	c := &smtpConn{pool: p, mails: 1}
	defer func() {
		if made == nil {
			c.drop()
		}
	}()
	stop := func() bool { return true }
	client, err := mail.NewClient(p.host, append(slices.Clone(p.options), mail.WithDialContextFunc(
		func(dialing context.Context, network, addr string) (net.Conn, error) {
			conn, err := p.connect(dialing, network, addr)
			if err == nil {
				c.raw = conn
				stop = context.AfterFunc(ctx, c.drop)
			}
			return conn, err
		}))...)
	if err == nil {
		c.client, err = client.DialToSMTPClientWithContext(ctx)
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	return c, nil
}

// bind ends the connection when ctx ends, and has what is done on it fail at ctx's
// deadline or, without one, after sendTimeout. The function it returns undoes the
// former, and reports whether the connection can still be used.
func (c *smtpConn) bind(ctx context.Context) (unbind func() bool) {
	deadline := time.Now().Add(sendTimeout)
	if end, ok := ctx.Deadline(); ok && end.Before(deadline) {
		deadline = end
	}
	err := c.raw.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, c.drop)
	return func() bool { return stop() && err == nil }
}

// reset ends an unfinished transaction (RSET), and reports whether the server
// answered. A connection without an answer is dropped.
func (c *smtpConn) reset(ctx context.Context) (works bool) {
	defer func() {
		if !works {
			c.drop()
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, resetTimeout)
	defer cancel()
	unbind := c.bind(ctx)
	err := c.client.Reset()
	return unbind() && err == nil
}

// quit ends the connection with QUIT.
func (c *smtpConn) quit() {
	if c.raw.SetDeadline(time.Now().Add(quitTimeout)) == nil {
		_ = c.client.Quit() // a polite end is all that may be missing
	}
	c.drop()
}

// drop closes the connection.
func (c *smtpConn) drop() {
	if c.raw != nil {
		_ = c.raw.Close() // no mail depends on it
	}
	c.ended.Do(c.pool.connEnded)
}
