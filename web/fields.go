package web

import (
	"encoding"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"sync"
)

// field is one field of a struct as its JSON tag describes it.
type field struct {
	typ      reflect.Type
	optional bool
}

// fieldCache has the results of fieldsOf: a map[string]field for each type.
var fieldCache sync.Map

// fieldsOf returns a struct's fields by their JSON names, including the fields of
// embedded structs.
func fieldsOf(t reflect.Type) map[string]field {
	if known, ok := fieldCache.Load(t); ok {
		return known.(map[string]field)
	}
	fields := map[string]field{}
	collectFields(t, fields)
	fieldCache.Store(t, fields)
	return fields
}

func collectFields(t reflect.Type, fields map[string]field) {
	var embedded []reflect.Type
	for f := range t.Fields() {
		tag := f.Tag.Get("json")
		name, options, _ := strings.Cut(tag, ",")
		base := f.Type
		if base.Kind() == reflect.Pointer {
			base = base.Elem()
		}
		switch {
		case tag == "-":
		case f.Anonymous && name == "" && base.Kind() == reflect.Struct:
			embedded = append(embedded, base)
		case f.IsExported():
			if name == "" {
				name = f.Name
			}
			opts := strings.Split(options, ",")
			optional := slices.Contains(opts, "omitempty") || slices.Contains(opts, "omitzero")
			if _, taken := fields[name]; !taken {
				fields[name] = field{f.Type, optional}
			}
		}
	}
	for _, e := range embedded { // the outer struct's own fields win
		collectFields(e, fields)
	}
}

var (
	jsonDecoder = reflect.TypeFor[json.Unmarshaler]()
	textDecoder = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// hasOwnDecoder reports whether t has an UnmarshalJSON or UnmarshalText.
func hasOwnDecoder(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return t.Kind() != reflect.Interface && (p.Implements(jsonDecoder) || p.Implements(textDecoder))
}

// describe names the JSON value that a t is decoded from.
func describe(t reflect.Type) string {
	switch {
	case reflect.PointerTo(t).Implements(jsonDecoder):
		return "a value of another form"
	case reflect.PointerTo(t).Implements(textDecoder):
		return "a text of another form"
	}
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Struct, reflect.Map:
		return "an object"
	case reflect.Slice, reflect.Array:
		return "an array"
	}
	return "an integer"
}
