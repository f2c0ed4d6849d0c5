package notification

import (
	"testing"
	"time"

	"golang.org/x/text/language"
)

func TestRetryIn(t *testing.T) {
	for _, tt := range []struct {
		name     string
		age      time.Duration
		attempts int
		pause    time.Duration
		want     time.Duration
	}{
		{"soon", time.Minute, 3, time.Second, time.Second},
		{"the last attempt is at the end", 23*time.Hour + 55*time.Minute, 120, 15 * time.Minute, 5 * time.Minute},
		{"over at the end", 24 * time.Hour, 96, time.Second, never},
		{"over after it", 30 * time.Hour, 120, time.Second, never},
		{"a day that nobody tried in", 25 * time.Hour, 1, time.Second, time.Second},
		{"a year that nobody tried in", 365 * 24 * time.Hour, 95, 15 * time.Minute, 15 * time.Minute},
		{"made in the future", -25 * time.Hour, 96, 15 * time.Minute, 15 * time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := retryIn(tt.age, tt.attempts, tt.pause); got != tt.want {
				t.Errorf("retryIn = %v, want %v", got, tt.want)
			}
		})
	}
}

// A day of attempts fits into a day, so that a mail server that is away for
// good is given up after one.
func TestDayOfTriesFitsIntoADay(t *testing.T) {
	age := time.Duration(0)
	for n, pause := 1, retryBase; n < dayOfTries; n, pause = n+1, min(2*pause, retryLimit) {
		age += pause + sendTimeout
	}
	if age >= giveUpAfter {
		t.Errorf("%d attempts take %v", dayOfTries, age)
	}
}

func TestPluralForm(t *testing.T) {
	for n, want := range map[int]string{
		1: "пицца", 2: "пиццы", 4: "пиццы", 5: "пицц", 11: "пицц", 12: "пицц", 14: "пицц", 20: "пицц",
		21: "пицца", 22: "пиццы", 25: "пицц", 100: "пицц", 101: "пицца", 111: "пицц",
	} {
		got, err := pluralForm(language.Russian, n, []string{"пицца", "пиццы", "пицц"})
		if err != nil || got != want {
			t.Errorf("%d: got %q, %v, want %q", n, got, err, want)
		}
	}
	for n, want := range map[int]string{1: "pizza", 2: "pizzas", 11: "pizzas", 21: "pizzas"} {
		got, err := pluralForm(language.English, n, []string{"pizza", "pizzas"})
		if err != nil || got != want {
			t.Errorf("%d: got %q, %v, want %q", n, got, err, want)
		}
	}
	if _, err := pluralForm(language.English, 1, []string{"pizza"}); err == nil {
		t.Error("one form was accepted")
	}
}

func TestOneLine(t *testing.T) {
	for in, want := range map[string]string{
		"Иван Иванов":              "Иван Иванов",
		"Ivan\r\nBcc: x@evil.test": "Ivan Bcc: x@evil.test",
		" a\t\x00b\u2028c\u0085d ": "a b c d",
		"abc\u202etxt.exe":         "abctxt.exe",
		"non\u00a0breaking":        "non\u00a0breaking",
	} {
		if got := oneLine(in); got != want {
			t.Errorf("oneLine(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestFromAddress(t *testing.T) {
	for _, tt := range []struct{ from, publicURL, want string }{
		{"", "http://127.0.0.1:8080", "Pizzaflow <orders@pizzaflow.example>"},
		{"", "http://localhost:8080", "Pizzaflow <orders@pizzaflow.example>"},
		{"", "http://[::1]:8080", "Pizzaflow <orders@pizzaflow.example>"},
		{"", "", "Pizzaflow <orders@pizzaflow.example>"},
		{"", "https://www.pizza.test/shop", "Pizzaflow <orders@pizza.test>"},
		{"Mario <mario@pizza.test>", "https://other.test", "Mario <mario@pizza.test>"},
	} {
		got, err := fromAddress(tt.from, tt.publicURL)
		if err != nil || got != tt.want {
			t.Errorf("fromAddress(%q, %q) = %q, %v, want %q", tt.from, tt.publicURL, got, err, tt.want)
		}
	}
	for _, bad := range []string{"mario", "a@b.test\r\nBcc: c@d.test", "a@b.test, c@d.test"} {
		if got, err := fromAddress(bad, ""); err == nil {
			t.Errorf("fromAddress(%q) = %q, want an error", bad, got)
		}
	}
}
