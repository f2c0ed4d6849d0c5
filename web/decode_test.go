package web

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// coupon has an UnmarshalJSON, as event.Money.
type coupon string

func (c *coupon) UnmarshalJSON(b []byte) error {
	s := strings.Trim(string(b), `"`)
	if !strings.HasPrefix(s, "C-") {
		return fmt.Errorf("not a coupon: %s", b)
	}
	*c = coupon(s)
	return nil
}

type line struct {
	PizzaID  string `json:"pizza_id"`
	Quantity int    `json:"quantity"`
	Size     string `json:"size"`
}

type base struct {
	Source string `json:"source,omitempty"`
}

type sample struct {
	base
	Name    string            `json:"customer_name"`
	Lines   []line            `json:"items"`
	Comment *string           `json:"comment"`
	Locale  string            `json:"locale,omitempty"`
	Coupon  *coupon           `json:"coupon"`
	Voucher coupon            `json:"voucher,omitzero"`
	At      time.Time         `json:"at,omitzero"`
	Weight  float64           `json:"weight,omitempty"`
	Small   uint8             `json:"small,omitempty"`
	Gift    bool              `json:"gift,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	Extra   any               `json:"extra"`
	Amount  json.Number       `json:"amount,omitempty"`
	Hidden  string            `json:"-"`
}

// post sends body to Decode as a JSON request and returns the results.
func post(body string, v any) ([]byte, error) {
	r := httptest.NewRequest("POST", "/api/v1/orders", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	return Decode(httptest.NewRecorder(), r, v)
}

// faultsOf lists the status and then each fault as "pointer code".
func faultsOf(t *testing.T, err error) []string {
	t.Helper()
	p, ok := errors.AsType[*Problem](err)
	if !ok {
		t.Fatalf("error is %T (%v), not a problem", err, err)
	}
	got := []string{fmt.Sprint(p.Status)}
	for _, e := range p.Errors {
		if e.Detail == "" {
			t.Errorf("no detail for %s %s", e.Pointer, e.Code)
		}
		got = append(got, e.Pointer+" "+e.Code)
	}
	return got
}

func TestDecodeTakesWhatItIsGiven(t *testing.T) {
	comment, c := "с грибами", coupon("C-1")
	for body, want := range map[string]sample{
		`{}`:                           {},
		" \t\r\n{ \"items\" : [] } \n": {Lines: []line{}},
		`{"customer_name":"Иван","items":[{"pizza_id":"a","quantity":2,"size":"large"},{"quantity":-0}]}`: {
			Name: "Иван", Lines: []line{{"a", 2, "large"}, {}},
		},
		`{"comment":"с грибами","coupon":"C-1","voucher":"C-2"}`:                  {Comment: &comment, Coupon: &c, Voucher: "C-2"},
		`{"comment":null,"coupon":null,"locale":null,"extra":null,"weight":null}`: {},
		`{"customer_name":"\ud83c\udf55 \\ud800 \\\\u0000 \u002f"}`:               {Name: "🍕 \\ud800 \\\\u0000 /"},
		`{"at":"2024-01-15T10:30:00Z"}`:                                           {At: time.Date(2024, 1, 15, 10, 30, 0, 0, time.UTC)},
		`{"weight":0.0e-999,"small":255,"gift":true,"extra":0}`:                   {Small: 255, Gift: true, Extra: 0.0},
		`{"labels":{"a/b":"x","A/B":"y"},"source":"web"}`:                         {Labels: map[string]string{"a/b": "x", "A/B": "y"}, base: base{"web"}},
		`{"extra":{"any":[1,null,{"x":"y"}]}}`: {Extra: map[string]any{
			"any": []any{1.0, nil, map[string]any{"x": "y"}},
		}},
		`{"extra":` + strings.Repeat("[", 31) + strings.Repeat("]", 31) + `}`: {Extra: nest(31)},
	} {
		var got sample
		raw, err := post(body, &got)
		if err != nil {
			t.Errorf("%.80s: %v", body, err)
			continue
		}
		if string(raw) != body {
			t.Errorf("%.80s: the raw body is %s", body, raw)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%.80s:\n got %+v\nwant %+v", body, got, want)
		}
	}
}

func nest(levels int) any {
	v := []any{}
	for range levels - 1 {
		v = []any{v}
	}
	return v
}

// refused has every kind of body that Decode refuses, and its faults.
var refused = []struct {
	name, body string
	want       string // status, then "pointer code" of each fault, joined by commas
}{
	{"empty", ``, "400,# empty_body"},
	{"spaces", " \n\t ", "400,# empty_body"},
	{"null", `null`, "400,# null"},
	{"array", `[]`, "400,# wrong_type"},
	{"string", `"x"`, "400,# wrong_type"},
	{"number", `1`, "400,# wrong_type"},
	{"boolean", `true`, "400,# wrong_type"},

	{"cut object", `{"customer_name":"a"`, "400,# syntax"},
	{"cut key", `{"customer_n`, "400,# syntax"},
	{"cut string", `{"customer_name":"a`, "400,#/customer_name syntax"},
	{"cut array", `{"items":[{"size":"s"}`, "400,#/items syntax"},
	{"no colon", `{"customer_name" "a"}`, "400,#/customer_name syntax"},
	{"no comma", `{"gift":true "small":1}`, "400,# syntax"},
	{"comment", `{/* */"gift":true}`, "400,# syntax"},
	{"line comment", "{\"gift\":true} // x", "400,# trailing_data"},
	{"single quotes", `{'gift':true}`, "400,# syntax"},
	{"bare name", `{gift:true}`, "400,# syntax"},
	{"trailing comma in object", `{"gift":true,}`, "400,# syntax"},
	{"trailing comma in array", `{"items":[{},]}`, "400,#/items/1 syntax"},
	{"mismatched", `{"items":[}]`, "400,#/items syntax"},
	{"number as name", `{1:2}`, "400,# syntax"},
	{"leading zero", `{"small":01}`, "400,# syntax"},
	{"plus", `{"small":+1}`, "400,#/small syntax"},
	{"hexadecimal", `{"small":0x1}`, "400,# syntax"},
	{"NaN", `{"weight":NaN}`, "400,#/weight syntax"},
	{"Infinity", `{"weight":Infinity}`, "400,#/weight syntax"},
	{"True", `{"gift":True}`, "400,#/gift syntax"},
	{"bad escape", `{"customer_name":"\x41"}`, "400,#/customer_name syntax"},
	{"raw line end", "{\"customer_name\":\"a\nb\"}", "400,#/customer_name syntax"},
	{"raw NUL", "{\"customer_name\":\"a\x00b\"}", "400,#/customer_name syntax"},
	{"NUL after", "{}\x00", "400,# trailing_data"},
	{"form", "customer_name=a&items=b", "400,# syntax"},
	{"XML", "<order/>", "400,# syntax"},

	{"two values", `{}{}`, "400,# trailing_data"},
	{"word after", `{} x`, "400,# trailing_data"},
	{"bracket after", `{}}`, "400,# trailing_data"},
	{"comma after", `{},`, "400,# trailing_data"},

	{"duplicate", `{"items":[],"items":[]}`, "400,#/items duplicate_field"},
	{"duplicate below", `{"items":[{},{"quantity":1,"quantity":2}]}`, "400,#/items/1/quantity duplicate_field"},
	{"duplicate by escape", `{"gift":true,"\u0067ift":true}`, "400,#/gift duplicate_field"},
	{"duplicate in a free object", `{"extra":{"a":1,"a":2}}`, "400,#/extra/a duplicate_field"},
	{"duplicate in a map", `{"labels":{"a":"1","a":"2"}}`, "400,#/labels/a duplicate_field"},
	{"duplicate in an unknown object", `{"x":{"a":1,"a":2}}`, "400,#/x unknown_field,#/x/a duplicate_field"},

	{"client total", `{"total_amount":1}`, "400,#/total_amount unknown_field"},
	{"client price", `{"items":[{"price":0.01}]}`, "400,#/items/0/price unknown_field"},
	{"client status", `{"status":"paid"}`, "400,#/status unknown_field"},
	{"client id", `{"id":"x","created_at":"y"}`, "400,#/id unknown_field,#/created_at unknown_field"},
	{"capitals", `{"Customer_Name":"a"}`, "400,#/Customer_Name unknown_field"},
	{"long s", `{"cuſtomer_name":"a"}`, "400,# unknown_field"},
	{"Kelvin sign", `{"items":[{"piKKa":1,"\u212A":2}]}`, "400,#/items/0/piKKa unknown_field,#/items/0 unknown_field"},
	{"Go's name", `{"Hidden":"a"}`, "400,#/Hidden unknown_field"},
	{"dash", `{"-":"a"}`, "400,#/- unknown_field"},
	{"embedded struct's name", `{"base":{}}`, "400,#/base unknown_field"},
	{"prototype", `{"__proto__":{},"constructor":1}`, "400,#/__proto__ unknown_field,#/constructor unknown_field"},
	{"empty name", `{"":1}`, "400,# unknown_field"},
	{"e-mail as name", `{"items":[{"ivan@example.com":1}]}`, "400,#/items/0 unknown_field"},
	{"card as name", `{"4111111111111111":1}`, "400,# unknown_field"},
	{"long name", `{"` + strings.Repeat("a", 41) + `":1}`, "400,# unknown_field"},
	{"slash in name", `{"a/b":1}`, "400,# unknown_field"},

	{"null name", `{"customer_name":null}`, "400,#/customer_name null"},
	{"null items", `{"items":null}`, "400,#/items null"},
	{"null item", `{"items":[null]}`, "400,#/items/0 null"},
	{"null quantity", `{"items":[{"quantity":null}]}`, "400,#/items/0/quantity null"},
	{"null in a map", `{"labels":{"a":null}}`, "400,#/labels/a null"},
	{"null for what cannot be null", `{"voucher":null}`, "400,#/voucher wrong_type"},

	{"number for string", `{"customer_name":1}`, "400,#/customer_name wrong_type"},
	{"boolean for string", `{"customer_name":true}`, "400,#/customer_name wrong_type"},
	{"object for string", `{"customer_name":{"a":[1]}}`, "400,#/customer_name wrong_type"},
	{"array for string", `{"customer_name":["a"]}`, "400,#/customer_name wrong_type"},
	{"string for array", `{"items":"x"}`, "400,#/items wrong_type"},
	{"object for array", `{"items":{}}`, "400,#/items wrong_type"},
	{"string for object", `{"items":["x"]}`, "400,#/items/0 wrong_type"},
	{"array for object", `{"items":[[]]}`, "400,#/items/0 wrong_type"},
	{"array for map", `{"labels":[]}`, "400,#/labels wrong_type"},
	{"string for integer", `{"items":[{"quantity":"2"}]}`, "400,#/items/0/quantity wrong_type"},
	{"empty string for integer", `{"items":[{"quantity":""}]}`, "400,#/items/0/quantity wrong_type"},
	{"fraction", `{"items":[{"quantity":1.0}]}`, "400,#/items/0/quantity wrong_type"},
	{"exponent", `{"items":[{"quantity":1e2}]}`, "400,#/items/0/quantity wrong_type"},
	{"number for boolean", `{"gift":1}`, "400,#/gift wrong_type"},
	{"string for number", `{"weight":"1"}`, "400,#/weight wrong_type"},
	{"not a coupon", `{"coupon":"X-1"}`, "400,#/coupon wrong_type"},
	{"object for coupon", `{"coupon":{"a":1}}`, "400,#/coupon wrong_type"},
	{"not a time", `{"at":"yesterday"}`, "400,#/at wrong_type"},
	{"optional of another type", `{"comment":1}`, "400,#/comment wrong_type"},

	{"2^63", `{"items":[{"quantity":9223372036854775808}]}`, "400,#/items/0/quantity out_of_range"},
	{"10,000 digits", `{"items":[{"quantity":` + strings.Repeat("9", 10_000) + `}]}`, "400,#/items/0/quantity out_of_range"},
	{"256 for a byte", `{"small":256}`, "400,#/small out_of_range"},
	{"-1 for a byte", `{"small":-1}`, "400,#/small out_of_range"},
	{"1e400", `{"weight":1e400,"extra":1e400}`, "400,#/weight out_of_range,#/extra out_of_range"},
	{"1e-400", `{"weight":1e-400,"items":[{"quantity":1e-400}]}`, "400,#/weight out_of_range,#/items/0/quantity wrong_type"},

	{"depth 33", `{"extra":` + strings.Repeat("[", 32) + strings.Repeat("]", 32) + `}`, "400,#/extra" + strings.Repeat("/0", 31) + " too_deep"},
	{"depth 33 in an unknown field", `{"x":` + strings.Repeat(`{"a":`, 32) + `1` + strings.Repeat(`}`, 32) + `}`, "400,#/x unknown_field,#/x" + strings.Repeat("/a", 31) + " too_deep"},
	{"depth 10,001", strings.Repeat("[", 10_001) + strings.Repeat("]", 10_001), "400,# wrong_type,#" + strings.Repeat("/0", 32) + " too_deep"},
	{"depth 60,000", strings.Repeat("[", 60_000), "400,# wrong_type,#" + strings.Repeat("/0", 32) + " too_deep"},
	{"30,000 empty arrays", `{"items":[` + strings.Repeat("[],", 20_000) + `[]]}`, "400" + numbered(",#/items/%d wrong_type", 16)},

	{"byte order mark", "\ufeff{}", "400,# syntax"},
	{"UTF-16", "\xff\xfe{\x00}\x00", "400,# invalid_utf8"},
	{"UTF-16 without a mark", "{\x00}\x00", "400,# syntax"},
	{"invalid byte", "{\"customer_name\":\"a\xff\"}", "400,#/customer_name invalid_utf8"},
	{"overlong", "{\"customer_name\":\"\xc0\xaf\"}", "400,#/customer_name invalid_utf8"},
	{"surrogate in bytes", "{\"customer_name\":\"\xed\xa0\x80\"}", "400,#/customer_name invalid_utf8"},
	{"cut character", "{\"items\":[{\"size\":\"\xd0\"}]}", "400,#/items/0/size invalid_utf8"},
	{"invalid byte in a name", "{\"\xff\":1}", "400,# invalid_utf8,# unknown_field"},
	{"invalid byte outside", "{\"gift\":true \xff}", "400,# invalid_utf8"},
	{"invalid byte after", "{}\xff", "400,# trailing_data"},
	{"high surrogate", `{"customer_name":"\ud800"}`, "400,#/customer_name lone_surrogate"},
	{"high surrogate and text", `{"customer_name":"\uD83Cxxxxxx"}`, "400,#/customer_name lone_surrogate"},
	{"low surrogate", `{"customer_name":"\udf55"}`, "400,#/customer_name lone_surrogate"},
	{"pair the wrong way round", `{"customer_name":"\udf55\ud83c"}`, "400,#/customer_name lone_surrogate"},
	{"two high surrogates", `{"customer_name":"\ud83c\ud83c\udf55"}`, "400,#/customer_name lone_surrogate"},
	{"surrogate after a backslash", `{"customer_name":"\\\ud800"}`, "400,#/customer_name lone_surrogate"},
	{"surrogate in a name", `{"\ud800":1}`, "400,# lone_surrogate,# unknown_field"},
	{"surrogate in a free value", `{"extra":["\ud800"]}`, "400,#/extra/0 lone_surrogate"},

	{"a text that is no number", `{"amount":"x"}`, "400,#/amount wrong_type"},

	{"NUL", `{"customer_name":"a\u0000b"}`, "422,#/customer_name nul_character"},
	{"NUL in an optional text", `{"comment":"\u0000","items":[{"size":"\\\u0000"}]}`, "422,#/comment nul_character,#/items/0/size nul_character"},
	{"NUL and an unknown field", `{"customer_name":"\u0000","x":1}`, "400,#/x unknown_field"},

	{
		"several", `{"x":1,"customer_name":2,"items":[{"quantity":"3","y":4}]}`,
		"400,#/x unknown_field,#/customer_name wrong_type,#/items/0/quantity wrong_type,#/items/0/y unknown_field",
	},
	{"very many", `{"items":[` + strings.Repeat("1,", 999) + `1]}`, "400" + numbered(",#/items/%d wrong_type", 16)},
}

func numbered(format string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

func TestDecodeRefuses(t *testing.T) {
	for _, c := range refused {
		t.Run(c.name, func(t *testing.T) {
			var v sample
			began := time.Now()
			raw, err := post(c.body, &v)
			if err == nil {
				t.Fatalf("taken as %+v", v)
			}
			if got := strings.Join(faultsOf(t, err), ","); got != c.want {
				t.Errorf("\n got %s\nwant %s", got, c.want)
			}
			if raw != nil || !reflect.DeepEqual(v, sample{}) {
				t.Errorf("something of a refused body got through: %q, %+v", raw, v)
			}
			if took := time.Since(began); took > time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

func TestDecodeNeverRepeatsTheValue(t *testing.T) {
	const canary = "Zanzibar"
	for _, body := range []string{
		canary, `{"` + canary + ` x":1}`, `{"items":"` + canary + `"}`, `{"items":[{"quantity":"` + canary + `"}]}`,
		`{"coupon":"` + canary + `"}`, `{"at":"` + canary + `"}`, `{"customer_name":["` + canary + `"]}`,
		`{"customer_name":"` + canary + `\ud800"}`, `{"customer_name":"` + canary, `{}` + canary,
		`{"labels":{"` + canary + ` 1":2}}`,
	} {
		var v sample
		_, err := post(body, &v)
		if err == nil {
			t.Errorf("%s: taken", body)
			continue
		}
		rec := httptest.NewRecorder()
		Error(rec, httptest.NewRequest("POST", "/api/v1/orders", nil), nil, err)
		if strings.Contains(rec.Body.String(), canary) || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: repeated in %v\n%s", body, err, rec.Body)
		}
	}
}

func TestDecodeContentType(t *testing.T) {
	for _, c := range []struct {
		types    []string
		encoding string
		want     int
	}{
		{[]string{"application/json"}, "", 0},
		{[]string{"Application/JSON; Charset=\"UTF-8\""}, "", 0},
		{[]string{"application/json;charset=utf-8"}, "identity", 0},
		{nil, "", 415},
		{[]string{""}, "", 415},
		{[]string{"text/plain"}, "", 415},
		{[]string{"text/json"}, "", 415},
		{[]string{"application/x-www-form-urlencoded"}, "", 415},
		{[]string{"multipart/form-data; boundary=x"}, "", 415},
		{[]string{"application/problem+json"}, "", 415},
		{[]string{"application/jsonx"}, "", 415},
		{[]string{"application/json, text/plain"}, "", 415},
		{[]string{"application/json; charset=utf-16"}, "", 415},
		{[]string{"application/json; charset=utf-8; charset=utf-16"}, "", 415},
		{[]string{"application/json; profile=x"}, "", 415},
		{[]string{"application/json;;"}, "", 415},
		{[]string{"application/json;"}, "", 415},
		{[]string{"application/json", "application/json"}, "", 415},
		{[]string{"application/json"}, "gzip", 415},
	} {
		r := httptest.NewRequest("POST", "/", strings.NewReader(`{}`))
		r.Header["Content-Type"] = c.types
		if c.encoding != "" {
			r.Header.Set("Content-Encoding", c.encoding)
		}
		var v sample
		_, err := Decode(httptest.NewRecorder(), r, &v)
		got := 0
		if p, ok := errors.AsType[*Problem](err); ok {
			got = p.Status
		}
		if got != c.want {
			t.Errorf("%q %q: %d, want %d", c.types, c.encoding, got, c.want)
		}
	}
}

func TestDecodeBodyLimit(t *testing.T) {
	fits := `{"comment":"` + strings.Repeat("a", MaxBody-len(`{"comment":""}`)) + `"}`
	for _, c := range []struct {
		name string
		body io.Reader
		want string
	}{
		{"64 KiB", strings.NewReader(fits), ""},
		{"64 KiB, length unknown", onlyReader{strings.NewReader(fits)}, ""},
		{"64 KiB and 1", strings.NewReader(fits + " "), "413"},
		{"64 KiB and 1, length unknown", onlyReader{strings.NewReader(fits + " ")}, "413"},
		{"endless", endless{}, "413"},
		{"read error", iotest.ErrReader(errors.New("secret")), "400,# incomplete_body"},
		{"cut off", io.MultiReader(strings.NewReader("{"), iotest.ErrReader(io.ErrUnexpectedEOF)), "400,# incomplete_body"},
		{"stalled", iotest.ErrReader(fmt.Errorf("read: %w", os.ErrDeadlineExceeded)), "408"},
		{"another error", iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader("{}"))), "400,# incomplete_body"},
	} {
		r := httptest.NewRequest("POST", "/", c.body)
		r.Header.Set("Content-Type", "application/json")
		var v sample
		got := ""
		if _, err := Decode(httptest.NewRecorder(), r, &v); err != nil {
			got = strings.Join(faultsOf(t, err), ",")
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

type onlyReader struct{ io.Reader }

// endless never ends: a reader without a limit would fill its memory.
type endless struct{}

func (endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = ' '
	}
	return len(b), nil
}

func TestDecodeWithoutBody(t *testing.T) {
	r := &http.Request{Header: http.Header{"Content-Type": {"application/json"}}}
	var v sample
	_, err := Decode(httptest.NewRecorder(), r, &v)
	if got := strings.Join(faultsOf(t, err), ","); got != "400,# empty_body" {
		t.Error(got)
	}
}
