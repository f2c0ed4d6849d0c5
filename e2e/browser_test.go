package e2e

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	devtools "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// TestBrowser orders a pizza in a browser, and waits until the tracker shows the
// order as paid.
func TestBrowser(t *testing.T) {
	t.Parallel()
	chromium := startChromium(t)
	d := deploy(t, embedded)
	guest := 0
	for _, lang := range []string{"ru", "en"} {
		for _, width := range []int64{375, 1280} {
			guest++
			number := guest
			t.Run(fmt.Sprintf("%s at %d", lang, width), func(t *testing.T) {
				t.Parallel()
				testShop(t, d, openTab(chromium, t, d, width), lang, number)
			})
		}
		guest++
		number := guest
		t.Run(lang+" without JavaScript", func(t *testing.T) {
			t.Parallel()
			testPlainShop(t, d, openTab(chromium, t, d, 375), lang, number)
		})
	}
}

// testShop orders with JavaScript: the basket is kept, the tracker is live.
func testShop(t *testing.T, d *deployment, tab *tab, lang string, guest int) {
	tab.do(chromedp.Navigate(d.shop("/?lang=" + lang)))
	tab.mustSpeak(lang)
	tab.do(
		chromedp.Click(chromedp.CSS(`[data-pizza="`+margherita+`"] input[value="large"]`)),
		chromedp.Click(chromedp.CSS(`[data-pizza="`+margherita+`"] [data-add]`)),
		chromedp.Click(chromedp.CSS(`[data-pizza="`+margherita+`"] [data-add]`)),
	)
	tab.shoot("shop")
	// The basket survives a reload.
	tab.do(chromedp.Reload(), chromedp.WaitVisible(chromedp.CSS(`[data-basket-lines] .line`)))
	if sum := tab.text(`.basket .total`); !strings.Contains(digits(sum), "120000") {
		t.Errorf("the basket comes to %q, want 1200.00", sum)
	}
	tab.fillIn(guest)
	tab.shoot("checkout")
	tab.submit()
	orderID := tab.tracked(d)

	// The bank takes two seconds. A variable of the page is lost if it is loaded again.
	tab.do(chromedp.WaitVisible(chromedp.CSS(`.tracker__head--pending`)))
	tab.run(`window.notReloaded = true`)
	if line := tab.text(`[data-link]`); line == "" || strings.Contains(line, `"`) {
		t.Errorf("the tracker says %q", line)
	}
	before := tab.text(`[data-headline]`)
	tab.shoot("pending")
	tab.do(chromedp.WaitVisible(chromedp.CSS(`.tracker__head--paid`)))
	tab.shoot("paid")
	if !tab.run(`window.notReloaded === true`) {
		t.Error("the page was loaded again and not updated by its event stream")
	}
	if after := tab.text(`[data-headline]`); after == before || after == "" {
		t.Errorf("the headline is %q, and was %q while the order was pending", after, before)
	}
	tab.mustSpeak(lang)
	if !tab.run(`localStorage.getItem("pizzaflow.basket") === null`) {
		t.Error("the basket is still full after the order")
	}
	d.checkOrdered(t, orderID, guest)
}

// testPlainShop orders without JavaScript, with a form and a page that refreshes.
func testPlainShop(t *testing.T, d *deployment, tab *tab, lang string, guest int) {
	tab.do(func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
		_, err := cdp.Call(ctx, target, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
		return chromedp.Void{}, err
	}, chromedp.Navigate(d.shop("/?lang="+lang)))
	tab.mustSpeak(lang)
	tab.do(
		chromedp.Click(chromedp.CSS(`[data-pizza="`+margherita+`"] input[value="large"]`)),
		chromedp.SetValue(chromedp.ID("q-"+margherita), "2"),
	)
	tab.fillIn(guest)
	tab.shoot("plain checkout")
	tab.submit()
	orderID := tab.tracked(d)
	tab.do(chromedp.WaitVisible(chromedp.CSS(`.tracker__head--paid`)))
	tab.shoot("plain paid")
	tab.mustSpeak(lang)
	d.checkOrdered(t, orderID, guest)
}

// browserGuest is a customer whose bank takes two seconds, so that the pending order
// can be seen.
func browserGuest(guest int) orderRequest { return customer(guest, "+slow") }

// checkOrdered wants one paid order of the customer, and one charge.
func (d *deployment) checkOrdered(t *testing.T, orderID string, guest int) {
	t.Helper()
	d.printOnFailure(orderID)
	o := d.await(t, orderID, "paid", paidLimit)
	if string(o.TotalAmount) != "1200.00" {
		t.Errorf("order %s comes to %s, want 1200.00", orderID, o.TotalAmount)
	}
	if c := d.charges(t, orderID); succeeded(c) != 1 {
		t.Errorf("charges %+v, want one", c)
	}
	if n := d.value(t, "order", `SELECT COUNT(*) FROM orders WHERE customer_email = $1`, browserGuest(guest).CustomerEmail); n != "1" {
		t.Errorf("%s orders of the customer, want 1", n)
	}
}

// A tab is a page of a browser context of its own, with the given width.
type tab struct {
	t     *testing.T
	ctx   context.Context
	width int64
	host  string

	mu     sync.Mutex
	errors []string // of the page
}

func startChromium(t *testing.T) context.Context {
	t.Helper()
	path := os.Getenv("CHROMIUM")
	if path == "" {
		path = program(t, "chromium")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true), chromedp.Flag("force-prefers-reduced-motion", true), chromedp.Flag("disable-component-update", true), chromedp.UserDataDir(t.TempDir()))
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(stop)
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx, chromedp.Navigate("about:blank")); err != nil {
		t.Fatalf("start %s: %v", path, err)
	}
	return ctx
}

// openTab opens a tab that fails the test when its page reports an error or requests
// something from another host.
func openTab(chromium context.Context, t *testing.T, d *deployment, width int64) *tab {
	t.Helper()
	tab := &tab{t: t, width: width, host: d.address("HTTP_ADDR")}
	ctx, cancel := chromedp.NewContext(chromium, chromedp.WithNewBrowserContext(), chromedp.WithListener(tab.listen))
	t.Cleanup(cancel)
	tab.ctx, cancel = context.WithTimeout(ctx, 4*time.Minute)
	t.Cleanup(cancel)
	t.Cleanup(func() {
		if t.Failed() {
			tab.shoot("failed")
		}
		tab.mu.Lock()
		defer tab.mu.Unlock()
		for _, line := range tab.errors {
			t.Errorf("the page: %s", line)
		}
	})
	height := int64(800)
	if width < 600 {
		tab.do(chromedp.EmulateViewport(width, height, chromedp.EmulateMobile, chromedp.EmulateTouch))
	} else {
		tab.do(chromedp.EmulateViewport(width, height))
	}
	return tab
}

func (tab *tab) listen(event any) {
	report := func(format string, args ...any) {
		tab.mu.Lock()
		defer tab.mu.Unlock()
		tab.errors = append(tab.errors, fmt.Sprintf(format, args...))
	}
	switch e := event.(type) {
	case *runtime.EventExceptionThrown:
		report("exception: %s", e.ExceptionDetails.Text)
	case *devtools.EventEntryAdded:
		if e.Entry.Level == devtools.EntryLevelError {
			report("%s: %s %s", e.Entry.Source, e.Entry.Text, e.Entry.URL)
		}
	case *network.EventRequestWillBeSent:
		if u, err := url.Parse(e.Request.URL); err != nil || u.Host != tab.host && u.Scheme != "about" && u.Scheme != "data" && u.Scheme != "blob" {
			report("asks another host: %s", e.Request.URL)
		}
	}
}

func (tab *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	tab.t.Helper()
	if err := chromedp.Do(tab.ctx, steps...); err != nil {
		tab.t.Fatalf("browser: %v", err)
	}
}

func (tab *tab) text(selector string) string {
	tab.t.Helper()
	text, err := chromedp.Run(tab.ctx, chromedp.TextContent(chromedp.CSS(selector)))
	if err != nil {
		tab.t.Fatalf("browser: %s: %v", selector, err)
	}
	return strings.TrimSpace(text)
}

// run evaluates a boolean expression.
func (tab *tab) run(expression string) bool {
	tab.t.Helper()
	is, err := chromedp.Run(tab.ctx, chromedp.Evaluate[bool](expression))
	if err != nil {
		tab.t.Fatalf("browser: %s: %v", expression, err)
	}
	return is
}

// fillIn types the customer's contacts.
func (tab *tab) fillIn(guest int) {
	tab.t.Helper()
	c := browserGuest(guest)
	for name, value := range map[string]string{
		"customer_name": c.CustomerName, "customer_email": c.CustomerEmail, "customer_phone": c.CustomerPhone, "delivery_address": c.DeliveryAddress,
	} {
		tab.do(chromedp.SendKeys(chromedp.ID("f-"+name), value))
	}
}

// submit places the order, once the bar at the bottom does not cover the button, and
// waits for the tracker.
func (tab *tab) submit() {
	tab.t.Helper()
	button := chromedp.CSS(`[data-submit]`)
	tab.do(chromedp.ScrollIntoView(button), chromedp.WaitNotVisible(chromedp.CSS(`[data-bar]`)),
		chromedp.Click(button), chromedp.WaitVisible(chromedp.CSS(`[data-tracker]`)))
}

// tracked is the order whose tracker the tab shows.
func (tab *tab) tracked(d *deployment) string {
	tab.t.Helper()
	location, err := chromedp.Run(tab.ctx, chromedp.Location())
	if err != nil {
		tab.t.Fatal(err)
	}
	u, err := url.Parse(location)
	id, is := strings.CutPrefix(u.Path, "/orders/")
	if err != nil || !is || len(id) != 36 {
		tab.t.Fatalf("after the order the browser is at %s", location)
	}
	d.printOnFailure(id)
	return id
}

// mustSpeak wants the page in the language, and no wider than the screen.
func (tab *tab) mustSpeak(lang string) {
	tab.t.Helper()
	page, err := chromedp.Run(tab.ctx, chromedp.Evaluate[struct {
		Lang, Words   string
		Wide, Visible int
	}](`({lang: document.documentElement.lang, words: document.querySelector("h2").textContent,
		wide: document.documentElement.scrollWidth, visible: document.documentElement.clientWidth})`))
	if err != nil {
		tab.t.Fatalf("browser: %v", err)
	}
	russian := strings.ContainsFunc(page.Words, func(r rune) bool { return unicode.Is(unicode.Cyrillic, r) })
	if page.Lang != lang || russian != (lang == "ru") {
		tab.t.Errorf("the page is in %q and says %q, want %s", page.Lang, page.Words, lang)
	}
	if page.Wide > page.Visible {
		tab.t.Errorf("the page is %d pixels wide on a screen of %d", page.Wide, page.Visible)
	}
}

// shoot saves a picture of the whole page.
func (tab *tab) shoot(what string) {
	tab.t.Helper()
	folder := os.Getenv("PIZZA_SCREENSHOTS")
	if folder == "" {
		folder = tab.t.ArtifactDir()
	}
	ctx, cancel := context.WithTimeout(tab.ctx, time.Minute)
	defer cancel()
	picture, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
	if err == nil {
		name := strings.NewReplacer("/", "-", " ", "-").Replace(strings.TrimPrefix(tab.t.Name(), "TestBrowser/") + "-" + what + ".png")
		err = os.WriteFile(filepath.Join(folder, name), picture, 0o600)
	}
	if err != nil {
		tab.t.Errorf("screenshot of %s: %v", what, err)
	}
}

// digits are the digits of a text.
func digits(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsDigit(r) {
			return r
		}
		return -1
	}, s)
}
