package inbox

import (
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/outbox/internal/wire"
)

// A message is a record on its way to its handler.
type message struct {
	rec        *kgo.Record
	id         string // of the event, or made by positionID
	envelope   wire.Envelope
	err        error         // why no handler is called; nil for a valid record
	sub        *subscription // nil without a handler, or when the record cannot be decoded
	attempt    int           // 1, 2, …
	key        string        // of its queue: topic and record key, unique without a record key
	nextOffset int64         // the offset to commit once it is acked
	part       *partition
	processed  bool      // handled, parked or dropped as a duplicate; set by the worker that has it
	acked      bool      // its offset may be committed: processed, or without a handler; guarded by dispatcher.mu
	startedAt  time.Time // when a worker took it
}

// decode makes a message of a record: its id, the key of its queue, and its
// subscription. A record that cannot be decoded, or has an unknown schema version,
// becomes a message with a Permanent error.
func (c *Consumer) decode(rec *kgo.Record, topicID [16]byte) *message {
	msg := &message{rec: rec, attempt: 1, nextOffset: rec.Offset + 1}
	if msg.key = rec.Topic + "\x00" + string(rec.Key); rec.Key == nil { // a queue of its own: there is no order to keep
		msg.key = fmt.Sprintf("%s\x00\x00%d\x00%d", rec.Topic, rec.Partition, rec.Offset)
	}
	if msg.envelope, msg.err = wire.DecodeEnvelope(rec.Value); msg.err != nil {
		msg.id, msg.err = c.positionID(rec, topicID), Permanent(msg.err)
		return msg
	}
	msg.id = msg.envelope.EventID
	sub, ok := c.subscriptions[route{rec.Topic, msg.envelope.EventType}]
	if !ok {
		return msg
	}
	msg.sub = sub
	v := wire.Header(rec, wire.HeaderSchemaVersion)
	if n, err := strconv.ParseInt(v, 10, 64); v != "" && (err != nil || n != sub.version) {
		msg.err = Permanent(fmt.Errorf("%s has schema version %.20q, this program knows %d", msg.envelope.EventType, v, sub.version))
	}
	return msg
}

// ignored reports whether the message can be decoded and has no handler.
func (msg *message) ignored() bool { return msg.sub == nil && msg.err == nil }

// positionID makes an event id from the position of a record that has none: the
// same one each time the record is read.
func (c *Consumer) positionID(rec *kgo.Record, topicID [16]byte) string {
	position := fmt.Sprintf("%s/%x/%d/%d", c.clusterID, topicID, rec.Partition, rec.Offset)
	return uuid.NewSHA1(uuid.NameSpaceOID, []byte(position)).String()
}

// size is about how many bytes of memory the message takes.
func (msg *message) size() int {
	n := 256 + len(msg.rec.Value) + 2*len(msg.rec.Key) // the key is also in the key of the queue
	for _, h := range msg.rec.Headers {
		n += 64 + len(h.Key) + len(h.Value)
	}
	return n
}

// typeLabel is the event type as a metric's label. Types without a subscription
// are "other", so that producers cannot create labels.
func (msg *message) typeLabel() string {
	if msg.sub == nil {
		return "other"
	}
	return msg.envelope.EventType
}
