package event_test

import (
	"encoding/json"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"pizzaflow/event"
)

// TestFormat has an amount of every supported currency, and of one without a
// symbol, in both languages and ways to name the currency. "_" is a space that
// does not break.
func TestFormat(t *testing.T) {
	type texts struct{ ru, en, ruNarrow, enNarrow string }
	for currency, want := range map[string]texts{
		"RUB": {"1_234_567,05_₽", "RUB_1,234,567.05", "1_234_567,05_₽", "₽1,234,567.05"},
		"USD": {"1_234_567,05_$", "$1,234,567.05", "1_234_567,05_$", "$1,234,567.05"},
		"EUR": {"1_234_567,05_€", "€1,234,567.05", "1_234_567,05_€", "€1,234,567.05"},
		"GBP": {"1_234_567,05_GBP", "£1,234,567.05", "1_234_567,05_£", "£1,234,567.05"},
		"KZT": {"1_234_567,05_₸", "KZT_1,234,567.05", "1_234_567,05_₸", "₸1,234,567.05"},
		"CHF": {"1_234_567,05_CHF", "CHF_1,234,567.05", "1_234_567,05_CHF", "CHF_1,234,567.05"},
	} {
		const m event.Money = 1234567_05
		got := texts{
			m.Format("ru", currency, event.CurrencySymbol), m.Format("en", currency, event.CurrencySymbol),
			m.Format("ru", currency, event.CurrencyNarrowSymbol), m.Format("en", currency, event.CurrencyNarrowSymbol),
		}
		for _, s := range []*string{&got.ru, &got.en, &got.ruNarrow, &got.enNarrow} {
			*s = strings.ReplaceAll(*s, "\u00a0", "_")
		}
		if got != want {
			t.Errorf("%s: %q\nwant %q", currency, got, want)
		}
	}
	for m, want := range map[event.Money][2]string{
		0:            {"0,00_₽", "₽0.00"},
		5:            {"0,05_₽", "₽0.05"},
		-5:           {"-0,05_₽", "-₽0.05"},
		999_99:       {"999,99_₽", "₽999.99"},
		1000_00:      {"1_000,00_₽", "₽1,000.00"},
		-1000_00:     {"-1_000,00_₽", "-₽1,000.00"},
		123456789_00: {"123_456_789,00_₽", "₽123,456,789.00"},
	} {
		for i, lang := range []string{"ru", "en"} {
			if got := strings.ReplaceAll(m.Format(lang, "RUB", event.CurrencyNarrowSymbol), "\u00a0", "_"); got != want[i] {
				t.Errorf("%d in %s: %q, want %q", int64(m), lang, got, want[i])
			}
		}
	}
}

func TestMoneyIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := event.Money(rapid.Int64().Draw(t, "minor units"))
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		var back event.Money
		if m == -1<<63 {
			return // its digits fit, its absolute value does not
		}
		if err := json.Unmarshal(b, &back); err != nil || back != m {
			t.Fatalf("%d is written %s and read %d, %v", int64(m), b, int64(back), err)
		}
	})
	for in, want := range map[string]event.Money{"1200.00": 120000, "1200": 120000, "0.5": 50, "-0.05": -5, "0": 0} {
		var m event.Money
		if err := json.Unmarshal([]byte(in), &m); err != nil || m != want {
			t.Errorf("%s is read %d, %v; want %d", in, int64(m), err, int64(want))
		}
	}
	for _, in := range []string{`"1"`, "1.005", "1e2", "true", "92233720368547758.08", "1.2.3"} {
		var m event.Money
		if err := json.Unmarshal([]byte(in), &m); err == nil {
			t.Errorf("%s is read %d", in, int64(m))
		}
	}
}
