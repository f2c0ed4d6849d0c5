package embedded

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"testing"
)

// frame builds a frame by the description in frames.go, not by its code.
func frame(data string) []byte {
	body := append([]byte{1, 0}, data...)
	f := binary.LittleEndian.AppendUint32(nil, uint32(len(body)))
	f = binary.LittleEndian.AppendUint32(f, crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)))
	return append(f, body...)
}

func TestWholeFramesFindsAllAroundATornOne(t *testing.T) {
	a, b, c := frame(`{"type":"commit","g":"a"}`), frame(`{"type":"commit","g":"b"}`), frame(`{"type":"commit","g":"c"}`)
	for cut := range b {
		raw := bytes.Join([][]byte{a, b[:cut], c}, nil)
		frames, torn := wholeFrames(raw)
		if len(frames) != 2 || torn != cut || !bytes.Equal(frames[0], a) || !bytes.Equal(frames[1], c) {
			t.Fatalf("cut after %d bytes: %d frames, %d torn bytes", cut, len(frames), torn)
		}
	}
	flipped := bytes.Clone(b)
	flipped[len(b)-1] ^= 1
	if frames, torn := wholeFrames(bytes.Join([][]byte{a, flipped, c}, nil)); len(frames) != 2 || torn != len(b) {
		t.Fatalf("one bit flipped: %d frames, %d torn bytes", len(frames), torn)
	}
	if frames, torn := wholeFrames(bytes.Join([][]byte{a, b, c}, nil)); len(frames) != 3 || torn != 0 {
		t.Fatalf("whole: %d frames, %d torn bytes", len(frames), torn)
	}
}

func FuzzWholeFrames(f *testing.F) {
	f.Add([]byte(nil), []byte("garbage"))
	f.Add(frame("{}"), make([]byte, 64))
	f.Fuzz(func(t *testing.T, before, after []byte) {
		want := frame(`{"type":"commit","g":"group","t":"topic","o":7}`)
		frames, torn := wholeFrames(bytes.Join([][]byte{before, want, after}, nil))
		size := torn
		for _, g := range frames {
			size += len(g)
		}
		if size != len(before)+len(want)+len(after) {
			t.Fatalf("%d bytes of %d accounted for", size, len(before)+len(want)+len(after))
		}
	})
}

func TestCommitIn(t *testing.T) {
	c, offset, ok := commitIn(frame(`{"type":"commit","g":"payment-service","t":"order-events","p":2,"o":41}`))
	if !ok || offset != 41 || c != (commit{"payment-service", "order-events", 2}) {
		t.Errorf("%v %d %v", c, offset, ok)
	}
	for _, other := range []string{`{"type":"meta","g":"payment-service"}`, `not JSON`, `{"type":"commit","o":"x"}`} {
		if _, _, ok := commitIn(frame(other)); ok {
			t.Errorf("%s is taken for a commit", other)
		}
	}
}
