package notification

import (
	"context"
	"errors"
	"fmt"
	"net/mail"
	"net/url"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// A Message is one e-mail or SMS, ready to go.
type Message struct {
	ID      string    // the delivery's id, the same at every attempt
	From    string    // e-mail only: a mailbox, such as "Pizza <orders@pizza.example>"
	To      string    // an e-mail address or an E.164 number
	Subject string    // e-mail only: one line
	Text    string    // the SMS, or the text part of the e-mail
	HTML    string    // e-mail only
	Date    time.Time // when the delivery was made; the same at every attempt
}

// A Sender hands messages to the outside world: a mail server, an SMS gateway.
// It is used by many goroutines at once. One that is an io.Closer is closed
// when nothing is left to send.
type Sender interface {
	// Send makes one attempt, within ctx's deadline. A message's ID goes along
	// so that the other side can recognise a repetition.
	Send(ctx context.Context, m Message) Result
}

// An Outcome says what became of an attempt to send.
type Outcome string

// The outcomes.
const (
	Accepted  Outcome = "sent"      // the other side has taken the message
	Temporary Outcome = "temporary" // it has not, and may later
	Permanent Outcome = "permanent" // it never will
	Unknown   Outcome = "unknown"   // it was handed over and no answer came: it may have been taken
)

// A Result is what an attempt to send came to.
type Result struct {
	Outcome    Outcome
	ProviderID string // Accepted: what the other side calls the message, "" if it does not say
	Code       int    // its SMTP or HTTP status, 0 without an answer
	Err        error  // why the message was not accepted; with a Code it may quote the address
}

// maxError bounds what is stored of an error, in bytes.
const maxError = 500

// reason is the result's error as one line for the delivery's row.
func (r Result) reason() string {
	if r.Err == nil {
		return ""
	}
	return truncate(string(r.Outcome)+": "+oneLine(r.Err.Error()), maxError)
}

func truncate(s string, limit int) string {
	for len(s) > limit {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return s
}

// oneLine is s without line breaks and other control characters, and without
// those that turn the direction of the text around.
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

// fromAddress is who e-mails are from.
func fromAddress(from, publicURL string) (string, error) {
	if from == "" {
		return "Pizzaflow <orders@" + publicDomain(publicURL) + ">", nil
	}
	if _, err := mail.ParseAddress(from); err != nil {
		return "", fmt.Errorf("%w: %w", ErrFrom, err)
	}
	return from, nil
}

// publicDomain is the host of the shop's URL if mail can come from there, and
// a reserved domain otherwise.
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
