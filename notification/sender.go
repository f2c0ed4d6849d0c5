package notification

import (
	"context"
	"errors"
	"fmt"
	"net/mail"
	"net/url"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// A Message is one e-mail or SMS, ready to be sent.
type Message struct {
	ID      string    // the delivery's id, the same at every attempt
	From    string    // e-mail only: a mailbox, such as "Pizza <orders@pizza.example>"
	To      string    // an e-mail address or an E.164 number
	Subject string    // e-mail only: one line
	Text    string    // the SMS, or the text part of the e-mail
	HTML    string    // e-mail only
	Date    time.Time // when the delivery was made; the same at every attempt

	MayBeSent bool // an attempt before was Unknown
}

// A Sender sends messages by a mail server or an SMS gateway. It is used by many
// goroutines at once. A Sender that is an io.Closer is closed after the last message.
type Sender interface {
	// Send makes one attempt, within ctx's deadline. The message's ID is sent with
	// it, so that the other side can recognise a repetition.
	Send(ctx context.Context, m Message) Result
}

// An Outcome is how an attempt to send ended.
type Outcome string

// The outcomes.
const (
	Accepted  Outcome = "sent"      // the other side has accepted the message
	Temporary Outcome = "temporary" // it has not, and may accept it later
	Permanent Outcome = "permanent" // it never will
	Unknown   Outcome = "unknown"   // the message was sent and no answer says what became of it: it may have been accepted
)

// A Result is the result of an attempt to send.
type Result struct {
	Outcome    Outcome
	ProviderID string // Accepted: the other side's id of the message, "" if it gave none
	Code       int    // the SMTP or HTTP status, 0 without an answer
	Err        error  // why the message was not accepted; with a Code it may quote the address
	AboutUs    string // the step at which the other side refused us, and not the message or its recipient; "" when it did not
}

// maxError is how much of an error or a provider's id is stored, in bytes.
const maxError = 500

// reason is the result's error as one line for the delivery's row, with the number of
// attempts so far that were Unknown: whoever reads it learns that the message may have
// been sent, whatever became of the last attempt.
func (r Result) reason(unknownAttempts int) string {
	if r.Err == nil {
		return ""
	}
	unknown := ""
	if unknownAttempts > 0 {
		unknown = fmt.Sprintf("%d of the attempts may have sent it, outcome unknown: ", unknownAttempts)
	}
	return truncate(string(r.Outcome)+": "+unknown+oneLine(r.Err.Error()), maxError)
}

// reply is the error as one line for the log: an answer from outside may quote the
// customer's address or number, whose places it shows.
func (r Result) reply(to string) string {
	said := mailAddress.ReplaceAllString(oneLine(r.Err.Error()), "<address>")
	if name, _, _ := strings.Cut(to, "@"); len(name) > 2 {
		said = regexp.MustCompile(`(?i)`+regexp.QuoteMeta(name)).ReplaceAllString(said, "<address>")
	}
	return truncate(longNumber.ReplaceAllString(said, "<number>"), 300)
}

var (
	mailAddress = regexp.MustCompile(`[^\s<>()\[\]"',;:]+@[^\s<>()\[\]"',;:]+`)
	longNumber  = regexp.MustCompile(`\+?\d(?:[ ()-]{0,2}\d){6,}`)
)

func truncate(s string, limit int) string {
	for len(s) > limit {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return s
}

// oneLine is s without line breaks and other control characters, and without the
// marks of the writing direction.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsControl(r), r == '\u2028', r == '\u2029', r == utf8.RuneError:
			return ' '
		case unicode.Is(unicode.Bidi_Control, r):
			return -1
		}
		return r
	}, s)
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == ' ' }), " ")
}

// ErrFrom is returned by New for a Config.From that is not a mailbox.
var ErrFrom = errors.New("e-mail sender: want a mailbox such as Pizza <orders@pizza.example>")

// CheckFrom reports what is wrong with Config.From.
func CheckFrom(from, publicURL string) error {
	_, err := fromAddress(from, publicURL)
	return err
}

// fromAddress is the sender of the e-mails.
func fromAddress(from, publicURL string) (string, error) {
	if from == "" {
		return "Pizzaflow <orders@" + publicDomain(publicURL) + ">", nil
	}
	if _, err := mail.ParseAddress(from); err != nil {
		return "", fmt.Errorf("%w: %w", ErrFrom, err)
	}
	return from, nil
}

// publicDomain is the host of the shop's URL if mail can be from there, and else a
// reserved domain.
func publicDomain(publicURL string) string {
	u, err := url.Parse(publicURL)
	if err == nil {
		host := strings.TrimPrefix(u.Hostname(), "www.")
		name := host[strings.LastIndexByte(host, '.')+1:]
		if name != host && strings.ContainsFunc(name, unicode.IsLetter) && !strings.Contains(host, ":") {
			return host
		}
	}
	return "pizzaflow.example"
}
