package web

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	maxDepth  = 32 // levels of objects and arrays
	maxFaults = 16 // reported for one body
)

// errStop ends a walk; what there is to say stands in the walker's faults.
var errStop = errors.New("stop")

// unmarshal is json.Unmarshal for bodies that mean exactly what they say.
// encoding/json alone would keep the last of two equal names, match names in any
// letter case, drop unknown ones, ignore null and replace what is not a character.
// So the body is first walked, token by token, beside the type of v.
func unmarshal(body []byte, v any) *Problem {
	w := walker{body: body, dec: json.NewDecoder(bytes.NewReader(body))}
	w.dec.UseNumber()
	if w.value(reflect.TypeOf(v).Elem(), "#", false, 1) == nil {
		w.end()
	}
	switch {
	case len(w.faults) > 0:
		return malformed("The request body is not what this address takes.", w.faults...)
	case len(w.nuls) > 0:
		return Invalid(w.nuls...)
	}
	if err := json.Unmarshal(body, v); err != nil {
		// The walk is at least as strict, so nothing comes here; if it does, it is refused.
		return malformed("The request body is not what this address takes.",
			FieldError{"#", CodeSyntax, "The body is not valid JSON."}).Because(err)
	}
	return nil
}

// walker goes through a body token by token and notes its faults.
type walker struct {
	body   []byte
	dec    *json.Decoder
	faults []FieldError // 400
	nuls   []FieldError // 422
}

// fault notes one fault and ends the walk when there are enough of them.
func (w *walker) fault(at, code, detail string) error {
	w.faults = append(w.faults, FieldError{at, code, detail})
	if len(w.faults) == maxFaults {
		return errStop
	}
	return nil
}

// stop notes a fault after which the rest cannot be read.
func (w *walker) stop(at, code, detail string) error {
	_ = w.fault(at, code, detail)
	return errStop
}

// token reads the next token, and returns it with its text and where that begins.
func (w *walker) token(at string) (tok json.Token, raw []byte, start int, err error) {
	from := w.dec.InputOffset()
	tok, err = w.dec.Token()
	if err != nil {
		return nil, nil, 0, w.broken(at)
	}
	end := int(w.dec.InputOffset())
	raw = bytes.TrimLeft(w.body[from:end], " \t\r\n,:")
	if _, ok := tok.(string); ok {
		err = w.text(at, raw)
	}
	return tok, raw, end - len(raw), err
}

// broken notes that the body stops being JSON here. Nothing of it is quoted.
func (w *walker) broken(at string) error {
	switch {
	case len(bytes.TrimSpace(w.body)) == 0:
		return w.stop("#", CodeEmpty, "The body is empty.")
	case !utf8.Valid(w.body):
		return w.stop(at, CodeInvalidUTF8, "The body is not UTF-8.")
	case bytes.HasPrefix(w.body, []byte("\ufeff")):
		return w.stop("#", CodeSyntax, "The body begins with a byte order mark.")
	}
	return w.stop(at, CodeSyntax, "The body is not valid JSON.")
}

// text looks for what encoding/json would silently replace in a string.
func (w *walker) text(at string, raw []byte) error {
	if !utf8.Valid(raw) {
		return w.fault(at, CodeInvalidUTF8, "The text is not UTF-8.")
	}
	lone, nul := scanEscapes(raw)
	if nul && len(w.nuls) < maxFaults {
		w.nuls = append(w.nuls, FieldError{at, CodeNUL, "The text must not contain the character U+0000."})
	}
	if lone {
		return w.fault(at, CodeLoneSurrogate, `The text has one half of a \u surrogate pair without the other.`)
	}
	return nil
}

// scanEscapes reports whether a JSON string that is known to be well-formed has
// an escaped surrogate without its other half, or an escaped U+0000.
func scanEscapes(s []byte) (lone, nul bool) {
	unit := func(i int) uint64 { // of an \uXXXX at i, else 0x10000
		if i+6 > len(s) || s[i] != '\\' || s[i+1] != 'u' {
			return 0x10000
		}
		u, err := strconv.ParseUint(string(s[i+2:i+6]), 16, 16)
		if err != nil {
			return 0x10000
		}
		return u
	}
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			continue
		}
		switch u := unit(i); {
		case u == 0:
			nul = true
		case u >= 0xD800 && u < 0xDC00:
			if low := unit(i + 6); low < 0xDC00 || low > 0xDFFF {
				return true, nul
			}
			i += 6
		case u >= 0xDC00 && u <= 0xDFFF:
			return true, nul
		}
		i++ // the escaped character: a \\ must not begin another escape
	}
	return false, nul
}

// end wants nothing but white space up to the end of the body.
func (w *walker) end() {
	if _, err := w.dec.Token(); !errors.Is(err, io.EOF) {
		_ = w.fault("#", CodeTrailingData, "There is more data after the end of the JSON value.")
	}
}

// value walks one value that is to become a t. A nil t means that nothing is
// known of it (the value of an unknown field); its syntax is walked all the same.
func (w *walker) value(t reflect.Type, at string, optional bool, depth int) error {
	tok, raw, start, err := w.token(at)
	if err != nil {
		return err
	}
	pointer := false
	for t != nil && t.Kind() == reflect.Pointer {
		t, pointer = t.Elem(), true
	}
	delim, composite := tok.(json.Delim)
	switch {
	case composite && depth > maxDepth:
		return w.stop(at, CodeTooDeep, fmt.Sprintf("The body is nested deeper than %d levels.", maxDepth))
	case composite:
		return w.composite(t, delim, at, start, depth)
	case t == nil, tok == nil && (pointer || t.Kind() == reflect.Interface):
		return nil
	case tok == nil && !optional:
		return w.fault(at, CodeNull, "A value is required here; null is none.")
	}
	return w.scalar(t, tok, raw, at)
}

// composite walks an object or an array whose opening token has been read.
func (w *walker) composite(t reflect.Type, delim json.Delim, at string, start, depth int) error {
	want := reflect.Invalid
	if t != nil {
		want = t.Kind()
	}
	own := t != nil && hasOwnDecoder(t)
	elem, fields := reflect.Type(nil), map[string]field(nil)
	switch {
	case t == nil || own:
	case want == reflect.Interface:
		elem = t
	case delim == '{' && want == reflect.Map, delim == '[' && (want == reflect.Slice || want == reflect.Array):
		elem = t.Elem()
	case delim == '{' && want == reflect.Struct:
		fields = fieldsOf(t)
	default:
		if err := w.fault(at, CodeWrongType, "Expected "+describe(t)+"."); err != nil {
			return err
		}
	}
	var err error
	if delim == '{' {
		err = w.object(fields, elem, at, depth)
	} else {
		err = w.array(elem, at, depth)
	}
	if err != nil || !own {
		return err
	}
	return w.check(t, w.body[start:w.dec.InputOffset()], at)
}

// object walks the fields of an object. Without a list of fields any name will
// do, and every value is to become an elem.
func (w *walker) object(fields map[string]field, elem reflect.Type, at string, depth int) error {
	seen := map[string]bool{}
	for w.dec.More() {
		tok, _, _, err := w.token(at)
		if err != nil {
			return err
		}
		name, ok := tok.(string)
		if !ok {
			return w.broken(at)
		}
		f, here := field{typ: elem}, at+"/"+escapePointer.Replace(name)
		if fields != nil {
			f, ok = fields[name]
		}
		if !ok || fields == nil {
			here = pointerTo(at, name)
		}
		switch {
		case seen[name]:
			err = w.fault(here, CodeDuplicateField, "The field is given more than once.")
		case !ok:
			err = w.fault(here, CodeUnknownField, "There is no such field; names are matched exactly.")
		}
		seen[name] = true
		if err == nil {
			err = w.value(f.typ, here, f.optional, depth+1)
		}
		if err != nil {
			return err
		}
	}
	return w.closing(at)
}

// array walks the elements of an array.
func (w *walker) array(elem reflect.Type, at string, depth int) error {
	for i := 0; w.dec.More(); i++ {
		if err := w.value(elem, at+"/"+strconv.Itoa(i), false, depth+1); err != nil {
			return err
		}
	}
	return w.closing(at)
}

func (w *walker) closing(at string) error {
	_, _, _, err := w.token(at)
	return err
}

// scalar checks a string, a number, a boolean or a permitted null against t.
func (w *walker) scalar(t reflect.Type, tok json.Token, raw []byte, at string) error {
	number, isNumber := tok.(json.Number)
	_, isString := tok.(string)
	switch own := hasOwnDecoder(t); {
	case isString && t.Kind() == reflect.String && !own && t != reflect.TypeFor[json.Number]():
		return nil // any will do
	case !isNumber || own:
		return w.check(t, raw, at)
	}
	switch integer := !strings.ContainsAny(number.String(), ".eE"); t.Kind() {
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		if _, err := strconv.ParseInt(string(number), 10, t.Bits()); err != nil && integer {
			return w.fault(at, CodeOutOfRange, "The number does not fit.")
		}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if _, err := strconv.ParseUint(string(number), 10, t.Bits()); err != nil && integer {
			return w.fault(at, CodeOutOfRange, "The number does not fit.")
		}
	case reflect.Float32, reflect.Float64, reflect.Interface:
		// 1e400 overflows and 1e-400 vanishes: neither is what was meant.
		f, err := strconv.ParseFloat(string(number), 64)
		if err != nil || f == 0 && strings.ContainsAny(mantissa(string(number)), "123456789") {
			return w.fault(at, CodeOutOfRange, "The number does not fit.")
		}
	}
	return w.check(t, raw, at)
}

// mantissa is the part of a JSON number before its exponent.
func mantissa(number string) string {
	if i := strings.IndexAny(number, "eE"); i >= 0 {
		return number[:i]
	}
	return number
}

// check asks encoding/json whether the value becomes a t. The error's text may
// quote the value, so it is not passed on.
func (w *walker) check(t reflect.Type, raw []byte, at string) error {
	if json.Unmarshal(raw, reflect.New(t).Interface()) != nil {
		return w.fault(at, CodeWrongType, "Expected "+describe(t)+".")
	}
	return nil
}

var escapePointer = strings.NewReplacer("~", "~0", "/", "~1")

// pointerTo points at a member whose name the client chose. Only a name that
// looks like one is repeated; for others the pointer stops at the object.
func pointerTo(at, name string) string {
	if name == "" || len(name) > 40 || name[0] >= '0' && name[0] <= '9' {
		return at
	}
	for _, c := range []byte(name) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (c < '0' || c > '9') && c != '_' && c != '-' && c != '.' {
			return at
		}
	}
	return at + "/" + name
}
