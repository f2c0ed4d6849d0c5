package frontend

import (
	"embed"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"

	"github.com/nicksnyder/go-i18n/v2/i18n"
	"golang.org/x/text/language"
)

//go:embed locales/*.json
var locales embed.FS

// languages of the shop; the first is the default.
var languages = []string{"ru", "en"}

const languageCookie = "lang"

// translations are the texts of the pages in every language.
type translations struct {
	localizers map[string]*i18n.Localizer
	matcher    language.Matcher
}

func loadTranslations() (*translations, error) {
	bundle := i18n.NewBundle(language.Russian)
	bundle.RegisterUnmarshalFunc("json", json.Unmarshal)
	w := &translations{localizers: map[string]*i18n.Localizer{}}
	var tags []language.Tag
	for _, lang := range languages {
		if _, err := bundle.LoadMessageFileFS(locales, "locales/"+lang+".json"); err != nil {
			return nil, fmt.Errorf("load %s texts: %w", lang, err)
		}
		w.localizers[lang] = i18n.NewLocalizer(bundle, lang)
		tags = append(tags, language.MustParse(lang))
	}
	w.matcher = language.NewMatcher(tags)
	return w, nil
}

// translate returns the first text of ids that exists, filled with data, or "".
func (w *translations) translate(lang string, data map[string]any, ids ...string) string {
	for _, id := range ids {
		text, err := w.localizers[lang].Localize(&i18n.LocalizeConfig{MessageID: id, TemplateData: data})
		if err == nil {
			return text
		}
	}
	return ""
}

// chooseLanguage returns the language that the request asks for by ?lang=, by the
// cookie or by Accept-Language. It stores the choice of ?lang= in the cookie.
func (s *Service) chooseLanguage(w http.ResponseWriter, r *http.Request) string {
	if asked := r.URL.Query().Get("lang"); isSupported(asked) {
		http.SetCookie(w, &http.Cookie{ //nolint:gosec // Secure wherever the shop is served over https
			Name: languageCookie, Value: asked, Path: "/", MaxAge: 365 * 24 * 3600,
			HttpOnly: true, SameSite: http.SameSiteLaxMode, Secure: s.secure,
		})
		return asked
	}
	if c, err := r.Cookie(languageCookie); err == nil && isSupported(c.Value) {
		return c.Value
	}
	_, i := language.MatchStrings(s.texts.matcher, r.Header.Get("Accept-Language"))
	return languages[i]
}

func isSupported(lang string) bool { return slices.Contains(languages, lang) }
