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
