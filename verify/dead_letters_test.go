package verify

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Two dead letters that differ in a byte have different checksums.
func TestDeadLettersAreIdentifiedByAllTheirBytes(t *testing.T) {
	deadLetter := func(key, value string, headers ...string) *kgo.Record {
		r := &kgo.Record{Key: []byte(key), Value: []byte(value)}
		for i := 0; i < len(headers); i += 2 {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: headers[i], Value: []byte(headers[i+1])})
		}
		return r
	}
	seen := map[string]int{}
	for i, r := range []*kgo.Record{
		deadLetter("k", `{"a":1}`, "h", "v"),
		deadLetter("l", `{"a":1}`, "h", "v"),
		deadLetter("k", `{"a":2}`, "h", "v"),
		deadLetter("k", `{"a":1}`, "i", "v"),
		deadLetter("k", `{"a":1}`, "h", "w"),
		deadLetter("k", `{"a":1}`, "h", "v", "h", "v"),
		deadLetter("k", `{"a":1}`),
		deadLetter("k{", `"a":1}`, "h", "v"),
		deadLetter("k", `{"a":1}h`, "", "v"),
		deadLetter("k", `{"a":1}`, "hv", ""),
	} {
		sum := string(deadLetterSum(r))
		if other, ok := seen[sum]; ok {
			t.Errorf("dead letters %d and %d have one checksum", other, i)
		}
		seen[sum] = i
	}
	// the first of them as the outbox keeps it
	cells := []any{"id", "topic", `{"a":1}`, "k", `[{"key":"h","value":"v"}]`, nil}
	finishDeadLetter(cells)
	sum, _ := cells[5].([]byte)
	if i, ok := seen[string(sum)]; !ok || i != 0 {
		t.Errorf("a dead letter of the outbox, with the checksum %x, is not found on its topic", sum)
	}
}
