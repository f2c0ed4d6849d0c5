package order

import (
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/nyaruka/phonenumbers"
	"golang.org/x/net/idna"
	"golang.org/x/text/unicode/norm"
)

const maxEmail = 254 // octets, as SMTP allows

// emailShape is a dot-atom, an at sign and a domain of at least two labels.
// Quoted local parts, comments, display names, address literals and lists are
// legal in a mail header, and all of them are refused here: the address goes
// into an SMTP envelope as it stands. A domain with other letters than ASCII
// has been given its xn-- form before.
var emailShape = regexp.MustCompile(
	"^[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*" +
		`@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])$`)

func isEmail(s string) bool {
	local, _, _ := strings.Cut(s, "@")
	return len(s) <= maxEmail && len(local) <= 64 && emailShape.MatchString(s)
}

// mailDomain writes the domain of an address with ASCII letters, as mail servers want it.
var mailDomain = idna.New(idna.MapForLookup(), idna.Transitional(false), idna.BidiRule(), idna.StrictDomainName(true))

// plainEmail brings a pasted e-mail address to the bare form: without the mailto:
// of a link, angle brackets around it and the punctuation of a sentence behind it,
// and with the A-labels of an international domain. What is no address comes back
// as one that isEmail refuses.
func plainEmail(s string) string {
	s = norm.NFKC.String(plainLine(s))
	if len(s) > len("mailto:") && strings.EqualFold(s[:len("mailto:")], "mailto:") {
		s = s[len("mailto:"):]
	}
	if strings.HasPrefix(s, "<") && strings.HasSuffix(s, ">") {
		s = s[1 : len(s)-1]
	}
	s = strings.Trim(s, " ")
	if bare := strings.TrimRight(s, ".,; "); isASCII(bare) {
		return bare
	}
	local, domain, _ := strings.Cut(strings.TrimRight(s, ".,;。 "), "@")
	if ascii, err := mailDomain.ToASCII(domain); err == nil {
		domain = ascii
	}
	return local + "@" + domain
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r >= utf8.RuneSelf })
}

var (
	// phoneLink is what a link or a signature has before a phone.
	phoneLink = regexp.MustCompile(`(?i)^(?:tel|callto|sms|phone|mobile|mob|cell|whatsapp|телефон|тел|мобильный|моб|т)[:. ]*(?://)? ?`)
	// chatLink is a link to a chat with a phone, whose plus sign is left out.
	chatLink = regexp.MustCompile(`(?i)^(?:https?://)?(?:wa\.me/|api\.whatsapp\.com/send/?\?phone=)(?:\+|%2B)?([0-9]+)$`)
	// spreadsheetNumber is a phone that a spreadsheet took for a number.
	spreadsheetNumber = regexp.MustCompile(`^\+?[0-9]{10,15}[.,]0+$`)
	// phoneShape is a phone number as people write it. The parser takes far more,
	// such as extensions and letters.
	phoneShape = regexp.MustCompile(`^\+?[0-9 ()./-]{5,40}$`)
	// plusEight is the 8 of Russia behind the plus sign that belongs to the 7.
	plusEight = regexp.MustCompile(`^\+8([ ()-]*9(?:[ ()-]*[0-9]){9})$`)
)

// plainPhone brings a pasted phone to the signs that the parser reads: without
// the tel: of a link, quotation marks, pictures and dots of decoration.
func plainPhone(s string) string {
	s = plainDigits(norm.NFKC.String(plainLine(s)))
	if m := chatLink.FindStringSubmatch(s); m != nil {
		return "+" + m[1]
	}
	if link := phoneLink.FindString(s); link != "" {
		s = s[len(link):]
		if decoded, err := url.PathUnescape(s); err == nil {
			s = decoded
		}
	}
	s = strings.Map(func(r rune) rune {
		switch {
		case unicode.Is(unicode.So, r), strings.ContainsRune("'\"`´’‘“”„«»", r):
			return -1
		case strings.ContainsRune("·•∙⋅", r):
			return ' '
		case r == '[':
			return '('
		case r == ']':
			return ')'
		}
		return r
	}, s)
	s = strings.Trim(s, " ,;")
	if spreadsheetNumber.MatchString(s) {
		s = strings.TrimRight(s, "0")
		s = s[:len(s)-1]
	}
	if m := plusEight.FindStringSubmatch(s); m != nil {
		return "+7" + m[1]
	}
	if rest, is := strings.CutPrefix(s, "00"); is {
		return "+" + strings.TrimLeft(rest, " ")
	}
	return s
}

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
	if !russianMobile.MatchString(s) {
		s = plainPhone(s)
	}
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
