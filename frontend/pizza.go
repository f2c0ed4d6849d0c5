package frontend

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
)

// A recipe is the look of a pizza: the base and the toppings with their counts.
type recipe struct {
	sauce, cheese string // colours
	spots         string // colour of the browned places in the cheese
	portions      []portion
	sprinkle      portion // small topping strewn over all others
	middle        string  // topping in the centre, above all others; "" for none
}

type portion struct {
	topping string
	count   int
}

// Colours of the usual base.
const (
	tomatoSauce = "#c23a1f"
	cheese      = "#f6c453"
)

// recipes has the recipes of the menu's pizzas by the slug of their picture.
var recipes = map[string]recipe{
	"margherita":   {sauce: tomatoSauce, cheese: cheese, portions: []portion{{"mozzarella", 7}, {"basil", 7}, {"tomato", 5}}},
	"pepperoni":    {sauce: tomatoSauce, cheese: cheese, portions: []portion{{"pepperoni", 22}}, sprinkle: portion{"parsley", 14}},
	"four-cheese":  {sauce: "#e9b24a", cheese: "#fbd977", spots: "#d99a3a", portions: []portion{{"bluecheese", 8}, {"brie", 6}, {"mozzarella", 6}, {"parmesan", 5}}, sprinkle: portion{"parsley", 8}},
	"hawaiian":     {sauce: tomatoSauce, cheese: cheese, portions: []portion{{"pineapple", 12}, {"ham", 11}}, sprinkle: portion{"parsley", 10}},
	"veggie":       {sauce: tomatoSauce, cheese: cheese, portions: []portion{{"zucchini", 5}, {"cherry", 6}, {"greenpepper", 6}, {"redpepper", 5}, {"olive", 6}, {"corn", 4}}, sprinkle: portion{"parsley", 10}},
	"mushroom":     {sauce: "#ead9b4", cheese: "#f5d68a", spots: "#cf9a4b", portions: []portion{{"mushroom", 19}}, sprinkle: portion{"parsley", 26}},
	"diablo":       {sauce: "#a91f10", cheese: "#f0ae3e", spots: "#b4551d", portions: []portion{{"pepperoni", 9}, {"chili", 8}, {"jalapeno", 8}, {"onion", 4}}, sprinkle: portion{"pepper", 20}},
	"carbonara":    {sauce: "#f0e2c2", cheese: "#f9e3a0", spots: "#d9a95a", portions: []portion{{"bacon", 13}, {"parmesan", 7}}, sprinkle: portion{"pepper", 30}, middle: "egg"},
	"bbq-chicken":  {sauce: "#6b2a14", cheese: "#eeb04a", spots: "#9a4f1c", portions: []portion{{"chicken", 13}, {"onion", 8}, {"corn", 3}}, sprinkle: portion{"parsley", 16}},
	"seafood":      {sauce: tomatoSauce, cheese: "#f8d67c", portions: []portion{{"shrimp", 8}, {"squid", 6}, {"mussel", 6}, {"lemon", 3}}, sprinkle: portion{"parsley", 16}},
	"mexican":      {sauce: "#a92a15", cheese: cheese, portions: []portion{{"mince", 11}, {"corn", 6}, {"jalapeno", 7}, {"redpepper", 5}, {"cherry", 3}}, sprinkle: portion{"parsley", 10}},
	"chef-special": {sauce: tomatoSauce, cheese: "#f8cd63", portions: []portion{{"prosciutto", 8}, {"rocket", 9}, {"cherry", 6}, {"parmesan", 5}}, sprinkle: portion{"pepper", 14}},
}

// fallbackToppings are drawn at random for a pizza without a recipe.
var fallbackToppings = []string{"tomato", "basil", "mushroom", "olive", "greenpepper", "redpepper", "onion", "mozzarella", "greenolive", "cherry"}

// drawPizza draws the pizza of the slug as an SVG document. A slug always gives the
// same picture, also one without a recipe.
func drawPizza(slug string) []byte {
	sum := sha256.Sum256([]byte(slug))
	rnd := rand.New(rand.NewPCG(binary.BigEndian.Uint64(sum[:8]), 1)) //nolint:gosec // a picture is no secret
	rec, ok := recipes[slug]
	if !ok {
		rec = recipe{sauce: tomatoSauce, cheese: cheese, sprinkle: portion{"parsley", 12}}
		for _, i := range rnd.Perm(len(fallbackToppings))[:3] {
			rec.portions = append(rec.portions, portion{fallbackToppings[i], 6})
		}
	}
	if rec.spots == "" {
		rec.spots = "#d98a2b"
	}
	var b strings.Builder
	b.WriteString(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 240 240" width="240" height="240"><defs>` +
		`<radialGradient id="crust"><stop offset=".8" stop-color="#f0c27b"/><stop offset=".91" stop-color="#dc9a48"/><stop offset="1" stop-color="#b56f2a"/></radialGradient>` +
		`<radialGradient id="light" cx=".36" cy=".3" r=".8"><stop offset="0" stop-color="#fff" stop-opacity=".34"/><stop offset=".55" stop-color="#fff" stop-opacity="0"/><stop offset="1" stop-color="#5a2410" stop-opacity=".22"/></radialGradient>`)
	for _, name := range usedToppings(rec) {
		fmt.Fprintf(&b, `<g id="%s">%s</g>`, name, toppings[name])
	}
	b.WriteString(`</defs><ellipse cx="120" cy="130" rx="104" ry="102" fill="#2b1408" opacity=".18"/>`)
	drawBase(&b, rec, rnd)
	drawToppings(&b, rec, rnd)
	b.WriteString(`<circle cx="120" cy="120" r="108" fill="url(#light)"/>` +
		`<path d="M120 22V218M35 71 205 169M35 169 205 71" stroke="#7a3f17" stroke-width="1.6" opacity=".3"/></svg>`)
	return []byte(b.String())
}

// usedToppings lists the toppings of a recipe once each, in a fixed order.
func usedToppings(rec recipe) []string {
	names := map[string]bool{}
	for _, p := range append(slices.Clone(rec.portions), rec.sprinkle, portion{rec.middle, 1}) {
		if p.topping != "" {
			names[p.topping] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// drawBase draws crust, sauce and cheese, each a little out of round.
func drawBase(b *strings.Builder, rec recipe, rnd *rand.Rand) {
	fmt.Fprintf(b, `<path d="%s" fill="url(#crust)"/>`, blobPath(rnd, 107, 2, 18))
	for range 14 { // blisters in the crust
		x, y := pointAt(rnd.Float64()*2*math.Pi, 98+rnd.Float64()*5)
		fmt.Fprintf(b, `<ellipse cx="%.1f" cy="%.1f" rx="%.1f" ry="%.1f" fill="%s" opacity=".45"/>`,
			x, y, 2+rnd.Float64()*5, 1.5+rnd.Float64()*3, []string{"#8a4a18", "#ffe2ae", "#a85f22"}[rnd.IntN(3)])
	}
	fmt.Fprintf(b, `<path d="%s" fill="%s"/>`, blobPath(rnd, 92, 2, 20), rec.sauce)
	fmt.Fprintf(b, `<path d="%s" fill="%s"/>`, blobPath(rnd, 86, 4, 22), rec.cheese)
	for range 26 { // bubbles, light and browned
		x, y := pointAt(rnd.Float64()*2*math.Pi, 80*math.Sqrt(rnd.Float64()))
		colour, opacity := "#fff3c4", .55
		if rnd.IntN(5) < 2 {
			colour, opacity = rec.spots, .5
		}
		r := 3 + rnd.Float64()*8
		fmt.Fprintf(b, `<ellipse cx="%.1f" cy="%.1f" rx="%.1f" ry="%.1f" fill="%s" opacity="%.2f"/>`, x, y, r, r*(.6+rnd.Float64()*.4), colour, opacity)
	}
}

// drawToppings draws the pieces in shuffled order on the points of a sunflower
// spiral, which are evenly spaced.
func drawToppings(b *strings.Builder, rec recipe, rnd *rand.Rand) {
	var pieces []string
	for _, p := range rec.portions {
		for range p.count {
			pieces = append(pieces, p.topping)
		}
	}
	rnd.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
	const golden = 2.399963 // radians
	turn := rnd.Float64() * 2 * math.Pi
	for i, topping := range pieces {
		radius := 76 * math.Sqrt((float64(i)+.6)/float64(len(pieces)))
		x, y := pointAt(turn+float64(i)*golden, radius+rnd.Float64()*4-2)
		drawTopping(b, topping, x, y, rnd.Float64()*360, .88+rnd.Float64()*.24)
	}
	if rec.middle != "" {
		drawTopping(b, rec.middle, 120, 120, 0, 1)
	}
	for range rec.sprinkle.count {
		x, y := pointAt(rnd.Float64()*2*math.Pi, 84*math.Sqrt(rnd.Float64()))
		drawTopping(b, rec.sprinkle.topping, x, y, rnd.Float64()*360, .8+rnd.Float64()*.5)
	}
}

func drawTopping(b *strings.Builder, topping string, x, y, turn, scale float64) {
	fmt.Fprintf(b, `<use href="#%s" transform="translate(%.1f %.1f) rotate(%.0f) scale(%.2f)"/>`, topping, x, y, turn, scale)
}

// pointAt returns the point at an angle and a distance from the picture's centre.
func pointAt(angle, radius float64) (x, y float64) {
	return 120 + radius*math.Cos(angle), 120 + radius*math.Sin(angle)
}

// blobPath returns the path of a circle with n smooth bumps of at most the height bump.
func blobPath(rnd *rand.Rand, radius, bump float64, n int) string {
	radii := make([]float64, n)
	for i := range radii {
		radii[i] = radius + (rnd.Float64()*2-1)*bump
	}
	step := 2 * math.Pi / float64(n)
	middle := func(i int) (float64, float64) { // between points i and i+1
		x1, y1 := pointAt(float64(i)*step, radii[i%n])
		x2, y2 := pointAt(float64(i+1)*step, radii[(i+1)%n])
		return (x1 + x2) / 2, (y1 + y2) / 2
	}
	var b strings.Builder
	x, y := middle(0)
	fmt.Fprintf(&b, "M%.1f %.1f", x, y)
	for i := 1; i <= n; i++ {
		cx, cy := pointAt(float64(i)*step, radii[i%n]/math.Cos(step/2))
		x, y := middle(i)
		fmt.Fprintf(&b, "Q%.1f %.1f %.1f %.1f", cx, cy, x, y)
	}
	b.WriteString("Z")
	return b.String()
}
