package order

import (
	"strings"
	"testing"
)

func TestEmail(t *testing.T) {
	good := []string{
		"ivan@example.com", "ivan+declined@example.com", "ivan+lost-always@example.com", "a@b.co", "o'hara@sub.example.org",
		"x@xn--80ak6aa92e.com", "IVAN@EXAMPLE.COM", "1@2.example", strings.Repeat("a", 64) + "@example.com", "a@b.xn--p1ai",
	}
	for _, s := range good {
		if !isEmail(s) {
			t.Errorf("%q is refused", s)
		}
	}
	bad := []string{
		"", "a", "@", "a@", "@b.com", "a@b.com\r\nBcc: c@d.com", "a@b.com\n", "a@b.com,c@d.com", "a@b.com;c@d.com",
		"Name <a@b.com>", "<a@b.com>", "a@b", "a@localhost", "a@[127.0.0.1]", "a@127.0.0.1", `"<script>"@b.com`, `"a b"@c.com`,
		"a..b@b.com", ".a@b.com", "a.@b.com", strings.Repeat("a", 65) + "@b.com", "a@-b.com", "a@b-.com", "a@b..com", "a@.b.com",
		"a@b.com.", "a(comment)@b.com", "a@b.com (Ivan)", " a@b.com", "a@b.com ", "a@@b.com", "a@b@c.com", "a b@c.com",
		"иван@example.com", "a@пример.рф", "a@b.com\x00", "a@b_c.com", "a@" + strings.Repeat("b", 64) + ".com",
		"a@" + strings.Repeat("b.", 126) + "com",
	}
	for _, s := range bad {
		if isEmail(s) {
			t.Errorf("%q is accepted", s)
		}
	}
}

func TestPhone(t *testing.T) {
	good := map[string]string{
		"+7-900-123-45-67": "+79001234567", "8 (900) 123-45-67": "+79001234567", "89001234567": "+79001234567",
		"+79001234567": "+79001234567", " +7 900 123.45.67 ": "+79001234567", "9001234567": "+79001234567",
		"+7 495 123-45-67": "+74951234567", "+44 20 7946 0958": "+442079460958", "+1 202-555-0123": "+12025550123",
		"+375 29 123-45-67": "+375291234567", "+998 90 123 45 67": "+998901234567",
	}
	for s, want := range good {
		if got, ok := parsePhone(s); !ok || got != want {
			t.Errorf("%q gives %q, %v; want %q", s, got, ok, want)
		}
	}
	bad := []string{
		"", "+7900", "8900", "+7900123456789012", "phone", "+7 900 CALL NOW",
		"+7-900-123-45-67 ext. 5", "+79001234567;ext=5", "+7 803 123-45-67", "+882 16 1234 5678",
		"+7-900-123-45-67\r\nAT+CMGS", "+7900123456%0a", "++79001234567", "7", "+0000000000", "112", "+7 900 123 45 6\x00",
		"+79001234567,+79001234568", "8-800-555-35-35",
	}
	for _, s := range bad {
		if got, ok := parsePhone(s); ok {
			t.Errorf("%q is accepted as %q", s, got)
		}
	}
}

func TestMasks(t *testing.T) {
	for got, want := range map[string]string{
		maskName("Иван Иванов"): "И*** И***", maskName("I"): "I***", maskName(""): "",
		maskEmail("ivan@example.com"): "i***@example.com", maskEmail("i@example.com"): "i***@example.com",
		maskPhone("+79001234567"): "+7********67", maskPhone("+7900"): "***",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
