package frontend

import (
	"encoding/json"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func catalogue(t *testing.T, lang string) map[string]string {
	t.Helper()
	b, err := locales.ReadFile("locales/" + lang + ".json")
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{}
	if err := json.Unmarshal(b, &texts); err != nil {
		t.Fatalf("%s: %v", lang, err)
	}
	return texts
}

func TestCataloguesAgree(t *testing.T) {
	placeholder := regexp.MustCompile(`{{.*?}}`)
	ru, en := catalogue(t, "ru"), catalogue(t, "en")
	if a, b := slices.Sorted(maps.Keys(ru)), slices.Sorted(maps.Keys(en)); !slices.Equal(a, b) {
		t.Errorf("keys differ:\nru %v\nen %v", a, b)
	}
	for id := range ru {
		if ru[id] == "" || en[id] == "" {
			t.Errorf("%s is empty", id)
		}
		a, b := placeholder.FindAllString(ru[id], -1), placeholder.FindAllString(en[id], -1)
		slices.Sort(a)
		slices.Sort(b)
		if !slices.Equal(a, b) {
			t.Errorf("%s: ru fills in %v, en %v", id, a, b)
		}
	}
}

// TestEveryTextIsThere looks for the texts whose ids templates and code use.
func TestEveryTextIsThere(t *testing.T) {
	texts := catalogue(t, "ru")
	whole := regexp.MustCompile(`\.T "([a-z_.0-9]+)"`)
	begun := regexp.MustCompile(`\.T \(print "([a-z_.]+)"`)
	names, err := fs.Glob(templates, "templates/*.html")
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		b, err := templates.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range whole.FindAllStringSubmatch(string(b), -1) {
			if texts[m[1]] == "" {
				t.Errorf("%s asks for %s", name, m[1])
			}
		}
		for _, m := range begun.FindAllStringSubmatch(string(b), -1) {
			if !slices.ContainsFunc(slices.Collect(maps.Keys(texts)), func(id string) bool { return strings.HasPrefix(id, m[1]) }) {
				t.Errorf("%s asks for %s…", name, m[1])
			}
		}
	}
	for _, status := range []string{statusPending, statusPaid, statusFailed, "other"} {
		for _, st := range orderStages(order{Status: status}) {
			for _, id := range []string{"stage." + st.Name, "stage." + st.Name + "_text", "state." + st.State, "status." + status} {
				if texts[id] == "" {
					t.Errorf("the tracker asks for %s", id)
				}
			}
		}
	}
}

func TestLanguage(t *testing.T) {
	s := newService(t, newOrderAPI(t), noBroker)
	for _, tc := range []struct {
		name, query, cookie, accept string
		want                        string
		remembered                  bool
	}{
		{name: "nothing said", want: "ru"},
		{name: "accepted", accept: "en-GB,en;q=0.9,ru;q=0.1", want: "en"},
		{name: "accepted, Russian", accept: "ru-RU,ru;q=0.9,en;q=0.8", want: "ru"},
		{name: "neither accepted", accept: "ja", want: "ru"},
		{name: "nonsense accepted", accept: ";;;=q", want: "ru"},
		{name: "cookie", cookie: "en", accept: "ru", want: "en"},
		{name: "asked", query: "?lang=ru", cookie: "en", accept: "en", want: "ru", remembered: true},
		{name: "asked nonsense", query: "?lang=%22%3E", cookie: "en", want: "en"},
		{name: "cookie nonsense", cookie: "xx", accept: "en", want: "en"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, "/"+tc.query, nil)
			r.Header.Set("Accept-Language", tc.accept)
			if tc.cookie != "" {
				r.AddCookie(&http.Cookie{Name: languageCookie, Value: tc.cookie})
			}
			w := httptest.NewRecorder()
			s.Handler().ServeHTTP(w, r)
			if !strings.Contains(w.Body.String(), `<html lang="`+tc.want+`">`) {
				t.Errorf("not in %s", tc.want)
			}
			set := w.Header().Get("Set-Cookie")
			if tc.remembered != strings.HasPrefix(set, "lang="+tc.want+"; Path=/;") || tc.remembered != (set != "") {
				t.Errorf("Set-Cookie %q", set)
			}
		})
	}
}
