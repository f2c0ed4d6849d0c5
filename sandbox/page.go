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

// maxShown is how many messages of a channel and lines of the ledger the page shows.
const maxShown = 50

//go:embed page
var pageFiles embed.FS

// page shows what customers received and what they were charged.
type page struct {
	sandbox *Sandbox
	log     *slog.Logger
	html    *template.Template
	assets  http.Handler
	start   string // in the version, so that a restart changes it
}

// pageData is the data of page.html.
type pageData struct {
	Query     string // an address, a number or an order to filter by; "" for all
	Version   string // changes with the data of the page
	Messages  []pageMessage
	Charges   []charge
	Mails     int // without the filter, like SMS and Charged
	SMS       int
	Charged   int
	Behaviour behaviour
	Disturbed bool
}

// pageMessage is a mail or an SMS.
type pageMessage struct {
	Key     string // identifies the message
	Channel string
	Number  int
	To      []string
	Subject string
	Text    string
	HTML    bool
	At      time.Time
}

func newPage(s *Sandbox) (*page, error) {
	html, err := template.New("page.html").Funcs(template.FuncMap{"money": formatMoney, "clock": formatClock}).ParseFS(pageFiles, "page/page.html")
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

// formatMoney formats minor units with two decimals and thin spaces: 1 200.00.
func formatMoney(minor int64) string {
	whole := strconv.FormatInt(minor/100, 10)
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + "\u202f" + whole[i:]
	}
	return fmt.Sprintf("%s.%02d", whole, minor%100)
}

func formatClock(t time.Time) string { return t.UTC().Format("15:04:05") }

// handleShow answers with the page, or with 304 if its version is unchanged: the
// page's script asks every two seconds.
func (p *page) handleShow(w http.ResponseWriter, r *http.Request) {
	data := pageData{Query: strings.TrimSpace(strings.ReplaceAll(r.URL.Query().Get("q"), " ", "+"))}
	p.fillCounts(&data)
	etag := `"` + data.Version + `"`
	w.Header().Set("ETag", etag)
	w.Header().Set("Cache-Control", "no-cache")
	if r.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	var err error
	if data.Messages, err = p.latestMessages(data.Query); err != nil {
		writeError(w, p.log, err)
		return
	}
	data.Charges = p.sandbox.payments.latestCharges(data.Query)
	var body bytes.Buffer
	if err := p.html.Execute(&body, data); err != nil {
		writeError(w, p.log, fmt.Errorf("render page: %w", err))
		return
	}
	setWriteDeadline(w, p.log)
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if _, err := body.WriteTo(w); err != nil {
		logUndelivered(p.log, err)
	}
}

func (p *page) fillCounts(data *pageData) {
	data.Mails, data.SMS = p.sandbox.mails.countAll(), p.sandbox.sms.countAll()
	provider := p.sandbox.payments
	provider.mu.Lock()
	defer provider.mu.Unlock()
	data.Charged, data.Behaviour = len(provider.charges), provider.behaviour
	data.Disturbed = provider.behaviour != behaviour{}
	data.Version = fmt.Sprintf("%s-%d-%d-%d", p.start, data.Mails, data.SMS, provider.changes)
}

// latestMessages returns the latest messages of both channels, newest first.
func (p *page) latestMessages(query string) ([]pageMessage, error) {
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
	numbers := from.findNumbers(to)
	for _, number := range numbers[max(0, len(numbers)-maxShown):] {
		line, err := from.readMessage(number)
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

// latestCharges returns the latest lines of the ledger, newest first. A query that is
// not empty selects those of an order or a customer.
func (p *payments) latestCharges(query string) []charge {
	p.mu.Lock()
	defer p.mu.Unlock()
	var found []charge
	for _, c := range slices.Backward(p.charges) {
		if query == "" || c.OrderReference == query || strings.EqualFold(c.CustomerEmail, query) {
			found = append(found, *c)
		}
		if len(found) == maxShown {
			break
		}
	}
	return found
}

// handleMailHTML serves the HTML of a mail for a frame of the page. The mail may have
// styles, but no scripts and no forms, and load nothing.
func (p *page) handleMailHTML(w http.ResponseWriter, r *http.Request) {
	number, err := strconv.Atoi(r.PathValue("number"))
	if err != nil || number < 0 || number >= p.sandbox.mails.countAll() {
		writeError(w, p.log, &apiError{status: http.StatusNotFound, Code: "not_found", Message: "there is no such mail"})
		return
	}
	line, err := p.sandbox.mails.readMessage(number)
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
		logUndelivered(p.log, err)
	}
}

func (p *page) handleAsset(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-cache")
	p.assets.ServeHTTP(w, r)
}
