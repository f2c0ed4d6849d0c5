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

// errStop ends a walk; the faults are in the walker.
var errStop = errors.New("stop")

// unmarshal is a strict json.Unmarshal. encoding/json keeps the last of two equal
// names, matches names in any letter case, drops unknown names, ignores null and
// replaces invalid characters. So a walker first compares the body, token by token,
// with the type of v.
func unmarshal(body []byte, v any) *Problem {
	w := walker{body: body, dec: json.NewDecoder(bytes.NewReader(body))}
	w.dec.UseNumber()
	if w.walkValue(reflect.TypeOf(v).Elem(), "#", false, 1) == nil {
		w.checkEnd()
	}
	switch {
	case len(w.faults) > 0:
		return malformed("The request body is not what this address takes.", w.faults...)
	case len(w.nuls) > 0:
		return Invalid(w.nuls...)
	}
	if err := json.Unmarshal(body, v); err != nil {
		// The walker is at least as strict, so this cannot happen; if it does, the body is refused.
		return malformed("The request body is not what this address takes.",
			FieldError{"#", CodeSyntax, "The body is not valid JSON."}).Because(err)
	}
	return nil
}

// walker reads a body token by token and collects its faults.
type walker struct {
	body   []byte
	dec    *json.Decoder
	faults []FieldError // 400
	nuls   []FieldError // 422
}

// addFault adds a fault and ends the walk at maxFaults.
func (w *walker) addFault(at, code, detail string) error {
	w.faults = append(w.faults, FieldError{at, code, detail})
	if len(w.faults) == maxFaults {
		return errStop
	}
	return nil
}

// addFinalFault adds a fault after which the rest cannot be read.
func (w *walker) addFinalFault(at, code, detail string) error {
	_ = w.addFault(at, code, detail)
	return errStop
}

// readToken reads the next token and returns it with its text and its offset.
func (w *walker) readToken(at string) (tok json.Token, raw []byte, start int, err error) {
	from := w.dec.InputOffset()
	tok, err = w.dec.Token()
	if err != nil {
		return nil, nil, 0, w.addSyntaxFault(at)
	}
	end := int(w.dec.InputOffset())
	raw = bytes.TrimLeft(w.body[from:end], " \t\r\n,:")
	if _, ok := tok.(string); ok {
		err = w.checkText(at, raw)
	}
	return tok, raw, end - len(raw), err
}

// addSyntaxFault adds the fault of a body that stops being JSON here. It quotes
// nothing of the body.
func (w *walker) addSyntaxFault(at string) error {
	switch {
	case len(bytes.TrimSpace(w.body)) == 0:
		return w.addFinalFault("#", CodeEmpty, "The body is empty.")
	case !utf8.Valid(w.body):
		return w.addFinalFault(at, CodeInvalidUTF8, "The body is not UTF-8.")
	case bytes.HasPrefix(w.body, []byte("\ufeff")):
		return w.addFinalFault("#", CodeSyntax, "The body begins with a byte order mark.")
	}
	return w.addFinalFault(at, CodeSyntax, "The body is not valid JSON.")
}

// checkText checks a string for invalid characters, which encoding/json would
// replace, and for U+0000.
func (w *walker) checkText(at string, raw []byte) error {
	if !utf8.Valid(raw) {
		return w.addFault(at, CodeInvalidUTF8, "The text is not UTF-8.")
	}
	lone, nul := scanEscapes(raw)
	if nul && len(w.nuls) < maxFaults {
		w.nuls = append(w.nuls, FieldError{at, CodeNUL, "The text must not contain the character U+0000."})
	}
	if lone {
		return w.addFault(at, CodeLoneSurrogate, `The text has one half of a \u surrogate pair without the other.`)
	}
	return nil
}

// scanEscapes reports whether a well-formed JSON string has an escaped surrogate
// without its other half (lone), or an escaped U+0000 (nul).
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

// checkEnd adds a fault if the rest of the body is not white space.
func (w *walker) checkEnd() {
	if _, err := w.dec.Token(); !errors.Is(err, io.EOF) {
		_ = w.addFault("#", CodeTrailingData, "There is more data after the end of the JSON value.")
	}
}

// walkValue walks one value of the type t. t is nil for the value of an unknown field:
// then it checks the syntax alone.
func (w *walker) walkValue(t reflect.Type, at string, optional bool, depth int) error {
	tok, raw, start, err := w.readToken(at)
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
		return w.addFinalFault(at, CodeTooDeep, fmt.Sprintf("The body is nested deeper than %d levels.", maxDepth))
	case composite:
		return w.walkComposite(t, delim, at, start, depth)
	case t == nil, tok == nil && (pointer || t.Kind() == reflect.Interface):
		return nil
	case tok == nil && !optional:
		return w.addFault(at, CodeNull, "A value is required here; null is none.")
	}
	return w.checkScalar(t, tok, raw, at)
}

// walkComposite walks an object or an array whose opening token has been read.
func (w *walker) walkComposite(t reflect.Type, delim json.Delim, at string, start, depth int) error {
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
		if err := w.addFault(at, CodeWrongType, "Expected "+describe(t)+"."); err != nil {
			return err
		}
	}
	var err error
	if delim == '{' {
		err = w.walkObject(fields, elem, at, depth)
	} else {
		err = w.walkArray(elem, at, depth)
	}
	if err != nil || !own {
		return err
	}
	return w.checkDecodes(t, w.body[start:w.dec.InputOffset()], at)
}

// walkObject walks the fields of an object. With nil fields it accepts any name, and
// every value has the type elem.
func (w *walker) walkObject(fields map[string]field, elem reflect.Type, at string, depth int) error {
	seen := map[string]bool{}
	for w.dec.More() {
		tok, _, _, err := w.readToken(at)
		if err != nil {
			return err
		}
		name, ok := tok.(string)
		if !ok {
			return w.addSyntaxFault(at)
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
			err = w.addFault(here, CodeDuplicateField, "The field is given more than once.")
		case !ok:
			err = w.addFault(here, CodeUnknownField, "There is no such field; names are matched exactly.")
		}
		seen[name] = true
		if err == nil {
			err = w.walkValue(f.typ, here, f.optional, depth+1)
		}
		if err != nil {
			return err
		}
	}
	return w.readClosing(at)
}

// walkArray walks the elements of an array.
func (w *walker) walkArray(elem reflect.Type, at string, depth int) error {
	for i := 0; w.dec.More(); i++ {
		if err := w.walkValue(elem, at+"/"+strconv.Itoa(i), false, depth+1); err != nil {
			return err
		}
	}
	return w.readClosing(at)
}

func (w *walker) readClosing(at string) error {
	_, _, _, err := w.readToken(at)
	return err
}

// checkScalar checks a string, a number, a boolean or a permitted null against t.
func (w *walker) checkScalar(t reflect.Type, tok json.Token, raw []byte, at string) error {
	number, isNumber := tok.(json.Number)
	_, isString := tok.(string)
	switch own := hasOwnDecoder(t); {
	case isString && t.Kind() == reflect.String && !own && t != reflect.TypeFor[json.Number]():
		return nil // any string is valid
	case !isNumber || own:
		return w.checkDecodes(t, raw, at)
	}
	switch integer := !strings.ContainsAny(number.String(), ".eE"); t.Kind() {
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		if _, err := strconv.ParseInt(string(number), 10, t.Bits()); err != nil && integer {
			return w.addFault(at, CodeOutOfRange, "The number does not fit.")
		}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if _, err := strconv.ParseUint(string(number), 10, t.Bits()); err != nil && integer {
			return w.addFault(at, CodeOutOfRange, "The number does not fit.")
		}
	case reflect.Float32, reflect.Float64, reflect.Interface:
		// 1e400 would become infinite and 1e-400 zero.
		f, err := strconv.ParseFloat(string(number), 64)
		if err != nil || f == 0 && strings.ContainsAny(mantissa(string(number)), "123456789") {
			return w.addFault(at, CodeOutOfRange, "The number does not fit.")
		}
	}
	return w.checkDecodes(t, raw, at)
}

// mantissa returns a JSON number without its exponent.
func mantissa(number string) string {
	if i := strings.IndexAny(number, "eE"); i >= 0 {
		return number[:i]
	}
	return number
}

// checkDecodes adds a fault if encoding/json does not decode the value into a t. The
// error may quote the value, so it is not passed on.
func (w *walker) checkDecodes(t reflect.Type, raw []byte, at string) error {
	if json.Unmarshal(raw, reflect.New(t).Interface()) != nil {
		return w.addFault(at, CodeWrongType, "Expected "+describe(t)+".")
	}
	return nil
}

var escapePointer = strings.NewReplacer("~", "~0", "/", "~1")

// pointerTo returns the pointer to a member whose name the client chose. It repeats
// only a short name of letters, digits and _-., and else points to the object.
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
