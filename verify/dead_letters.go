package verify

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/event"
)

// finishDeadLetter replaces value, key and headers of a dead letter in the outbox by the consumer, position and time of
// the record that died, which the value names, and the dead letter's checksum.
func finishDeadLetter(cells []any) {
	value, _ := cells[2].(string)
	key, _ := cells[3].(string)
	list, _ := cells[4].(string)
	var stored []struct {
		Key    string `json:"key"`
		Value  string `json:"value"`
		Base64 []byte `json:"base64"` // of a value that is no text
	}
	var dead struct {
		ConsumerGroup     string    `json:"consumer_group"`
		OriginalTopic     string    `json:"original_topic"`
		OriginalPartition int32     `json:"original_partition"`
		OriginalOffset    int64     `json:"original_offset"`
		FailedAt          time.Time `json:"failed_at"`
	}
	// a dead letter that cannot be read counts as missing
	if json.Unmarshal([]byte(list), &stored) != nil || json.Unmarshal([]byte(value), &dead) != nil {
		cells[2], cells[3], cells[4], cells[5] = "?", "?", 0, nil
		return
	}
	headers := make([]kgo.RecordHeader, len(stored))
	for i, h := range stored {
		headers[i] = kgo.RecordHeader{Key: h.Key, Value: append([]byte(h.Value), h.Base64...)}
	}
	cells[2], cells[3] = dead.ConsumerGroup, fmt.Sprintf("%s/%d/%d", dead.OriginalTopic, dead.OriginalPartition, dead.OriginalOffset)
	cells[4], cells[5] = dead.FailedAt.UnixMicro(), deadLetterSum(&kgo.Record{Key: []byte(key), Value: []byte(value), Headers: headers})
}

// deadLetterSum is the checksum that identifies a dead letter in the outbox and on its topic.
func deadLetterSum(r *kgo.Record) []byte {
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

// dlqRow is the row of dlq_records for a record of a dead-letter topic.
func dlqRow(r *kgo.Record, _ bool) []any { return []any{r.Topic, deadLetterSum(r)} }

func deadLetterTopicNames() (topics []string) {
	for _, t := range event.Topics() {
		topics = append(topics, t+event.DeadLetterSuffix)
	}
	return topics
}
