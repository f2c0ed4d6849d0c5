package order

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

func TestCardNumber(t *testing.T) {
	for _, s := range []string{
		"4111111111111111", "4111 1111 1111 1111", "карта 4111-1111-1111-1111, спасибо", "12 4111 1111 1111 1111",
		"5500005555555559", "378282246310005", "4222222222222", "4111.1111.1111.1111", "4111\u00a01111\u00a01111\u00a01111",
		"4111, 1111, 1111, 1111", "4111\n1111\r\n1111\n1111", "4111\u200b1111\u200b1111\u200b1111", "4111\u200e 1111\u20111111\u20281111", "кв. 8, 3782 822463 10005", "3056-930902-5904",
		"+7 900 123-45-67 4111 1111 1111 1111 12/27", "14.12.2026 4111 1111 1111 1111", "٤١١١ ١١١١ ١١١١ ١١١١",
		"４１１１１１１１１１１１１１１１", "номер:6011000990139424.",
	} {
		if !hasCardNumber(s) {
			t.Errorf("%q is not seen", s)
		}
	}
	for _, s := range []string{
		"", "ул. Пушкина, д. 10", "115230, Москва, ул. Пушкина, д. 10, кв. 125", "4111111111111112", "411111111111",
		"8 912 345 67 89 / 8 926 111 22 33", "14.12.2026 18-30 - 19-00 кв 5", "4915123456789", "+65 6123 4567, 9123 4567",
		"+7 900 123-45-67", "подъезд 2, этаж 14, код 1590", "99994111111111111111119999", "12345678901234567890",
	} {
		if hasCardNumber(s) {
			t.Errorf("%q is taken for a card", s)
		}
	}
}

// A grammar makes texts out of parts: every part is written once and drawn often.
type grammar struct{ *rand.Rand }

func (g grammar) of(parts ...string) string { return parts[g.IntN(len(parts))] }

// digits fills every # of a pattern with a digit.
func (g grammar) digits(pattern string) string {
	return strings.Map(func(r rune) rune {
		if r == '#' {
			return '0' + rune(g.IntN(10))
		}
		return r
	}, pattern)
}

func (g grammar) phone() string {
	return g.digits(g.of(
		"89#########", "8 9## ### ## ##", "8-9##-###-##-##", "8 (9##) ###-##-##", "8(9##)#######", "8 9## ### ####", "89## ### ## ##", "8.9##.###.##.##",
		"+79#########", "+7 9## ### ## ##", "+7 (9##) ###-##-##", "+7-9##-###-##-##", "79#########", "7 9## ### ## ##", "9#########", "9## ### ## ##", "9##-###-##-##",
		"8 495 ###-##-##", "8 (4012) ##-##-##", "8 4012 ######", "8 (3452) ######", "8 (34222) #-##-##", "+7 812 ### ## ##", "###-##-##", "##-##-##", "8 800 ### ## ##",
		"+44 7### ######", "07### ######", "+44 20 #### ####", "+1 (2##) 555-####", "1-2##-555-####", "+49 151# #######", "49151########", "0049151########",
		"+49 1512 #### ###", "+86 138 #### ####", "138 #### ####", "+65 6### ####", "+375 29 ###-##-##", "+998 90 ### ## ##", "+33 6 ## ## ## ##", "+90 5## ### ## ##",
		"+91 9#### #####", "+994 50 ### ## ##", "8\u00a09##\u00a0###\u201122\u201133", "\u202d+7 9## ###\u2011##\u2011##\u202c",
	))
}

func (g grammar) date() string {
	d, m, y := 1+g.IntN(28), 1+g.IntN(12), 2024+g.IntN(5)
	return fmt.Sprintf(g.of("%02d.%02d.%d", "%02d/%02d/%d", "%02d-%02d-%d", "%d.%d.%d", "%02d . %02d . %d"), d, m, y)
}

func (g grammar) window() string {
	from := 8 + g.IntN(14)
	return fmt.Sprintf(g.of("%02d:%02d-%02d:%02d", "%02d-%02d - %02d-%02d", "%02d%02d-%02d%02d", "%02d.%02d–%02d.%02d", "%02d %02d - %02d %02d", "%02d%02d - %02d%02d", "с %02d:%02d до %02d:%02d"),
		from, 5*g.IntN(12), from+1, 5*g.IntN(12))
}

func (g grammar) flat() string {
	return g.digits(g.of("кв. ###", "кв ##", "кв. ####", "подъезд #, этаж ##", "д. ##, кв. ###", "домофон ####", "код ####", "код ##*####", "дом ##/#, корп. #", "под. # эт. ## кв. ###", "офис ####",
		"flat ##", "apt ###", "entrance #, floor ##", "door code ####", "unit ####", "#-й подъезд"))
}

func (g grammar) parcel() string {
	return g.digits(g.of("трек ##############", "трек-номер: 80############", "Трек 39############", "посылка 36############", "RA#########RU", "LP00##############", "CDEK ##########",
		"СДЭК 1#########", "накладная ##########", "track 9400 1### #### #### #### ##", "tracking number 9400############", "1Z999AA1##########", "parcel 3###############",
		"########-####-#", "tracking no. ############", "UPS tracking 34#############", "заказ № ########", "CNG00##############"))
}

// comment makes an ordinary comment, of one to four parts.
func (g grammar) comment() string {
	parts := make([]string, 1+g.IntN(4))
	for i := range parts {
		switch g.IntN(8) {
		case 0:
			parts[i] = g.of("", "тел. ", "звонить ", "call ", "phone: ", "запасной ") + g.phone()
		case 1:
			parts[i] = g.phone() + g.of(", ", " / ", " или ", " or ", "\n", "; ", " ", " и ", ",", "/") + g.phone()
		case 2:
			parts[i] = g.date() + g.of(" ", ", ", " в ", " at ", "\n") + g.window()
		case 3:
			parts[i] = g.window()
		case 4:
			parts[i] = g.flat() + g.of("", ", ", " ") + g.flat()
		case 5:
			parts[i] = g.digits(g.of("1#####", "6#####, Москва", "индекс 3#####", "4#####", "SW1A 1AA", "ZIP 2####-####", "postcode 9####"))
		case 6:
			parts[i] = g.parcel()
		default:
			parts[i] = g.of("без лука", "аллергия на орехи!", "сдача с 5000", "no onions please", "2 приборов", "change from 2000", "позвоните за 15 минут", "leave at the door", "оплата 1500 + 300")
		}
	}
	return strings.Join(parts, g.of(", ", ". ", "\n", " ", "; ", " - "))
}

// card makes a card number in groups, with anything that people put between them.
func (g grammar) card() string {
	var pattern string
	lengths := []int{4, 4, 4, 4}
	switch g.IntN(8) {
	case 0:
		pattern, lengths = g.of("34", "37"), []int{4, 6, 5}
	case 1:
		pattern, lengths = g.of("300", "305", "36", "38", "39"), []int{4, 6, 4}
	default:
		pattern = g.of("4", "51", "55", "2200", "2202", "2204", "2221", "2720", "62", "3528", "6011", "65", "50", "4276", "5469")
	}
	total := 0
	for _, n := range lengths {
		total += n
	}
	number := g.digits(pattern + strings.Repeat("#", total-1-len(pattern)))
	for d := range 10 {
		if whole := fmt.Sprint(number, d); luhn(whole) {
			number = whole
			break
		}
	}
	if g.IntN(8) == 0 {
		return number
	}
	seps := []string{" ", "-", "\u00a0", "\n", "\r\n", ", ", ",", ".", " - ", "\t", "–", "/", ",\n", "\u2009", "  ", "_", "\u200b ", "\n\n"}
	uniform, mixed := g.of(seps...), g.IntN(3) == 0
	var b strings.Builder
	for i, n := range lengths {
		if i > 0 && mixed {
			b.WriteString(g.of(seps...))
		} else if i > 0 {
			b.WriteString(uniform)
		}
		b.WriteString(number[:n])
		number = number[n:]
	}
	return b.String()
}

// TestCardRates measures both errors of the check on many texts: fewer than one in
// 10,000 ordinary comments is taken for a card, and of the cards in groups at most
// one in 1,000 is missed, alone and in the midst of an ordinary comment.
func TestCardRates(t *testing.T) {
	g := grammar{rand.New(rand.NewPCG(14, 6))}
	const comments, cards = 100_000, 30_000
	alarms, missed := 0, 0
	for range comments {
		if s := g.comment(); hasCardNumber(s) {
			if alarms++; alarms <= 20 {
				t.Logf("false alarm: %q", s)
			}
		}
	}
	for i := range cards {
		s := g.card()
		if i%2 == 0 {
			s = g.comment() + g.of("\n", " карта ", " card: ", ". ") + s + g.of("", " 12/27", ", cvc 123", "\n"+g.comment())
		}
		if !hasCardNumber(s) {
			if missed++; missed <= 20 {
				t.Logf("missed: %q", s)
			}
		}
	}
	t.Logf("%d false alarms in %d comments, %d of %d cards missed", alarms, comments, missed, cards)
	if alarms*10_000 >= comments || missed*1_000 > cards {
		t.Error("too many")
	}
}
