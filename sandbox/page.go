package sandbox

import (
	"bytes"
	"crypto/rand"
	"embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// shown is how many messages of a channel, and lines of the ledger, the page has.
const shown = 50

//go:embed page
var pageFiles embed.FS

// page shows what customers received and what they were charged.
type page struct {
	sandbox *Sandbox
	log     *slog.Logger
	html    *template.Template
	assets  http.Handler
	start   string // told apart from the page of an earlier version
}

// pageData is what page.html draws.
type pageData struct {
	Query     string // an address, a number or an order, whose traces alone are shown
	Version   string // changes with what is shown
	Messages  []pageMessage
	Charges   []charge
	Mails     int // of all
	SMS       int
	Charged   int
	Behaviour behaviour
	Disturbed bool
}

// pageMessage is a mail or an SMS.
type pageMessage struct {
	Key     string // stays the same as long as there is the message
	Channel string
	Number  int
	To      []string
	Subject string
	Text    string
	HTML    bool
	At      time.Time
}

func newPage(s *Sandbox) (*page, error) {
	html, err := template.New("page.html").Funcs(template.FuncMap{"money": money, "clock": clock}).ParseFS(pageFiles, "page/page.html")
	if err != nil {
		return nil, fmt.Errorf("parse page: %w", err)
	}
	assets, err := fs.Sub(pageFiles, "page/assets")
	if err != nil {
		return nil, fmt.Errorf("open assets: %w", err)
	}
	return &page{
		sandbox: s, log: s.log, html: html, start: rand.Text(),
		assets: http.StripPrefix("/assets/", http.FileServerFS(assets)),
	}, nil
}

// money writes minor units with two decimals and thin groups: 1 200.00.
func money(minor int64) string {
	whole := strconv.FormatInt(minor/100, 10)
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + "\u202f" + whole[i:]
	}
	return fmt.Sprintf("%s.%02d", whole, minor%100)
}

func clock(t time.Time) string { return t.UTC().Format("15:04:05") }

// handleShow draws the page, or answers 304 while nothing has changed, which
// is what the page's own script asks for every other second.
func (p *page) handleShow(w http.ResponseWriter, r *http.Request) {
	data := pageData{Query: strings.TrimSpace(strings.ReplaceAll(r.URL.Query().Get("q"), " ", "+"))}
	p.count(&data)
	etag := `"` + data.Version + `"`
	w.Header().Set("ETag", etag)
	w.Header().Set("Cache-Control", "no-cache")
	if r.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	var err error
	if data.Messages, err = p.messages(data.Query); err != nil {
		writeError(w, p.log, err)
		return
	}
	data.Charges = p.sandbox.payments.latest(data.Query)
	var body bytes.Buffer
	if err := p.html.Execute(&body, data); err != nil {
		writeError(w, p.log, fmt.Errorf("draw page: %w", err))
		return
	}
	setWriteDeadline(w, p.log)
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if _, err := body.WriteTo(w); err != nil {
		logGone(p.log, err)
	}
}

func (p *page) count(data *pageData) {
	data.Mails, data.SMS = p.sandbox.mails.count(), p.sandbox.sms.count()
	provider := p.sandbox.payments
	provider.mu.Lock()
	defer provider.mu.Unlock()
	data.Charged, data.Behaviour = len(provider.charges), provider.behaviour
	data.Disturbed = provider.behaviour != behaviour{}
	data.Version = fmt.Sprintf("%s-%d-%d-%d", p.start, data.Mails, data.SMS, provider.changes)
}

// messages returns the latest of both channels, newest first.
func (p *page) messages(query string) ([]pageMessage, error) {
	var list []pageMessage
	err := eachLatest(p.sandbox.mails, query, func(number int, m mail) {
		list = append(list, pageMessage{
			Key: fmt.Sprintf("mail-%d", number), Channel: "E-mail", Number: number, To: m.To,
			Subject: m.Subject, Text: m.Text, HTML: m.HTML != "", At: m.ReceivedAt,
		})
	})
	if err != nil {
		return nil, err
	}
	err = eachLatest(p.sandbox.sms, query, func(number int, m sms) {
		list = append(list, pageMessage{
			Key: fmt.Sprintf("sms-%d", number), Channel: "SMS", Number: number, To: []string{m.To},
			Text: m.Text, At: m.ReceivedAt,
		})
	})
	slices.SortStableFunc(list, func(a, b pageMessage) int { return b.At.Compare(a.At) })
	return list, err
}

func eachLatest[M any](from *messages, query string, do func(number int, m M)) error {
	var to *string
	if query != "" {
		to = &query
	}
	numbers := from.numbers(to)
	for _, number := range numbers[max(0, len(numbers)-shown):] {
		line, err := from.read(number)
		if err != nil {
			return err
		}
		var m M
		if err := json.Unmarshal(line, &m); err != nil {
			return fmt.Errorf("read message: %w", err)
		}
		do(number, m)
	}
	return nil
}

// latest returns the newest lines of the ledger first, those of an order or a
// customer when asked for.
func (p *payments) latest(query string) []charge {
	p.mu.Lock()
	defer p.mu.Unlock()
	var found []charge
	for _, c := range slices.Backward(p.charges) {
		if query == "" || c.OrderReference == query || strings.EqualFold(c.CustomerEmail, query) {
			found = append(found, *c)
		}
		if len(found) == shown {
			break
		}
	}
	return found
}

// handleMailHTML serves the HTML of a mail for a frame of the page: styles of
// its own, but no script, no form, and nothing fetched from anywhere.
func (p *page) handleMailHTML(w http.ResponseWriter, r *http.Request) {
	number, err := strconv.Atoi(r.PathValue("number"))
	if err != nil || number < 0 || number >= p.sandbox.mails.count() {
		writeError(w, p.log, &apiError{status: http.StatusNotFound, Code: "not_found", Message: "there is no such mail"})
		return
	}
	line, err := p.sandbox.mails.read(number)
	var m mail
	if err == nil {
		err = json.Unmarshal(line, &m)
	}
	if err != nil {
		writeError(w, p.log, fmt.Errorf("show mail: %w", err))
		return
	}
	setWriteDeadline(w, p.log)
	w.Header().Set("Content-Security-Policy", "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; "+
		"base-uri 'none'; form-action 'none'; frame-ancestors 'self'")
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if _, err := w.Write([]byte(m.HTML)); err != nil {
		logGone(p.log, err)
	}
}

func (p *page) handleAsset(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-cache")
	p.assets.ServeHTTP(w, r)
}
