package order

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// A badInput is a request that must be refused.
type badInput struct {
	name   string
	body   string
	status int
	fault  string // "pointer code" of one of the faults, "" for any
	header []string
}

func badInputs(t *testing.T) []badInput {
	field := func(name string, value any) string { return with(t, map[string]any{name: value}) }
	raw := func(name, value string) string {
		return strings.Replace(field(name, "@@"), `"@@"`, value, 1)
	}
	line := func(quantity, size, pizzaID string) string {
		return raw("items", fmt.Sprintf(`[{"pizza_id":%s,"quantity":%s,"size":%s}]`, pizzaID, quantity, size))
	}
	const id, large = `"` + margherita + `"`, `"large"`
	inputs := []badInput{
		{name: "empty", body: " ", status: 400},
		{name: "null", body: "null", status: 400},
		{name: "array", body: "[]", status: 400},
		{name: "text", body: `"x"`, status: 400},
		{name: "number", body: "1", status: 400},
		{name: "open", body: sample[:40], status: 400},
		{name: "two values", body: sample + sample, status: 400},
		{name: "trailing", body: sample + "x", status: 400},
		{name: "trailing comma", body: `{"customer_name":"a",}`, status: 400},
		{name: "single quotes", body: `{'customer_name':1}`, status: 400},
		{name: "byte order mark", body: "\ufeff" + sample, status: 400},
		{name: "invalid UTF-8", body: field("customer_name", "@") + "\xff", status: 400},
		{name: "invalid UTF-8 in name", body: raw("customer_name", "\"\xc0\xaf\""), status: 400},
		{name: "lone surrogate", body: raw("customer_name", `"\ud800"`), status: 400, fault: "#/customer_name lone_surrogate"},
		{name: "deep", body: strings.Repeat("[", 10001), status: 400},
		{name: "duplicate", body: strings.Replace(sample, `"customer_name"`, `"customer_name":"a","customer_name"`, 1), status: 400, fault: "#/customer_name duplicate_field"},
		{name: "letter case", body: strings.Replace(sample, `"customer_name"`, `"Customer_Name"`, 1), status: 400, fault: "#/Customer_Name unknown_field"},
		{name: "client total", body: field("total_amount", 1), status: 400, fault: "#/total_amount unknown_field"},
		{name: "client status", body: field("status", "paid"), status: 400, fault: "#/status unknown_field"},
		{name: "client id", body: field("id", "x"), status: 400, fault: "#/id unknown_field"},
		{name: "client time", body: field("created_at", "2024-01-15T10:30:00Z"), status: 400, fault: "#/created_at unknown_field"},
		{name: "prototype", body: field("__proto__", "x"), status: 400},
		{name: "client price", body: raw("items", `[{"pizza_id":`+id+`,"quantity":1,"size":"large","price":0.01}]`), status: 400, fault: "#/items/0/price unknown_field"},
		{name: "null name", body: raw("customer_name", "null"), status: 400, fault: "#/customer_name null"},
		{name: "null items", body: raw("items", "null"), status: 400, fault: "#/items null"},
		{name: "null item", body: raw("items", "[null]"), status: 400, fault: "#/items/0 null"},
		{name: "name is a number", body: field("customer_name", 1), status: 400, fault: "#/customer_name wrong_type"},
		{name: "items is an object", body: field("items", map[string]any{}), status: 400, fault: "#/items wrong_type"},
		{name: "quantity is a text", body: line(`"2"`, large, id), status: 400, fault: "#/items/0/quantity wrong_type"},
		{name: "quantity is a fraction", body: line(`1.5`, large, id), status: 400, fault: "#/items/0/quantity wrong_type"},
		{name: "quantity beyond 64 bits", body: line(`9223372036854775808`, large, id), status: 400, fault: "#/items/0/quantity out_of_range"},
		{name: "quantity of many digits", body: line(strings.Repeat("9", 10000), large, id), status: 400},
		{name: "pizza is a number", body: line(`1`, large, `7`), status: 400, fault: "#/items/0/pizza_id wrong_type"},

		{name: "no content type", body: sample, status: 415, header: []string{"Content-Type", ""}},
		{name: "text/plain", body: sample, status: 415, header: []string{"Content-Type", "text/plain"}},
		{name: "form", body: sample, status: 415, header: []string{"Content-Type", "application/x-www-form-urlencoded"}},
		{name: "UTF-16", body: sample, status: 415, header: []string{"Content-Type", "application/json; charset=utf-16"}},
		{name: "a megabyte", body: field("comment", strings.Repeat("a", 1<<20)), status: 413},
		{name: "64 KiB and a byte", body: sample + strings.Repeat(" ", 64<<10+1-len(sample)), status: 413},

		{name: "missing everything", body: "{}", status: 422, fault: "#/customer_name required"},
		{name: "no items", body: field("items", []any{}), status: 422, fault: "#/items required"},
		{name: "51 items", body: field("items", items(51, margherita, 1, "small")), status: 422, fault: "#/items too_many"},
		{name: "beyond the cap", body: field("items", items(50, margherita, 100, "large")), status: 422, fault: "#/items total_too_large"},
		{name: "no quantity", body: raw("items", `[{"pizza_id":`+id+`,"size":"large"}]`), status: 422, fault: "#/items/0/quantity out_of_range"},
		{name: "no size", body: raw("items", `[{"pizza_id":`+id+`,"quantity":1}]`), status: 422, fault: "#/items/0/size required"},
		{name: "no pizza", body: raw("items", `[{"quantity":1,"size":"large"}]`), status: 422, fault: "#/items/0/pizza_id required"},
		{name: "second line", body: field("items", append(items(1, margherita, 1, "small"), items(1, margherita, 0, "small")...)), status: 422, fault: "#/items/1/quantity out_of_range"},
		{name: "locale", body: field("locale", "fr"), status: 422, fault: "#/locale unsupported_locale"},
		{name: "long name", body: field("customer_name", strings.Repeat("я", 101)), status: 422, fault: "#/customer_name too_long"},
		{name: "piled marks", body: field("customer_name", "е"+strings.Repeat("\u0301", 1000)), status: 422, fault: "#/customer_name too_long"},
		{name: "long address", body: field("delivery_address", strings.Repeat("я", 501)), status: 422, fault: "#/delivery_address too_long"},
		{name: "long comment", body: field("comment", strings.Repeat("я", 501)), status: 422, fault: "#/comment too_long"},
		{name: "escape in comment", body: field("comment", "\x1b[31mred"), status: 422, fault: "#/comment invalid_character"},
		{name: "card in name", body: field("customer_name", "4111 1111 1111 1111"), status: 422, fault: "#/customer_name card_data_not_accepted"},
		{name: "card in address", body: field("delivery_address", "д. 1, 5500005555555559"), status: 422, fault: "#/delivery_address card_data_not_accepted"},
		{name: "card in comment", body: field("comment", "карта 4111-1111-1111-1111"), status: 422, fault: "#/comment card_data_not_accepted"},
		{name: "long e-mail", body: field("customer_email", strings.Repeat("a", 64)+"@"+strings.Repeat("b.", 100)+"com"), status: 422, fault: "#/customer_email too_long"},
	}
	for _, s := range []string{"", " ", "\u00a0 ", "\t", "\u200b", "\u202d\u202c", "\u3164", "\u2800", "\u0301"} {
		for _, name := range []string{"customer_name", "delivery_address"} {
			inputs = append(inputs, badInput{name: fmt.Sprintf("%s %q", name, s), body: field(name, s), status: 422, fault: "#/" + name + " required"})
		}
	}
	for _, name := range []string{"customer_name", "customer_email", "customer_phone", "delivery_address", "items"} {
		inputs = append(inputs, badInput{name: "no " + name, body: field(name, nil), status: 422, fault: "#/" + name + " required"})
	}
	for _, c := range []string{"\x01", "\x1b[31m", "\x7f", "\u009f"} {
		inputs = append(inputs, badInput{name: fmt.Sprintf("name with %q", c), body: field("customer_name", "Иван"+c), status: 422, fault: "#/customer_name invalid_character"})
	}
	inputs = append(inputs, badInput{name: "name with NUL", body: field("customer_name", "a\x00b"), status: 422, fault: "#/customer_name nul_character"})
	for _, q := range []string{"0", "-1", "-0", "101", "2147483648", "9223372036854775807"} {
		inputs = append(inputs, badInput{name: "quantity " + q, body: line(q, large, id), status: 422, fault: "#/items/0/quantity out_of_range"})
	}
	for _, s := range []string{`"huge"`, `"Large"`, `"large "`, `"большая"`} {
		inputs = append(inputs, badInput{name: "size " + s, body: line("1", s, id), status: 422, fault: "#/items/0/size unknown_size"})
	}
	for _, p := range []string{
		`"pepperoni"`, `"00000000-0000-0000-0000-000000000000"`, `"` + strings.ToUpper(margherita) + `"`, `"{` + margherita + `}"`,
		`"urn:uuid:` + margherita + `"`, `"` + strings.ReplaceAll(margherita, "-", "") + `"`, `"0190b7a5-2f6e-7c3a-9d35-1f1f3b6f0a01"`,
	} {
		inputs = append(inputs, badInput{name: "pizza " + p, body: line("1", large, p), status: 422, fault: "#/items/0/pizza_id unknown_pizza"})
	}
	for _, e := range []string{"a@b.com\r\nBcc: c@d.com", "a@b.com,c@d.com", "Name <a@b.com>", "a@localhost", "a@[127.0.0.1]", "nobody"} {
		inputs = append(inputs, badInput{name: "e-mail " + e, body: field("customer_email", e), status: 422, fault: "#/customer_email invalid_email"})
	}
	for _, p := range []string{"+7900", "call me", "+7-900-123-45-67 ext. 5", "+79001234567, +79001234568", "+7 803 123-45-67", "tel:+7900"} {
		inputs = append(inputs, badInput{name: "phone " + p, body: field("customer_phone", p), status: 422, fault: "#/customer_phone invalid_phone"})
	}
	for name, key := range map[string]string{
		"empty": "", "long": strings.Repeat("k", 256), "space": "a b", "list": "a,b", "other letters": "ключ",
	} {
		inputs = append(inputs, badInput{name: "key " + name, body: sample, status: 400, header: []string{"Idempotency-Key", key}})
	}
	return append(inputs, badInput{name: "two keys", body: sample, status: 400, header: []string{"Idempotency-Key", "a", "Idempotency-Key", "b"}})
}

// TestBadInput wants the right status and pointer, no value in the answer and
// no row anywhere.
func TestBadInput(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		f := newFixture(t, db, Config{})
		problemShape := schemaOf(t, "Problem")
		for _, in := range badInputs(t) {
			headers := in.header
			if headers == nil || headers[0] != "Idempotency-Key" {
				headers = append([]string{"Idempotency-Key", "k"}, headers...)
			}
			r := f.do("POST", "/api/v1/orders", in.body, headers...)
			if r.StatusCode != in.status || r.Header.Get("Content-Type") != "application/problem+json; charset=utf-8" {
				t.Errorf("%s: %d %s, want %d\n%s", in.name, r.StatusCode, r.Header.Get("Content-Type"), in.status, r.body)
				continue
			}
			problemShape.check(in.name, r.body)
			var p struct {
				Errors []struct{ Pointer, Code string }
			}
			decode(t, r.body, &p)
			found := in.fault == ""
			for _, e := range p.Errors {
				found = found || e.Pointer+" "+e.Code == in.fault
			}
			if !found {
				t.Errorf("%s: want %s in\n%s", in.name, in.fault, r.body)
			}
			for _, value := range []string{"1111 1111", "1111-1111", "5500005555555559", "evil", "b.com", "Пушкина", "803 123"} {
				if strings.Contains(string(r.body), value) {
					t.Errorf("%s: the answer repeats what was sent: %s", in.name, r.body)
				}
			}
		}
		f.wantRows(0, 0, 0, 0, 0)
	}, schemas...)
}

// TestAllFaultsAtOnce names every field at fault in one answer.
func TestAllFaultsAtOnce(t *testing.T) {
	f := newFixture(t, sqltest.Open(t, sqldb.SQLite, schemas...), Config{})
	r := f.do("POST", "/api/v1/orders", `{"items":[{"pizza_id":"x","quantity":0,"size":"x"}],"locale":"x"}`)
	var p struct {
		Errors []struct{ Pointer string }
	}
	decode(t, r.body, &p)
	var pointers []string
	for _, e := range p.Errors {
		pointers = append(pointers, e.Pointer)
	}
	want := "#/customer_name #/customer_email #/customer_phone #/delivery_address #/locale " +
		"#/items/0/quantity #/items/0/pizza_id #/items/0/size"
	if got := strings.Join(pointers, " "); got != want || r.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("%d with %s\nwant %s", r.StatusCode, got, want)
	}
}

func TestIdempotency(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		f := newFixture(t, db, Config{})
		key := strings.Repeat("~", 255)
		_, first := f.place(sample, "Idempotency-Key", key)
		if h := first.Header.Get("Idempotent-Replayed"); h != "" {
			t.Errorf("the first answer is called a replay: %q", h)
		}
		for range 3 {
			_, again := f.place(sample, "Idempotency-Key", key)
			if string(again.body) != string(first.body) || again.Header.Get("Idempotent-Replayed") != "true" ||
				again.Header.Get("Location") != first.Header.Get("Location") {
				t.Fatalf("replay %v\n%s\nfirst\n%s", again.Header, again.body, first.body)
			}
		}
		for _, other := range []string{sample + " ", with(t, map[string]any{"comment": "x"}), "{}"} {
			r := f.do("POST", "/api/v1/orders", other, "Idempotency-Key", key)
			if r.StatusCode != http.StatusUnprocessableEntity || !strings.Contains(string(r.body), "/problems/idempotency-key-reused") {
				t.Errorf("other body: %d %s", r.StatusCode, r.body)
			}
		}
		f.wantRows(1, 1, 1, 1, 1)

		// a repeated request gets the same answer even if a new one would be refused now
		f.menu = newMenu()
		if _, again := f.place(sample, "Idempotency-Key", key); string(again.body) != string(first.body) {
			t.Errorf("replay after a change of the menu\n%s", again.body)
		}
		f.menu = ourMenu()

		// a clock that was set forward may be all that makes a key old: it stands until it is removed
		f.exec(`UPDATE idempotency_keys SET created_at = $1`, sqldb.Now().Add(-keyLifetime))
		if _, again := f.place(sample, "Idempotency-Key", key); string(again.body) != string(first.body) {
			t.Errorf("replay when the clock was set forward\n%s", again.body)
		}
		if err := f.expireKeys(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, later := f.place(sample, "Idempotency-Key", key)
		if string(later.body) == string(first.body) || later.Header.Get("Idempotent-Replayed") != "" {
			t.Error("a key still stands after its 24 hours")
		}
		f.wantRows(2, 2, 2, 1, 2)
	}, schemas...)
}

// TestConcurrentKey sends one request a hundred times at once, to two replicas.
func TestConcurrentKey(t *testing.T) {
	for _, engine := range []sqldb.Engine{sqldb.SQLite, sqldb.Postgres} {
		t.Run(string(engine), func(t *testing.T) {
			url := sqltest.URL(t, engine)
			replicas := [2]*fixture{
				newFixture(t, sqltest.Connect(t, url, schemas...), Config{}),
				newFixture(t, sqltest.Connect(t, url), Config{}),
			}
			f := replicas[0]
			replies := f.parallel(100, func(i int) (reply, error) {
				return replicas[i%2].try("POST", "/api/v1/orders", sample, "Idempotency-Key", "one")
			})
			bodies, fresh := map[string]int{}, 0
			for _, r := range replies {
				switch r.StatusCode {
				case http.StatusCreated:
					bodies[string(r.body)]++
					if r.Header.Get("Idempotent-Replayed") == "" {
						fresh++
					}
				case http.StatusConflict:
					if r.Header.Get("Retry-After") == "" {
						t.Error("409 without Retry-After")
					}
				default:
					t.Errorf("%d %s", r.StatusCode, r.body)
				}
			}
			if len(bodies) != 1 || fresh != 1 {
				t.Errorf("%d different answers, %d of them new orders", len(bodies), fresh)
			}
			f.wantRows(1, 1, 1, 1, 1)
		})
	}
}

// TestKeysExpire removes the keys that are older than a day.
func TestKeysExpire(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		f := newFixture(t, db, Config{})
		f.place(sample, "Idempotency-Key", "old")
		f.exec(`UPDATE idempotency_keys SET created_at = $1`, sqldb.Now().Add(-keyLifetime))
		f.place(sample, "Idempotency-Key", "young")
		if err := f.expireKeys(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.wantRows(2, 2, 2, 1, 2)
		if n := f.count(`SELECT COUNT(*) FROM idempotency_keys WHERE key = 'young'`); n != 1 || f.count(`SELECT COUNT(*) FROM idempotency_keys`) != 1 {
			t.Error("the wrong key was removed")
		}
	}, schemas...)
}

func TestGetOrder(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		f := newFixture(t, db, Config{})
		placed, _ := f.place(sample)
		r := f.do("GET", "/api/v1/orders/"+placed.OrderID, "")
		want := fmt.Sprintf(`{"order_id":"%s","order_number":"%s","status":"pending","total_amount":1200.00,"currency":"RUB",`+
			`"items":[{"pizza_id":"%s","name":"Маргарита","size":"large","quantity":2,"price":600.00}],`+
			`"delivery_address":"ул. Пушкина, д. 10","created_at":"%[4]s","version":1,`+
			`"history":[{"version":1,"status":"pending","at":"%[4]s"}],"paid_at":null,"failure_reason":null,`+
			`"customer_name":"И*** И***","customer_email":"i***@example.com","customer_phone":"+7********67"}`,
			placed.OrderID, placed.OrderNumber, margherita, placed.CreatedAt.Format(time.RFC3339Nano))
		if got := strings.TrimSpace(string(r.body)); got != want || r.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
		for _, id := range []string{
			orderID, "1", "x", strings.ToUpper(placed.OrderID), "%7B" + placed.OrderID + "%7D", "urn:uuid:" + placed.OrderID,
			strings.ReplaceAll(placed.OrderID, "-", ""), "00000000-0000-0000-0000-000000000000", "%00", "'%20OR%201=1",
		} {
			r := f.do("GET", "/api/v1/orders/"+id, "")
			if r.StatusCode != http.StatusNotFound || !strings.Contains(string(r.body), "/problems/not-found") {
				t.Errorf("%s: %d %s", id, r.StatusCode, r.body)
			}
		}
		r = f.do("DELETE", "/api/v1/orders/"+placed.OrderID, "")
		if r.StatusCode != http.StatusMethodNotAllowed || r.Header.Get("Allow") == "" {
			t.Errorf("delete: %d", r.StatusCode)
		}
	}, schemas...)
}

func TestMenuLanguages(t *testing.T) {
	f := newFixture(t, sqltest.Open(t, sqldb.SQLite, schemas...), Config{})
	for _, tc := range []struct{ query, accept, want string }{
		{"", "", "Маргарита"},
		{"?lang=en", "", "Margherita"},
		{"?lang=ru", "en", "Маргарита"},
		{"", "en-GB,en;q=0.9,ru;q=0.5", "Margherita"},
		{"", "ru-RU,ru;q=0.9,en;q=0.8", "Маргарита"},
		{"?lang=xx", "en", "Margherita"},
		{"", "zh", "Маргарита"},
		{"", ";;;", "Маргарита"},
	} {
		r := f.do("GET", "/api/v1/menu"+tc.query, "", "Accept-Language", tc.accept)
		var m menuView
		decode(t, r.body, &m)
		if r.StatusCode != http.StatusOK || m.Currency != "RUB" || len(m.Pizzas) != 12 || m.Pizzas[0].Name != tc.want {
			t.Errorf("%s %s: %d, %d pizzas, first %+v", tc.query, tc.accept, r.StatusCode, len(m.Pizzas), m.Pizzas[0])
		}
		if m.Pizzas[0].ID != margherita || m.Pizzas[0].Prices.Large != 600_00 || !m.Pizzas[0].Available {
			t.Errorf("first pizza %+v", m.Pizzas[0])
		}
	}
	// the same choice decides the language of an order that names none
	v, _ := f.place(sample, "Accept-Language", "en")
	if v.Items[0].Name != "Margherita" {
		t.Errorf("item %q", v.Items[0].Name)
	}
}
