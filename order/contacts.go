package order

import (
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/nyaruka/phonenumbers"
	"golang.org/x/text/unicode/norm"
)

const maxEmail = 254 // octets, as SMTP allows

// emailShape is a dot-atom, an at sign and a domain of at least two labels.
// Quoted local parts, comments, display names, address literals and lists are
// legal in a mail header, and all of them are refused here: the address goes
// into an SMTP envelope as it stands. A domain with other letters than ASCII
// is written in its xn-- form.
var emailShape = regexp.MustCompile(
	"^[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*" +
		`@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])$`)

func isEmail(s string) bool {
	local, _, _ := strings.Cut(s, "@")
	return len(s) <= maxEmail && len(local) <= 64 && emailShape.MatchString(s)
}

// phoneShape is a phone number as people write it. The parser takes far more,
// such as extensions and letters.
var phoneShape = regexp.MustCompile(`^\+?[0-9 ().-]{5,30}$`)

// russianMobile is how nearly all customers write their number.
var russianMobile = regexp.MustCompile(`^(?:\+7|8)[ -]?\(?(9[0-9]{2})\)?[ -]?([0-9]{3})[ -]?([0-9]{2})[ -]?([0-9]{2})$`)

// readPhone is phonenumbers.Parse with a short cut for the usual form: the many
// patterns of the library cost a tenth of placing an order.
func readPhone(s string) (*phonenumbers.PhoneNumber, error) {
	m := russianMobile.FindStringSubmatch(s)
	if m == nil {
		return phonenumbers.Parse(s, "RU")
	}
	national, err := strconv.ParseUint(strings.Join(m[1:], ""), 10, 64)
	country := int32(7)
	return &phonenumbers.PhoneNumber{CountryCode: &country, NationalNumber: &national}, err
}

// parsePhone brings a phone number to E.164, and reports whether it is the number
// of a mobile or a fixed line. Without a country code it is a Russian number, with
// or without the leading 8. Premium and satellite numbers are refused: they would
// let anybody spend our money on text messages.
func parsePhone(s string) (string, bool) {
	s = strings.Trim(s, " ")
	if !phoneShape.MatchString(s) {
		return "", false
	}
	n, err := readPhone(s)
	if err != nil || phonenumbers.GetRegionCodeForCountryCode(int(n.GetCountryCode())) == "001" {
		return "", false
	}
	// a number that is not valid has no type, so one look-up checks both
	switch phonenumbers.GetNumberType(n) {
	case phonenumbers.MOBILE, phonenumbers.FIXED_LINE, phonenumbers.FIXED_LINE_OR_MOBILE:
		return phonenumbers.Format(n, phonenumbers.E164), true
	}
	return "", false
}

// digitRuns finds digits with at most a few separators between them.
var digitRuns = regexp.MustCompile(`[0-9]+(?:[ \x{a0}._/–—-]{1,3}[0-9]+)*`)

// hasCardNumber reports whether the text holds 13 to 19 digits with a right
// check digit, however they are grouped. A group of digits counts as a whole,
// so that a longer number does not contain a card by accident.
func hasCardNumber(s string) bool {
	for _, run := range digitRuns.FindAllString(norm.NFKC.String(s), -1) {
		groups := strings.FieldsFunc(run, func(r rune) bool { return r < '0' || r > '9' })
		for i := range groups {
			var number strings.Builder
			for _, g := range groups[i:] {
				number.WriteString(g)
				if len(number.String()) > 19 {
					break
				}
				if len(number.String()) >= 13 && luhn(number.String()) {
					return true
				}
			}
		}
	}
	return false
}

// luhn checks the last digit of a card number.
func luhn(digits string) bool {
	sum := 0
	for i := range len(digits) {
		d := int(digits[len(digits)-1-i] - '0')
		if i%2 == 1 {
			if d *= 2; d > 9 {
				d -= 9
			}
		}
		sum += d
	}
	return sum%10 == 0
}

// The masks leave as much of a contact as its owner needs to recognise it, and too
// little for anybody else to use.

func maskName(s string) string {
	words := strings.Fields(s)
	for i, w := range words {
		_, n := utf8.DecodeRuneInString(w)
		words[i] = w[:n] + "***"
	}
	return strings.Join(words, " ")
}

func maskEmail(s string) string {
	_, domain, _ := strings.Cut(s, "@")
	return s[:min(1, len(s))] + "***@" + domain
}

func maskPhone(s string) string {
	if len(s) < 8 {
		return "***"
	}
	return s[:2] + strings.Repeat("*", len(s)-4) + s[len(s)-2:]
}
