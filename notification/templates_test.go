package notification

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"
	"unicode/utf8"

	"pizzaflow/event"
)

var updateGoldens = flag.Bool("update", false, "write the golden files under testdata anew")

// goldenDelivery is an order with markup, template actions and line breaks in every text.
func goldenDelivery(locale string, typ Type, channel Channel) delivery {
	d := delivery{
		ID: "0192f0c1-2b3c-7d4e-8f50-6a7b8c9d0e1f", Type: typ, Channel: channel,
		CreatedAt: time.Date(2024, 1, 15, 10, 30, 0, 0, time.UTC),
		Order: order{
			ID: "0192f0c1-0000-7000-8000-00000000cafe", Number: "482-913",
			Name:  "Иван <script>alert(1)</script> {{.Total}}\r\nBcc: evil@example.test",
			Email: "ivan@example.com", Phone: "+79001234567", Locale: locale, Total: 230000, Currency: "RUB",
			Address: "ул. Пушкина, д. 10 & \"корп. 2\"",
			Items: []event.Item{
				{Name: "Маргарита", Size: "large", Quantity: 2, Price: 60000},
				{Name: "Quattro <b>formaggi</b>", Size: "small", Quantity: 1, Price: 110000},
			},
		},
		Payment: payment{ID: "0192f0c1-1111-7000-8000-00000000beef", Amount: 230000, Currency: "RUB"},
	}
	if typ == PaymentFailed {
		d.Payment.ErrorCode = "insufficient_funds"
	}
	return d
}

func newTestTemplates(t *testing.T) *templates {
	t.Helper()
	texts, err := newTemplates(nil, "https://pizza.test")
	if err != nil {
		t.Fatal(err)
	}
	return texts
}

func mustMessage(t *testing.T, texts *templates, d delivery) Message {
	t.Helper()
	m, err := texts.message(d)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	path = filepath.Join("testdata", path)
	if *updateGoldens {
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got {
		t.Errorf("%s differs; run go test -update and look at the difference. got:\n%s", path, got)
	}
}

func TestGoldenMessages(t *testing.T) {
	texts := newTestTemplates(t)
	for _, locale := range []string{"ru", "en"} {
		for _, typ := range Types() {
			name := locale + "/" + string(typ)
			t.Run(name, func(t *testing.T) {
				m := mustMessage(t, texts, goldenDelivery(locale, typ, Email))
				golden(t, name+".html", m.HTML)
				golden(t, name+".txt", "Subject: "+m.Subject+"\n\n"+m.Text)
				golden(t, name+"_sms.txt", mustMessage(t, texts, goldenDelivery(locale, typ, SMS)).Text+"\n")
				if strings.ContainsAny(m.Subject, "\r\n") {
					t.Errorf("subject %q has a line break", m.Subject)
				}
				if strings.Contains(m.HTML, "<script") || strings.Contains(m.HTML, "<b>formaggi") {
					t.Error("customer text became markup")
				}
				if !strings.Contains(m.Text, "https://pizza.test/orders/0192f0c1-0000-7000-8000-00000000cafe") {
					t.Error("the text mail does not link to the order")
				}
			})
		}
	}
}

// The raw mail: headers, Message-ID, both parts and their encoding.
func TestGoldenMail(t *testing.T) {
	m := mustMessage(t, newTestTemplates(t), goldenDelivery("ru", OrderConfirmation, Email))
	m.From = "Pizzaflow <orders@pizzaflow.example>"
	first, err := compose(m)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "ru/order_confirmation.eml", string(first.content))
	again, err := compose(m)
	if err != nil || string(again.content) != string(first.content) {
		t.Errorf("a repeated mail differs from the first, %v", err)
	}
}

func TestSMSIsShort(t *testing.T) {
	long := strings.Repeat("long.", 20) + "test"
	for _, host := range []string{"127.0.0.1:8080", "pizza.test", long} {
		texts, err := newTemplates(nil, "https://"+host)
		if err != nil {
			t.Fatal(err)
		}
		for locale, limit := range map[string]int{"en": 160, "ru": 134} {
			for _, typ := range Types() {
				d := goldenDelivery(locale, typ, SMS)
				d.Order.Total, d.Payment.Amount = 123456789, 123456789
				text := mustMessage(t, texts, d).Text
				if n := utf8.RuneCountInString(text); n > limit {
					t.Errorf("%s %s: %d characters, want at most %d: %s", locale, typ, n, limit, text)
				}
				if linked := strings.Contains(text, "/orders/"); linked != (host != long) {
					t.Errorf("%s %s: linked %v: %s", locale, typ, linked, text)
				}
				if locale == "en" && strings.ContainsFunc(text, func(r rune) bool { return r > 127 }) {
					t.Errorf("%s %s is not in the GSM alphabet: %s", locale, typ, text)
				}
			}
		}
	}
}

func TestPaymentOfAnotherAmountPromisesNothing(t *testing.T) {
	texts := newTestTemplates(t)
	d := goldenDelivery("en", PaymentConfirmation, Email)
	const promise = "The kitchen is getting started"
	if m := mustMessage(t, texts, d); !strings.Contains(m.Text, promise) || !strings.Contains(m.HTML, promise) {
		t.Error("a full payment is not said to start the kitchen")
	}
	d.Payment.Amount--
	if m := mustMessage(t, texts, d); strings.Contains(m.Text+m.HTML, promise) || !strings.Contains(m.Text, "2,299.99") {
		t.Errorf("a payment of another amount reads: %s", m.Text)
	}
}

func TestUnknownLocaleIsEnglish(t *testing.T) {
	m := mustMessage(t, newTestTemplates(t), goldenDelivery("fr", OrderConfirmation, Email))
	if m.Subject != "We have your order 482-913" {
		t.Errorf("subject %q", m.Subject)
	}
}

func TestTemplateOverride(t *testing.T) {
	texts, err := newTemplates(fstest.MapFS{
		"en/order_confirmation_sms.txt": {Data: []byte(`Da Mario: {{.OrderNumber}}, {{plural .Count "slice" "slices"}}`)},
		"en/order_confirmation.txt":     {Data: []byte("{{define \"subject\"}}two\nlines {{.OrderNumber}}{{end}}{{define \"content\"}}ours{{end}}")},
	}, "https://pizza.test")
	if err != nil {
		t.Fatal(err)
	}
	if got := mustMessage(t, texts, goldenDelivery("en", OrderConfirmation, SMS)).Text; got != "Da Mario: 482-913, slices" {
		t.Errorf("SMS %q", got)
	}
	m := mustMessage(t, texts, goldenDelivery("en", OrderConfirmation, Email))
	if m.Subject != "two lines 482-913" || !strings.Contains(m.Text, "ours") || !strings.Contains(m.HTML, "Pizzaflow") {
		t.Errorf("mail %+v", m)
	}
	if got := mustMessage(t, texts, goldenDelivery("en", PaymentFailed, SMS)).Text; !strings.HasPrefix(got, "Pizzaflow:") {
		t.Errorf("a text that was not replaced changed: %q", got)
	}
}

func TestBadOverrideStopsTheStart(t *testing.T) {
	for name, source := range map[string]string{
		"syntax":        "{{.OrderNumber",
		"unknown field": "{{.Nothing}}",
		"plural":        `{{plural .Count "one"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := newTemplates(fstest.MapFS{"ru/payment_failed_sms.txt": {Data: []byte(source)}}, "https://pizza.test")
			if err == nil || !strings.Contains(err.Error(), "ru/payment_failed_sms") {
				t.Errorf("error %v, want one that names the file", err)
			}
		})
	}
}
