package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	gosmtp "github.com/emersion/go-smtp"
)

// The tags of a recipient that trouble its mail.
const (
	tagBounce   = "bounce"
	tagTempfail = "tempfail"
)

var (
	errNoMailbox = &gosmtp.SMTPError{Code: 550, EnhancedCode: gosmtp.EnhancedCode{5, 1, 1}, Message: "No such mailbox"}
	errLater     = &gosmtp.SMTPError{Code: 451, EnhancedCode: gosmtp.EnhancedCode{4, 3, 0}, Message: "Try again later"}
	errUnkept    = &gosmtp.SMTPError{Code: 452, EnhancedCode: gosmtp.EnhancedCode{4, 3, 1}, Message: "The message could not be kept"}
	errUnparsed  = &gosmtp.SMTPError{Code: 554, EnhancedCode: gosmtp.EnhancedCode{5, 6, 0}, Message: "The message cannot be parsed"}
)

// mailServer accepts mail for anybody and keeps it.
type mailServer struct {
	*gosmtp.Server
	listener net.Listener
	log      *slog.Logger
	kept     *messages

	mu      sync.Mutex
	refused map[string]bool // addresses that were asked once to try again
	conns   map[*mailConn]bool
}

func (s *Sandbox) mailServer(ln net.Listener) *mailServer {
	m := &mailServer{log: s.log, kept: s.mails, refused: map[string]bool{}, conns: map[*mailConn]bool{}}
	m.listener = mailListener{ln, m}
	m.Server = gosmtp.NewServer(gosmtp.BackendFunc(func(c *gosmtp.Conn) (gosmtp.Session, error) {
		return &mailSession{server: m, conn: c.Conn().(*mailConn)}, nil
	}))
	m.Domain = "sandbox"
	m.MaxMessageBytes = 1 << 20
	m.MaxRecipients = 100
	m.ReadTimeout = time.Minute
	m.WriteTimeout = time.Minute
	m.EnableSMTPUTF8 = true
	m.ErrorLog = slog.NewLogLogger(s.log.Handler(), slog.LevelWarn)
	return m
}

func (m *mailServer) serve() error {
	if err := m.Serve(m.listener); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("serve smtp: %w", err)
	}
	return nil
}

// stop says goodbye to clients with no mail under way, waits for the others,
// and cuts off when ctx ends who is still there.
func (m *mailServer) stop(ctx context.Context) error {
	closed := m.listener.Close() // a Shutdown that comes before Serve would not
	m.eachConn(func(c *mailConn) error {
		if c.busy {
			return nil
		}
		return c.SetReadDeadline(time.Now()) // the reader wakes and answers 421
	})
	cancel := context.AfterFunc(ctx, func() {
		m.eachConn(func(c *mailConn) error { return c.Conn.Close() })
	})
	defer cancel()
	// Without the deadline of ctx: the cut above is what ends the waiting, and
	// then no session is left that could still write.
	for _, err := range []error{closed, m.Shutdown(context.WithoutCancel(ctx))} {
		if err != nil && !errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("stop smtp: %w", err)
		}
	}
	return nil
}

func (m *mailServer) eachConn(do func(c *mailConn) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for c := range m.conns {
		if err := do(c); err != nil {
			m.log.Debug("mail client already gone", "error", err)
		}
	}
}

// mailListener and mailConn know who is connected, also before the greeting.
type mailListener struct {
	net.Listener
	server *mailServer
}

// Accept remembers whom it lets in.
func (l mailListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &mailConn{Conn: conn, server: l.server}
	l.server.mu.Lock()
	defer l.server.mu.Unlock()
	l.server.conns[c] = true
	return c, nil
}

type mailConn struct {
	net.Conn
	server *mailServer
	busy   bool // between MAIL and the answer to DATA; guarded by server.mu
}

// Close forgets the connection.
func (c *mailConn) Close() error {
	c.server.mu.Lock()
	delete(c.server.conns, c)
	c.server.mu.Unlock()
	return c.Conn.Close()
}

// mailSession is one connection after its greeting.
type mailSession struct {
	server *mailServer
	conn   *mailConn
	from   string
	to     []string
}

// Mail begins a message.
func (s *mailSession) Mail(from string, _ *gosmtp.MailOptions) error {
	s.setBusy(true)
	s.from, s.to = from, nil
	return nil
}

// Rcpt adds a recipient, unless its tag says otherwise.
func (s *mailSession) Rcpt(to string, _ *gosmtp.RcptOptions) error {
	for _, tag := range plusTags(to) {
		switch tag {
		case tagBounce:
			return errNoMailbox
		case tagTempfail + suffixAlways:
			return errLater
		case tagTempfail:
			if s.server.refuseOnce(to) {
				return errLater
			}
		}
	}
	s.to = append(s.to, to)
	return nil
}

func (m *mailServer) refuseOnce(address string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	address = strings.ToLower(address)
	first := !m.refused[address]
	m.refused[address] = true
	return first
}

// Data accepts the message when it is on disk.
func (s *mailSession) Data(r io.Reader) error {
	raw, err := io.ReadAll(r)
	if err != nil {
		return err // go-smtp's own answer: too large, or the client is gone
	}
	message, err := parseMail(raw)
	if err != nil {
		s.server.log.Warn("mail refused: it cannot be parsed", "bytes", len(raw)) // the error quotes the mail
		return errUnparsed
	}
	message.From, message.To, message.ReceivedAt = s.from, s.to, now()
	if err := s.server.kept.keep(message, message.To); err != nil {
		s.server.log.Error("mail not kept", "error", err)
		return errUnkept
	}
	return nil
}

// Reset forgets the message under way; go-smtp also calls it after the answer
// to DATA.
func (s *mailSession) Reset() {
	s.from, s.to = "", nil
	s.setBusy(false)
}

// Logout has nothing to end: the connection knows itself that it closes.
func (s *mailSession) Logout() error { return nil }

func (s *mailSession) setBusy(busy bool) {
	s.server.mu.Lock()
	defer s.server.mu.Unlock()
	s.conn.busy = busy
}
