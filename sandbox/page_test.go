package sandbox

import (
	"io"
	"maps"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

// browse fetches a path as a browser does.
func (w *world) browse(path string, header http.Header) (*http.Response, string) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), "GET", w.url+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	maps.Copy(req.Header, header)
	res, err := client.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := res.Body.Close(); err != nil {
		w.t.Fatal(err)
	}
	return res, string(body)
}

func TestPage(t *testing.T) {
	w := start(t, t.TempDir())
	if _, html := w.browse("/", nil); !strings.Contains(html, "Nobody has received anything yet") {
		t.Errorf("empty page: %s", html)
	}
	w.charge("key", "ivan+pizza@example.com", "order-1")
	w.charge("key-2", "maria+declined@example.com", "order-2")
	w.post("/sms/messages", "", `{"to":"+79001234567","text":"<script>alert(1)</script>"}`)
	message := "Subject: <img src=x onerror=alert(1)>\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<p style=\"color:red\">Пицца</p>\r\n"
	if err := sendMail(w.mail, "ivan+pizza@example.com", message); err != nil {
		t.Fatal(err)
	}
	res, html := w.browse("/", nil)
	for _, part := range []string{
		"1\u202f200.00 RUB", "card_declined", "order-1", "/mail/messages/0/html", "ivan&#43;pizza@example.com",
		"&lt;script&gt;alert(1)", "&lt;img src=x", `href="/?q=ivan%2bpizza%40example.com"`, "<b>2</b> charges",
	} {
		if !strings.Contains(html, part) {
			t.Errorf("no %q in %s", part, html)
		}
	}
	if inline := regexp.MustCompile(`(?i)<style|\sstyle=|<script>|\son[a-z]+=[^a-z]`).FindString(html); inline != "" {
		t.Errorf("inline %q", inline)
	}
	if policy := res.Header.Get("Content-Security-Policy"); !strings.HasPrefix(policy, "default-src 'none'") || strings.Contains(policy, "unsafe") {
		t.Errorf("policy %q", policy)
	}
	if _, html := w.browse("/?q=ivan+pizza@example.com", nil); !strings.Contains(html, "order-1") || strings.Contains(html, "order-2") {
		t.Errorf("one customer: %s", html)
	}

	etag := res.Header.Get("ETag")
	if res, _ := w.browse("/", http.Header{"If-None-Match": {etag}}); res.StatusCode != http.StatusNotModified {
		t.Errorf("nothing changed: %d", res.StatusCode)
	}
	w.behave(`{"error_rate":0.5}`)
	if res, html := w.browse("/", http.Header{"If-None-Match": {etag}}); res.StatusCode != http.StatusOK || !strings.Contains(html, "errors 0.5") {
		t.Errorf("changed: %d %s", res.StatusCode, html)
	}
}

func TestMailFrame(t *testing.T) {
	w := start(t, t.TempDir())
	if err := sendMail(w.mail, "ivan@example.com", "Content-Type: text/html\r\n\r\n<p style=\"color:red\">hi</p><script>x</script>\r\n"); err != nil {
		t.Fatal(err)
	}
	res, html := w.browse("/mail/messages/0/html", nil)
	policy := res.Header.Get("Content-Security-Policy")
	if !strings.Contains(html, "color:red") || !strings.HasPrefix(policy, "sandbox; default-src 'none'") || strings.Contains(policy, "script") {
		t.Errorf("%q %s", policy, html)
	}
}

func TestAssets(t *testing.T) {
	w := start(t, t.TempDir())
	for path, kind := range map[string]string{
		"/assets/page.css": "text/css", "/assets/page.mjs": "text/javascript", "/assets/icon.svg": "image/svg+xml",
	} {
		res, body := w.browse(path, nil)
		if res.StatusCode != 200 || !strings.HasPrefix(res.Header.Get("Content-Type"), kind) || body == "" {
			t.Errorf("%s: %d %s", path, res.StatusCode, res.Header.Get("Content-Type"))
		}
	}
	if res, _ := w.browse("/assets/page.html", nil); res.StatusCode != http.StatusNotFound {
		t.Errorf("the template is served: %d", res.StatusCode)
	}
}

// TestForeignPage: requests that a page of another origin makes are refused.
func TestForeignPage(t *testing.T) {
	w := start(t, t.TempDir())
	req, err := http.NewRequestWithContext(t.Context(), "PUT", w.url+"/payments/behaviour", strings.NewReader(`{"error_rate":1}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Sec-Fetch-Site", "cross-site")
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if err := res.Body.Close(); err != nil {
		t.Fatal(err)
	}
	if b := get[behaviour](w, "/payments/behaviour"); res.StatusCode != http.StatusForbidden || b != (behaviour{}) {
		t.Errorf("%d %+v", res.StatusCode, b)
	}
}
