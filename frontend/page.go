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

// pages are the templates by name, each with the layout.
type pages map[string]*template.Template

func loadPages() (pages, error) {
	all := pages{}
	for _, name := range []string{"shop", "tracker", "error"} {
		t, err := template.New(name).Funcs(template.FuncMap{"field": viewField, "lineTotal": lineTotal}).ParseFS(templates, "templates/layout.html", "templates/"+name+".html")
		if err != nil {
			return nil, fmt.Errorf("load templates: %w", err)
		}
		all[name] = t
	}
	return all, nil
}

// page is the data that every page has.
type page struct {
	Lang  string
	Title string
	Path  string // of the links to the other language

	texts  *translations
	assets *assets
}

func (s *Service) newPage(lang, path string) page {
	return page{Lang: lang, Path: path, texts: s.texts, assets: s.assets}
}

// T translates a text into the page's language and fills in the pairs of names and
// values. A missing text shows as its id.
func (p page) T(id string, pairs ...any) string {
	data := map[string]any{}
	for i := 0; i+1 < len(pairs); i += 2 {
		data[fmt.Sprint(pairs[i])] = pairs[i+1]
	}
	if text := p.texts.translate(p.Lang, data, id); text != "" {
		return text
	}
	return id
}

// Asset is the path of a static file.
func (p page) Asset(name string) string { return p.assets.versionedURL(name) }

// Money formats an amount for the page's language, as static/money.js does.
func (p page) Money(m event.Money, currency string) string {
	return m.Format(p.Lang, currency, event.CurrencySymbol)
}

// Languages are the languages of the shop.
func (p page) Languages() []string { return languages }

// renderPage answers with a page. It renders the whole page before it sends the
// first byte, so that an error of the template still gets its status.
func (s *Service) renderPage(w http.ResponseWriter, r *http.Request, status int, name string, view any) {
	var b bytes.Buffer
	if err := s.pages[name].ExecuteTemplate(&b, "layout", view); err != nil {
		web.Error(w, r, s.log, fmt.Errorf("render %s: %w", name, err))
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("Vary", "Accept-Language, Cookie")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes()) // the only error is a client that is gone
}

// fieldView is the data of one field of the checkout.
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
		Value: v.Form.Value(name), Fault: v.Form.Fault(name), Hint: v.texts.translate(v.Lang, nil, "hint."+name),
	}
}

func lineTotal(price event.Money, quantity int) event.Money { return price * event.Money(quantity) }
