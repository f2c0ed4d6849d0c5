package order

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"pizzaflow/event"
)

// The limits of an order.
const (
	maxLines   = 50
	maxPieces  = 100              // of one line
	maxName    = 100              // characters
	maxAddress = 500              // characters
	maxComment = 500              // characters
	maxTotal   = event.Money(1e8) // a million roubles: more is a mistake or a joke
)

// A Draft is an order as the customer states it: nothing in it is checked yet,
// and it holds no price.
type Draft struct {
	Name, Email, Phone string
	Address, Comment   string
	Locale             string // ru or en
	Lines              []Line
}

// A Line asks for some pieces of one pizza in one size. Two lines may ask for the
// same pizza and size.
type Line struct {
	PizzaID  string
	Quantity int
	Size     string
}

// A Fault is one thing about a draft that keeps it from becoming an order. It
// never repeats what the customer wrote.
type Fault struct {
	Pointer string // RFC 6901 as a URI fragment, such as #/items/0/quantity
	Code    string // stable, for programs
	Detail  string // for humans, in English
}

// InvalidError is a draft that cannot become an order, with all its faults.
type InvalidError struct{ Faults []Fault }

// Error counts the faults and names the first.
func (e *InvalidError) Error() string {
	return fmt.Sprintf("invalid order: %d faults, first %s at %s", len(e.Faults), e.Faults[0].Code, e.Faults[0].Pointer)
}

// compose makes an order of a draft, at the menu's prices, or returns all faults
// of the draft in an InvalidError. The order has neither id nor number nor time
// yet.
func compose(m *menu, d Draft) (Order, error) {
	c := checker{}
	o := Order{
		Customer: Customer{
			Name:  c.text("#/customer_name", d.Name, maxName, required),
			Email: c.email("#/customer_email", d.Email),
			Phone: c.phone("#/customer_phone", d.Phone),
		},
		Address: c.text("#/delivery_address", d.Address, maxAddress, required|multiline),
		Comment: c.text("#/comment", d.Comment, maxComment, multiline),
		Locale:  c.locale("#/locale", d.Locale),
	}
	o.Items, o.Total = c.items(m, d.Lines, d.Locale)
	if len(c.faults) > 0 {
		return Order{}, &InvalidError{Faults: c.faults}
	}
	return o, nil
}

// A checker collects the faults of one draft.
type checker struct{ faults []Fault }

func (c *checker) fault(pointer, code, detail string) {
	c.faults = append(c.faults, Fault{Pointer: pointer, Code: code, Detail: detail})
}

const (
	required  = 1 << iota // the text must hold something that one can see
	multiline             // the text may have line breaks
)

// text brings a free text into the form it is stored in. A text without anything
// that one can see is empty.
func (c *checker) text(pointer, s string, limit, flags int) string {
	if flags&multiline != 0 {
		s = plainText(s)
	} else {
		s = plainLine(s)
	}
	unwanted := func(r rune) bool { return unicode.IsControl(r) && r != '\n' }
	switch visible := isVisible(s); {
	case strings.ContainsFunc(s, unwanted):
		c.fault(pointer, "invalid_character", "Must not contain control characters: type the text anew, or leave them out.")
	case !visible && flags&required != 0:
		c.fault(pointer, "required", "This field is required: it needs something that one can see.")
	case !visible:
		return ""
	case utf8.RuneCountInString(s) > limit:
		c.fault(pointer, "too_long", fmt.Sprintf("Must have at most %d characters.", limit))
	case hasCardNumber(s):
		c.fault(pointer, "card_data_not_accepted", "Must not contain a card number: it is never needed here. Leave it out.")
	}
	return thinMarks(s)
}

func (c *checker) email(pointer, s string) string {
	s = plainEmail(s)
	switch {
	case !isVisible(s):
		c.fault(pointer, "required", "This field is required.")
	case len(s) > maxEmail:
		c.fault(pointer, "too_long", fmt.Sprintf("Must have at most %d characters.", maxEmail))
	case !isEmail(s):
		c.fault(pointer, "invalid_email", "Must be one bare e-mail address such as ivan@example.com, with Latin letters before the @.")
	}
	return s
}

func (c *checker) phone(pointer, s string) string {
	e164, ok := parsePhone(s)
	switch {
	case ok:
	case !isVisible(plainLine(s)):
		c.fault(pointer, "required", "This field is required.")
	default:
		c.fault(pointer, "invalid_phone", "Must be one number of a mobile or a fixed line, such as +7-900-123-45-67, without an extension; with + and the country code when it is not Russian.")
	}
	return e164
}

func (c *checker) locale(pointer, s string) string {
	if s != "ru" && s != "en" {
		c.fault(pointer, "unsupported_locale", "Must be ru or en.")
	}
	return s
}

// items looks every line up on the menu, and adds up the prices. The sum cannot
// overflow: it stops at maxTotal.
func (c *checker) items(m *menu, lines []Line, locale string) ([]event.Item, event.Money) {
	switch {
	case len(lines) == 0:
		c.fault("#/items", "required", "Must have at least one line.")
		return nil, 0
	case len(lines) > maxLines:
		c.fault("#/items", "too_many", fmt.Sprintf("Must have at most %d lines.", maxLines))
		return nil, 0
	}
	var total event.Money
	capped := false
	items := make([]event.Item, 0, len(lines))
	for i, l := range lines {
		item, ok := c.item(m, fmt.Sprintf("#/items/%d", i), l, locale)
		if !ok {
			continue
		}
		items = append(items, item)
		if capped = capped || item.Price > (maxTotal-total)/event.Money(item.Quantity); !capped {
			total += item.Price * event.Money(item.Quantity)
		}
	}
	if capped {
		c.fault("#/items", "total_too_large", "Must come to at most "+maxTotal.String()+".")
	}
	return items, total
}

func (c *checker) item(m *menu, pointer string, l Line, locale string) (event.Item, bool) {
	before := len(c.faults)
	if l.Quantity < 1 || l.Quantity > maxPieces {
		c.fault(pointer+"/quantity", "out_of_range", fmt.Sprintf("Must be between 1 and %d.", maxPieces))
	}
	p, known := m.byID[l.PizzaID]
	switch {
	case l.PizzaID == "":
		c.fault(pointer+"/pizza_id", "required", "This field is required.")
	case !known:
		c.fault(pointer+"/pizza_id", "unknown_pizza", "This pizza is not on the menu.")
	case !p.available:
		c.fault(pointer+"/pizza_id", "pizza_unavailable", "This pizza is not available at the moment.")
	}
	price, offered := p.price(l.Size)
	switch {
	case l.Size == "":
		c.fault(pointer+"/size", "required", "This field is required.")
	case !isSize(l.Size) || known && !offered:
		c.fault(pointer+"/size", "unknown_size", "Must be small, medium or large, as the menu offers it.")
	}
	if len(c.faults) > before {
		return event.Item{}, false
	}
	return event.Item{PizzaID: p.id, Name: p.name.in(locale), Size: l.Size, Quantity: l.Quantity, Price: price}, true
}
