package event

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Money is an amount in minor units (kopecks, cents). In JSON it is a number
// with exactly two decimals; it never goes through a float.
type Money int64

// ErrMoney is returned for JSON that is not an amount with at most two decimals.
var ErrMoney = errors.New("not an amount: want a number with at most two decimals")

// String writes m in major units with two decimals, such as 1200.00.
func (m Money) String() string {
	sign, u := "", uint64(m)
	if m < 0 {
		sign, u = "-", -u
	}
	return fmt.Sprintf("%s%d.%02d", sign, u/100, u%100)
}

// A CurrencyDisplay says how an amount names its currency, in the terms of
// Intl.NumberFormat, with which browsers write amounts.
type CurrencyDisplay int

// The displays.
const (
	CurrencySymbol       CurrencyDisplay = iota // RUB 1,200.00 in English: its readers do not know ₽
	CurrencyNarrowSymbol                        // ₽1,200.00 in every language
)

// symbols are those of browsers (CLDR), by language. A currency without one is
// written as its code.
var symbols = map[string]map[string]string{
	"ru": {"RUB": "₽", "USD": "$", "EUR": "€", "KZT": "₸"},
	"en": {"USD": "$", "EUR": "€", "GBP": "£"},
}

var narrowSymbols = map[string]string{"RUB": "₽", "USD": "$", "EUR": "€", "GBP": "£", "KZT": "₸"}

// Format writes m as people who read the language (ru or en) expect it: 1 200,00 ₽
// with spaces that do not break, or $1,200.00. The currency is an ISO 4217 code.
func (m Money) Format(lang, currency string, display CurrencyDisplay) string {
	const space = "\u00a0"
	group, point := ",", "."
	if lang == "ru" {
		group, point = space, ","
	}
	digits, negative := strings.CutPrefix(m.String(), "-")
	whole, cents, _ := strings.Cut(digits, ".")
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + group + whole[i:]
	}
	amount, symbol := whole+point+cents, symbols[lang][currency]
	if display == CurrencyNarrowSymbol {
		symbol = narrowSymbols[currency]
	}
	sign := ""
	if negative {
		sign = "-"
	}
	switch {
	case lang == "ru" && symbol != "":
		return sign + amount + space + symbol
	case lang == "ru":
		return sign + amount + space + currency
	case symbol != "":
		return sign + symbol + amount
	}
	return sign + currency + space + amount
}

// MarshalJSON writes m as a number with two decimals.
func (m Money) MarshalJSON() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalJSON reads a JSON number with at most two decimals and no exponent.
func (m *Money) UnmarshalJSON(b []byte) error {
	s := string(b)
	digits, negative := strings.CutPrefix(s, "-")
	whole, cents, _ := strings.Cut(digits, ".")
	if len(cents) > 2 || (strings.Contains(digits, ".") && cents == "") {
		return ErrMoney
	}
	for len(cents) < 2 {
		cents += "0"
	}
	for _, c := range whole + cents {
		if c < '0' || c > '9' {
			return ErrMoney
		}
	}
	v, err := strconv.ParseInt(whole+cents, 10, 64)
	if err != nil || whole == "" {
		return ErrMoney
	}
	if negative {
		v = -v
	}
	*m = Money(v)
	return nil
}
