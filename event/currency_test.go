package event

import (
	"strings"
	"testing"

	"golang.org/x/text/currency"
)

func TestCurrenciesAreThoseOfISO4217(t *testing.T) {
	for code, want := range map[string]int{
		"RUB": 2, "EUR": 2, "USD": 2, "HUF": 2, "RSD": 2, "COP": 2, "UZS": 2, "IDR": 2, "JPY": 0, "KRW": 0, "ISK": 0, "CLP": 0, "XOF": 0,
		"KWD": 3, "TND": 3, "IQD": 3,
	} {
		if got, known := Decimals(code); got != want || !known {
			t.Errorf("%s has %d decimals (%v), want %d", code, got, known, want)
		}
	}
	for _, code := range []string{"", "rub", "RU", "RUBL", "643", "ABC", "XXX", "XTS", "XAU", "DEM", "SUR", " EUR", "EUR USD"} {
		if _, known := Decimals(code); known {
			t.Errorf("%q is a currency", code)
		}
	}
	seen := map[string]bool{}
	for _, codes := range currencies {
		for code := range strings.FieldsSeq(codes) {
			if seen[code] {
				t.Errorf("%s stands there twice", code)
			}
			seen[code] = true
		}
	}
	for _, code := range []string{"VES", "VED", "MRU", "STN", "SLE", "XCG", "ZWG"} { // younger than the library's table
		delete(seen, code)
	}
	for code := range seen { // no slip of the pen
		if _, err := currency.ParseISO(code); err != nil {
			t.Errorf("%s: %v", code, err)
		}
	}
	for all := currency.Query(); all.Next(); { // in use somewhere today
		if code := all.Unit().String(); !seen[code] && !strings.HasPrefix(code, "X") {
			t.Logf("%s is in use in %s by the library, and not in the list", code, all.Region())
		}
	}
}
