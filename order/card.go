package order

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// cardGroups are the groups in which card numbers are printed and typed.
var cardGroups = [][]int{{4, 4, 4, 4}, {4, 6, 5}, {4, 6, 4}}

// wholeCard is a card number without groups: 16 or 19 digits, 18 of Maestro, 15 of
// American Express, 14 of Diners Club, 13 of an old Visa. The narrow prefixes keep
// parcels, registration numbers and the bar codes of Russian goods (46) out, which
// have as many digits.
var wholeCard = regexp.MustCompile(`^(?:4[0-57-9]\d{11}|[2-6]\d{15}(?:\d{3})?|6[37]\d{16}|3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11})$`)

// parcelWord stands before the number of a parcel.
var parcelWord = regexp.MustCompile(`(?i)(?:^|\PL)(?:тр[еэ]к|посылк|отправлени|накладн|шпи|track|parcel|shipment|waybill|usps|fedex|dhl|ups)\pL*[^\pL\n]{0,4}(?:(?:код|номер|number|no|nr|id|почт\pL*|сдэк)[^\pL\n]{0,4}){0,2}$`)

// A digitGroup is some digits of a text, and what stands before them since the
// group before.
type digitGroup struct{ before, digits string }

// hasCardNumber reports whether the text holds a card number with a right check
// digit, in the groups that cards have. Between the groups may stand anything but
// letters. Phones, dates, windows of time and the numbers of parcels are taken out
// first.
func hasCardNumber(s string) bool {
	if !strings.ContainsFunc(s, unicode.IsNumber) {
		return false
	}
	groups := groupDigits(plainDigits(norm.NFKC.String(strings.Map(plainRune, s))))
	if !startsAnywhere(groups) { // nearly always: what follows looks at every phone
		return false
	}
	for i := 0; i < len(groups); {
		if n := notCard(groups[i:]); n > 0 {
			i += n
			continue
		}
		if startsWithCard(groups[i:]) {
			return true
		}
		i++
	}
	return false
}

func startsAnywhere(groups []digitGroup) bool {
	for i := range groups {
		if startsWithCard(groups[i:]) {
			return true
		}
	}
	return false
}

func groupDigits(s string) []digitGroup {
	var groups []digitGroup
	isDigit := func(r rune) bool { return '0' <= r && r <= '9' }
	for {
		from := strings.IndexFunc(s, isDigit)
		if from < 0 {
			return groups
		}
		to := from + 1
		for to < len(s) && isDigit(rune(s[to])) {
			to++
		}
		groups = append(groups, digitGroup{before: s[:from], digits: s[from:to]})
		s = s[to:]
	}
}

// joined reports whether the group can belong to the same number as the one
// before: at most three signs are between them, and no letter.
func (g digitGroup) joined() bool {
	signs := strings.Join(strings.Fields(g.before), "")
	return utf8.RuneCountInString(signs) <= 3 && !strings.ContainsFunc(signs, unicode.IsLetter)
}

func startsWithCard(groups []digitGroup) bool {
	first := groups[0].digits
	if first[0] < '2' || first[0] > '6' {
		return false
	}
	if len(first) >= 13 {
		return wholeCard.MatchString(first) && luhn(first)
	}
	for _, lengths := range cardGroups {
		if number := joinGroups(groups, lengths); number != "" && luhn(number) {
			return true
		}
	}
	return false
}

// joinGroups returns the digits of the first groups, if they have these lengths.
func joinGroups(groups []digitGroup, lengths []int) string {
	if len(groups) < len(lengths) {
		return ""
	}
	var number strings.Builder
	for i, n := range lengths {
		if len(groups[i].digits) != n || i > 0 && !groups[i].joined() {
			return ""
		}
		number.WriteString(groups[i].digits)
		if i > 0 && timeGroups(groups[i:]) > 0 && groups[i].before != groups[i+1].before {
			return "" // a window of time behind other numbers
		}
	}
	return number.String()
}

// notCard returns how many of the first groups are a phone, a date, a window of
// time or the number of a parcel; 0 when they are none of these.
func notCard(groups []digitGroup) int {
	for _, count := range []func([]digitGroup) int{phoneGroups, dateGroups, timeGroups, parcelGroups} {
		if n := count(groups); n > 0 {
			return n
		}
	}
	return 0
}

// russianHead is the first group of a Russian phone: the 8 or 7, with the code of
// the city or the whole number behind it.
var russianHead = regexp.MustCompile(`^[78](?:\d{3}|\d{10})?$`)

// cityCode is what stands between the lone 8 or 7 and the code behind it.
var cityCode = regexp.MustCompile(`^[ -]?\(?$`)

// phoneGroups counts the groups of a phone that begins with a plus sign, 00, or
// the 8 or 7 of Russia.
func phoneGroups(groups []digitGroup) int {
	first := groups[0]
	if len(first.digits) == 13 { // as long as an old Visa
		if _, ok := parsePhone("+" + first.digits); ok {
			return 1
		}
	}
	plus := strings.HasSuffix(strings.TrimRight(first.before, " ("), "+") || len(first.digits) >= 10 && strings.HasPrefix(first.digits, "00")
	if !plus && (!russianHead.MatchString(first.digits) || len(groups) > 1 && len(first.digits) == 1 && !cityCode.MatchString(groups[1].before)) {
		return 0
	}
	number, found := "", 0
	for i, g := range groups {
		if i > 0 && (!g.joined() || strings.Contains(g.before, "+")) || len(number)+len(g.digits) > 17 {
			break
		}
		number += g.digits
		written := strings.TrimPrefix(number, "00")
		if plus {
			written = "+" + written
		} else if len(number) != 11 {
			continue
		}
		if _, ok := parsePhone(written); ok {
			found = i + 1
		}
	}
	return found
}

var (
	dayOrMonth = regexp.MustCompile(`^(?:0?[1-9]|[12]\d|3[01])$`)
	year       = regexp.MustCompile(`^(?:19|20)\d\d$`)
	timeOfDay  = regexp.MustCompile(`^(?:[01]\d|2[0-4])[0-5][05]$`)
	dateSign   = regexp.MustCompile(`^ ?[./-] ?$`)
	windowSign = regexp.MustCompile(`^ ?[-/~] ?$`)
)

// dateGroups counts the groups of a date with its year, such as 14.12.2026.
func dateGroups(groups []digitGroup) int {
	if len(groups) >= 3 && dayOrMonth.MatchString(groups[0].digits) && dayOrMonth.MatchString(groups[1].digits) &&
		year.MatchString(groups[2].digits) && dateSign.MatchString(groups[1].before) && groups[1].before == groups[2].before {
		return 3
	}
	return 0
}

// timeGroups counts the groups of a window of time without colons, such as 2030-2100.
func timeGroups(groups []digitGroup) int {
	if len(groups) >= 2 && timeOfDay.MatchString(groups[0].digits) && timeOfDay.MatchString(groups[1].digits) &&
		groups[0].digits < groups[1].digits && windowSign.MatchString(groups[1].before) {
		return 2
	}
	return 0
}

// parcelGroups counts the groups of a parcel's number: after a word for it, or
// with the few capital letters before it that such numbers begin with.
func parcelGroups(groups []digitGroup) int {
	first := groups[0]
	switch {
	case len(first.digits) >= 9 && parcelLetters.MatchString(first.before):
		return 1
	case !parcelWord.MatchString(first.before):
		return 0
	case len(first.digits) >= 9:
		return 1
	}
	n := 1
	for n < len(groups) && groups[n].before == " " {
		n++
	}
	return n
}

var parcelLetters = regexp.MustCompile(`(?:^|[^A-Za-z])[A-Z]{2,3}$`)

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
