package notification

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// A mailServer is a real SMTP server that answers as the test says.
type mailServer struct {
	url   string
	conns atomic.Int32

	mu     sync.Mutex
	mail   error // the answer to each step, nil for yes
	rcpt   error
	data   error
	login  string // user:password asked for, "" for none
	mails  []string
	rcpts  []string
	server *smtp.Server
}

func newMailServer(t *testing.T) *mailServer {
	t.Helper()
	m := &mailServer{}
	m.server = smtp.NewServer(m)
	m.server.Domain = "mail.test"
	m.server.AllowInsecureAuth = true
	m.server.EnableSMTPUTF8 = true
	ln := listen(t)
	m.url = "smtp://" + ln.Addr().String()
	done := make(chan error, 1)
	go func() { done <- m.server.Serve(ln) }()
	t.Cleanup(func() {
		if err := m.server.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil && !errors.Is(err, smtp.ErrServerClosed) {
			t.Error(err)
		}
	})
	return m
}

func (m *mailServer) answer(mail, rcpt, data error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mail, m.rcpt, m.data = mail, rcpt, data
}

func (m *mailServer) received() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.mails...)
}

func (m *mailServer) NewSession(*smtp.Conn) (smtp.Session, error) {
	m.conns.Add(1)
	s := &mailSession{m: m}
	if m.login != "" {
		return &loginSession{mailSession: s}, nil
	}
	return s, nil
}

type mailSession struct {
	m    *mailServer
	auth bool
	open bool // a mail is under way
}

func (s *mailSession) Mail(string, *smtp.MailOptions) error {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if s.open { // what strict servers say
		return reply(503)
	}
	s.open = true
	if s.m.login != "" && !s.auth {
		return reply(530)
	}
	return s.m.mail
}

func (s *mailSession) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.m.rcpts = append(s.m.rcpts, to)
	return s.m.rcpt
}

func (s *mailSession) Data(r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if s.m.data == nil {
		s.m.mails = append(s.m.mails, string(b))
	}
	return s.m.data
}

func (s *mailSession) Reset()        { s.open = false }
func (s *mailSession) Logout() error { return nil }

type loginSession struct{ *mailSession }

func (s *loginSession) AuthMechanisms() []string { return []string{sasl.Plain} }
func (s *loginSession) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		s.auth = user+":"+password == s.m.login
		if !s.auth {
			return smtp.ErrAuthFailed
		}
		return nil
	}), nil
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func newTestSMTP(t *testing.T, url string) *smtpSender {
	t.Helper()
	s, err := NewSMTP(url, nil)
	if err != nil {
		t.Fatal(err)
	}
	sender := s.(*smtpSender)
	t.Cleanup(func() {
		if err := sender.Close(); err != nil {
			t.Error(err)
		}
	})
	return sender
}

func testMail(id string) Message {
	return Message{
		ID: id, From: "Pizzaflow <orders@pizzaflow.example>", To: "ivan+tag@example.com", Subject: "Заказ принят",
		Text: "Здравствуйте!\n.\nточка\n", HTML: "<p>Здравствуйте!</p>\n", Date: time.Date(2024, 1, 15, 10, 30, 0, 0, time.UTC),
	}
}

func reply(code int) error {
	return &smtp.SMTPError{Code: code, EnhancedCode: smtp.NoEnhancedCode, Message: "so be it"}
}

func TestSMTPReplies(t *testing.T) {
	server := newMailServer(t)
	sender := newTestSMTP(t, server.url)
	for _, tt := range []struct {
		name             string
		mail, rcpt, data error
		want             Outcome
		code             int
	}{
		{"accepted", nil, nil, nil, Accepted, 250},
		{"MAIL 451", reply(451), nil, nil, Temporary, 451},
		{"MAIL 530", reply(530), nil, nil, Temporary, 530},
		{"MAIL 550", reply(550), nil, nil, Temporary, 550},
		{"RCPT 450", nil, reply(450), nil, Temporary, 450},
		{"RCPT 421", nil, reply(421), nil, Temporary, 421},
		{"RCPT 550", nil, reply(550), nil, Permanent, 550},
		{"final dot 452", nil, nil, reply(452), Temporary, 452},
		{"final dot 554", nil, nil, reply(554), Temporary, 554},
		{"accepted again", nil, nil, nil, Accepted, 250},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server.answer(tt.mail, tt.rcpt, tt.data)
			r := sender.Send(t.Context(), testMail("id-"+strings.ReplaceAll(tt.name, " ", "-")))
			if r.Outcome != tt.want || r.Code != tt.code || (r.Err == nil) != (tt.want == Accepted) {
				t.Errorf("Send = %+v, want %s %d", r, tt.want, tt.code)
			}
			if len(r.reason(0)) > maxError || strings.ContainsAny(r.reason(0), "\r\n") {
				t.Errorf("reason %q", r.reason(0))
			}
		})
	}
	mails := server.received()
	if len(mails) != 2 || !strings.Contains(mails[0], "Message-ID: <id-accepted@pizzaflow.example>") {
		t.Errorf("received %d mails: %q", len(mails), mails)
	}
	// only the 421 hung up
	if n := server.conns.Load(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

func TestSMTPReusesConnections(t *testing.T) {
	server := newMailServer(t)
	sender := newTestSMTP(t, server.url)
	var sending sync.WaitGroup
	for worker := range 4 {
		sending.Go(func() {
			for i := range 60 {
				if r := sender.Send(t.Context(), testMail(fmt.Sprintf("id-%d-%d", worker, i))); r.Outcome != Accepted {
					t.Errorf("Send = %+v", r)
				}
			}
		})
	}
	sending.Wait()
	if got := len(server.received()); got != 240 {
		t.Errorf("received %d mails, want 240", got)
	}
	// 240 mails by at most 4 at once, 100 a connection
	if n := server.conns.Load(); n < 3 || n > 8 {
		t.Errorf("%d connections", n)
	}
	if n := len(sender.pool.idle); n < 1 || n > 4 {
		t.Errorf("%d connections kept", n)
	}
}

// A server that takes three connections and answers 421 to more, as Postfix
// does at 50, gets all mails over the three, and none is put off.
func TestSMTPTooManyConnections(t *testing.T) {
	server := newMailServer(t)
	address := strings.TrimPrefix(server.url, "smtp://")
	var open, most, refused atomic.Int32
	ln := listen(t)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			if n := open.Add(1); n > 3 {
				open.Add(-1)
				refused.Add(1)
				_, _ = io.WriteString(conn, "421 4.7.0 mail.test Error: too many connections\r\n") // who has gone needs no answer
				_ = conn.Close()
				continue
			} else if n > most.Load() {
				most.Store(n)
			}
			serving.Go(func() {
				defer open.Add(-1)
				relay(t, conn, address)
			})
		}
	})
	sender := newTestSMTP(t, "smtp://"+ln.Addr().String())
	send := func(from, to int) int32 {
		before := refused.Load()
		var sending sync.WaitGroup
		for i := from; i < to; i++ {
			sending.Go(func() {
				if r := sender.Send(t.Context(), testMail(fmt.Sprintf("id-%d", i))); r.Outcome != Accepted {
					t.Errorf("Send = %+v", r)
				}
			})
		}
		sending.Wait()
		return refused.Load() - before
	}
	if n := send(0, 20); n == 0 {
		t.Error("no connection was refused")
	}
	if n := send(20, 220); n > 20 { // some, for those that are replaced after 100 mails
		t.Errorf("%d connections were refused although it was known that the server wants no more", n)
	}
	if n := len(server.received()); n != 220 {
		t.Errorf("received %d mails, want 220", n)
	}
	if n := most.Load(); n != 3 {
		t.Errorf("%d connections at once, want 3", n)
	}
	// the last one is released after its mail was answered
	sender.pool.close()
	if err := ln.Close(); err != nil {
		t.Error(err)
	}
	serving.Wait()
	if sender.pool.open != 0 {
		t.Errorf("%d connections are counted as open", sender.pool.open)
	}
}

// A server that answers 421 to everybody, as one does that is shutting down,
// is asked again by the next mail, at once.
func TestSMTPNotServing(t *testing.T) {
	server := newMailServer(t)
	address := strings.TrimPrefix(server.url, "smtp://")
	ln := listen(t)
	var serving sync.WaitGroup
	serving.Go(func() {
		for n := 1; ; n++ {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			if n == 1 {
				_, _ = io.WriteString(conn, "421 4.3.2 mail.test shutting down\r\n") // who has gone needs no answer
				_ = conn.Close()
				continue
			}
			serving.Go(func() { relay(t, conn, address) })
		}
	})
	sender := newTestSMTP(t, "smtp://"+ln.Addr().String())
	if r := sender.Send(t.Context(), testMail("id-1")); r.Outcome != Temporary || r.Code != 421 {
		t.Errorf("Send = %+v, want it put off", r)
	}
	ctx, cancel := context.WithTimeout(t.Context(), sendTimeout)
	defer cancel()
	if r := sender.Send(ctx, testMail("id-1")); r.Outcome != Accepted {
		t.Errorf("Send = %+v, want it accepted", r)
	}
	sender.pool.close()
	if err := ln.Close(); err != nil {
		t.Error(err)
	}
	serving.Wait()
}

// relay passes on what is said on conn and at the address until either hangs up.
func relay(t *testing.T, conn net.Conn, address string) {
	to, err := net.Dial("tcp", address)
	if err != nil {
		t.Error(err)
		_ = conn.Close()
		return
	}
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{conn, to}, {to, conn}} {
		both.Go(func() {
			_, _ = io.Copy(way[0], way[1]) // its end is all it has to tell
			_, _ = way[0].Close(), way[1].Close()
		})
	}
	both.Wait()
}

func TestSMTPKeptConnectionThatDiedIsReplaced(t *testing.T) {
	server := newMailServer(t)
	gate := newGate(t, strings.TrimPrefix(server.url, "smtp://"))
	sender := newTestSMTP(t, "smtp://"+gate.addr)
	for i := range 3 {
		if r := sender.Send(t.Context(), testMail(fmt.Sprintf("id-%d", i))); r.Outcome != Accepted {
			t.Fatalf("Send = %+v", r)
		}
		gate.cut() // the server restarts
	}
	if got := len(server.received()); got != 3 {
		t.Errorf("received %d mails, want 3", got)
	}
}

func TestSMTPLogin(t *testing.T) {
	server := newMailServer(t)
	server.login = "mario:s3cret"
	addr := strings.TrimPrefix(server.url, "smtp://")
	if r := newTestSMTP(t, "smtp://mario:s3cret@"+addr).Send(t.Context(), testMail("id-1")); r.Outcome != Accepted {
		t.Errorf("with the password: %+v", r)
	}
	for _, url := range []string{"smtp://mario:wrong@" + addr, "smtp://" + addr} {
		r := newTestSMTP(t, url).Send(t.Context(), testMail("id-2"))
		if r.Outcome != Temporary || r.Code != 530 && r.Code != 535 {
			t.Errorf("without the password: %+v, want a temporary result, for the mail is not to blame", r)
		}
		if strings.Contains(r.reason(0), "wrong") {
			t.Errorf("the password stands in %q", r.reason(0))
		}
	}
}

func TestSMTPDown(t *testing.T) {
	ln := listen(t)
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	r := newTestSMTP(t, "smtp://"+ln.Addr().String()).Send(t.Context(), testMail("id-1"))
	if r.Outcome != Temporary || r.Code != 0 {
		t.Errorf("Send = %+v, want a temporary result", r)
	}
}

// The server falls silent, or hangs up, at each step of the dialogue.
func TestSMTPSilence(t *testing.T) {
	greeting := []string{"220 mail.test"}
	hello := append(greeting, "250 mail.test")
	for _, tt := range []struct {
		name    string
		replies []string
		want    Outcome
	}{
		{"at the greeting", nil, Temporary},
		{"at EHLO", greeting, Temporary},
		{"at MAIL", hello, Temporary},
		{"at RCPT", append(hello, "250 ok"), Temporary},
		{"at DATA", append(hello, "250 ok", "250 ok"), Temporary},
		{"at the final dot", append(hello, "250 ok", "250 ok", "354 go on"), Unknown},
		{"nonsense at MAIL", append(hello, "garbage"), Temporary},
		{"nonsense at the final dot", append(hello, "250 ok", "250 ok", "354 go on", "garbage"), Unknown},
		{"greeting 554", []string{"554 no"}, Temporary},
	} {
		for _, hangUp := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, hanging up %v", tt.name, hangUp), func(t *testing.T) {
				addr := scriptedServer(t, tt.replies, hangUp)
				ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
				defer cancel()
				sender := newTestSMTP(t, "smtp://"+addr)
				if hangUp { // no deadline is needed to notice
					ctx = t.Context()
				}
				if r := sender.Send(ctx, testMail("id-1")); r.Outcome != tt.want {
					t.Errorf("Send = %+v, want %s", r, tt.want)
				}
				if n := len(sender.pool.idle); n != 0 {
					t.Errorf("%d connections kept", n)
				}
			})
		}
	}
}

// scriptedServer gives each connection the replies in turn, one for each
// command, then says nothing more.
func scriptedServer(t *testing.T, replies []string, hangUp bool) string {
	t.Helper()
	ln := listen(t)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				in := bufio.NewReader(conn)
				for i, r := range replies {
					if i > 0 && !readCommand(in, replies[i-1]) {
						return
					}
					if _, err := io.WriteString(conn, r+"\r\n"); err != nil {
						return
					}
				}
				if len(replies) > 0 && !readCommand(in, replies[len(replies)-1]) || hangUp {
					return
				}
				_, _ = io.Copy(io.Discard, in) // until the client gives up
			})
		}
	})
	t.Cleanup(func() {
		if err := ln.Close(); err != nil {
			t.Error(err)
		}
		serving.Wait()
	})
	return ln.Addr().String()
}

// readCommand reads what follows the reply: a line, or after 354 a mail.
func readCommand(in *bufio.Reader, reply string) bool {
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return false
		}
		if !strings.HasPrefix(reply, "354") || line == ".\r\n" {
			return true
		}
	}
}

func TestSMTPBadAddresses(t *testing.T) {
	server := newMailServer(t)
	sender := newTestSMTP(t, server.url)
	for _, to := range []string{"", "ivan", "a@b.test\r\nBcc: c@d.test", "a@b.test, c@d.test", "a@b.test>\r\nRCPT TO:<c@d.test"} {
		m := testMail("id-1")
		m.To = to
		if r := sender.Send(t.Context(), m); r.Outcome != Permanent {
			t.Errorf("Send to %q = %+v, want a permanent result", to, r)
		}
	}
	m := testMail("id-2")
	m.Subject = "Order\r\nBcc: evil@example.test\r\n\r\nbody"
	if r := sender.Send(t.Context(), m); r.Outcome != Accepted {
		t.Fatalf("Send = %+v", r)
	}
	mails := server.received()
	if len(mails) != 1 || strings.Contains(mails[0], "\nBcc:") || len(server.rcpts) != 1 {
		t.Errorf("received %q for %q", mails, server.rcpts)
	}
}

func TestSMTPURL(t *testing.T) {
	for _, bad := range []string{
		"", "127.0.0.1:25", "http://127.0.0.1:25", "smtp://127.0.0.1", "smtp://:25", "smtp://h:0", "smtp://h:70000",
		"smtp://h:25/path", "smtp://h:25?x=y", "smtp://mario:s3cret@h:port",
	} {
		_, err := NewSMTP(bad, nil)
		if !errors.Is(err, ErrSMTPURL) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("NewSMTP(%q): %v", bad, err)
		}
	}
}
