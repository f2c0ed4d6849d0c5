package verify

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/event"
)

// finishLetter puts in place of a dead letter's value, key and headers, as they
// stand in the outbox, what it says of the record that died and its sum.
func finishLetter(cells []any) {
	value, _ := cells[2].(string)
	key, _ := cells[3].(string)
	list, _ := cells[4].(string)
	var stored []struct {
		Key    string `json:"key"`
		Value  string `json:"value"`
		Base64 []byte `json:"base64"` // of what is not text
	}
	var letter struct {
		ConsumerGroup     string    `json:"consumer_group"`
		OriginalTopic     string    `json:"original_topic"`
		OriginalPartition int32     `json:"original_partition"`
		OriginalOffset    int64     `json:"original_offset"`
		FailedAt          time.Time `json:"failed_at"`
	}
	// what cannot be read is told as a letter that is not there
	if json.Unmarshal([]byte(list), &stored) != nil || json.Unmarshal([]byte(value), &letter) != nil {
		cells[2], cells[3], cells[4], cells[5] = "?", "?", 0, nil
		return
	}
	headers := make([]kgo.RecordHeader, len(stored))
	for i, h := range stored {
		headers[i] = kgo.RecordHeader{Key: h.Key, Value: append([]byte(h.Value), h.Base64...)}
	}
	cells[2], cells[3] = letter.ConsumerGroup, fmt.Sprintf("%s/%d/%d", letter.OriginalTopic, letter.OriginalPartition, letter.OriginalOffset)
	cells[4], cells[5] = letter.FailedAt.UnixMicro(), letterSum(&kgo.Record{Key: []byte(key), Value: []byte(value), Headers: headers})
}

// letterSum is what a dead letter is known by, in the outbox and on its topic.
func letterSum(r *kgo.Record) []byte {
	sum := sha256.New()
	add := func(b []byte) { fmt.Fprintf(sum, "%d:%s", len(b), b) }
	add(r.Key)
	add(r.Value)
	for _, h := range r.Headers {
		add([]byte(h.Key))
		add(h.Value)
	}
	return sum.Sum(nil)[:16]
}

// describeLetter is a record of a dead-letter topic as evidence.
func describeLetter(r *kgo.Record, _ bool) []any { return []any{r.Topic, letterSum(r)} }

func letterTopics() (topics []string) {
	for _, t := range event.Topics() {
		topics = append(topics, t+event.DeadLetterSuffix)
	}
	return topics
}
