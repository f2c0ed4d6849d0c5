package store

import (
	"strings"
	"time"
)

// An event may come again for as long as somebody keeps it: the outbox for some
// days, and when it is published anew on the last of them, the topic for some
// more, until the segment that it stands in is deleted. Only then may the inbox
// forget that it was handled.
const (
	OutboxRetention = 7 * 24 * time.Hour
	TopicRetention  = 8 * 24 * time.Hour // a week, and a segment of a day
)

// DeadLetterSuffix makes the name of a topic that of its dead-letter topic.
const DeadLetterSuffix = "-dlq"

// MaxBytes is how large a record of the topic may be.
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
