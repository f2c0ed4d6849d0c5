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

// The tags of a recipient that inject faults into its mail.
const (
	tagBounce   = "bounce"
	tagTempfail = "tempfail"
)

var (
	errNoMailbox = &gosmtp.SMTPError{Code: 550, EnhancedCode: gosmtp.EnhancedCode{5, 1, 1}, Message: "No such mailbox"}
	errTryLater  = &gosmtp.SMTPError{Code: 451, EnhancedCode: gosmtp.EnhancedCode{4, 3, 0}, Message: "Try again later"}
	errNotStored = &gosmtp.SMTPError{Code: 452, EnhancedCode: gosmtp.EnhancedCode{4, 3, 1}, Message: "The message could not be kept"}
	errUnparsed  = &gosmtp.SMTPError{Code: 554, EnhancedCode: gosmtp.EnhancedCode{5, 6, 0}, Message: "The message cannot be parsed"}
)

// mailServer accepts mail for any recipient and stores it.
type mailServer struct {
	*gosmtp.Server
	listener net.Listener
	log      *slog.Logger
	messages *messages

	mu      sync.Mutex
	refused map[string]bool // addresses that were refused once
	conns   map[*mailConn]bool
}

func (s *Sandbox) mailServer(ln net.Listener) *mailServer {
	m := &mailServer{log: s.log, messages: s.mails, refused: map[string]bool{}, conns: map[*mailConn]bool{}}
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

// stop closes connections without a mail under way, waits for the others, and cuts
// them when ctx ends.
func (m *mailServer) stop(ctx context.Context) error {
	closed := m.listener.Close() // a Shutdown before Serve would not close it
	m.eachConn(func(c *mailConn) error {
		if c.busy {
			return nil
		}
		return c.SetReadDeadline(time.Now()) // its reader answers 421
	})
	cancel := context.AfterFunc(ctx, func() {
		m.eachConn(func(c *mailConn) error { return c.Conn.Close() })
	})
	defer cancel()
	// Shutdown gets no deadline: the cut above ends its wait, and then no session is
	// left that could still write.
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

// mailListener and mailConn keep the set of connections, also before their greeting.
type mailListener struct {
	net.Listener
	server *mailServer
}

// Accept adds the connection to the set.
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

// Close removes the connection from the set.
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

// Rcpt adds a recipient, or refuses it as its tag says.
func (s *mailSession) Rcpt(to string, _ *gosmtp.RcptOptions) error {
	for _, tag := range plusTags(to) {
		switch tag {
		case tagBounce:
			return errNoMailbox
		case tagTempfail + suffixAlways:
			return errTryLater
		case tagTempfail:
			if s.server.markRefused(to) {
				return errTryLater
			}
		}
	}
	s.to = append(s.to, to)
	return nil
}

// markRefused marks the address as refused and reports whether it is the first time.
func (m *mailServer) markRefused(address string) bool {
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
		return err // go-smtp answers: the mail is too large, or the client has left
	}
	message, err := parseMail(raw)
	if err != nil {
		s.server.log.Warn("mail refused: it cannot be parsed", "bytes", len(raw)) // the error quotes the mail
		return errUnparsed
	}
	message.From, message.To, message.ReceivedAt = s.from, s.to, now()
	if err := s.server.messages.append(message, message.To); err != nil {
		s.server.log.Error("mail not stored", "error", err)
		return errNotStored
	}
	return nil
}

// Reset drops the message under way; go-smtp calls it also after the answer to DATA.
func (s *mailSession) Reset() {
	s.from, s.to = "", nil
	s.setBusy(false)
}

// Logout has nothing to do: mailConn.Close ends the connection.
func (s *mailSession) Logout() error { return nil }

func (s *mailSession) setBusy(busy bool) {
	s.server.mu.Lock()
	defer s.server.mu.Unlock()
	s.conn.busy = busy
}
