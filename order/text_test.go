package order

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"golang.org/x/text/unicode/norm"
	"pgregory.net/rapid"
)

// examples reads a file of testdata/input: on each line where the example comes
// from, what was pasted, and what is wanted.
func examples(t *testing.T, name string, try func(t *testing.T, pasted string, want []string)) {
	t.Helper()
	b, err := os.ReadFile("testdata/input/" + name)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if strings.HasPrefix(line, "#") {
			continue
		}
		t.Run(fields[0], func(t *testing.T) {
			pasted, err := strconv.Unquote(fields[1])
			if err != nil {
				t.Fatal(err)
			}
			try(t, pasted, fields[2:])
		})
	}
}

// readContacts checks one draft with this e-mail address and phone.
func readContacts(email, phone string) (string, string, []Fault) {
	c := checker{}
	return c.email("#/customer_email", email), c.phone("#/customer_phone", phone), c.faults
}

func TestPastedPhones(t *testing.T) {
	examples(t, "phones.txt", func(t *testing.T, pasted string, want []string) {
		_, got, faults := readContacts("ivan@example.com", pasted)
		if refused := len(faults) > 0; refused != (want[0] == "-") || !refused && got != want[0] {
			t.Errorf("%q gives %q, %v; want %s", pasted, got, faults, want[0])
		}
	})
}

func TestPastedEmails(t *testing.T) {
	examples(t, "emails.txt", func(t *testing.T, pasted string, want []string) {
		got, _, faults := readContacts(pasted, "89001234567")
		if refused := len(faults) > 0; refused != (want[0] == "-") || !refused && got != want[0] {
			t.Errorf("%q gives %q, %v; want %s", pasted, got, faults, want[0])
		}
	})
}

func TestPastedTexts(t *testing.T) {
	examples(t, "texts.txt", func(t *testing.T, pasted string, want []string) {
		for i, flags := range []int{0, multiline} {
			c := checker{}
			got := c.text("#", pasted, 100, flags)
			wanted, _ := strconv.Unquote(want[i]) // "-" is no quoted text
			if got != wanted || len(c.faults) > 0 {
				t.Errorf("%q gives %q, %v; want %q", pasted, got, c.faults, wanted)
			}
			c.text("#", pasted, 100, flags|required)
			if empty := len(c.faults) == 1 && c.faults[0].Code == "required"; empty != (want[i] == "-") {
				t.Errorf("%q where it is required: %v", pasted, c.faults)
			}
		}
	})
}

// TestPastedProperty dresses a phone, an address and a text as programs do when
// they copy it: all of them mean what they meant before.
func TestPastedProperty(t *testing.T) {
	space := rapid.SampledFrom([]string{"", " ", "\u00a0", "\u2009", "\u202f", "\u3000", "\t", "\u2007"})
	dash := rapid.SampledFrom([]string{"-", "\u2010", "\u2011", "\u2012", "–", "—", "−", "\u00ad", "\ufe63", " - ", ".", "\u200b"})
	around := rapid.SampledFrom([]string{"", "\u202d", "\u202c", "\u200e", "\u200f", "\u2068", "\u2069", "\u200b", "\ufeff", " ", "\t", "\n", "\r\n", "\u2028", "\u061c", "\U000e0020"})
	head := rapid.SampledFrom([]string{"+7", "8", "tel:+7", "TEL:8", "\uff0b7", "7", "", "007", "+\u202d7", "тел. 8"})
	rapid.Check(t, func(t *rapid.T) {
		a, z := around.Draw(t, "before"), around.Draw(t, "after")
		var phone strings.Builder
		phone.WriteString(a + head.Draw(t, "head") + space.Draw(t, "space"))
		for i, group := range []string{"900", "123", "45", "67"} {
			if i > 0 {
				phone.WriteString(rapid.OneOf(space, dash).Draw(t, "between"))
			}
			phone.WriteString(group)
		}
		email, number, faults := readContacts(a+"ivan@"+rapid.SampledFrom([]string{"", "\u200b", "\u200e", "\u00ad"}).Draw(t, "inside")+"почта.рф"+z, phone.String()+z)
		if len(faults) > 0 || email != "ivan@xn--80a1acny.xn--p1ai" || number != "+79001234567" {
			t.Fatalf("%q gives %q, %q, %v", phone.String()+z, number, email, faults)
		}
	})
}

// TestTextProperty takes any text: what is kept can be seen, hides nothing, and is
// kept as it is when it comes again.
func TestTextProperty(t *testing.T) {
	odd := rapid.SampledFrom([]rune("\u202e\u200b\u200d\ufeff\u00ad\u034f\u115f\u3164\ufe0f\U000e0041\u2800\t\n\r\v\u0085\u2028\u00a0\u3000—‑−\u0301\u0308аи1"))
	rapid.Check(t, func(t *rapid.T) {
		s := string(rapid.SliceOfN(rapid.OneOf(odd, odd, rapid.Rune()), 0, 60).Draw(t, "text"))
		flags := rapid.SampledFrom([]int{0, multiline, required, required | multiline}).Draw(t, "flags")
		c := checker{}
		got := c.text("#", s, 100, flags)
		if len(c.faults) > 0 {
			return
		}
		if got != "" && !isVisible(got) || got == "" && flags&required != 0 || !norm.NFC.IsNormalString(got) {
			t.Fatalf("%q is kept as %q", s, got)
		}
		for _, r := range got {
			if unicode.In(r, unseen...) || unicode.IsControl(r) && (r != '\n' || flags&multiline == 0) || unicode.IsSpace(r) && r != ' ' && r != '\n' {
				t.Fatalf("%q is kept as %q, with %U", s, got, r)
			}
		}
		if again := c.text("#", got, 100, flags); again != got || len(c.faults) > 0 {
			t.Fatalf("%q is kept as %q, and that as %q, %v", s, got, again, c.faults)
		}
	})
}
