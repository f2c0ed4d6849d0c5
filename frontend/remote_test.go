package frontend

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"pizzaflow/web"
)

var discard = slog.New(slog.DiscardHandler)

// unusedURL returns the URL of a port on which nothing listens.
func unusedURL(t testing.TB) string {
	t.Helper()
	server := httptest.NewServer(nil)
	server.Close()
	return server.URL
}

func serve(t testing.TB, h http.Handler) string {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server.URL
}

func newRemote(t testing.TB, urls ...string) http.Handler {
	t.Helper()
	h, err := Remote(urls, nil, discard)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func askRemote(h http.Handler, method, path, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

var goodOrder = fmt.Sprintf(`{"customer_name":"И","customer_email":"a@b.example","customer_phone":"+79001234567","delivery_address":"x","locale":"ru",
	"items":[{"pizza_id":%q,"quantity":2,"size":"large"}]}`, margherita)

// TestLostAnswers: a replica stores the order and its answer is lost. The next
// replica must see the same key, or the order is placed twice.
func TestLostAnswers(t *testing.T) {
	for name, lose := range map[string]func(w http.ResponseWriter){
		"no answer": func(w http.ResponseWriter) {},
		"half an answer": func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "100")
			w.WriteHeader(http.StatusCreated)
			fmt.Fprint(w, `{"order_id":"`)
			_ = http.NewResponseController(w).Flush()
		},
		"502": func(w http.ResponseWriter) { w.WriteHeader(http.StatusBadGateway) },
	} {
		t.Run(name, func(t *testing.T) {
			api := newOrderAPI(t)
			var once sync.Once
			unlucky := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				lost := false
				once.Do(func() {
					api.ServeHTTP(httptest.NewRecorder(), r)
					lose(w)
					lost = true
				})
				switch {
				case lost && name != "502":
					panic(http.ErrAbortHandler)
				case !lost:
					api.ServeHTTP(w, r)
				}
			})
			h := newRemote(t, serve(t, unlucky), serve(t, unlucky))
			w := askRemote(h, "POST", "/api/v1/orders", goodOrder, "Content-Type", "application/json")
			if w.Code != http.StatusCreated || api.countOrders() != 1 {
				t.Fatalf("%d %s, %d orders", w.Code, w.Body, api.countOrders())
			}
			a, b := api.headers[0].Get("Idempotency-Key"), api.headers[len(api.headers)-1].Get("Idempotency-Key")
			if len(api.headers) < 2 || a != b || uuid.Validate(a) != nil {
				t.Errorf("%d tries with the keys %q and %q", len(api.headers), a, b)
			}
		})
	}
}

func TestRemoteFindsWhoAnswers(t *testing.T) {
	api := newOrderAPI(t)
	id := api.place(t)
	h := newRemote(t, unusedURL(t), serve(t, api), unusedURL(t))
	for range 6 {
		if w := askRemote(h, "GET", "/api/v1/orders/"+id, ""); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), id) {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	}
	// The whole shop works on it.
	server := site(t, newService(t, h, noBroker))
	resp, _ := postForm(t, server, goodForm())
	if resp.StatusCode != http.StatusSeeOther {
		t.Fatal(resp.Status)
	}
	if resp, page := fetch(t, server, resp.Header.Get("Location")); resp.StatusCode != http.StatusOK || !strings.Contains(page, "Маргарита") {
		t.Errorf("tracker: %s", resp.Status)
	}
}

func TestRemoteWithoutAnybody(t *testing.T) {
	h := newRemote(t, unusedURL(t), unusedURL(t))
	w := askRemote(h, "POST", "/api/v1/orders", goodOrder, "Content-Type", "application/json")
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" || !strings.HasPrefix(w.Header().Get("Content-Type"), "application/problem+json") {
		t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
	api := newOrderAPI(t)
	api.away = true
	h = newRemote(t, serve(t, api), unusedURL(t), serve(t, api))
	if w := askRemote(h, "GET", "/api/v1/menu", ""); w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") != "5" || !strings.Contains(w.Body.String(), "The database is away.") {
		t.Errorf("everybody refuses: %d %v %s", w.Code, w.Header(), w.Body)
	}
}

func TestRemotePassesOnWhatMatters(t *testing.T) {
	var got *http.Request
	var body string
	h := newRemote(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got, body = r, string(b)
		w.Header().Set("Location", "http://elsewhere.example/")
		w.Header().Set("Connection", "X-Hop")
		w.Header().Set("X-Hop", "1")
		w.WriteHeader(http.StatusFound)
		fmt.Fprint(w, "over there")
	}))+"/")
	w := askRemote(h, "PUT", "/api/v1/orders/a%2Fb?lang=ru&x=%20", "hello", "Idempotency-Key", "mine", "Traceparent", "00-1-2-03",
		"Cookie", "lang=ru", "Origin", "http://shop.example", "Connection", "X-Own", "X-Own", "1", "Sec-Fetch-Site", "same-origin")
	if w.Code != http.StatusFound || w.Body.String() != "over there" || w.Header().Get("Location") != "http://elsewhere.example/" || w.Header().Get("X-Hop") != "" {
		t.Errorf("answer: %d %v %s", w.Code, w.Header(), w.Body)
	}
	if got.Method != "PUT" || got.RequestURI != "/api/v1/orders/a%2Fb?lang=ru&x=%20" || body != "hello" {
		t.Errorf("%s %s %q", got.Method, got.RequestURI, body)
	}
	for name, want := range map[string]string{"Idempotency-Key": "mine", "Traceparent": "00-1-2-03", "Cookie": "", "Origin": "", "X-Own": "", "Sec-Fetch-Site": ""} {
		if v := got.Header.Get(name); v != want {
			t.Errorf("%s: %q, want %q", name, v, want)
		}
	}
	askRemote(h, "GET", "/api/v1/menu", "")
	if k := got.Header.Get("Idempotency-Key"); k != "" {
		t.Errorf("a question got the key %q", k)
	}
	askRemote(h, "POST", "/api/v1/orders", "{}", "Idempotency-Key", "")
	if k, ok := got.Header["Idempotency-Key"]; !ok || k[0] != "" {
		t.Errorf("an empty key became %q", k)
	}
	if w := askRemote(h, "POST", "/api/v1/orders", strings.Repeat("x", 64<<10+1)); w.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("too long: %d", w.Code)
	}
}

// TestRemoteKeepsHeadersAsTheyAre: what httputil.ReverseProxy would drop, add or
// pass on by itself.
func TestRemoteKeepsHeadersAsTheyAre(t *testing.T) {
	var got *http.Request
	h := newRemote(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r
		w.Header().Set("Link", "</early.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		w.Header().Set("Content-Security-Policy", "default-src 'none'")
		w.Header().Set("Cache-Control", "max-age=60")
		w.Header().Set("Trailer", "X-Sum")
		_ = http.NewResponseController(w).Flush() // so that its length is not known
		fmt.Fprint(w, "an answer")
		w.Header().Set("X-Sum", "1")
	})))
	server := httptest.NewServer(web.Handler(h, web.HandlerConfig{}))
	t.Cleanup(server.Close)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/api/v1/menu?a=1;b=2&c=%zz", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = "shop.example"
	sent := map[string]string{
		"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Host": "shop.example", "X-Forwarded-Proto": "https", "Forwarded": "for=192.0.2.1",
		"X-Request-Id": "0196a0ac-09a4-7589-9a12-de3265692c5b", "User-Agent": "a browser",
	}
	dropped := map[string]string{"Te": "trailers", "Upgrade": "caf\xe9", "Connection": "Upgrade", "Accept-Encoding": "br"}
	for _, list := range []map[string]string{sent, dropped} {
		for name, value := range list {
			r.Header.Set(name, value)
		}
	}
	var hints int
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(int, textproto.MIMEHeader) error { hints++; return nil }})
	resp, err := http.DefaultTransport.RoundTrip(r.WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	body := bodyOf(t, resp)
	if got == nil {
		t.Fatalf("%s: %s", resp.Status, body)
	}
	for name, value := range sent {
		if v := got.Header.Values(name); len(v) != 1 || v[0] != value {
			t.Errorf("%s went on as %q", name, v)
		}
	}
	for name := range dropped {
		if v := got.Header.Values(name); len(v) != 0 {
			t.Errorf("%s went on as %q", name, v)
		}
	}
	if got.RequestURI != "/api/v1/menu?a=1;b=2&c=%zz" || got.Host == "shop.example" {
		t.Errorf("asked for %s at %s", got.RequestURI, got.Host)
	}
	for name, want := range map[string]string{"Content-Security-Policy": "default-src 'none'", "Cache-Control": "max-age=60"} {
		if v := resp.Header.Values(name); len(v) != 1 || v[0] != want {
			t.Errorf("%s is %q, want the order API's alone", name, v)
		}
	}
	if resp.ContentLength != int64(len(body)) || body != "an answer" || len(resp.Trailer) != 0 || hints != 0 {
		t.Errorf("%q of length %d, trailer %v, %d early hints", body, resp.ContentLength, resp.Trailer, hints)
	}
}

// TestRemoteWaitsForItsOwnTry: a replica still works on a try that timed out, and the
// client has no key with which it could repeat the request.
func TestRemoteWaitsForItsOwnTry(t *testing.T) {
	api := newOrderAPI(t)
	api.busy = 2
	h := newRemote(t, serve(t, api))
	if w := askRemote(h, "POST", "/api/v1/orders", goodOrder, "Content-Type", "application/json"); w.Code != http.StatusCreated {
		t.Errorf("own key: %d %s", w.Code, w.Body)
	}
	api.busy = 1
	if w := askRemote(h, "POST", "/api/v1/orders", goodOrder, "Content-Type", "application/json", "Idempotency-Key", "mine"); w.Code != http.StatusConflict {
		t.Errorf("the client's key: %d %s", w.Code, w.Body)
	}
}

func TestRemoteAddresses(t *testing.T) {
	for _, urls := range [][]string{nil, {""}, {"order:8080"}, {"ftp://order"}, {"http://"}, {"http://order/path"}, {"http://a:b@order"}, {"http://order?x=1"}, {"http://order", "::"}} {
		if _, err := Remote(urls, nil, discard); err == nil {
			t.Errorf("%q is accepted", urls)
		}
	}
	for _, url := range []string{"http://order:8080", "http://order:8080/", "https://order", "http://[::1]:8080"} {
		if _, err := Remote([]string{url}, nil, nil); err != nil {
			t.Error(err)
		}
	}
}
