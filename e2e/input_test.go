package e2e

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// good is a body that is accepted; each bad body differs from it in one thing.
const good = `{"customer_name":"Иван Иванов","customer_email":"ivan@example.com","customer_phone":"+7-900-123-45-67",` +
	`"items":[{"pizza_id":"` + margherita + `","quantity":2,"size":"large"}],"delivery_address":"ул. Пушкина, д. 10"}`

func changed(old, now string) string {
	if !strings.Contains(good, old) {
		panic("the good body has no " + old)
	}
	return strings.Replace(good, old, now, 1)
}

var badInput = []struct {
	name, body, contentType string
	status                  int
	pointer, code           string // "" where no field is at fault
}{
	{"empty", ``, "", 400, "#", "empty_body"},
	{"cut off", good[:len(good)-2], "", 400, "#/delivery_address", "syntax"},
	{"not JSON", `pizza please`, "", 400, "#", "syntax"},
	{"an array", `[` + good + `]`, "", 400, "#", "wrong_type"},
	{"trailing data", good + good, "", 400, "#", "trailing_data"},
	{"invalid UTF-8", changed("Пушкина", "\xff\xfe"), "", 400, "#/delivery_address", "invalid_utf8"},
	{"unknown field", changed(`{"customer_name"`, `{"vip":true,"customer_name"`), "", 400, "#/vip", "unknown_field"},
	{"another letter case", changed(`"customer_name"`, `"Customer_Name"`), "", 400, "#/Customer_Name", "unknown_field"},
	{"duplicate field", changed(`"quantity":2`, `"quantity":2,"quantity":3`), "", 400, "#/items/0/quantity", "duplicate_field"},
	{"a price from the client", changed(`"quantity":2`, `"quantity":2,"price":1.00`), "", 400, "#/items/0/price", "unknown_field"},
	{"a total from the client", changed(`"items"`, `"total_amount":1.00,"items"`), "", 400, "#/total_amount", "unknown_field"},
	{"null for a name", changed(`"Иван Иванов"`, `null`), "", 400, "#/customer_name", "null"},
	{"a text for a number", changed(`"quantity":2`, `"quantity":"2"`), "", 400, "#/items/0/quantity", "wrong_type"},
	{"a fraction of a pizza", changed(`"quantity":2`, `"quantity":1.5`), "", 400, "#/items/0/quantity", "wrong_type"},
	{"an object for the items", changed(`[{"pizza_id"`, `{"a":[{"pizza_id"`) + "}", "", 400, "#/items", "wrong_type"},

	{"unknown pizza", changed(margherita, "00000000-0000-4000-8000-000000000000"), "", 422, "#/items/0/pizza_id", "unknown_pizza"},
	{"wrong size", changed(`"large"`, `"huge"`), "", 422, "#/items/0/size", "unknown_size"},
	{"quantity 0", changed(`"quantity":2`, `"quantity":0`), "", 422, "#/items/0/quantity", "out_of_range"},
	{"quantity -1", changed(`"quantity":2`, `"quantity":-1`), "", 422, "#/items/0/quantity", "out_of_range"},
	{"quantity 101", changed(`"quantity":2`, `"quantity":101`), "", 422, "#/items/0/quantity", "out_of_range"},
	{"no items", changed(`[{"pizza_id":"`+margherita+`","quantity":2,"size":"large"}]`, `[]`), "", 422, "#/items", "required"},
	{"no name", changed(`"customer_name":"Иван Иванов",`, ``), "", 422, "#/customer_name", "required"},
	{"bad e-mail", changed(`ivan@example.com`, `ivan@`), "", 422, "#/customer_email", "invalid_email"},
	{"an e-mail with a name", changed(`ivan@example.com`, `Ivan <ivan@example.com>`), "", 422, "#/customer_email", "invalid_email"},
	{"bad phone", changed(`+7-900-123-45-67`, `12345`), "", 422, "#/customer_phone", "invalid_phone"},
	{"an address of blanks", changed(`ул. Пушкина, д. 10`, `  `), "", 422, "#/delivery_address", "required"},

	{"a form", "customer_name=Ivan", "application/x-www-form-urlencoded", 415, "", ""},
	{"text", good, "text/plain", 415, "", ""},
	{"a megabyte", changed("Иван Иванов", strings.Repeat("Я", 1<<19)), "", 413, "", ""},
}

// testBadInput sends bodies that must be refused: each gets its status and a problem
// that points to the field, and none leaves a row.
func testBadInput(t *testing.T, s setup) {
	d := deploy(t, s)
	for _, bad := range badInput {
		t.Run(bad.name, func(t *testing.T) {
			status, header, body := d.postRaw(t, bad.body, bad.contentType)
			var problem struct {
				Type   string `json:"type"`
				Title  string `json:"title"`
				Status int    `json:"status"`
				Errors []struct {
					Pointer string `json:"pointer"`
					Code    string `json:"code"`
				} `json:"errors"`
			}
			if err := json.Unmarshal(body, &problem); err != nil {
				t.Errorf("%v: %q", err, body)
			}
			if status != bad.status || problem.Status != bad.status || problem.Type == "" || problem.Title == "" {
				t.Errorf("status %d, want %d; problem %s", status, bad.status, body)
			}
			if kind := header.Get("Content-Type"); !strings.HasPrefix(kind, "application/problem+json") {
				t.Errorf("content type %q", kind)
			}
			if got := len(problem.Errors); bad.pointer == "" && got != 0 || bad.pointer != "" && (got != 1 || problem.Errors[0].Pointer != bad.pointer || problem.Errors[0].Code != bad.code) {
				t.Errorf("errors %+v, want %s %s", problem.Errors, bad.pointer, bad.code)
			}
		})
	}
	for service, tables := range map[string][]string{
		"order":        {"orders", "order_items", "order_history", "idempotency_keys", "outbox_events"},
		"payment":      {"payments", "payment_attempts", "outbox_events", "parked_records", "inbox_events"},
		"notification": {"order_contacts", "notifications", "notification_deliveries", "parked_records", "inbox_events"},
	} {
		for _, table := range tables {
			if n := d.value(t, service, `SELECT COUNT(*) FROM `+table); n != "0" {
				t.Errorf("%s of the %s service has %s rows after nothing but bad input", table, service, n)
			}
		}
	}
	if status, _, body := d.postRaw(t, good, ""); status != http.StatusCreated {
		t.Errorf("the good body got %d %s", status, body)
	}
}

// postRaw posts a body as it is, as JSON unless another type is given. It does not
// use http.Client, which may return that it could not send all of a large body
// instead of the answer that came meanwhile.
func (d *deployment) postRaw(t *testing.T, body, contentType string) (int, http.Header, []byte) {
	t.Helper()
	if contentType == "" {
		contentType = "application/json"
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, d.shop("/api/v1/orders"), strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("Idempotency-Key", "bad-input") // a refused request must leave no key either
	conn, err := net.Dial("tcp", req.URL.Host)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(paidLimit)); err != nil {
		t.Fatal(err)
	}
	var sending sync.WaitGroup
	sending.Go(func() { _ = req.Write(conn) }) // the answer is checked
	defer sending.Wait()
	defer conn.Close()
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, answer
}
