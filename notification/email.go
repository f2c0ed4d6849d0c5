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
// A reply of 4xx is Temporary and one of 5xx Permanent; whatever goes wrong
// before a mail is begun is Temporary, because it is not about the mail. The
// server is reached by dial, nil means the net package.
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

// Send hands one mail to the server.
func (s *smtpSender) Send(ctx context.Context, m Message) Result {
	e, err := compose(m)
	if err != nil { // no server would take it either
		return Result{Outcome: Permanent, Err: err}
	}
	conn, err := s.pool.take(ctx)
	if err != nil {
		return Result{Outcome: Temporary, Code: replyCode(err), Err: err}
	}
	release := conn.use(ctx)
	r := transact(conn.client, e)
	// after any reply but 421 the server listens for more
	answered := r.Outcome == Accepted || r.Code != 0 && r.Code != 421
	if release() && answered {
		s.pool.give(conn)
	} else {
		conn.drop()
	}
	return r
}

// Close ends the kept connections.
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
	msg := mail.NewMsg(mail.WithNoDefaultUserAgent(), mail.WithBoundary("pizzaflow-"+m.ID))
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
	e.ascii = !strings.ContainsFunc(e.from+e.to, func(r rune) bool { return r > 127 })
	return e, nil
}

func bracket(addr string) string { return "<" + strings.Trim(addr, "<>") + ">" }

// transact is one SMTP transaction. Until the final dot is sent nothing can
// have been accepted; from then on only the server's answer tells.
func transact(c *smtp.Client, e envelope) Result {
	c.SkipSMTPUTF8(e.ascii) // asking for it without need can make the next hop refuse
	if err := c.Mail(e.from); err != nil {
		return refused("MAIL", err, Temporary)
	}
	if err := c.Rcpt(e.to); err != nil {
		return refused("RCPT", err, Temporary)
	}
	w, err := c.Data()
	if err != nil {
		return refused("DATA", err, Temporary)
	}
	if _, err := w.Write(e.content); err != nil {
		return refused("content", err, Temporary)
	}
	if err := w.Close(); err != nil {
		return refused("final dot", err, Unknown)
	}
	r := Result{Outcome: Accepted, Code: 250}
	if d, ok := w.(*smtp.DataCloser); ok {
		r.ProviderID = d.ServerResponse()
	}
	return r
}

// refused is the result of a step that was not answered with success; silent
// is the outcome when it was not answered at all.
func refused(step string, err error, silent Outcome) Result {
	r := Result{Outcome: silent, Code: replyCode(err), Err: fmt.Errorf("%s: %w", step, err)}
	switch {
	case r.Code == 530: // log in first: the fault of our configuration, not of the mail
		r.Outcome = Temporary
	case r.Code >= 500:
		r.Outcome = Permanent
	case r.Code >= 400:
		r.Outcome = Temporary
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
