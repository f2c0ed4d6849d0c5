package order

import (
	"strings"
	"testing"

	"github.com/google/uuid"

	"pizzaflow/event"
)

func TestMenu(t *testing.T) {
	m := ourMenu()
	if len(m.pizzas) < 12 || len(m.byID) != len(m.pizzas) {
		t.Fatalf("%d pizzas, %d ids", len(m.pizzas), len(m.byID))
	}
	slugs := map[string]bool{}
	for _, p := range m.pizzas {
		slugs[p.slug] = true
		if id, err := uuid.Parse(p.id); err != nil || id.String() != p.id {
			t.Errorf("%s: id %q is not a canonical UUID", p.slug, p.id)
		}
		for _, s := range []string{p.name.ru, p.name.en, p.description.ru, p.description.en} {
			if strings.TrimSpace(s) == "" {
				t.Errorf("%s: a text is missing", p.slug)
			}
		}
		if p.prices[0] <= 0 || p.prices[0] >= p.prices[1] || p.prices[1] >= p.prices[2] {
			t.Errorf("%s: prices %v do not grow with the size", p.slug, p.prices)
		}
		if p.image() != "/static/pizzas/"+p.slug+".svg" || !p.available {
			t.Errorf("%s: image %s, available %v", p.slug, p.image(), p.available)
		}
	}
	for slug := range strings.FieldsSeq("margherita pepperoni four-cheese hawaiian veggie mushroom diablo carbonara bbq-chicken seafood mexican chef-special") {
		if !slugs[slug] {
			t.Errorf("%s is missing", slug)
		}
	}
	if price, ok := m.pizzas[0].price("large"); !ok || price != 600_00 {
		t.Errorf("the first pizza costs %s large, want 600.00", price)
	}
}

// TestComposeTotal adds up prices, up to the cap and not beyond it.
func TestComposeTotal(t *testing.T) {
	dear := pizza{
		id: "0190b7a5-2f6e-7c3a-9d35-1f1f3b6f0a02", name: text{"Дорогая", "Dear"}, available: true,
		prices: [...]event.Money{1, 100_00, 1<<63 - 1},
	}
	gone := dear
	gone.id, gone.available = "0190b7a5-2f6e-7c3a-9d35-1f1f3b6f0a03", false
	small := dear
	small.id, small.prices = "0190b7a5-2f6e-7c3a-9d35-1f1f3b6f0a04", [...]event.Money{1, 0, 0}
	m := newMenu(dear, gone, small)
	line := func(p pizza, quantity int, size string) Line {
		return Line{PizzaID: p.id, Quantity: quantity, Size: size}
	}
	many := func(n int, l Line) []Line {
		lines := make([]Line, n)
		for i := range lines {
			lines[i] = l
		}
		return lines
	}
	for _, tc := range []struct {
		name  string
		lines []Line
		total event.Money
		fault string
	}{
		{"two lines of the same", many(2, line(dear, 3, "medium")), 600_00, ""},
		{"just the cap", append(many(50, line(dear, 100, "medium"))[:49], line(dear, 100, "medium")), 500_000_00, ""},
		{"overflow", []Line{line(dear, 100, "large")}, 0, "#/items total_too_large"},
		{"overflow after sums", append(many(10, line(dear, 100, "medium")), line(dear, 1, "large")), 0, "#/items total_too_large"},
		{"overflow many times", many(50, line(dear, 100, "large")), 0, "#/items total_too_large"},
		{"withdrawn", []Line{line(gone, 1, "small")}, 0, "#/items/0/pizza_id pizza_unavailable"},
		{"size not offered", []Line{line(small, 1, "medium")}, 0, "#/items/0/size unknown_size"},
		{"51 lines", many(51, line(dear, 1, "small")), 0, "#/items too_many"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o, err := compose(m, Draft{
				Name: "Иван", Email: "ivan@example.com", Phone: "+7-900-123-45-67", Address: "ул. Пушкина", Locale: "en", Lines: tc.lines,
			})
			if tc.fault == "" {
				if err != nil || o.Total != tc.total || len(o.Items) != len(tc.lines) || o.Items[0].Name != "Dear" {
					t.Fatalf("total %s of %d items, %v; want %s", o.Total, len(o.Items), err, tc.total)
				}
				return
			}
			invalid, ok := err.(*InvalidError) //nolint:errorlint // compose returns it bare
			if !ok || len(invalid.Faults) != 1 || invalid.Faults[0].Pointer+" "+invalid.Faults[0].Code != tc.fault {
				t.Fatalf("got %v, want %s", err, tc.fault)
			}
		})
	}
	if _, err := compose(m, Draft{Lines: []Line{line(dear, 100, "medium")}}); err == nil || len(err.(*InvalidError).Faults) != 5 { //nolint:errorlint // compose returns it bare
		t.Fatalf("an empty draft gives %v, want five faults", err)
	}
}
