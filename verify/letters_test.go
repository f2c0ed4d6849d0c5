package verify

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// A letter on its topic is another one as soon as a byte of it is.
func TestLettersAreKnownByAllTheySay(t *testing.T) {
	letter := func(key, value string, headers ...string) *kgo.Record {
		r := &kgo.Record{Key: []byte(key), Value: []byte(value)}
		for i := 0; i < len(headers); i += 2 {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: headers[i], Value: []byte(headers[i+1])})
		}
		return r
	}
	seen := map[string]int{}
	for i, r := range []*kgo.Record{
		letter("k", `{"a":1}`, "h", "v"),
		letter("l", `{"a":1}`, "h", "v"),
		letter("k", `{"a":2}`, "h", "v"),
		letter("k", `{"a":1}`, "i", "v"),
		letter("k", `{"a":1}`, "h", "w"),
		letter("k", `{"a":1}`, "h", "v", "h", "v"),
		letter("k", `{"a":1}`),
		letter("k{", `"a":1}`, "h", "v"),
		letter("k", `{"a":1}h`, "", "v"),
		letter("k", `{"a":1}`, "hv", ""),
	} {
		sum := string(letterSum(r))
		if other, ok := seen[sum]; ok {
			t.Errorf("letters %d and %d are taken for the same", other, i)
		}
		seen[sum] = i
	}
	// as the outbox keeps the first of them
	cells := []any{"id", "topic", `{"a":1}`, "k", `[{"key":"h","value":"v"}]`, nil}
	finishLetter(cells)
	sum, _ := cells[5].([]byte)
	if i, ok := seen[string(sum)]; !ok || i != 0 {
		t.Errorf("a letter of the outbox, by the sum %x, is not known on its topic", sum)
	}
}
