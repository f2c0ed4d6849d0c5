package order

import (
	"bytes"
	"encoding/json"
	"net/http"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"pizzaflow/event"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// A shape is one schema of openapi.json.
type shape struct {
	t      *testing.T
	schema *jsonschema.Schema
}

func schemaOf(t *testing.T, name string) shape {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(openAPI))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	if err := c.AddResource("openapi.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("openapi.json#/components/schemas/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return shape{t, s}
}

// check wants body to have the shape.
func (s shape) check(what string, body []byte) {
	s.t.Helper()
	if err := s.err(body); err != nil {
		s.t.Errorf("%s: %v", what, err)
	}
}

func (s shape) err(body []byte) error {
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		return err
	}
	return s.schema.Validate(v)
}

// TestOpenAPIShapes holds real requests and answers to the contract.
func TestOpenAPIShapes(t *testing.T) {
	f := newFixture(t, sqltest.Open(t, sqldb.SQLite, schemas...), Config{})
	schemaOf(t, "Menu").check("menu", f.do("GET", "/api/v1/menu", "").body)
	schemaOf(t, "NewOrder").check("request", []byte(sample))
	schemaOf(t, "NewOrder").check("full request", []byte(with(t, map[string]any{"comment": "x", "locale": "en"})))
	placed, r := f.place(sample)
	schemaOf(t, "PlacedOrder").check("placed", r.body)

	order := schemaOf(t, "Order")
	order.check("pending", f.do("GET", "/api/v1/orders/"+placed.OrderID, "").body)
	failed, _ := f.place(sample)
	f.exec(`UPDATE orders SET status = 'paid', paid_at = created_at, version = 2 WHERE id = $1`, placed.OrderID)
	f.exec(`UPDATE orders SET status = 'payment_failed', failure_reason = 'declined', version = 2 WHERE id = $1`, failed.OrderID)
	for _, id := range []string{placed.OrderID, failed.OrderID} {
		order.check("final", f.do("GET", "/api/v1/orders/"+id, "").body)
	}

	// the schemas refuse bodies of other shapes
	if schemaOf(t, "PlacedOrder").err(bytes.Replace(r.body, []byte(`"items"`), []byte(`"lines"`), 1)) == nil {
		t.Error("an order with another field is taken")
	}
	if schemaOf(t, "NewOrder").err([]byte(with(t, map[string]any{"price": 1}))) == nil {
		t.Error("a request with a price is taken")
	}
}

// TestOpenAPIRoutes wants every route in the contract and nothing that is not
// there, apart from the stream, which the frontend serves.
func TestOpenAPIRoutes(t *testing.T) {
	var doc struct {
		OpenAPI string
		Paths   map[string]map[string]struct {
			OperationID string
			Responses   map[string]any
			RequestBody struct {
				Content map[string]struct{ Example json.RawMessage }
			}
		}
	}
	decode(t, openAPI, &doc)
	if !strings.HasPrefix(doc.OpenAPI, "3.1.") {
		t.Errorf("version %q", doc.OpenAPI)
	}
	described := map[string]bool{}
	for path, operations := range doc.Paths {
		for method := range operations {
			described[strings.ToUpper(method)+" "+path] = true
		}
	}
	delete(described, "GET /api/v1/orders/{id}/events")
	for pattern := range (&Service{}).routes() {
		if !described[pattern] {
			t.Errorf("%s is not in the contract", pattern)
		}
		delete(described, pattern)
	}
	for pattern := range described {
		t.Errorf("%s is in the contract and nowhere else", pattern)
	}
	example := doc.Paths["/api/v1/orders"]["post"].RequestBody.Content["application/json"].Example
	f := newFixture(t, sqltest.Open(t, sqldb.SQLite, schemas...), Config{})
	if v, _ := f.place(string(example)); v.TotalAmount != 1200_00 {
		t.Errorf("the contract's example costs %s", v.TotalAmount)
	}
	// every reference leads somewhere
	var root any
	decode(t, openAPI, &root)
	for _, ref := range regexp.MustCompile(`"\$ref": "#/([^"]+)"`).FindAllSubmatch(openAPI, -1) {
		at := root
		for name := range strings.SplitSeq(string(ref[1]), "/") {
			at = at.(map[string]any)[name] //nolint:forcetypeassert // a panic says it as well
		}
		if at == nil {
			t.Errorf("nothing at %s", ref[1])
		}
	}
}

// TestAsyncAPI wants every event with all its fields, and every topic, in the
// contract.
func TestAsyncAPI(t *testing.T) {
	f := newFixture(t, sqltest.Open(t, sqldb.SQLite, schemas...), Config{})
	r := f.do("GET", "/asyncapi.yaml", "")
	if r.StatusCode != http.StatusOK || !strings.HasPrefix(r.Header.Get("Content-Type"), "application/yaml") || !bytes.Equal(r.body, asyncAPI) {
		t.Errorf("%d %s", r.StatusCode, r.Header.Get("Content-Type"))
	}
	text := string(asyncAPI)
	for _, topic := range event.Topics() {
		for _, address := range []string{topic, topic + event.DeadLetterSuffix} {
			if !strings.Contains(text, "address: "+address+"\n") {
				t.Errorf("topic %s is missing", address)
			}
		}
	}
	for name, of := range map[string]reflect.Type{
		"OrderCreated": reflect.TypeFor[event.OrderCreated](), "OrderPaid": reflect.TypeFor[event.OrderPaid](),
		"OrderPaymentFailed": reflect.TypeFor[event.OrderPaymentFailed](), "PaymentCompleted": reflect.TypeFor[event.PaymentCompleted](),
		"PaymentFailed": reflect.TypeFor[event.PaymentFailed](), "Item": reflect.TypeFor[event.Item](), "Envelope": reflect.TypeFor[event.Envelope](),
	} {
		// the block of that name under components.schemas
		_, block, ok := strings.Cut(text[strings.Index(text, "\n  schemas:"):], "\n    "+name+":\n")
		if !ok {
			t.Errorf("schema %s is missing", name)
			continue
		}
		if end := regexp.MustCompile(`(?m)^    \S`).FindStringIndex(block); end != nil {
			block = block[:end[0]]
		}
		var fields []string
		for field := range of.Fields() {
			field, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			fields = append(fields, field)
			if !strings.Contains(block, "\n        "+field+": {") {
				t.Errorf("%s has no %s", name, field)
			}
		}
		if !strings.Contains(block, "required: ["+strings.Join(fields, ", ")+"]") {
			t.Errorf("%s: the required fields are not %s", name, fields)
		}
		if n := strings.Count(block, "\n        "); n != len(fields) {
			t.Errorf("%s describes %d fields, has %d", name, n, len(fields))
		}
	}
}

// TestDocs wants a page that works under its own strict policy.
func TestDocs(t *testing.T) {
	f := newFixture(t, sqltest.Open(t, sqldb.SQLite, schemas...), Config{})
	page := f.do("GET", "/docs/", "")
	policy := page.Header.Get("Content-Security-Policy")
	if page.StatusCode != http.StatusOK || strings.Contains(policy, "unsafe") || !strings.Contains(policy, "default-src 'none'; script-src 'self';") {
		t.Fatalf("%d with policy %q", page.StatusCode, policy)
	}
	if regexp.MustCompile(`(?i)<script>|<style|\son\w+=|style=|https?:`).Match(page.body) {
		t.Errorf("the page has inline code or looks elsewhere:\n%s", page.body)
	}
	for _, m := range regexp.MustCompile(`(?:src|href)="([^"]+)"`).FindAllSubmatch(page.body, -1) {
		path := string(m[1])
		if !strings.HasPrefix(path, "/") {
			path = "/docs/" + path
		}
		if r := f.do("GET", path, ""); r.StatusCode != http.StatusOK || len(r.body) == 0 {
			t.Errorf("%s: %d", path, r.StatusCode)
		}
	}
	if r := f.do("GET", "/openapi.json", ""); !bytes.Equal(r.body, openAPI) || !strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") {
		t.Errorf("/openapi.json: %d %s", r.StatusCode, r.Header.Get("Content-Type"))
	}
	if r := f.do("GET", "/docs/../schema/sqlite/0001_orders.sql", ""); r.StatusCode != http.StatusNotFound {
		t.Errorf("path out of the docs: %d", r.StatusCode)
	}
}
