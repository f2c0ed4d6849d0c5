package frontend

import (
	"encoding/xml"
	"errors"
	"html"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"pizzaflow/web"
)

// site serves the pages behind web.Handler, as a process does.
func site(t testing.TB, s *Service) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(web.Handler(s.Handler(), web.HandlerConfig{}))
	t.Cleanup(server.Close)
	server.Client().CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return server
}

func fetch(t testing.TB, server *httptest.Server, path string) (*http.Response, string) {
	t.Helper()
	resp, err := server.Client().Get(server.URL + path)
	if err != nil {
		t.Fatal(err)
	}
	return resp, bodyOf(t, resp)
}

func postForm(t testing.TB, server *httptest.Server, form url.Values) (*http.Response, string) {
	t.Helper()
	resp, err := server.Client().PostForm(server.URL+"/orders", form)
	if err != nil {
		t.Fatal(err)
	}
	return resp, bodyOf(t, resp)
}

func bodyOf(t testing.TB, resp *http.Response) string {
	t.Helper()
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func goodForm() url.Values {
	return url.Values{
		"customer_name": {"Иван Иванов"}, "customer_email": {"ivan@example.com"}, "customer_phone": {"+7-900-123-45-67"},
		"delivery_address": {"ул. Пушкина, д. 10"}, "locale": {"ru"}, "idempotency_key": {uuid.NewString()},
		"quantity_" + margherita: {"2"}, "size_" + margherita: {"large"},
		"quantity_" + pepperoni: {"0"}, "size_" + pepperoni: {"medium"}, "quantity_" + fourCheese: {""},
	}
}

func TestOrderWithoutScript(t *testing.T) {
	api := newOrderAPI(t)
	server := site(t, newService(t, api, noBroker))
	resp, _ := postForm(t, server, goodForm())
	to := resp.Header.Get("Location")
	if resp.StatusCode != http.StatusSeeOther || !strings.HasPrefix(to, "/orders/") || api.countOrders() != 1 {
		t.Fatalf("%s, Location %q, %d orders", resp.Status, to, api.countOrders())
	}
	resp, page := fetch(t, server, to)
	for _, want := range []string{api.onlyNumber(), "1\u00a0200,00\u00a0₽", "Маргарита", "ул. Пушкина, д. 10", "i***@example.com", `http-equiv="refresh"`, "Ждём подтверждения оплаты"} {
		if !strings.Contains(page, want) {
			t.Errorf("tracker lacks %q", want)
		}
	}
	if cache := resp.Header.Get("Cache-Control"); cache != "no-store" {
		t.Errorf("Cache-Control %q of a private page", cache)
	}
}

func TestTracker(t *testing.T) {
	api := newOrderAPI(t)
	server := site(t, newService(t, api, noBroker))
	for _, tc := range []struct {
		status, reason string
		want           map[string][]string
	}{
		{statusPaid, "", map[string][]string{"ru": {"Оплачено. Дальше кухня", "очередь за кухней"}, "en": {"Paid. The kitchen is next", `aria-current="step"`}}},
		{statusFailed, "insufficient_funds", map[string][]string{"ru": {"Оплата не прошла", "не хватило средств", "Заказать заново"}, "en": {"The payment failed", "not enough money", "No money was taken", "Order again"}}},
		{statusFailed, "card_declined", map[string][]string{"ru": {"Банк отклонил платёж"}, "en": {"The bank declined"}}},
		{statusFailed, "something_new", map[string][]string{"ru": {"Платёж не прошёл"}, "en": {"did not go through"}}},
	} {
		id := api.place(t)
		api.advance(id, tc.status, tc.reason)
		for lang, wants := range tc.want {
			resp, page := fetch(t, server, "/orders/"+id+"?lang="+lang)
			if resp.StatusCode != http.StatusOK {
				t.Fatal(resp.Status)
			}
			for _, want := range append(wants, `role="status" aria-live="polite"`, `data-version="2"`) {
				if !strings.Contains(page, want) {
					t.Errorf("%s in %s lacks %q", tc.status, lang, want)
				}
			}
			if refreshes := strings.Contains(page, `http-equiv="refresh"`); refreshes == isFinal(tc.status) {
				t.Errorf("%s: refreshes %v", tc.status, refreshes)
			}
		}
	}
}

// TestTrackerOfAnUnknownStatus: a later order service has a status that the pages do not know.
func TestTrackerOfAnUnknownStatus(t *testing.T) {
	api := newOrderAPI(t)
	id := api.place(t)
	server := site(t, newService(t, withWordReplaced(api, `"pending"`, `"baking"`), noBroker))
	for lang, want := range map[string]string{"ru": "Заказ в работе", "en": "The order is under way"} {
		if resp, page := fetch(t, server, "/orders/"+id+"?lang="+lang); resp.StatusCode != http.StatusOK || !strings.Contains(page, want) || !strings.Contains(page, `http-equiv="refresh"`) {
			t.Errorf("%s: %s lacks %q", lang, resp.Status, want)
		}
	}
}

// TestSoldOut: a pizza that is not available is shown and cannot be chosen.
func TestSoldOut(t *testing.T) {
	api := newOrderAPI(t)
	server := site(t, newService(t, withWordReplaced(api, `"available":true`, `"available":false`), noBroker))
	_, page := fetch(t, server, "/?lang=en")
	if n := strings.Count(page, "card--off"); n != len(api.menu()) || strings.Contains(page, `name="quantity_`) {
		t.Errorf("%d of %d pizzas are shown as sold out", n, len(api.menu()))
	}
}

func TestFormErrorsKeepWhatWasTyped(t *testing.T) {
	api := newOrderAPI(t)
	server := site(t, newService(t, api, noBroker))
	form := goodForm()
	form.Set("customer_name", `"><script>alert(1)</script>`)
	form.Set("customer_email", "nonsense")
	form.Set("delivery_address", "")
	form.Set("comment", "Не звонить\nв дверь")
	form.Set("quantity_"+pepperoni, "two & a half")
	form.Set("size_"+pepperoni, "small")
	for lang, wants := range map[string][]string{
		"ru": {"Заказ пока не принят", "Укажите адрес вида ivan@example.com.", "Укажите, куда привезти.", "Пепперони: Укажите целое число от 1 до 100."},
		"en": {"Your order is not placed yet", "Enter an address such as ivan@example.com.", "Tell us where to bring it.", "Pepperoni: Enter a whole number from 1 to 100."},
	} {
		form.Set("locale", lang)
		resp, page := postForm(t, server, form)
		if resp.StatusCode != http.StatusUnprocessableEntity {
			t.Fatal(resp.Status)
		}
		wants = append(wants,
			`name="customer_name" type="text" maxlength="100" autocomplete="name" value="&#34;&gt;&lt;script&gt;alert(1)&lt;/script&gt;" required>`,
			`value="nonsense" required aria-invalid="true" aria-describedby="e-customer_email `,
			"Не звонить\nв дверь</textarea>", `value="two &amp; a half"`, `name="locale" value="`+lang+`"`,
			`name="idempotency_key" value="`+form.Get("idempotency_key")+`"`, `href="#f-customer_email"`, `id="f-customer_email"`)
		for _, want := range wants {
			if !strings.Contains(page, want) {
				t.Errorf("%s: the page lacks %s", lang, want)
			}
		}
		if n := strings.Count(page, `value="large" data-price="60000" data-label="`+map[string]string{"ru": "Большая", "en": "Large"}[lang]+`" checked`); n != 1 {
			t.Errorf("%s: the size is kept %d times", lang, n)
		}
	}
	if api.countOrders() != 0 {
		t.Errorf("%d orders", api.countOrders())
	}
}

func TestQuantities(t *testing.T) {
	for quantity, want := range map[string]int{"1": 303, " 2 ": 303, "100": 303, "-1": 422, "101": 422, "1.5": 422, "1e1": 422, "٣": 422, "99999999999999999999": 422, "0": 422, "": 422, "00": 422} {
		api := newOrderAPI(t)
		form := goodForm()
		form.Set("quantity_"+margherita, quantity)
		resp, page := postForm(t, site(t, newService(t, api, noBroker)), form)
		if resp.StatusCode != want || api.countOrders() != map[int]int{303: 1, 422: 0}[want] {
			t.Errorf("%q: %s, %d orders, want %d", quantity, resp.Status, api.countOrders(), want)
		}
		if strings.Trim(quantity, "0") == "" && !strings.Contains(page, "Добавьте хотя бы одну пиццу.") {
			t.Errorf("%q: nobody says that nothing was ordered", quantity)
		}
	}
}

func TestOnePizzaInTwoSizes(t *testing.T) {
	api := newOrderAPI(t)
	server := site(t, newService(t, api, noBroker))
	form := goodForm()
	form["quantity_"+margherita] = []string{"1", "3"}
	form["size_"+margherita] = []string{"small", "large"}
	resp, _ := postForm(t, server, form)
	_, page := fetch(t, server, resp.Header.Get("Location"))
	for _, want := range []string{"Маленькая · 1 × 400,00\u00a0₽", "Большая · 3 × 600,00\u00a0₽", "2\u00a0200,00\u00a0₽"} {
		if !strings.Contains(page, want) {
			t.Errorf("tracker lacks %q", want)
		}
	}
}

// TestDoubleClick sends one form many times at once.
func TestDoubleClick(t *testing.T) {
	api := newOrderAPI(t)
	api.busy = 3 // as if the first were in progress when the others come
	server := site(t, newService(t, api, noBroker))
	form := goodForm()
	to := make([]string, 8)
	var wg sync.WaitGroup
	for i := range to {
		wg.Go(func() {
			resp, err := server.Client().PostForm(server.URL+"/orders", form)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			to[i] = resp.Header.Get("Location")
		})
	}
	wg.Wait()
	for _, l := range to {
		if l != to[0] || l == "" {
			t.Fatalf("sent to %q", to)
		}
	}
	if api.countOrders() != 1 {
		t.Errorf("%d orders", api.countOrders())
	}
}

func TestIdempotencyKeys(t *testing.T) {
	api := newOrderAPI(t)
	server := site(t, newService(t, api, noBroker))
	key := regexp.MustCompile(`name="idempotency_key" value="([^"]+)"`)
	_, one := fetch(t, server, "/")
	_, two := fetch(t, server, "/")
	a, b := key.FindStringSubmatch(one), key.FindStringSubmatch(two)
	if a == nil || b == nil || a[1] == b[1] {
		t.Fatalf("keys of two forms: %v, %v", a, b)
	}
	for _, bad := range []string{"", "пробел", "with space", "a,b", strings.Repeat("x", 256)} {
		form := goodForm()
		form.Set("idempotency_key", bad)
		if resp, _ := postForm(t, server, form); resp.StatusCode != http.StatusSeeOther {
			t.Errorf("key %q: %s", bad, resp.Status)
		}
		if got := api.headers[len(api.headers)-1].Get("Idempotency-Key"); uuid.Validate(got) != nil {
			t.Errorf("key %q went on as %q", bad, got)
		}
	}

	form := goodForm()
	postForm(t, server, form)
	form.Set("comment", "another")
	resp, page := postForm(t, server, form)
	if resp.StatusCode != http.StatusUnprocessableEntity || !strings.Contains(page, "Заказ из этой формы уже принят") {
		t.Fatalf("a changed form that was sent before: %s", resp.Status)
	}
	fresh := key.FindStringSubmatch(page)
	if fresh == nil || fresh[1] == form.Get("idempotency_key") {
		t.Fatal("the form still has the key of the order that it made")
	}
	form.Set("idempotency_key", fresh[1])
	if resp, _ := postForm(t, server, form); resp.StatusCode != http.StatusSeeOther {
		t.Errorf("second order: %s", resp.Status)
	}
}

func TestOrderAPIAway(t *testing.T) {
	api := newOrderAPI(t)
	s := newService(t, api, noBroker)
	server := site(t, s)
	id := api.place(t)
	api.set(func() { api.away = true })
	for _, path := range []string{"/", "/orders/" + id} {
		resp, page := fetch(t, server, path)
		if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" || !strings.Contains(page, "Сейчас не получается") {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
	api.set(func() { api.away = false })
	fetch(t, server, "/") // the menu is known from here on
	api.set(func() { api.away = true })
	if resp, _ := fetch(t, server, "/"); resp.StatusCode != http.StatusOK {
		t.Errorf("shop: %s", resp.Status)
	}
	form := goodForm()
	resp, page := postForm(t, server, form)
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("order: %s", resp.Status)
	}
	for _, want := range []string{"Сейчас не получилось принять заказ", form.Get("idempotency_key"), `value="Иван Иванов"`, `value="2"`} {
		if !strings.Contains(page, want) {
			t.Errorf("the form came back without %q", want)
		}
	}
	api.set(func() { api.away = false })
	if resp, _ := postForm(t, server, form); resp.StatusCode != http.StatusSeeOther {
		t.Errorf("the same form again: %s", resp.Status)
	}
}

func TestBadForms(t *testing.T) {
	api := newOrderAPI(t)
	server := site(t, newService(t, api, noBroker))
	for _, tc := range []struct {
		name, kind, body string
		want             int
	}{
		{"JSON", "application/json", "{}", 415},
		{"multipart", "multipart/form-data; boundary=x", "--x--", 415},
		{"no type", "", "a=b", 415},
		{"too long", "application/x-www-form-urlencoded", "comment=" + strings.Repeat("x", web.MaxBody), 413},
		{"broken escape", "application/x-www-form-urlencoded", "comment=%zz", 400},
		{"empty", "application/x-www-form-urlencoded", "", 422},
	} {
		resp, err := server.Client().Post(server.URL+"/orders", tc.kind, strings.NewReader(tc.body))
		if err != nil {
			t.Fatal(err)
		}
		page := bodyOf(t, resp)
		if resp.StatusCode != tc.want || !strings.Contains(page, "<h1") && tc.want != 422 {
			t.Errorf("%s: %s, want %d", tc.name, resp.Status, tc.want)
		}
	}
	if api.countOrders() != 0 {
		t.Errorf("%d orders", api.countOrders())
	}
}

func TestRoutes(t *testing.T) {
	api := newOrderAPI(t)
	server := site(t, newService(t, api, noBroker))
	for _, tc := range []struct {
		method, path string
		want         int
	}{
		{"GET", "/", 200},
		{"HEAD", "/", 200},
		{"GET", "/nothing", 404},
		{"GET", "/orders/nope", 404},
		{"GET", "/orders/..%2f..%2fmenu", 404},
		{"GET", "/orders", 303},
		{"DELETE", "/orders", 405},
		{"PUT", "/orders/x", 405},
		{"DELETE", "/", 405},
		{"GET", "/robots.txt", 200},
		{"GET", "/favicon.ico", 302},
		{"GET", "/docs/", 200},
		{"GET", "/api/v1/menu", 200},
		{"GET", "/api/v1/nothing", 404},
		{"GET", "/static/", 404},
		{"GET", "/static/..%2fdoc.go", 404},
	} {
		r, err := http.NewRequest(tc.method, server.URL+tc.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != tc.want || tc.want == 405 && resp.Header.Get("Allow") == "" {
			t.Errorf("%s %s: %s, want %d", tc.method, tc.path, resp.Status, tc.want)
		}
	}
}

// TestPagesObeyTheirPolicy: the policy of a page is default-src 'self', so scripts,
// styles and pictures that are inline or of another host would not load.
func TestPagesObeyTheirPolicy(t *testing.T) {
	api := newOrderAPI(t)
	server := site(t, newService(t, api, noBroker))
	var pages []string
	add := func(_ *http.Response, page string) { pages = append(pages, page) }
	ids := []string{api.place(t), api.place(t), api.place(t)}
	api.advance(ids[1], statusPaid, "")
	api.advance(ids[2], statusFailed, "declined")
	for _, lang := range languages {
		add(fetch(t, server, "/?lang="+lang))
		add(fetch(t, server, "/nothing?lang="+lang))
		for _, id := range ids {
			add(fetch(t, server, "/orders/"+id+"?lang="+lang))
		}
		add(postForm(t, server, url.Values{"locale": {lang}, "quantity_" + margherita: {"-1"}}))
	}
	tag := regexp.MustCompile(`<[a-zA-Z][^>]*>`)
	attribute := regexp.MustCompile(`\s([a-zA-Z-]+)="([^"]*)"`)
	script := regexp.MustCompile(`(?s)<script\b[^>]*>(.*?)</script>`)
	known := map[string]bool{}
	for _, page := range pages {
		if strings.Contains(page, "<style") || strings.Contains(page, "ZgotmplZ") {
			t.Error("a style element, or a value that the template refused")
		}
		for _, m := range script.FindAllStringSubmatch(page, -1) {
			if strings.TrimSpace(m[1]) != "" || !strings.Contains(m[0], " src=") {
				t.Errorf("inline: %s", m[0])
			}
		}
		for _, el := range tag.FindAllString(page, -1) {
			for _, a := range attribute.FindAllStringSubmatch(el, -1) {
				name, value := strings.ToLower(a[1]), html.UnescapeString(a[2])
				switch {
				case strings.HasPrefix(value, `"`):
					t.Errorf("the template took a text for a script: %s", el)
				case name == "style" || strings.HasPrefix(name, "on"):
					t.Errorf("inline: %s", el)
				case name == "src" || name == "href" || name == "action" || name == "data-picture":
					if !strings.HasPrefix(value, "/") && !strings.HasPrefix(value, "#") || strings.HasPrefix(value, "//") {
						t.Errorf("from elsewhere: %s", el)
					}
					if strings.HasPrefix(value, "/static/") {
						known[value] = true
					}
				}
			}
		}
	}
	if len(known) < len(api.menu())+3 {
		t.Errorf("only %d files are used", len(known))
	}
	for path := range known {
		resp, _ := fetch(t, server, path)
		if resp.StatusCode != http.StatusOK || resp.Header.Get("Cache-Control") != "public, max-age=31536000, immutable" {
			t.Errorf("%s: %s, %s", path, resp.Status, resp.Header.Get("Cache-Control"))
		}
	}
}

func TestStatic(t *testing.T) {
	s := newService(t, newOrderAPI(t), noBroker)
	server := site(t, s)
	for path, want := range map[string][2]string{
		s.assets.versionedURL("app.css"): {"text/css; charset=utf-8", "public, max-age=31536000, immutable"},
		"/static/shop.js":                {"text/javascript; charset=utf-8", "no-cache"},
		"/static/v-0123/tracker.js":      {"text/javascript; charset=utf-8", "no-cache"},
		"/static/pizzas/margherita.svg":  {"image/svg+xml; charset=utf-8", "no-cache"},
		"/static/pizzas/unheard-of.svg":  {"image/svg+xml; charset=utf-8", "no-cache"},
	} {
		resp, body := fetch(t, server, path)
		if resp.StatusCode != 200 || body == "" || resp.Header.Get("Content-Type") != want[0] || resp.Header.Get("Cache-Control") != want[1] {
			t.Errorf("%s: %s %v", path, resp.Status, resp.Header)
		}
		r, err := http.NewRequest(http.MethodGet, server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("If-None-Match", resp.Header.Get("ETag"))
		again, err := server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		again.Body.Close()
		if again.StatusCode != http.StatusNotModified {
			t.Errorf("%s again: %s", path, again.Status)
		}
	}
}

// TestPictures draws every pizza: well-formed XML without references to other files,
// unlike every other pizza, and the same at each call.
func TestPictures(t *testing.T) {
	seen := map[string]string{}
	slugs := []string{"no-recipe", "no-recipe-2"}
	for _, p := range newOrderAPI(t).menu() {
		slugs = append(slugs, strings.TrimSuffix(path.Base(p.Image), ".svg"))
	}
	for _, slug := range slugs {
		svg := string(drawPizza(slug))
		if svg != string(drawPizza(slug)) {
			t.Errorf("%s changes", slug)
		}
		if other, dup := seen[svg]; dup {
			t.Errorf("%s looks like %s", slug, other)
		}
		seen[svg] = slug
		for _, foreign := range []string{"style=", "<script", "<image", "url(http", "NaN", "Inf"} {
			if strings.Contains(svg, foreign) {
				t.Errorf("%s has %s", slug, foreign)
			}
		}
		ids, uses := map[string]bool{}, map[string]bool{}
		for d := xml.NewDecoder(strings.NewReader(svg)); ; {
			token, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", slug, err)
			}
			el, _ := token.(xml.StartElement)
			for _, a := range el.Attr {
				switch a.Name.Local {
				case "id":
					ids[a.Value] = true
				case "href":
					uses[strings.TrimPrefix(a.Value, "#")] = true
				}
			}
		}
		for name := range uses {
			if !ids[name] {
				t.Errorf("%s is laid with %s, which is not drawn", slug, name)
			}
		}
		if len(uses) < 2 {
			t.Errorf("%s is nearly empty", slug)
		}
	}
	for _, slug := range slugs[2:] {
		if _, ok := recipes[slug]; !ok {
			t.Errorf("%s has no recipe", slug)
		}
	}
}
