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
	checkTimeout = 5 * time.Second  // asking a kept connection whether it lives
	askAfter     = time.Second
	quitTimeout  = 2 * time.Second
	idleLimit    = 30 * time.Second // servers hang up on silent clients after minutes
	mailsPerConn = 100              // many servers allow no more
	mostFor      = time.Minute      // how long it is minded that a server wants no more connections
)

// An smtpPool keeps connections to one mail server for the next mail. There
// are as many as are in use at once, or as the server allows: where it refuses
// one more (Postfix has 50 for a client unless told otherwise), mails wait for
// those that are open, and nothing is counted as a failure.
type smtpPool struct {
	host    string
	options []mail.Option
	connect mail.DialContextFunc

	mu     sync.Mutex
	idle   []*smtpConn // the last one given back is taken first
	closed bool
	open   int           // connections, those that are being made as well
	most   int           // that the server has allowed, until
	until  time.Time     // then
	freed  chan struct{} // closed when one is given back or ends; nil when nobody waits
}

// An smtpConn is a connection that is greeted, encrypted and logged in.
type smtpConn struct {
	pool   *smtpPool
	ended  sync.Once
	client *smtp.Client
	raw    net.Conn
	mails  int         // begun on it
	since  time.Time   // when it was given back
	expiry *time.Timer // while idle

	unfinished bool // the last transaction did not come to its end
}

// take is a kept connection that still answers, or a new one.
func (p *smtpPool) take(ctx context.Context) (*smtpConn, error) {
	for {
		c, freed := p.pop()
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
			if err != nil && p.refused(err) {
				continue
			}
			return c, err
		}
		// one that was used a moment ago is only asked when something must be forgotten
		if !c.unfinished && time.Since(c.since) < askAfter || c.alive(ctx) {
			c.mails++
			return c, nil
		}
	}
}

// pop is a kept connection, or nothing: then one may be made, or freed is to be
// waited for.
func (p *smtpPool) pop() (c *smtpConn, freed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.idle) == 0 {
		if p.open >= p.most && time.Now().Before(p.until) {
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

// refused notes that the server wants no more connections than are open. It
// reports false when there is none that could be waited for, or err is another.
func (p *smtpPool) refused(err error) bool {
	if replyCode(err) != 421 {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open == 0 {
		return false // it serves nobody just now: how many it would take is not known
	}
	p.most, p.until = p.open, time.Now().Add(mostFor)
	return true
}

// free wakes those who wait for a connection; the caller has locked mu.
func (p *smtpPool) free() {
	if p.freed != nil {
		close(p.freed)
		p.freed = nil
	}
}

func (p *smtpPool) ended() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open--
	p.free()
}

// give keeps a connection for the next mail.
func (p *smtpPool) give(c *smtpConn) {
	p.mu.Lock()
	keep := !p.closed && c.mails < mailsPerConn
	if keep {
		c.since = time.Now()
		c.expiry = time.AfterFunc(idleLimit, func() { p.expire(c) })
		p.idle = append(p.idle, c)
		p.free()
	}
	p.mu.Unlock()
	if !keep {
		c.quit()
	}
}

func (p *smtpPool) expire(c *smtpConn) {
	p.mu.Lock()
	i := slices.Index(p.idle, c)
	if i >= 0 { // else it was taken at the last moment
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

// dial makes a new connection. The library minds ctx only until it is
// connected, and leaves the socket open when the server refuses it later, so
// the socket is kept here as well. Unless a connection comes of it, its place is
// free again, also when the library panics.
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

// use ties the connection to ctx: when that ends, so does the connection. The
// function it returns unties it and reports whether it can be used on.
func (c *smtpConn) use(ctx context.Context) (release func() bool) {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(sendTimeout)
	}
	err := c.raw.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, c.drop)
	return func() bool { return stop() && err == nil }
}

// alive reports whether the server still listens; it forgets any unfinished
// transaction. A connection that is not alive is dropped.
func (c *smtpConn) alive(ctx context.Context) (alive bool) {
	defer func() {
		if !alive {
			c.drop()
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	release := c.use(ctx)
	err := c.client.Reset()
	return release() && err == nil
}

// quit says good-bye and hangs up.
func (c *smtpConn) quit() {
	if c.raw.SetDeadline(time.Now().Add(quitTimeout)) == nil {
		_ = c.client.Quit() // a polite end is all that may be missing
	}
	c.drop()
}

// drop hangs up.
func (c *smtpConn) drop() {
	if c.raw != nil {
		_ = c.raw.Close() // nothing was entrusted to it that a failing close could lose
	}
	c.ended.Do(c.pool.ended)
}
