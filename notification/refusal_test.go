package notification

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/textproto"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"pizzaflow/sqldb"
)

// Refusals as mail servers word them; each is tried for the day unless it is for good
// and about the recipient.
func TestWhomARefusalIsAbout(t *testing.T) {
	for _, tt := range []struct {
		step  step
		code  int
		text  string
		final bool
	}{
		{stepRcpt, 550, "5.1.1 <ivan@example.com>: Recipient address rejected: User unknown in local recipient table", true}, // Postfix
		{stepRcpt, 550, "5.1.1 The email account that you tried to reach does not exist.\n5.1.1 Please try again", true},     // Gmail
		{stepRcpt, 550, "5.1.2 <ivan@nowhere.example>: Recipient address rejected: Domain not found", true},
		{stepRcpt, 501, "5.1.3 Bad recipient address syntax", true},
		{stepRcpt, 550, "#5.1.0 Address rejected.", true},
		{stepRcpt, 550, "5.1.6 Mailbox has moved", true},
		{stepRcpt, 556, "5.1.10 Domain does not accept mail (nullMX)", true},
		{stepRcpt, 556, "no mail here", true},
		{stepRcpt, 550, "5.2.1 The email account is disabled", true},
		{stepRcpt, 552, "5.2.2 The email account that you tried to reach is over quota", true},
		{stepRcpt, 553, "5.6.7 Non-ASCII addresses not permitted for that recipient", true},
		{stepRcpt, 550, "5.7.17 Mailbox owner has changed", true},
		{stepRcpt, 550, "No such user here", true},
		{stepRcpt, 550, "Unknown user", true}, // Exim
		{stepRcpt, 551, "User not local; please try <ivan@example.net>", true},
		{stepRcpt, 553, "Requested action not taken: mailbox name not allowed", true},
		{stepFinalDot, 550, "5.1.1 no such mailbox", true},
		{stepFinalDot, 552, "5.2.2 mailbox full", true},
		{stepData, 550, "5.1.1 no such mailbox", true},

		{stepConnect, 554, "5.7.1 Service unavailable; Client host blocked using a DNSBL", false},
		{stepConnect, 535, "5.7.8 Error: authentication failed", false},
		{stepConnect, 550, "5.1.1 go away", false},
		{stepMail, 553, "5.7.1 <orders@pizza.example>: Sender address rejected: not owned by user", false},
		{stepMail, 550, "5.1.8 Sender domain does not exist", false},
		{stepMail, 530, "5.7.0 Must issue a STARTTLS command first", false},
		{stepMail, 550, "5.1.1 no such sender", false},
		{stepMail, 552, "5.3.4 Message size exceeds fixed limit", false},
		{stepMail, 555, "5.5.4 Unsupported option: BODY=8BITMIME", false},
		{stepRcpt, 550, "5.7.1 relaying denied", false},
		{stepRcpt, 554, "5.7.1 <ivan@example.com>: Relay access denied", false},
		{stepRcpt, 550, "relay not permitted", false}, // Exim
		{stepRcpt, 553, "sorry, that domain isn't in my list of allowed rcpthosts; no valid cert for gatewaying, relaying denied", false},
		{stepRcpt, 504, "5.5.2 <shop>: Helo command rejected: need fully-qualified hostname", false},
		{stepRcpt, 550, "5.1.0 <orders@pizza.example>: Sender address rejected: User unknown in local recipient table", false},
		{stepRcpt, 553, "5.1.8 <orders@pizza.example>: Sender address rejected: Domain not found", false},
		{stepRcpt, 550, "5.7.25 Client host rejected: cannot find your reverse hostname", false},
		{stepRcpt, 550, "5.4.5 Daily user sending limit exceeded", false},
		{stepRcpt, 550, "Daily sending quota exceeded", false},
		{stepRcpt, 550, "Message rejected by local policy", false},
		{stepRcpt, 550, "Authentication required", false},
		{stepRcpt, 530, "5.7.1 Authentication required", false},
		{stepRcpt, 535, "5.1.1 what", false},
		{stepRcpt, 550, "4.2.1 try later", false},
		{stepRcpt, 452, "4.2.2 mailbox full", false},
		{stepRcpt, 450, "5.1.1 unknown for now", false},
		{stepRcpt, 552, "too many recipients", false},
		{stepRcpt, 521, "host does not accept mail", false},
		{stepRcpt, 500, "what", false},
		{stepRcpt, 550, "5.3.2 system not accepting", false},
		{stepData, 550, "5.4.5 quota", false},
		{stepData, 554, "5.5.1 no valid recipients", false},
		{stepFinalDot, 554, "5.7.1 message looks like spam", false},
		{stepFinalDot, 550, "5.7.26 unauthenticated: SPF and DKIM did not pass", false},
		{stepFinalDot, 550, "High probability of spam", false},
		{stepFinalDot, 554, "Transaction failed", false},
		{stepFinalDot, 552, "5.3.4 message too big", false},
	} {
		err := fmt.Errorf("said: %w", &textproto.Error{Code: tt.code, Msg: tt.text})
		r := failedStep(tt.step, err, Unknown)
		want := Result{Outcome: Temporary}
		if tt.final {
			want.Outcome = Permanent
		} else if tt.code >= 500 && !strings.HasPrefix(tt.text, "4") {
			want.AboutUs = string(tt.step)
		}
		if r.Outcome != want.Outcome || r.AboutUs != want.AboutUs || r.Code != tt.code {
			t.Errorf("%s: %d %s: %+v, want %+v", tt.step, tt.code, tt.text, r, want)
		}
	}
}

// A server that refuses us keeps the mail waiting; row, log and metric say what it said,
// the log without the customer's address.
func TestRefusedForWhatWeAre(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		w := newWorld(t, db)
		var log bytes.Buffer
		addr := scriptedServer(t, []string{
			"220 mail.test", "250 mail.test", "250 ok",
			"550-5.7.1 relaying denied\x1b[31m for <ivan1@example.com>\r\n550 5.7.1 (ivan1, +7 900 000-00-01)", "503 no",
		}, true)
		email, err := NewSMTP("smtp://"+addr, nil)
		if err != nil {
			t.Fatal(err)
		}
		sms, err := NewSMS("http://"+w.sms.addr+"/sms/messages", nil)
		if err != nil {
			t.Fatal(err)
		}
		w.edit = func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) }
		s := w.serviceWith(email, sms)
		stop := w.run(s)
		o := newOrder("")
		o.email = "ivan1@example.com"
		w.handle(s, o.created())
		w.eventually("the refusal is counted", func() bool {
			return testutil.ToFloat64(s.metrics.refusals.WithLabelValues("email", "RCPT", "550")) >= 1 && w.count(Sent) == 1
		})
		stop()
		w.wantReason("email", "temporary: RCPT: 550 5.7.1 relaying denied [31m for <ivan1@example.com> 5.7.1 (ivan1,")
		if n := w.count(Pending); n != 1 {
			t.Errorf("%d deliveries wait, want the mail's", n)
		}
		said := log.String()
		if !strings.Contains(said, "5.7.1 relaying denied") || strings.Contains(said, "ivan1") || strings.Contains(said, "000-00-01") || strings.Contains(said, "\x1b") {
			t.Errorf("logged: %s", said)
		}
	})
}

func TestReplyInTheLog(t *testing.T) {
	r := Result{Err: errors.New("550 <Ivan.P@example.com>: no IVAN.P at 203.0.113.7, +79001234567\r\n" + strings.Repeat("x", 1000))}
	if got := r.reply("ivan.p@example.com"); len(got) > 300 || !strings.HasPrefix(got, "550 <<address>>: no <address> at 203.0.113.7, <number> xx") {
		t.Errorf("reply = %q", got)
	}
}
