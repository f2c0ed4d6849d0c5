package frontend

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"net/http"

	"pizzaflow/event"
	"pizzaflow/web"
)

//go:embed templates/*.html
var templates embed.FS

// pages are the templates, by name, each with the layout around it.
type pages map[string]*template.Template

func loadPages() (pages, error) {
	all := pages{}
	for _, name := range []string{"shop", "tracker", "trouble"} {
		t, err := template.New(name).Funcs(template.FuncMap{"field": viewField, "sum": sum}).ParseFS(templates, "templates/layout.html", "templates/"+name+".html")
		if err != nil {
			return nil, fmt.Errorf("load templates: %w", err)
		}
		all[name] = t
	}
	return all, nil
}

// page is what every page shows.
type page struct {
	Lang  string
	Title string
	Path  string // where the links to the other language lead

	words  *words
	assets *assets
}

func (s *Service) page(lang, path string) page {
	return page{Lang: lang, Path: path, words: s.words, assets: s.assets}
}

// T is a text in the page's language, filled with pairs of names and values. A
// text that is missing shows as its id.
func (p page) T(id string, pairs ...any) string {
	data := map[string]any{}
	for i := 0; i+1 < len(pairs); i += 2 {
		data[fmt.Sprint(pairs[i])] = pairs[i+1]
	}
	if text := p.words.say(p.Lang, data, id); text != "" {
		return text
	}
	return id
}

// Asset is where a static file is found.
func (p page) Asset(name string) string { return p.assets.url(name) }

// Money is an amount in the page's language, as static/money.js writes it.
func (p page) Money(m event.Money, currency string) string {
	return m.Format(p.Lang, currency, event.CurrencySymbol)
}

// Languages are the languages to choose from.
func (p page) Languages() []string { return languages }

// show answers with a page; it is drawn whole before the first byte is sent.
func (s *Service) show(w http.ResponseWriter, r *http.Request, status int, name string, view any) {
	var b bytes.Buffer
	if err := s.pages[name].ExecuteTemplate(&b, "layout", view); err != nil {
		web.Error(w, r, s.log, fmt.Errorf("draw %s: %w", name, err))
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("Vary", "Accept-Language, Cookie")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes()) // the only error is a client that is gone
}

// fieldView is one field of the checkout.
type fieldView struct {
	page
	Name, Type, Autocomplete string
	Limit                    int // characters
	Required                 bool
	Value, Hint, Fault       string
}

func viewField(v shopView, name, kind, autocomplete string, limit int) fieldView {
	return fieldView{
		page: v.page, Name: name, Type: kind, Autocomplete: autocomplete, Limit: limit, Required: name != "comment",
		Value: v.Form.Value(name), Fault: v.Form.Fault(name), Hint: v.words.say(v.Lang, nil, "hint."+name),
	}
}

func sum(price event.Money, quantity int) event.Money { return price * event.Money(quantity) }
