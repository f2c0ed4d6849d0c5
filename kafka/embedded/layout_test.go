package embedded

import (
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// For every kind and version that is offered, a request that the encoder wrote has the layout that was derived, and has
// not when a byte is missing or added.
func TestLayoutsAreThoseOfTheProtocol(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for kind, rule := range rules {
		for version := range rule.max + 1 {
			for range 20 {
				r := kmsg.RequestForKey(kind)
				fillPlain(rng, reflect.ValueOf(r).Elem())
				r.SetVersion(version)
				body := r.AppendTo(nil)
				l, flexible := layoutOf(kind, version), r.IsFlexible()
				if err := l.check(body, flexible); err != nil {
					t.Fatalf("%s, version %d: %v\n%+v", kmsg.NameForKey(kind), version, err, r)
				}
				if l.check(append(body, 0), flexible) == nil {
					t.Fatalf("%s, version %d: a byte more is accepted", kmsg.NameForKey(kind), version)
				}
				if len(body) > 0 && l.check(body[:len(body)-1], flexible) == nil {
					t.Fatalf("%s, version %d: a byte less is accepted", kmsg.NameForKey(kind), version)
				}
			}
		}
	}
}

// fillPlain gives v values as a client sends them: the fields that only brokers use, which are structures, stay empty.
func fillPlain(rng *rand.Rand, v reflect.Value) {
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(rng.IntN(2) == 0)
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(rng.Int64N(200) - 100)
	case reflect.String:
		v.SetString("some words"[:rng.IntN(10)])
	case reflect.Array:
		v.Index(3).SetUint(uint64(rng.IntN(256)))
	case reflect.Pointer:
		if rng.IntN(2) == 0 {
			v.Set(reflect.New(v.Type().Elem()))
			fillPlain(rng, v.Elem())
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), rng.IntN(4), 4))
		for i := range v.Len() {
			fillPlain(rng, v.Index(i))
		}
	case reflect.Uint8:
		v.SetUint(uint64(rng.IntN(256)))
	case reflect.Struct:
		if d, ok := reflect.TypeAssert[interface{ Default() }](v.Addr()); ok {
			d.Default()
		}
		for i := range v.NumField() {
			switch v.Type().Field(i).Name {
			case "Version", "UnknownTags", "ClusterID", "ReplicaState", "ReplicaDirectoryID", "HighWatermark":
			default:
				fillPlain(rng, v.Field(i))
			}
		}
	}
}

// Claims of a few bytes are refused: numbers of elements and of optional fields, lengths, and arrays in arrays.
func TestLayoutsAreBounded(t *testing.T) {
	many := []byte{0xff, 0xff, 0xff, 0xff, 0x0f}
	for name, c := range map[string]struct {
		kind    kmsg.Key
		version int16
		body    []byte
	}{
		"elements":             {kmsg.Metadata, 1, []byte{0x7f, 0xff, 0xff, 0xff}},
		"elements, compact":    {kmsg.Metadata, 9, many},
		"fewer than nothing":   {kmsg.Metadata, 1, []byte{0xff, 0xff, 0xff, 0xfe}},
		"optional fields":      {kmsg.ListGroups, 3, many},
		"an optional field":    {kmsg.ListGroups, 3, append([]byte{1, 0}, many...)},
		"one that is known":    {kmsg.Fetch, 15, append(make([]byte, 24), 1, 1, 0)},
		"seventeen of them":    {kmsg.ListGroups, 3, append([]byte{17}, make([]byte, 34)...)},
		"a name":               {kmsg.Heartbeat, 0, []byte{0x7f, 0xff}},
		"ten thousand and one": {kmsg.Metadata, 1, append([]byte{0, 0, 0x27, 0x11}, make([]byte, 2*10_001)...)},
	} {
		r := kmsg.RequestForKey(int16(c.kind))
		r.SetVersion(c.version)
		if err := layoutOf(int16(c.kind), c.version).check(c.body, r.IsFlexible()); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
