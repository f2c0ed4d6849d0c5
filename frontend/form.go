package frontend

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"pizzaflow/web"
)

// A form has the fields of the shop's form as the customer typed them.
type form struct {
	values map[string]string // by the name of the field
	lines  []line            // the pizzas ordered
	locale string
	key    string // the idempotency key
}

// A line is one pizza in one size. Quantity is the text of its field.
type line struct {
	PizzaID  string `json:"id"`
	Size     string `json:"size"`
	Quantity string `json:"quantity"`
}

// formFields are the names of the text fields, in the order of the page.
var formFields = []string{"customer_name", "customer_phone", "customer_email", "delivery_address", "comment"}

// newForm returns an empty form with a new idempotency key.
func newForm(lang string) form {
	return form{values: map[string]string{}, locale: lang, key: uuid.NewString()}
}

// readForm reads the posted fields. The same fields always give the same form:
// the order API compares the bodies of a key.
func readForm(posted url.Values, lang string) form {
	f := newForm(lang)
	for _, name := range formFields {
		f.values[name] = posted.Get(name)
	}
	if l := posted.Get("locale"); isSupported(l) {
		f.locale = l
	}
	if key := posted.Get("idempotency_key"); isValidKey(key) {
		f.key = key
	}
	for name, quantities := range posted {
		id, ok := strings.CutPrefix(name, "quantity_")
		if !ok {
			continue
		}
		sizes := posted["size_"+id]
		for i, quantity := range quantities {
			l := line{PizzaID: id, Quantity: strings.TrimSpace(quantity)}
			if i < len(sizes) {
				l.Size = sizes[i]
			}
			if n, err := strconv.Atoi(l.Quantity); l.Quantity != "" && (err != nil || n != 0) {
				f.lines = append(f.lines, l)
			}
		}
	}
	slices.SortStableFunc(f.lines, func(a, b line) int { return strings.Compare(a.PizzaID, b.PizzaID) })
	return f
}

// isValidKey reports whether the order API accepts the idempotency key.
func isValidKey(key string) bool {
	return key != "" && len(key) <= 255 && !strings.ContainsFunc(key, func(c rune) bool { return c < '!' || c > '~' || c == ',' })
}

// encodeOrder encodes the form as the body of POST /api/v1/orders. A quantity that
// is not a number is sent as 0: the order API refuses it together with the other
// faults of the form.
func (f form) encodeOrder() ([]byte, error) {
	type item struct {
		PizzaID  string `json:"pizza_id"`
		Quantity int    `json:"quantity"`
		Size     string `json:"size"`
	}
	order := struct {
		CustomerName    string `json:"customer_name"`
		CustomerEmail   string `json:"customer_email"`
		CustomerPhone   string `json:"customer_phone"`
		Items           []item `json:"items"`
		DeliveryAddress string `json:"delivery_address"`
		Comment         string `json:"comment,omitempty"`
		Locale          string `json:"locale"`
	}{
		CustomerName:    strings.TrimSpace(f.values["customer_name"]),
		CustomerEmail:   strings.TrimSpace(f.values["customer_email"]),
		CustomerPhone:   strings.TrimSpace(f.values["customer_phone"]),
		DeliveryAddress: strings.TrimSpace(f.values["delivery_address"]),
		Comment:         strings.TrimSpace(f.values["comment"]),
		Locale:          f.locale,
		Items:           make([]item, len(f.lines)),
	}
	for i, l := range f.lines {
		n, err := strconv.Atoi(l.Quantity)
		if err != nil {
			n = 0
		}
		order.Items[i] = item{PizzaID: l.PizzaID, Quantity: n, Size: l.Size}
	}
	b, err := json.Marshal(order)
	if err != nil {
		return nil, fmt.Errorf("encode order: %w", err)
	}
	return b, nil
}

// A fault is the error of one field, in the customer's language.
type fault struct {
	Field string // the name of the field, "items", or the id of a pizza
	Text  string
}

// translateFaults turns the field errors of the order API into faults of the form.
// pizzas has the names of the pizzas by id.
func (w *translations) translateFaults(f form, errs []web.FieldError, pizzas map[string]string) []fault {
	var all []fault
	for _, e := range errs {
		field, part := f.fieldAt(e.Pointer)
		text := w.translate(f.locale, nil, "fault."+part+"."+e.Code, "fault."+e.Code, "fault.other")
		if name := pizzas[field]; name != "" {
			text = name + ": " + text
		}
		if !slices.Contains(all, fault{field, text}) {
			all = append(all, fault{field, text})
		}
	}
	rank := func(x fault) int { return slices.Index(formFields, x.Field) } // faults of the pizzas come first
	slices.SortStableFunc(all, func(a, b fault) int { return rank(a) - rank(b) })
	return all
}

// fieldAt returns the field of the form that a pointer into the body means, and the
// part of the text's id: "#/items/0/size" is the size of the first line's pizza.
func (f form) fieldAt(pointer string) (field, part string) {
	parts := strings.Split(strings.TrimPrefix(pointer, "#/"), "/")
	if slices.Contains(formFields, parts[0]) {
		return parts[0], parts[0]
	}
	if parts[0] == "items" && len(parts) > 1 {
		if i, err := strconv.Atoi(parts[1]); err == nil && i >= 0 && i < len(f.lines) {
			return f.lines[i].PizzaID, parts[len(parts)-1]
		}
	}
	return "items", parts[0]
}
