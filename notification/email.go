package notification

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/wneessen/go-mail"
	"github.com/wneessen/go-mail/smtp"
)

// ErrSMTPURL is returned by NewSMTP for anything but smtp://[user:password@]HOST:PORT.
var ErrSMTPURL = errors.New("SMTP URL: want smtp://[user:password@]HOST:PORT")

// messageIDDomain is the right side of every Message-ID. It must not depend on
// configuration: a repeated mail carries the id it had before the restart.
const messageIDDomain = "pizzaflow.example"

// NewSMTP is the Sender of e-mails by the mail server of a URL
// smtp://[user:password@]HOST:PORT. It encrypts with STARTTLS where the server
// offers it, except on loopback, and never sends a password in clear except on
// loopback. Connections are kept and used again.
//
// A refusal is Permanent when it is for good and about the recipient, and else Temporary
// (see refusal). The
// server is connected to by dial; nil is the net package's.
func NewSMTP(rawURL string, dial func(ctx context.Context, network, address string) (net.Conn, error)) (Sender, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Scheme != "smtp" || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return nil, ErrSMTPURL // url's own error would quote the password
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil || port < 1 || port > 65535 {
		return nil, ErrSMTPURL
	}
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	p := &smtpPool{host: u.Hostname(), connect: dial}
	local := isLoopback(p.host)
	p.options = []mail.Option{mail.WithPort(port), mail.WithTimeout(dialTimeout), mail.WithTLSPolicy(mail.TLSOpportunistic)}
	if local {
		p.options = append(p.options, mail.WithTLSPolicy(mail.NoTLS))
	}
	if u.User != nil {
		password, _ := u.User.Password()
		auth := mail.SMTPAuthAutoDiscover // of what the server offers, nothing in clear
		if local {
			auth = mail.SMTPAuthPlainNoEnc
		}
		p.options = append(p.options, mail.WithSMTPAuth(auth), mail.WithUsername(u.User.Username()), mail.WithPassword(password))
	}
	if _, err := mail.NewClient(p.host, p.options...); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSMTPURL, err)
	}
	return &smtpSender{pool: p}, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

type smtpSender struct{ pool *smtpPool }

// Send sends one mail to the server.
func (s *smtpSender) Send(ctx context.Context, m Message) Result {
	e, err := compose(m)
	if err != nil { // no server would accept it either
		return Result{Outcome: Permanent, Err: err}
	}
	for {
		conn, err := s.acquire(ctx)
		if err != nil {
			return failedStep(stepConnect, err, Temporary)
		}
		if r, stale := s.sendOn(ctx, conn, e); !stale || ctx.Err() != nil {
			return r
		}
	}
}

// acquire takes at most sendTimeout to get a connection.
func (s *smtpSender) acquire(ctx context.Context) (*smtpConn, error) {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	return s.pool.acquire(ctx)
}

// sendOn sends the mail on a connection. It reports a stale connection: a kept one
// that the server had closed already, so that nothing was sent.
func (s *smtpSender) sendOn(ctx context.Context, conn *smtpConn, e envelope) (r Result, stale bool) {
	kept := false
	defer func() {
		if !kept { // also after a panic
			conn.drop()
		}
	}()
	unbind := conn.bind(ctx)
	r, begun := transact(conn, e)
	conn.unfinished = r.Outcome != Accepted
	// after any reply but 421 the server expects further commands
	answered := r.Outcome == Accepted || r.Code != 0 && r.Code != 421
	if kept = unbind() && answered; kept {
		s.pool.release(conn)
		return r, false
	}
	return r, conn.mails > 1 && !begun && !answered
}

// Close closes the idle connections.
func (s *smtpSender) Close() error {
	s.pool.close()
	return nil
}

// An envelope is a mail as SMTP wants it.
type envelope struct {
	from, to string // in angle brackets
	ascii    bool   // both addresses are
	content  []byte
}

// compose writes the mail. Two calls for one message give the same bytes.
func compose(m Message) (envelope, error) {
	encoding := mail.EncodingQP
	if !ascii(m.Text) { // base64 takes half the bytes of quoted-printable there
		encoding = mail.EncodingB64
		m.Text, m.HTML = strings.ReplaceAll(m.Text, "\n", "\r\n"), strings.ReplaceAll(m.HTML, "\n", "\r\n")
	}
	msg := mail.NewMsg(mail.WithNoDefaultUserAgent(), mail.WithBoundary("pizzaflow-"+m.ID), mail.WithEncoding(encoding))
	if err := errors.Join(msg.From(m.From), msg.To(m.To)); err != nil {
		return envelope{}, fmt.Errorf("compose mail: %w", err)
	}
	msg.Subject(oneLine(m.Subject))
	msg.SetMessageIDWithValue(m.ID + "@" + messageIDDomain)
	msg.SetDateWithValue(m.Date)
	msg.SetGenHeader("Auto-Submitted", "auto-generated")
	msg.SetGenHeader("X-Auto-Response-Suppress", "All")
	msg.SetBodyString(mail.TypeTextPlain, m.Text)
	msg.AddAlternativeString(mail.TypeTextHTML, m.HTML)
	var b bytes.Buffer
	if _, err := msg.WriteTo(&b); err != nil {
		return envelope{}, fmt.Errorf("compose mail: %w", err)
	}
	from, err := msg.GetSender(false)
	if err != nil {
		return envelope{}, fmt.Errorf("compose mail: %w", err)
	}
	to, err := msg.GetRecipients()
	if err != nil {
		return envelope{}, fmt.Errorf("compose mail: %w", err)
	}
	e := envelope{from: bracket(from), to: bracket(to[0]), content: b.Bytes()}
	if strings.ContainsAny(e.from+e.to, "\r\n") {
		return envelope{}, errors.New("compose mail: an address of two lines")
	}
	e.ascii = ascii(e.from + e.to)
	return e, nil
}

func ascii(s string) bool { return !strings.ContainsFunc(s, func(r rune) bool { return r > 127 }) }

func bracket(addr string) string { return "<" + strings.Trim(addr, "<>") + ">" }

// transact is one SMTP transaction. Before the final dot is sent the server cannot
// have accepted the mail; from then on only its answer tells. begun reports whether
// the server accepted the first command.
func transact(conn *smtpConn, e envelope) (r Result, begun bool) {
	c := conn.client
	if step, err := startData(c, e); err != nil {
		return failedStep(step, err, Temporary), step != stepMail
	}
	w := c.Text.DotWriter()
	if _, err := w.Write(e.content); err != nil {
		return failedStep(stepContent, err, Temporary), true
	}
	if err := w.Close(); err != nil {
		return failedStep(stepFinalDot, err, Unknown), true
	}
	_ = conn.raw.SetReadDeadline(time.Now().Add(answerTimeout)) // it fails on a closed connection, and then so does reading
	_, answer, err := c.Text.ReadResponse(250)
	if err != nil {
		return failedStep(stepFinalDot, err, Unknown), true
	}
	return Result{Outcome: Accepted, Code: 250, ProviderID: answer}, true
}

// startData sends the commands before the content, and returns the first that failed.
// Where the server allows PIPELINING (RFC 2920), the three commands go out together,
// in one round trip.
func startData(c *smtp.Client, e envelope) (at step, err error) {
	extra := ""
	if ok, _ := c.Extension("8BITMIME"); ok {
		extra += " BODY=8BITMIME"
	}
	if ok, _ := c.Extension("SMTPUTF8"); ok && !e.ascii { // asking for it without need can make the next hop refuse
		extra += " SMTPUTF8"
	}
	commands := []struct {
		name step
		line string
		code int
	}{{stepMail, "MAIL FROM:" + e.from + extra, 250}, {stepRcpt, "RCPT TO:" + e.to, 25}, {stepData, "DATA", 354}}
	together, _ := c.Extension("PIPELINING")
	if together {
		if err := c.Text.PrintfLine("%s\r\n%s\r\n%s", commands[0].line, commands[1].line, commands[2].line); err != nil {
			return stepMail, err
		}
	}
	for _, cmd := range commands {
		if !together {
			if err := c.Text.PrintfLine("%s", cmd.line); err != nil {
				return cmd.name, err
			}
		}
		_, _, refusal := c.Text.ReadResponse(cmd.code)
		switch {
		case refusal != nil && err == nil:
			if at, err = cmd.name, refusal; !together || replyCode(err) == 0 {
				return at, err
			}
		case refusal == nil && err != nil && cmd.name == stepData:
			// the server waits for content although it refused the rest: end it at once
			if e := c.Text.DotWriter().Close(); e != nil {
				return at, errors.Join(err, e)
			}
			_, _, _ = c.Text.ReadResponse(0) // the mail has no recipient; reset asks before the next mail whether the server works
		}
	}
	return at, err
}

// failedStep is the result of a step that was not answered with success; silent is the
// outcome when the step was not answered at all.
func failedStep(at step, err error, silent Outcome) Result {
	r := Result{Outcome: silent, Code: replyCode(err), Err: fmt.Errorf("%s: %w", at, err)}
	if at == stepConnect {
		r.Err = err // it begins so
	}
	refused, ok := refusalIn(err, at)
	if !ok || r.Code < 400 { // no reply, or none to the step
		return r
	}
	r.Err = fmt.Errorf("%s: %d %s", at, refused.code, refused.text) // textproto's error quotes the text
	r.Outcome = Temporary
	if refused.isFinal() {
		r.Outcome = Permanent
	} else if refused.isForGood() {
		r.AboutUs = string(at)
	}
	return r
}

// replyCode is the code of the SMTP reply in err, 0 if there is none.
func replyCode(err error) int {
	if reply, ok := errors.AsType[*textproto.Error](err); ok {
		return reply.Code
	}
	return 0
}
