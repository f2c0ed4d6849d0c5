package web

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzDecode compares the strict decoder with encoding/json: a body that Decode accepts
// is decoded to the same value by encoding/json, without replaced characters; a body
// that it refuses has a fault with a pointer.
func FuzzDecode(f *testing.F) {
	for _, c := range refused {
		if len(c.body) < 1<<10 { // large bodies only slow the search down
			f.Add([]byte(c.body))
		}
	}
	f.Add([]byte(`{"customer_name":"Иван","items":[{"pizza_id":"a","quantity":2,"size":"large"}],"comment":null}`))
	f.Add([]byte(`{"customer_name":"\ud83c\udf55","labels":{"a":"b"},"extra":[1,{"x":null}],"at":"2024-01-15T10:30:00Z"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var got, want sample
		if p := unmarshal(slices.Clone(body), &got); p != nil {
			if len(p.Errors) == 0 || len(p.Errors) > maxFaults || p.Status != 400 && p.Status != 422 {
				t.Errorf("refused without a good reason: %v", p)
			}
			for _, e := range p.Errors {
				if !strings.HasPrefix(e.Pointer, "#") || e.Code == "" {
					t.Errorf("bad fault %+v", e)
				}
			}
			if p.Unwrap() != nil {
				t.Errorf("the walk took what encoding/json does not: %v", p)
			}
			return
		}
		dec := json.NewDecoder(bytes.NewReader(body))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&want); err != nil {
			t.Fatalf("taken, but encoding/json says %v", err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("taken as %+v, not as %+v", got, want)
		}
		if !utf8.Valid(body) {
			t.Error("taken without being UTF-8")
		}
		if !bytes.Contains(body, []byte("\ufffd")) && !bytes.Contains(bytes.ToLower(body), []byte(`\ufffd`)) {
			again, err := json.Marshal(got)
			if err != nil || bytes.Contains(again, []byte("\ufffd")) || bytes.Contains(again, []byte(`\ufffd`)) {
				t.Errorf("a character was replaced: %s (%v)", again, err)
			}
		}
	})
}
