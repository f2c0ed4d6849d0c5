package notification

import (
	"errors"
	"net/textproto"
	"regexp"
	"strconv"
)

// A step is a part of the dialogue with a mail server.
type step string

// The steps that a server may refuse.
const (
	stepConnect  step = "connect" // the greeting, EHLO, STARTTLS and AUTH
	stepMail     step = "MAIL"
	stepRcpt     step = "RCPT"
	stepData     step = "DATA"
	stepContent  step = "content"
	stepFinalDot step = "final dot"
)

// A refusal is a mail server's reply that is no success.
type refusal struct {
	step step
	code int
	// the enhanced status code (RFC 3463), zeros without one
	class, subject, detail int
	text                   string
}

// refusalIn is the refusal that err has of a step, and false if the server said nothing.
func refusalIn(err error, at step) (refusal, bool) {
	reply, ok := errors.AsType[*textproto.Error](err)
	if !ok {
		return refusal{}, false
	}
	r := refusal{step: at, code: reply.Code, text: reply.Msg}
	if m := enhancedCode.FindStringSubmatch(reply.Msg); m != nil {
		// of at most three digits each
		r.class, _ = strconv.Atoi(m[1])
		r.subject, _ = strconv.Atoi(m[2])
		r.detail, _ = strconv.Atoi(m[3])
	}
	return r, true
}

var enhancedCode = regexp.MustCompile(`^\s*#?([245])\.(\d{1,3})\.(\d{1,3})(?:\D|$)`)

// isFinal reports whether the mail will never be accepted: the server says for good,
// and speaks of the recipient. A refusal for good that is about us, our mail, the
// server's policy, or a quota of ours meets all mails alike, and goes away when
// somebody mends it; so does one that does not say what it is about.
func (r refusal) isFinal() bool { return r.isForGood() && r.isAboutRecipient() }

// isForGood reports whether the server wants the mail never again.
func (r refusal) isForGood() bool { return r.code >= 500 && r.class != 4 && r.class != 2 }

// isAboutRecipient reports whether the refusal is about the recipient's address or
// mailbox. Before RCPT the server does not know the recipient.
func (r refusal) isAboutRecipient() bool {
	if r.step == stepConnect || r.step == stepMail || r.step == stepContent {
		return false
	}
	switch {
	case r.code == 530, r.code == 534, r.code == 535, r.code == 538: // authentication
		return false
	case r.code == 556: // the recipient's domain takes no mail (RFC 7504)
		return true
	case r.class == 5 && r.subject != 0 && (r.subject != 1 || r.detail != 0):
		return r.isAboutRecipientByDetail()
	}
	// the server says no more than "no": by RFC 5321, 4.2.3 these are about a mailbox,
	// but servers use them for everything else, too, and then their text says so
	return r.step == stepRcpt && (r.code == 550 || r.code == 551 || r.code == 553) && !aboutUs.MatchString(r.text)
}

// isAboutRecipientByDetail goes by the enhanced status code alone (RFC 3463 and the
// registry of IANA): the subject 1 is addresses, and 2 the recipient's mailbox.
func (r refusal) isAboutRecipientByDetail() bool {
	switch r.subject {
	case 1: // except the sender's address, and a host that is not ours to ask
		return r.detail != 7 && r.detail != 8 && r.detail != 9
	case 2:
		return true
	case 6: // an address that is not ASCII, and a way to it that wants ASCII
		return r.step == stepRcpt && (r.detail == 7 || r.detail == 10)
	case 7: // the mailbox or its domain has another owner by now (RFC 7293)
		return r.detail == 17 || r.detail == 18
	}
	return false
}

// aboutUs finds words by which servers without enhanced status codes say that a
// refusal at RCPT is about who sends, from where, how much, or by which rule.
var aboutUs = regexp.MustCompile(`(?i)relay|polic(y|ies)|\bspam|black ?list|block ?list|\b(block|bann|list)ed\b|\breputation|\bsender|\bquota|\blimit|\brates?\b|too (many|much)|` +
	`\bauth|\blog ?in\b|credential|\bdenied|prohibited|\b(helo|ehlo|client)\b|\b(your|sending) (ip|host|server|address|domain)|` +
	`\b(spf|dkim|dmarc|ptr|rdns|dns|dnsbl|rbl|tls)\b|reverse|encrypt|try again`)
