package pizzaflow

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// setting is the option of that environment name, of c.
func setting(t *testing.T, c *Config, env string) Setting {
	t.Helper()
	all := c.Settings()
	i := slices.IndexFunc(all, func(s Setting) bool { return s.Env == env })
	if i < 0 {
		t.Fatalf("no option %s", env)
	}
	return all[i]
}

func TestOptionsAreReadAsPeopleWriteThem(t *testing.T) {
	for _, c := range []struct {
		env, text string
		want      any
	}{
		{"KAFKA_BROKERS", " 127.0.0.1:9092, 127.0.0.1:9093 ,,", []string{"127.0.0.1:9092", "127.0.0.1:9093"}},
		{"TRUSTED_PROXIES", "10.0.0.0/8,\t192.0.2.1\n", []string{"10.0.0.0/8", "192.0.2.1"}},
		{"ORDER_URL", " , ", []string(nil)},
		{"SERVICES", " Order , PAYMENT,", "order,payment"},
		{"LOG_LEVEL", "WARN", "warn"},
		{"LOG_FORMAT", " Json ", "json"},
		{"KAFKA_SASL_MECHANISM", "scram-sha-512", "SCRAM-SHA-512"},
		{"CURRENCY", "eur", "EUR"},
		{"KAFKA_TLS", " TRUE ", true},
		{"KAFKA_TLS", "off", false},
		{"RATE_LIMIT", " 0 ", 0},
		{"STOP_GRACE", "0s\n", time.Duration(0)},
		{"OPS_TOKEN", "sixteen letters!\n", "sixteen letters!"},
	} {
		var config Config
		s := setting(t, &config, c.env)
		target := reflect.ValueOf(s.Field).Elem()
		if err := s.Read(c.text, target); err != nil || !reflect.DeepEqual(target.Interface(), c.want) {
			t.Errorf("%s=%q is read as %#v, want %#v (%v)", c.env, c.text, target.Interface(), c.want, err)
		}
	}
}

// TestWhatIsEmptyOrUnreadableIsTheDefault compares every option with its default.
func TestWhatIsEmptyOrUnreadableIsTheDefault(t *testing.T) {
	var want, empty, blank Config
	for i, s := range want.Settings() {
		read := func(s Setting, text string) error { return s.Read(text, reflect.ValueOf(s.Field).Elem()) }
		if err := read(s, s.tag.Get("default")); err != nil {
			t.Error(err)
		}
		if err := read(empty.Settings()[i], ""); err != nil {
			t.Error(err)
		}
		if err := read(blank.Settings()[i], " \t\n"); err != nil {
			t.Error(err)
		}
		var odd Config
		s := odd.Settings()[i]
		const unreadable = "postgres://u:hunter2@db/no-such-word"
		if err := read(s, unreadable); err != nil {
			if !strings.Contains(err.Error(), s.Env) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%s: %v", s.Env, err)
			}
			if got, want := reflect.ValueOf(s.Field).Elem().Interface(), reflect.ValueOf(want.Settings()[i].Field).Elem().Interface(); !reflect.DeepEqual(got, want) {
				t.Errorf("%s is %v when it cannot be read, want %v", s.Env, got, want)
			}
		}
	}
	if !reflect.DeepEqual(empty, want) || !reflect.DeepEqual(blank, want) {
		t.Errorf("with empty options the configuration is\n%+v and\n%+v, want\n%+v", empty, blank, want)
	}
	if err := want.Validate(); err != nil {
		t.Error("the defaults:", err)
	}
}

// odd are values with a secret in any place where one may stand.
var odd = []string{
	"postgres://u:4432/hunter2@db:5432/pizza", "postgres://u:p?hunter2@db/pizza", "postgres://u:p#hunter2@db/pizza", "postgres://u:hunter2%zz@db/pizza",
	"postgres://u:hunter2@db:port/pizza", "postgres://u:hunter2@db/pizza?sslmode=bogus", "postgres://db/pizza?sslmode=disable&sslpassword=hunter2&connect_timeout=x",
	"postgres://u:hunter2 @db/pizza", "host=db password=hunter2", "hunter2", "sandbox://u:hunter2@127.0.0.1:1", "sandbox://127.0.0.1:1/hunter2",
	"smtp://u:hunter2@mail", "smtp://u:hun/hunter2@mail:25", "smtp://mail:25/?key=hunter2", "smtps:hunter2@mail:465",
	"http://hunter2@orders:8080", "http://orders:8080/hunter2", "http://orders:8080?key=hunter2", "ftp://u:hunter2@orders", "http://u:hunter2@[::1", "u:hunter2@kafka:9092",
	"https://gw:hunter2/send", "\x00hunter2", "http://or ders/hunter2", "https://hunter2@pizza.example/shop?x=hunter2#hunter2",
}

// TestNoErrorShowsASecret gives every option every odd value, and looks at the errors and at what is shown of the options.
func TestNoErrorShowsASecret(t *testing.T) {
	refused := map[string]int{}
	for i, s := range new(Config).Settings() {
		if s.tag.Get("holds") == "mailbox" || s.Env == "DATA_DIR" || s.Env == "KAFKA_TLS_CA" || s.Env == "KAFKA_TLS_CERT" || s.Env == "KAFKA_TLS_KEY" || s.Env == "KAFKA_SASL_USER" || s.Env == "KAFKA_TLS_SERVER_NAME" {
			continue // neither addresses nor secrets
		}
		for _, value := range odd {
			if s.tag.Get("secret") == "" && (value == "hunter2" || strings.HasPrefix(value, "\x00")) {
				continue // the word alone is a secret only where one belongs
			}
			c := usable()
			of := c.Settings()[i]
			err := of.Read(value, reflect.ValueOf(of.Field).Elem())
			if err == nil {
				err = c.Validate()
			}
			if err != nil {
				refused[s.Env]++
				if strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), s.Env) {
					t.Errorf("%s=%q: %v", s.Env, value, err)
				}
			}
			if shown := c.Options()[i].Value; strings.Contains(shown, "hunter2") && s.tag.Get("secret") != "" {
				t.Errorf("%s=%q is shown as %s", s.Env, value, shown)
			}
		}
	}
	for _, env := range []string{"DATABASE_URL", "ORDER_DATABASE_URL", "SMTP_URL", "PAYMENT_PROVIDER_URL", "ORDER_URL", "PUBLIC_URL", "HTTP_ADDR", "KAFKA_BROKERS", "TRUSTED_PROXIES"} {
		if refused[env] < len(odd)-5 {
			t.Errorf("of %d odd values %s accepts %d", len(odd), env, len(odd)-refused[env])
		}
	}
}

func TestAllFaultsAreToldAtOnce(t *testing.T) {
	c := usable()
	c.PublicURL, c.SMTPURL, c.SMSURL, c.PaymentProviderURL, c.MailFrom = "ftp://x", "imap://x", "sms:me", "bank://x", "nobody"
	c.OrderURL, c.KafkaBrokers, c.TrustedProxies = []string{"http://"}, []string{"kafka"}, []string{"here", "10.0.0.0/99"}
	c.HTTPAddr, c.RateLimit, c.RetryDelay, c.Currency, c.DatabaseURL, c.OpsToken = "x", -1, time.Hour+1, "JPY", "mysql://x", "short"
	err := c.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for key := range strings.FieldsSeq("PUBLIC_URL SMTP_URL SMS_URL PAYMENT_PROVIDER_URL MAIL_FROM ORDER_URL KAFKA_BROKERS TRUSTED_PROXIES HTTP_ADDR RATE_LIMIT RETRY_DELAY CURRENCY DATABASE_URL OPS_TOKEN 10.0.0.0/99") {
		if !strings.Contains(err.Error(), key) {
			t.Errorf("%s is not told: %v", key, err)
		}
	}
}

func TestPublicURLIsAnOrigin(t *testing.T) {
	for raw, want := range map[string]string{
		"":                             "",
		"https://pizza.example":        "https://pizza.example",
		"https://pizza.example/":       "https://pizza.example",
		"HTTPS://Pizza.Example:443":    "https://pizza.example",
		"http://pizza.example:80/":     "http://pizza.example",
		"http://pizza.example:443":     "http://pizza.example:443",
		"https://пицца.рф":             "https://xn--80apu3aa.xn--p1ai",
		"https://ПИЦЦА.рф:8443/":       "https://xn--80apu3aa.xn--p1ai:8443",
		"https://münchen.example":      "https://xn--mnchen-3ya.example",
		"http://[2001:DB8::1]:8080":    "http://[2001:db8::1]:8080",
		"http://192.0.2.1":             "http://192.0.2.1",
		"http://my_shop:8080":          "http://my_shop:8080",
		"https://pizza.example/shop":   "refused",
		"https://pizza.example?":       "refused",
		"https://pizza.example/?a=b":   "refused",
		"https://pizza.example#":       "refused",
		"https://u@pizza.example":      "refused",
		"https://pizza.example:0":      "refused",
		"https://pizza.example:70000":  "refused",
		"https://":                     "refused",
		"https:///orders":              "refused",
		"pizza.example":                "refused",
		"//pizza.example":              "refused",
		"javascript://pizza.example":   "refused",
		"https://pizza..example":       "refused",
		"https://pizza.example\\@evil": "refused",
	} {
		c := usable()
		c.PublicURL = raw
		got, err := c.origin()
		if err != nil {
			got = "refused"
		}
		if got != want || (c.Validate() == nil) != (want != "refused") {
			t.Errorf("%q is %s, want %s (%v)", raw, got, want, err)
		}
	}
}

func TestCurrenciesHaveTwoDecimals(t *testing.T) {
	for code, want := range map[string]bool{
		"RUB": true, "EUR": true, "KZT": true, "UZS": true, "RSD": true, "HUF": true,
		"JPY": false, "KRW": false, "ISK": false, "XOF": false, "KWD": false, "TND": false, "XXX": false, "ABC": false, "643": false, "rub": false, "": false,
	} {
		c := usable()
		c.Currency = code
		if err := c.Validate(); (err == nil) != want || err != nil && !strings.Contains(err.Error(), "CURRENCY") {
			t.Errorf("%q: %v", code, err)
		}
	}
}
