package order

import (
	"errors"
	"testing"
	"unicode"
	"unicode/utf8"

	"pgregory.net/rapid"

	"pizzaflow/event"
)

// TestComposeProperty tries drafts of all kinds: each becomes an order that
// others can act on, or is refused with a reason for every fault.
func TestComposeProperty(t *testing.T) {
	m := ourMenu()
	pizzaIDs := []string{"", "nonsense"}
	for _, p := range m.pizzas {
		pizzaIDs = append(pizzaIDs, p.id)
	}
	oneOf := func(good string, limit int) *rapid.Generator[string] {
		return rapid.OneOf(rapid.Just(good), rapid.Just(good), rapid.StringN(0, limit+20, -1))
	}
	lines := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Line {
		return Line{
			PizzaID:  rapid.SampledFrom(pizzaIDs[rapid.IntRange(0, 2).Draw(t, "from"):]).Draw(t, "pizza"),
			Size:     rapid.SampledFrom([]string{"small", "medium", "large", "large", "huge"}).Draw(t, "size"),
			Quantity: rapid.OneOf(rapid.IntRange(1, 100), rapid.IntRange(1, 100), rapid.Int()).Draw(t, "quantity"),
		}
	}), 0, 52)
	rapid.Check(t, func(t *rapid.T) {
		d := Draft{
			Name: oneOf("Иван", maxName).Draw(t, "name"), Email: oneOf("ivan@example.com", 300).Draw(t, "email"),
			Phone: oneOf("89001234567", 20).Draw(t, "phone"), Address: oneOf("ул. Пушкина", maxAddress).Draw(t, "address"),
			Comment: oneOf("", maxComment).Draw(t, "comment"), Locale: rapid.SampledFrom([]string{"ru", "en", "xx"}).Draw(t, "locale"),
			Lines: lines.Draw(t, "lines"),
		}
		o, err := compose(m, d)
		if err != nil {
			var invalid *InvalidError
			if !errors.As(err, &invalid) || len(invalid.Faults) == 0 || o.Total != 0 {
				t.Fatalf("refused with %v, order %+v", err, o)
			}
			seen := map[string]bool{}
			for _, f := range invalid.Faults {
				if f.Code == "" || f.Detail == "" || seen[f.Pointer] {
					t.Fatalf("fault %+v", f)
				}
				seen[f.Pointer] = true
			}
			return
		}
		o.ID, o.Number, o.Currency = orderID, "222-2222", "RUB"
		if err := o.created().Validate(); err != nil {
			t.Fatalf("an accepted order makes an invalid event: %v", err)
		}
		var sum event.Money
		for i, it := range o.Items {
			if it.PizzaID != d.Lines[i].PizzaID || it.Quantity != d.Lines[i].Quantity || it.Size != d.Lines[i].Size {
				t.Fatalf("line %d is %+v, asked for %+v", i, it, d.Lines[i])
			}
			sum += it.Price * event.Money(it.Quantity)
		}
		if sum != o.Total || sum <= 0 || sum > maxTotal || len(o.Items) != len(d.Lines) {
			t.Fatalf("total %s of items for %s", o.Total, sum)
		}
		for s, limit := range map[string]int{o.Customer.Name: maxName, o.Address: maxAddress, o.Comment: maxComment} {
			if utf8.RuneCountInString(s) > limit {
				t.Fatalf("%q is too long", s)
			}
			for _, r := range s {
				if unicode.IsControl(r) && (r != '\n' || s == o.Customer.Name) {
					t.Fatalf("%q has a control character", s)
				}
			}
		}
	})
}
