package embedded

import (
	"encoding/binary"
	"errors"
	"fmt"
	"pizzaflow/kafka"
	"reflect"
	"sync"

	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	maxElements = 10_000  // of all arrays of a request together
	maxText     = 4 << 10 // bytes of a name, an id or a value
	maxTags     = 16      // optional fields of one structure
)

var errShape = errors.New("not made as its kind and version say")

// A shape is what a request, or a part of one, is made of on the wire. The decoder takes a request's word for how many
// elements and optional fields it has: a few bytes would set aside a hundred times as much, or keep it busy for a
// minute. So the bytes are held against the shape before anything is decoded.
type shape struct {
	kind   shapeKind
	size   int     // of a fixed one, in bytes
	parts  []shape // of a structure, or the one that an array is made of
	tagged bool    // a structure of which the decoder knows optional fields, which are structures themselves
}

type shapeKind int

const (
	absent    shapeKind = iota // not in this version
	fixed                      // a number, a truth value or a UUID
	text                       // length and bytes, or null
	blob                       // the same, with a longer length
	array                      // number and elements, or null
	structure                  // its parts and, where lengths are varints, its optional fields
)

type kindVersion struct{ kind, version int16 }

var shapes sync.Map // of kindVersion: shape

// shapeOf returns the shape of the body of a request.
func shapeOf(kind, version int16) shape {
	key := kindVersion{kind, version}
	if s, ok := shapes.Load(key); ok {
		return s.(shape)
	}
	s := learnStructure(reflect.TypeOf(kmsg.RequestForKey(kind)).Elem(), func(set func(reflect.Value)) []byte {
		r := kmsg.RequestForKey(kind)
		r.SetVersion(version)
		set(reflect.ValueOf(r).Elem())
		return r.AppendTo(nil)
	})
	shapes.Store(key, s)
	return s
}

// learnStructure finds out which fields of t, a type of the protocol's own structures, are on the wire. encode makes a
// request with the structure in it, as set left it: a field that is there changes the bytes, and one that is optional
// changes them by more than itself.
func learnStructure(t reflect.Type, encode func(set func(reflect.Value)) []byte) shape {
	s := shape{kind: structure}
	base := string(encode(func(reflect.Value) {}))
	for i := range t.NumField() {
		if name := t.Field(i).Name; name == "Version" || name == "UnknownTags" {
			continue
		}
		part := learnField(t.Field(i).Type, base, func(set func(reflect.Value)) []byte {
			return encode(func(v reflect.Value) { set(v.Field(i)) })
		})
		switch {
		case part.tagged && part.kind == absent:
			s.tagged = true
		case part.kind != absent:
			s.parts = append(s.parts, part)
		}
	}
	return s
}

func learnField(t reflect.Type, base string, encode func(set func(reflect.Value)) []byte) shape {
	full := string(encode(touch))
	if full == base {
		return shape{}
	}
	part := wire(t)
	grown := map[shapeKind]int{text: 1, blob: 1}[part.kind] // by the one byte that touch puts in
	if part.kind == structure || part.kind != array && len(full) != len(base)+grown {
		return shape{tagged: true}
	}
	if part.kind != array {
		return part
	}
	element := wire(t.Elem())
	if element.kind == structure {
		element = learnStructure(t.Elem(), func(set func(reflect.Value)) []byte {
			return encode(func(v reflect.Value) { touch(v); set(v.Index(0)) })
		})
	}
	part.parts = []shape{element}
	return part
}

// wire returns how a Go type of kmsg travels, without its parts.
func wire(t reflect.Type) shape {
	switch t.Kind() {
	case reflect.Bool, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Float64, reflect.Array:
		return shape{kind: fixed, size: int(t.Size())}
	case reflect.String, reflect.Pointer:
		return shape{kind: text}
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return shape{kind: blob}
		}
		return shape{kind: array}
	case reflect.Struct:
		return shape{kind: structure}
	default:
		panic(fmt.Sprintf("the protocol has no %s", t))
	}
}

// touch gives v another value: one byte of text, one element.
func touch(v reflect.Value) {
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
		touch(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		if d, ok := reflect.TypeAssert[interface{ Default() }](v.Index(0).Addr()); ok {
			d.Default()
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).Name != "UnknownTags" {
				touch(v.Field(i))
			}
		}
	default:
		panic(fmt.Sprintf("the protocol has no %s", v.Type()))
	}
}

// A measure holds bytes against a shape.
type measure struct {
	rest     []byte
	flexible bool // lengths are varints, and structures end with optional fields
	elements int
}

// fits reports whether body is whole and exactly of this shape, and within the limits.
func (s shape) fits(body []byte, flexible bool) error {
	m := measure{rest: body, flexible: flexible}
	if err := m.pass(s); err != nil {
		return err
	}
	if len(m.rest) > 0 {
		return errShape
	}
	return nil
}

func (m *measure) pass(s shape) error {
	switch s.kind {
	case fixed:
		return m.skip(s.size)
	case text:
		n, err := m.length(2)
		if err != nil || n > maxText {
			return errShape
		}
		return m.skip(max(n, 0))
	case blob:
		n, err := m.length(4)
		if err != nil {
			return err
		}
		return m.skip(max(n, 0))
	case array:
		return m.passArray(s.parts[0])
	case structure:
		for _, part := range s.parts {
			if err := m.pass(part); err != nil {
				return err
			}
		}
		return m.passTags(s.tagged)
	default:
		return errShape
	}
}

func (m *measure) passArray(element shape) error {
	n, err := m.length(4)
	if err != nil {
		return err
	}
	if m.elements += max(n, 0); m.elements > maxElements {
		return fmt.Errorf("more than %d elements", maxElements)
	}
	for range n {
		if err := m.pass(element); err != nil {
			return err
		}
	}
	return nil
}

// passTags passes optional fields. Those that the decoder would decode are refused: no client sends them.
func (m *measure) passTags(known bool) error {
	if !m.flexible {
		return nil
	}
	n, err := m.varint()
	if err != nil || n > maxTags || known && n > 0 {
		return errShape
	}
	for range n {
		if _, err := m.varint(); err != nil {
			return err
		}
		size, err := m.varint()
		if err != nil {
			return err
		}
		if err := m.skip(size); err != nil {
			return err
		}
	}
	return nil
}

// length passes the length of what follows, -1 for null; it takes width bytes where it is no varint.
func (m *measure) length(width int) (int, error) {
	if m.flexible {
		n, err := m.varint()
		return n - 1, err
	}
	if len(m.rest) < width {
		return 0, errShape
	}
	n := int(int32(binary.BigEndian.Uint32(append(make([]byte, 4-width, 4), m.rest[:width]...))))
	if width == 2 {
		n = int(int16(n))
	}
	m.rest = m.rest[width:]
	if n < -1 {
		return 0, errShape
	}
	return n, nil
}

func (m *measure) varint() (int, error) {
	n, width := binary.Uvarint(m.rest)
	if width <= 0 || n > uint64(kafka.MaxRequest) {
		return 0, errShape
	}
	m.rest = m.rest[width:]
	return int(n), nil
}

func (m *measure) skip(n int) error {
	if n > len(m.rest) {
		return errShape
	}
	m.rest = m.rest[n:]
	return nil
}
