package order

import "pizzaflow/event"

// sizes of a pizza, in the menu's order.
var sizes = [...]string{"small", "medium", "large"}

func isSize(s string) bool { return s == sizes[0] || s == sizes[1] || s == sizes[2] }

// A text is something a customer reads.
type text struct{ ru, en string }

func (t text) in(locale string) string {
	if locale == "en" {
		return t.en
	}
	return t.ru
}

// A pizza of the menu. Its id never changes: orders refer to it.
type pizza struct {
	id          string
	slug        string // the picture's file name
	name        text
	description text
	prices      [len(sizes)]event.Money // as sizes; 0 where it is not offered
	available   bool
}

func (p pizza) price(size string) (event.Money, bool) {
	for i, s := range sizes {
		if s == size {
			return p.prices[i], p.prices[i] > 0
		}
	}
	return 0, false
}

func (p pizza) image() string { return "/static/pizzas/" + p.slug + ".svg" }

// A menu lists the pizzas that can be ordered.
type menu struct {
	pizzas []pizza
	byID   map[string]pizza
}

func newMenu(pizzas ...pizza) *menu {
	m := &menu{pizzas: pizzas, byID: make(map[string]pizza, len(pizzas))}
	for _, p := range pizzas {
		m.byID[p.id] = p
	}
	return m
}

// ourMenu is the menu of the house. Prices are in kopecks.
func ourMenu() *menu {
	return newMenu(
		pizza{
			id: "ac2176b3-ac09-4589-9a12-de3265692c5b", slug: "margherita", available: true,
			name: text{"Маргарита", "Margherita"},
			description: text{
				"Томатный соус, моцарелла, свежий базилик и оливковое масло.",
				"Tomato sauce, mozzarella, fresh basil and olive oil.",
			},
			prices: [...]event.Money{400_00, 500_00, 600_00},
		},
		pizza{
			id: "ebb039d2-7446-408c-956b-d230bd463680", slug: "pepperoni", available: true,
			name: text{"Пепперони", "Pepperoni"},
			description: text{
				"Много острой пепперони, моцарелла и томатный соус.",
				"Plenty of spicy pepperoni, mozzarella and tomato sauce.",
			},
			prices: [...]event.Money{490_00, 620_00, 740_00},
		},
		pizza{
			id: "f769c178-640c-4ac3-97bb-0d7313e052b4", slug: "four-cheese", available: true,
			name: text{"Четыре сыра", "Four Cheese"},
			description: text{
				"Моцарелла, горгонзола, пармезан и фонтина на сливочном соусе.",
				"Mozzarella, gorgonzola, parmesan and fontina on a cream sauce.",
			},
			prices: [...]event.Money{540_00, 690_00, 820_00},
		},
		pizza{
			id: "a9fe3039-1ebe-4ca0-94f4-8fcf071c2cb1", slug: "hawaiian", available: true,
			name: text{"Гавайская", "Hawaiian"},
			description: text{
				"Ветчина, ананас, моцарелла и томатный соус. Спорить не будем.",
				"Ham, pineapple, mozzarella and tomato sauce. We take no sides.",
			},
			prices: [...]event.Money{470_00, 590_00, 710_00},
		},
		pizza{
			id: "1fca0e49-3e85-412d-b398-69e56ecc47bb", slug: "veggie", available: true,
			name: text{"Овощная", "Veggie"},
			description: text{
				"Цукини, сладкий перец, баклажан, томаты черри и маслины.",
				"Courgette, sweet pepper, aubergine, cherry tomatoes and olives.",
			},
			prices: [...]event.Money{430_00, 550_00, 660_00},
		},
		pizza{
			id: "eefd2874-312b-439b-a815-6bf42a59c83b", slug: "mushroom", available: true,
			name: text{"Грибная", "Mushroom"},
			description: text{
				"Шампиньоны, белые грибы, тимьян и трюфельное масло на сливочном соусе.",
				"Champignons, porcini, thyme and truffle oil on a cream sauce.",
			},
			prices: [...]event.Money{480_00, 610_00, 730_00},
		},
		pizza{
			id: "a2b16717-61d4-44e9-a843-62b5f7f0c7de", slug: "diablo", available: true,
			name: text{"Дьябло", "Diablo"},
			description: text{
				"Салями чоризо, халапеньо, красный лук и соус с чили. Очень остро.",
				"Chorizo, jalapeños, red onion and a chili sauce. Very hot.",
			},
			prices: [...]event.Money{510_00, 640_00, 770_00},
		},
		pizza{
			id: "e054381f-0868-488e-b8c5-5fcae210d984", slug: "carbonara", available: true,
			name: text{"Карбонара", "Carbonara"},
			description: text{
				"Бекон, пармезан, желток и чёрный перец на сливочном соусе.",
				"Bacon, parmesan, egg yolk and black pepper on a cream sauce.",
			},
			prices: [...]event.Money{520_00, 650_00, 780_00},
		},
		pizza{
			id: "227778e2-fa71-45ac-84ea-1024a4f9e10b", slug: "bbq-chicken", available: true,
			name: text{"Цыплёнок барбекю", "BBQ Chicken"},
			description: text{
				"Цыплёнок, копчёный соус барбекю, кукуруза и красный лук.",
				"Chicken, smoky barbecue sauce, sweetcorn and red onion.",
			},
			prices: [...]event.Money{500_00, 630_00, 750_00},
		},
		pizza{
			id: "237d9956-4e6d-462c-bfc1-220557da9dd8", slug: "seafood", available: true,
			name: text{"Морская", "Seafood"},
			description: text{
				"Креветки, мидии, кальмары, чеснок и лимонная цедра.",
				"Prawns, mussels, squid, garlic and lemon zest.",
			},
			prices: [...]event.Money{620_00, 790_00, 950_00},
		},
		pizza{
			id: "5f12703c-0d85-4ef3-9b8d-70d4e2148f80", slug: "mexican", available: true,
			name: text{"Мексиканская", "Mexican"},
			description: text{
				"Говяжий фарш, фасоль, кукуруза, халапеньо и сальса.",
				"Minced beef, beans, sweetcorn, jalapeños and salsa.",
			},
			prices: [...]event.Money{510_00, 640_00, 760_00},
		},
		pizza{
			id: "ddb70a34-212b-4570-b18c-8b249872c304", slug: "chef-special", available: true,
			name: text{"От шефа", "Chef's Special"},
			description: text{
				"Прошутто, груша, горгонзола, руккола и мёд. Каждый раз как в первый.",
				"Prosciutto, pear, gorgonzola, rocket and honey. Like the first time, every time.",
			},
			prices: [...]event.Money{590_00, 740_00, 890_00},
		},
	)
}
