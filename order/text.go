package order

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// maxMarks is how many combining marks one letter keeps. Every language gets
// along with fewer; more of them cover the lines above and below.
const maxMarks = 4

// unseen are the characters that have no shape of their own: marks of the writing
// direction, zero-width spaces and joiners, soft hyphens, variation selectors,
// fillers, and the place of a picture that was not copied along.
var unseen = []*unicode.RangeTable{
	unicode.Cf, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector, unicode.Noncharacter_Code_Point,
}

// plainRune returns what stands for a character of pasted text: one space for every
// space, one hyphen for every dash, one line break for every line break, and -1
// for what nobody can see.
func plainRune(r rune) rune {
	switch {
	case ' ' < r && r < '\x7f':
		return r
	case r == '\x1f', r == '\ufffc': // Word's soft hyphen, a picture
		return -1
	case r == '\t', r == '\u2800', unicode.Is(unicode.Zs, r): // a braille cell without dots looks like a space, too
		return ' '
	case r == '\r', r == '\v', r == '\f', r == '\u0085', r == '\u2028', r == '\u2029':
		return '\n'
	case r == '\x1e', r == '\u2043', r == '\u2212', unicode.Is(unicode.Pd, r): // Word's hyphen, a bullet, the minus sign
		return '-'
	case unicode.In(r, unseen...):
		return -1
	}
	return r
}

// plainText brings a text of people into the form it is compared and stored in:
// composed (NFC), its spaces, dashes and line breaks each of one kind, without
// what nobody can see, and with no space at the ends of its lines.
func plainText(s string) string {
	s = strings.ReplaceAll(s, "\r\n", "\n")
	lines := strings.Split(norm.NFC.String(strings.Map(plainRune, s)), "\n")
	for i, line := range lines {
		lines[i] = strings.TrimLeftFunc(strings.Join(strings.FieldsFunc(line, isSpace), " "), hasNoBase)
	}
	return strings.Trim(strings.Join(lines, "\n"), "\n ")
}

// plainLine is plainText on one line.
func plainLine(s string) string { return strings.ReplaceAll(squeezeLines(plainText(s)), "\n", " ") }

func isSpace(r rune) bool { return r == ' ' }

// hasNoBase reports whether at the start of a line the character has nothing to stand on.
func hasNoBase(r rune) bool { return isSpace(r) || unicode.IsMark(r) }

// squeezeLines takes out empty lines.
func squeezeLines(s string) string {
	for strings.Contains(s, "\n\n") {
		s = strings.ReplaceAll(s, "\n\n", "\n")
	}
	return s
}

// isVisible reports whether the text has something that one can see.
func isVisible(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return unicode.In(r, unicode.L, unicode.N, unicode.P, unicode.S) })
}

// thinMarks leaves at most maxMarks combining marks on a letter.
func thinMarks(s string) string {
	marks := 0
	return strings.Map(func(r rune) rune {
		if !unicode.IsMark(r) {
			marks = 0
			return r
		}
		if marks++; marks > maxMarks {
			return -1
		}
		return r
	}, s)
}

// plainDigits gives the digits of every script their ASCII form, for what is read
// as a number.
func plainDigits(s string) string {
	return strings.Map(func(r rune) rune {
		if r < utf8.RuneSelf || !unicode.Is(unicode.Nd, r) {
			return r
		}
		for _, t := range unicode.Nd.R16 {
			if rune(t.Lo) <= r && r <= rune(t.Hi) {
				return '0' + (r-rune(t.Lo))%10
			}
		}
		for _, t := range unicode.Nd.R32 {
			if rune(t.Lo) <= r && r <= rune(t.Hi) {
				return '0' + (r-rune(t.Lo))%10
			}
		}
		return r
	}, s)
}
