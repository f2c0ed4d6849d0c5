package sandbox

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	netmail "net/mail"
	"net/textproto"
	"strings"
	"time"

	"golang.org/x/text/encoding/htmlindex"
)

// maxDepth is the limit of nested parts.
const maxDepth = 10

var errTooDeep = errors.New("parts are nested too deep")

// mail is one message that the mail server accepted. From and To are the envelope's;
// the texts are decoded, with \n between lines.
type mail struct {
	From       string    `json:"from"`
	To         []string  `json:"to"` // near the beginning for recipientsOf, which reads no further
	Subject    string    `json:"subject"`
	Text       string    `json:"text"`
	HTML       string    `json:"html"`
	MessageID  string    `json:"message_id"` // without angle brackets
	ReceivedAt time.Time `json:"received_at"`
}

// parseMail decodes a message in the Internet Message Format.
func parseMail(raw []byte) (mail, error) {
	message, err := netmail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		return mail{}, fmt.Errorf("parse mail: %w", err)
	}
	words := mime.WordDecoder{CharsetReader: decodeCharset}
	subject, err := words.DecodeHeader(message.Header.Get("Subject"))
	if err != nil {
		return mail{}, fmt.Errorf("parse subject: %w", err)
	}
	m := mail{Subject: subject, MessageID: strings.Trim(message.Header.Get("Message-Id"), " <>")}
	if err := m.addPart(textproto.MIMEHeader(message.Header), message.Body, 0); err != nil {
		return mail{}, fmt.Errorf("parse mail: %w", err)
	}
	return m, nil
}

// addPart takes the first text and the first HTML, and ignores attachments and all
// other parts.
func (m *mail) addPart(header textproto.MIMEHeader, body io.Reader, depth int) error {
	if depth > maxDepth {
		return errTooDeep
	}
	kind, params := "text/plain", map[string]string(nil)
	if given := header.Get("Content-Type"); given != "" {
		var err error
		if kind, params, err = mime.ParseMediaType(given); err != nil {
			return fmt.Errorf("content type: %w", err)
		}
	}
	if strings.HasPrefix(kind, "multipart/") {
		return m.addParts(multipart.NewReader(body, params["boundary"]), depth)
	}
	if strings.HasPrefix(strings.ToLower(header.Get("Content-Disposition")), "attachment") {
		return nil
	}
	var into *string
	switch {
	case kind == "text/plain" && m.Text == "":
		into = &m.Text
	case kind == "text/html" && m.HTML == "":
		into = &m.HTML
	default:
		return nil
	}
	text, err := decodeText(header.Get("Content-Transfer-Encoding"), params["charset"], body)
	*into = text
	return err
}

func (m *mail) addParts(parts *multipart.Reader, depth int) error {
	for {
		part, err := parts.NextRawPart()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := m.addPart(part.Header, part, depth+1); err != nil {
			return err
		}
	}
}

func decodeText(encoding, charset string, body io.Reader) (string, error) {
	switch strings.ToLower(strings.TrimSpace(encoding)) {
	case "base64":
		body = base64.NewDecoder(base64.StdEncoding, body)
	case "quoted-printable":
		body = quotedprintable.NewReader(body)
	}
	if charset != "" {
		var err error
		if body, err = decodeCharset(charset, body); err != nil {
			return "", err
		}
	}
	text, err := io.ReadAll(body)
	if err != nil {
		return "", fmt.Errorf("decode text: %w", err)
	}
	return strings.ReplaceAll(strings.ToValidUTF8(string(text), "\uFFFD"), "\r\n", "\n"), nil
}

// decodeCharset decodes the charsets of browsers: UTF-8, KOI8-R, Windows-1251 and the
// rest.
func decodeCharset(charset string, body io.Reader) (io.Reader, error) {
	if strings.EqualFold(charset, "utf-8") {
		return body, nil // decodeText replaces invalid UTF-8
	}
	enc, err := htmlindex.Get(charset)
	if err != nil {
		return nil, fmt.Errorf("charset: %w", err)
	}
	return enc.NewDecoder().Reader(body), nil
}
