package embedded

import (
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"sync"

	"github.com/twmb/franz-go/pkg/kmsg"

	"pizzaflow/kafka"
)

const (
	maxElements = 10_000  // of all arrays of a request together
	maxText     = 4 << 10 // bytes of a name, an id or a value
	maxTags     = 16      // optional fields of one structure
)

var errLayout = errors.New("the bytes do not have the layout of the request's kind and version")

// A layout is how a request, or a part of one, is laid out on the wire. The decoder allocates as many elements and
// optional fields as a request claims to have: a few bytes would allocate a hundred times as much, or keep the decoder
// busy for a minute. So the bytes are checked against the layout before they are decoded.
type layout struct {
	kind   layoutKind
	size   int      // in bytes, of a fixed layout
	parts  []layout // of a structure; of an array its element
	tagged bool     // the decoder knows optional fields of this structure, which are structures themselves
}

type layoutKind int

const (
	absent    layoutKind = iota // not in this version
	fixed                       // a number, a boolean or a UUID
	text                        // length and bytes, or null
	blob                        // the same, with a longer length
	array                       // number of elements and elements, or null
	structure                   // parts and, where lengths are varints, optional fields
)

type kindVersion struct{ kind, version int16 }

var layouts sync.Map // from kindVersion to layout

// layoutOf returns the layout of the body of a request.
func layoutOf(kind, version int16) layout {
	key := kindVersion{kind, version}
	if l, ok := layouts.Load(key); ok {
		return l.(layout)
	}
	l := deriveStructure(reflect.TypeOf(kmsg.RequestForKey(kind)).Elem(), func(set func(reflect.Value)) []byte {
		r := kmsg.RequestForKey(kind)
		r.SetVersion(version)
		set(reflect.ValueOf(r).Elem())
		return r.AppendTo(nil)
	})
	layouts.Store(key, l)
	return l
}

// deriveStructure finds out which fields of t, a structure of the protocol, are on the wire. encode returns the bytes of
// a request that contains the structure as set changed it: a field that is on the wire changes the bytes, and an
// optional field adds more bytes than its own.
func deriveStructure(t reflect.Type, encode func(set func(reflect.Value)) []byte) layout {
	l := layout{kind: structure}
	base := string(encode(func(reflect.Value) {}))
	for i := range t.NumField() {
		if name := t.Field(i).Name; name == "Version" || name == "UnknownTags" {
			continue
		}
		part := deriveField(t.Field(i).Type, base, func(set func(reflect.Value)) []byte {
			return encode(func(v reflect.Value) { set(v.Field(i)) })
		})
		switch {
		case part.tagged && part.kind == absent:
			l.tagged = true
		case part.kind != absent:
			l.parts = append(l.parts, part)
		}
	}
	return l
}

// deriveField is deriveStructure for a field of type t. base is the request without the field.
func deriveField(t reflect.Type, base string, encode func(set func(reflect.Value)) []byte) layout {
	full := string(encode(perturb))
	if full == base {
		return layout{}
	}
	part := wireType(t)
	grown := map[layoutKind]int{text: 1, blob: 1}[part.kind] // by the one byte that perturb adds
	if part.kind == structure || part.kind != array && len(full) != len(base)+grown {
		return layout{tagged: true}
	}
	if part.kind != array {
		return part
	}
	element := wireType(t.Elem())
	if element.kind == structure {
		element = deriveStructure(t.Elem(), func(set func(reflect.Value)) []byte {
			return encode(func(v reflect.Value) { perturb(v); set(v.Index(0)) })
		})
	}
	part.parts = []layout{element}
	return part
}

// wireType returns the layout of a Go type of kmsg, without its parts.
func wireType(t reflect.Type) layout {
	switch t.Kind() {
	case reflect.Bool, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Float64, reflect.Array:
		return layout{kind: fixed, size: int(t.Size())}
	case reflect.String, reflect.Pointer:
		return layout{kind: text}
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return layout{kind: blob}
		}
		return layout{kind: array}
	case reflect.Struct:
		return layout{kind: structure}
	default:
		panic(fmt.Sprintf("the protocol has no %s", t))
	}
}

// perturb changes v: a text gets one byte, an array one element.
func perturb(v reflect.Value) {
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(v.Int() ^ 1)
	case reflect.Float64:
		v.SetFloat(v.Float() + 1)
	case reflect.Array:
		v.Index(0).SetUint(1)
	case reflect.String:
		v.SetString("x")
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		perturb(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		if d, ok := reflect.TypeAssert[interface{ Default() }](v.Index(0).Addr()); ok {
			d.Default()
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).Name != "UnknownTags" {
				perturb(v.Field(i))
			}
		}
	default:
		panic(fmt.Sprintf("the protocol has no %s", v.Type()))
	}
}

// A walker walks through bytes along a layout.
type walker struct {
	rest     []byte // the bytes it has not passed yet
	flexible bool   // lengths are varints, and structures end with optional fields
	elements int    // of all arrays so far
}

// check returns an error unless body is complete, has exactly this layout, and is within the limits.
func (l layout) check(body []byte, flexible bool) error {
	w := walker{rest: body, flexible: flexible}
	if err := w.walk(l); err != nil {
		return err
	}
	if len(w.rest) > 0 {
		return errLayout
	}
	return nil
}

// walk walks through one value.
func (w *walker) walk(l layout) error {
	switch l.kind {
	case fixed:
		return w.skip(l.size)
	case text:
		n, err := w.readLength(2)
		if err != nil || n > maxText {
			return errLayout
		}
		return w.skip(max(n, 0))
	case blob:
		n, err := w.readLength(4)
		if err != nil {
			return err
		}
		return w.skip(max(n, 0))
	case array:
		return w.walkArray(l.parts[0])
	case structure:
		for _, part := range l.parts {
			if err := w.walk(part); err != nil {
				return err
			}
		}
		return w.walkTags(l.tagged)
	default:
		return errLayout
	}
}

// walkArray walks through an array.
func (w *walker) walkArray(element layout) error {
	n, err := w.readLength(4)
	if err != nil {
		return err
	}
	if w.elements += max(n, 0); w.elements > maxElements {
		return fmt.Errorf("more than %d elements", maxElements)
	}
	for range n {
		if err := w.walk(element); err != nil {
			return err
		}
	}
	return nil
}

// walkTags walks through optional fields. Fields that the decoder knows are an error: no client sends them.
func (w *walker) walkTags(known bool) error {
	if !w.flexible {
		return nil
	}
	n, err := w.readVarint()
	if err != nil || n > maxTags || known && n > 0 {
		return errLayout
	}
	for range n {
		if _, err := w.readVarint(); err != nil {
			return err
		}
		size, err := w.readVarint()
		if err != nil {
			return err
		}
		if err := w.skip(size); err != nil {
			return err
		}
	}
	return nil
}

// readLength reads a length, −1 for null, which has width bytes where lengths are no varints.
func (w *walker) readLength(width int) (int, error) {
	if w.flexible {
		n, err := w.readVarint()
		return n - 1, err
	}
	if len(w.rest) < width {
		return 0, errLayout
	}
	n := int(int32(binary.BigEndian.Uint32(append(make([]byte, 4-width, 4), w.rest[:width]...))))
	if width == 2 {
		n = int(int16(n))
	}
	w.rest = w.rest[width:]
	if n < -1 {
		return 0, errLayout
	}
	return n, nil
}

func (w *walker) readVarint() (int, error) {
	n, width := binary.Uvarint(w.rest)
	if width <= 0 || n > uint64(kafka.MaxRequest) {
		return 0, errLayout
	}
	w.rest = w.rest[width:]
	return int(n), nil
}

func (w *walker) skip(n int) error {
	if n > len(w.rest) {
		return errLayout
	}
	w.rest = w.rest[n:]
	return nil
}
