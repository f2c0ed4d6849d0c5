package inbox

import (
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/outbox/internal/wire"
)

// An inbound is a record on its way to its handler.
type message struct {
	rec        *kgo.Record
	id         string // the event's, or one made from where the record stands
	envelope   wire.Envelope
	err        error         // why it cannot be handled, whatever the handler says
	sub        *subscription // nil when nobody asked for it
	attempt    int
	key        string // of its queue
	nextOffset int64  // the offset behind it
	part       *partition
	processed  bool // handled or parked, by whoever works on it
	acked      bool // the same, as its partition knows it
	startedAt  time.Time
}

// open makes an inbound of a record. It is done already when nobody asked for
// its type.
func (c *Consumer) decode(rec *kgo.Record, topicID [16]byte) *message {
	msg := &message{rec: rec, attempt: 1, nextOffset: rec.Offset + 1}
	if msg.key = rec.Topic + "\x00" + string(rec.Key); rec.Key == nil { // no key, no order to keep
		msg.key = fmt.Sprintf("%s\x00\x00%d\x00%d", rec.Topic, rec.Partition, rec.Offset)
	}
	if msg.envelope, msg.err = wire.Open(rec.Value); msg.err != nil {
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

// ignored reports whether nobody subscribed to the message's type.
func (msg *message) ignored() bool { return msg.sub == nil && msg.err == nil }

// positionID is the id of what has none of its own: the same wherever and
// whenever it is read.
func (c *Consumer) positionID(rec *kgo.Record, topicID [16]byte) string {
	place := fmt.Sprintf("%s/%x/%d/%d", c.clusterID, topicID, rec.Partition, rec.Offset)
	return uuid.NewSHA1(uuid.NameSpaceOID, []byte(place)).String()
}

// size is how much memory a record takes, about.
func (msg *message) size() int {
	n := 256 + len(msg.rec.Value) + 2*len(msg.rec.Key) // once more as its queue's
	for _, h := range msg.rec.Headers {
		n += 64 + len(h.Key) + len(h.Value)
	}
	return n
}

// eventType is the type as a metric's label: only what is subscribed to, so
// that strangers cannot make up labels.
func (msg *message) typeLabel() string {
	if msg.sub == nil {
		return "other"
	}
	return msg.envelope.EventType
}
