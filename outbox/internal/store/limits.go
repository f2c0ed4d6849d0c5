package store

import (
	"strings"
	"time"
)

// An event may be delivered again for as long as a copy of it exists: the outbox
// keeps it for OutboxRetention, and when it is published again on the last day, the
// topic keeps the record for TopicRetention, until its segment is deleted. Only then
// may the inbox forget that the event was handled.
const (
	OutboxRetention = 7 * 24 * time.Hour
	TopicRetention  = 8 * 24 * time.Hour // a week, and a segment of a day
)

// DeadLetterSuffix is appended to a topic's name for its dead-letter topic.
const DeadLetterSuffix = "-dlq"

// MaxBytes is how many bytes a record of the topic may have.
func MaxBytes(topic string) int {
	if strings.HasSuffix(topic, DeadLetterSuffix) {
		return MaxDeadLetterBytes
	}
	return MaxRecordBytes
}

// The limits of a record.
const (
	// MaxRecordBytes is the broker's default for max.message.bytes (1,048,588)
	// with room for the batch around the record. Dead letters carry a whole
	// record in JSON or base64, so their topics must take four times as much.
	MaxRecordBytes     = 1_000_000
	MaxDeadLetterBytes = 4_000_000
)
