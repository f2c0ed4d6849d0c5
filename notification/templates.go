package notification

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	htmltemplate "html/template"
	"io"
	"io/fs"
	"strconv"
	"strings"
	texttemplate "text/template"
	"unicode/utf8"

	"golang.org/x/text/feature/plural"
	"golang.org/x/text/language"

	"pizzaflow/event"
)

//go:embed templates
var embedded embed.FS

// A Page is the data of the templates. Texts of the customer and of the menu are
// single lines.
type Page struct {
	Locale      string // ru or en
	Name        string // the customer's
	OrderNumber string
	URL         string // of the order's page; "" in an SMS that would be too long with it
	ShopURL     string
	Items       []Line
	Count       int    // of pizzas
	Total       string // of the order, written as the locale does: 1 200,00 ₽
	TotalCode   string // the same in letters that every telephone shows: 1200.00 RUB
	Address     string
	Amount      string // of the payment, like Total
	AmountCode  string // of the payment, like TotalCode
	PaidInFull  bool   // the payment's amount is the order's total
	ErrorCode   string // why the payment failed: declined, insufficient_funds, provider_unavailable, …
}

// A Line is one line of the order.
type Line struct {
	Name     string
	Size     string // small, medium or large
	Quantity int
	Sum      string // price times quantity, like Page.Total
}

// The most characters of an SMS: one message of the GSM alphabet, or two of UCS-2.
const (
	smsASCII   = 160
	smsUnicode = 134
)

var locales = map[string]language.Tag{"ru": language.Russian, "en": language.English}

// templates are the texts of all types in all locales.
type templates struct {
	publicURL string
	sets      map[string]*texts // by locale and type
}

// texts are the templates of one type in one locale.
type texts struct {
	html *htmltemplate.Template
	text *texttemplate.Template
	sms  *texttemplate.Template
}

// CheckTemplates reports what is wrong with Config.Templates.
func CheckTemplates(override fs.FS, publicURL string) error {
	_, err := newTemplates(override, publicURL)
	return err
}

// newTemplates parses the templates, the files of override first, and executes each,
// so that a mistake stops the start and not the first customer's mail.
func newTemplates(override fs.FS, publicURL string) (*templates, error) {
	t := &templates{publicURL: publicURL, sets: map[string]*texts{}}
	for locale, tag := range locales {
		for _, typ := range Types() {
			set, err := parse(override, locale, tag, string(typ))
			if err != nil {
				return nil, err
			}
			t.sets[locale+"/"+string(typ)] = set
			for _, channel := range []Channel{Email, SMS} {
				if _, err := t.message(sample(locale, typ, channel)); err != nil {
					return nil, err
				}
			}
		}
	}
	return t, nil
}

func parse(override fs.FS, locale string, tag language.Tag, typ string) (*texts, error) {
	funcs := map[string]any{"plural": func(n int, forms ...string) (string, error) { return pluralForm(tag, n, forms) }}
	set := &texts{
		html: htmltemplate.New(locale + "/" + typ).Funcs(funcs),
		text: texttemplate.New(locale + "/" + typ).Funcs(funcs),
		sms:  texttemplate.New(locale + "/" + typ + "_sms").Funcs(funcs),
	}
	words := locale + "/words.txt"
	for _, f := range []struct {
		path  string
		parse func(string) error
	}{
		{words, func(s string) error { _, err := set.html.Parse(s); return err }},
		{"layout.html", func(s string) error { _, err := set.html.Parse(s); return err }},
		{locale + "/" + typ + ".html", func(s string) error { _, err := set.html.Parse(s); return err }},
		{words, func(s string) error { _, err := set.text.Parse(s); return err }},
		{"layout.txt", func(s string) error { _, err := set.text.Parse(s); return err }},
		{locale + "/" + typ + ".txt", func(s string) error { _, err := set.text.Parse(s); return err }},
		{locale + "/" + typ + "_sms.txt", func(s string) error { _, err := set.sms.Parse(s); return err }},
	} {
		source, err := readTemplate(override, f.path)
		if err != nil {
			return nil, err
		}
		if err := f.parse(source); err != nil {
			return nil, fmt.Errorf("template %s: %w", f.path, err)
		}
	}
	return set, nil
}

func readTemplate(override fs.FS, path string) (string, error) {
	if override != nil {
		b, err := fs.ReadFile(override, path)
		if err == nil {
			return string(b), nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("template %s: %w", path, err)
		}
	}
	b, err := embedded.ReadFile("templates/" + path)
	if err != nil {
		return "", fmt.Errorf("template %s: %w", path, err)
	}
	return string(b), nil
}

// pluralForm picks the form of a word for a number, of two forms (one, other) or three
// (one, few, many).
func pluralForm(tag language.Tag, n int, forms []string) (string, error) {
	if len(forms) != 2 && len(forms) != 3 {
		return "", fmt.Errorf("plural: want two forms or three, got %d", len(forms))
	}
	switch plural.Cardinal.MatchPlural(tag, n, 0, 0, 0, 0) {
	case plural.One:
		return forms[0], nil
	case plural.Few:
		return forms[1], nil
	default:
		return forms[len(forms)-1], nil
	}
}

// message writes a delivery's message.
func (t *templates) message(d delivery) (Message, error) {
	p := t.page(d)
	set, ok := t.sets[p.Locale+"/"+string(d.Type)]
	if !ok {
		return Message{}, fmt.Errorf("template: no text for type %q", d.Type)
	}
	m := Message{ID: d.ID, To: d.to(), Date: d.CreatedAt}
	var err error
	if d.Channel == SMS {
		m.Text, err = set.writeSMS(p)
		return m, err
	}
	if m.Subject, err = execute(set.text, "subject", p); err != nil {
		return Message{}, err
	}
	m.Subject = oneLine(m.Subject)
	if m.Text, err = execute(set.text, "layout", p); err != nil {
		return Message{}, err
	}
	if m.HTML, err = execute(set.html, "layout", p); err != nil {
		return Message{}, err
	}
	m.Text, m.HTML = m.Text+"\n", m.HTML+"\n"
	return m, nil
}

// writeSMS writes an SMS, without the link where it would make it too long.
func (t *texts) writeSMS(p Page) (string, error) {
	text, err := execute(t.sms, t.sms.Name(), p)
	if err != nil || p.URL == "" {
		return text, err
	}
	limit := smsASCII
	if strings.ContainsFunc(text, func(r rune) bool { return r > 127 }) {
		limit = smsUnicode
	}
	if utf8.RuneCountInString(text) > limit {
		p.URL = ""
		return execute(t.sms, t.sms.Name(), p)
	}
	return text, nil
}

// A template is one of html/template or text/template.
type template interface {
	ExecuteTemplate(w io.Writer, name string, data any) error
}

func execute(t template, name string, p Page) (string, error) {
	var b bytes.Buffer
	if err := t.ExecuteTemplate(&b, name, p); err != nil {
		return "", fmt.Errorf("template: %w", err)
	}
	return strings.TrimSpace(b.String()), nil
}

// page is the data of a delivery's templates.
func (t *templates) page(d delivery) Page {
	o := d.Order
	p := Page{
		Locale: localeOf(o.Locale), Name: oneLine(o.Name), OrderNumber: oneLine(o.Number), Address: oneLine(o.Address),
		URL: t.publicURL + "/orders/" + o.ID, ShopURL: t.publicURL + "/",
		TotalCode: o.Total.String() + " " + o.Currency, ErrorCode: d.Payment.ErrorCode,
		AmountCode: d.Payment.Amount.String() + " " + d.Payment.Currency,
		PaidInFull: d.Payment.Amount == o.Total && d.Payment.Currency == o.Currency,
	}
	money := func(m event.Money, currency string) string {
		return m.Format(p.Locale, currency, event.CurrencyNarrowSymbol)
	}
	p.Total, p.Amount = money(o.Total, o.Currency), money(d.Payment.Amount, d.Payment.Currency)
	for _, it := range o.Items {
		p.Count += it.Quantity
		p.Items = append(p.Items, Line{
			Name: oneLine(it.Name), Size: it.Size, Quantity: it.Quantity,
			Sum: money(it.Price*event.Money(it.Quantity), o.Currency),
		})
	}
	return p
}

// localeOf is the locale of a message: the order's if there are texts in it, else en.
func localeOf(locale string) string {
	if _, ok := locales[locale]; ok {
		return locale
	}
	return "en"
}

// sample is a delivery to execute the templates with.
func sample(locale string, typ Type, channel Channel) delivery {
	o := order{
		ID: "0192f0c1-2b3c-7d4e-8f50-6a7b8c9d0e1f", Number: "482-913", Name: "Sample", Email: "sample@example.com",
		Phone: "+79001234567", Locale: locale, Total: 230000, Currency: "RUB", Address: "Sample street 10",
	}
	for i, size := range []string{"small", "medium", "large"} {
		o.Items = append(o.Items, event.Item{Name: "Pizza " + strconv.Itoa(i), Size: size, Quantity: i + 1, Price: 50000})
	}
	return delivery{
		ID: o.ID, Type: typ, Channel: channel, Order: o,
		Payment: payment{ID: o.ID, Amount: o.Total, Currency: o.Currency, ErrorCode: "declined"},
	}
}
