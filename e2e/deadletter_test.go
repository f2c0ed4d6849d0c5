package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
)

// retryDelay is long enough for other orders to be paid between two attempts.
const retryDelay = 700 * time.Millisecond

// A deadLetter is the value of a record on a dead-letter topic.
type deadLetter struct {
	OriginalTopic       string          `json:"original_topic"`
	OriginalPartition   int32           `json:"original_partition"`
	OriginalOffset      int64           `json:"original_offset"`
	OriginalMessage     json.RawMessage `json:"original_message"`
	ErrorReason         string          `json:"error_reason"`
	FailedAt            time.Time       `json:"failed_at"`
	RetryCount          int             `json:"retry_count"`
	ConsumerGroup       string          `json:"consumer_group"`
	OriginalValueBase64 []byte          `json:"original_value_base64"`
}

// testDeadLetters puts records on the topics that services cannot handle.
func testDeadLetters(t *testing.T, s setup) {
	d := deploy(t, s.with("RETRY_DELAY="+retryDelay.String(), "PAYMENT_PROVIDER_TIMEOUT=1s"))
	first := d.place(t, ivan("first@example.com"))
	d.await(t, first.OrderID, "paid", paidLimit) // so that all services have started working

	t.Run("tried three times while others go on", func(t *testing.T) { d.testRetries(t) })
	t.Run("never valid", func(t *testing.T) { d.testInvalid(t) })
	t.Run("another amount", func(t *testing.T) { d.testMismatch(t) })
}

// testRetries produces a PaymentCompleted for an order that does not exist. An order
// whose payment event comes after it in the same partition is paid before that
// record is a dead letter. On a busy machine that may take longer, so it is tried
// up to five times.
func (d *deployment) testRetries(t *testing.T) {
	var sent *kgo.Record
	for late := 0; ; {
		payment := newID(t)
		sent = d.produce(t, record("payment-events", payment, envelopeOf(t, "PaymentCompleted", payment, map[string]any{
			"payment_id": payment, "order_id": newID(t), "amount": json.RawMessage("1200.00"), "currency": "RUB",
			"transaction_id": "ch_e2e", "completed_at": time.Now().UTC(),
		})))
		paidAt := map[string]time.Time{}
		for i := range 8 {
			paidAt[d.place(t, customer(i, "")).OrderID] = time.Time{}
		}
		for id := range paidAt {
			paidAt[id] = *d.await(t, id, "paid", paidLimit).PaidAt
		}
		letter := d.awaitDeadLetters(t, sent, 1)[0]
		if letter.ConsumerGroup != "order-service" || letter.RetryCount != 3 {
			t.Errorf("dead letter of %s after %d attempts, want order-service after 3", letter.ConsumerGroup, letter.RetryCount)
		}
		behind := d.toldBehind(t, sent)
		maps.DeleteFunc(paidAt, func(id string, _ time.Time) bool { return !behind[id] })
		if len(paidAt) == 0 {
			continue // all are in other partitions
		}
		if earliest := slices.MinFunc(slices.Collect(maps.Values(paidAt)), time.Time.Compare); earliest.Before(letter.FailedAt) {
			break
		}
		if late++; late == 5 {
			t.Fatalf("the payments after the record waited until it was a dead letter, at %s: paid at %v", letter.FailedAt, paidAt)
		}
	}
	var attempts []time.Time
	for _, line := range logLines(t, d.process("").log) {
		if line["msg"] == "event not handled" && line["event_id"] == headerOf(sent, "ce_id") {
			at, err := time.Parse(time.RFC3339Nano, fmt.Sprint(line["time"]))
			if err != nil || line["attempt"] != float64(len(attempts)+1) {
				t.Errorf("attempt %d: %v %v", len(attempts)+1, line, err)
			}
			attempts = append(attempts, at)
		}
	}
	if len(attempts) != 3 {
		t.Fatalf("%d attempts in the log, want 3", len(attempts))
	}
	for i := 1; i < len(attempts); i++ {
		least := time.Duration(i) * retryDelay
		// 20 % of jitter, and what a busy machine adds; less than the next longer delay
		if got := attempts[i].Sub(attempts[i-1]); got < least-20*time.Millisecond || got > least*12/10+retryDelay {
			t.Errorf("%s between attempts %d and %d, want %s and at most 20 %% more", got, i, i+1, least)
		}
	}
	if n := d.value(t, "order", `SELECT COUNT(*) FROM parked_records WHERE state = 'dead' AND attempts = 3 AND event_id = $1`, headerOf(sent, "ce_id")); n != "1" {
		t.Errorf("%s dead parked records of 3 attempts, want 1", n)
	}
}

// toldBehind are the orders whose payment is told behind the record, in its
// partition.
func (d *deployment) toldBehind(t *testing.T, sent *kgo.Record) map[string]bool {
	t.Helper()
	orders := map[string]bool{}
	for _, r := range d.records(t, sent.Topic) {
		if r.Partition != sent.Partition || r.Offset <= sent.Offset {
			continue
		}
		var e struct {
			Data struct {
				OrderID string `json:"order_id"`
			} `json:"event_data"`
		}
		if err := json.Unmarshal(r.Value, &e); err != nil {
			t.Fatal(err)
		}
		orders[e.Data.OrderID] = true
	}
	return orders
}

// testInvalid sends records that no retry can cure: both groups of the topic write
// their dead letters at once.
func (d *deployment) testInvalid(t *testing.T) {
	notJSON := record("order-events", newID(t), []byte("\xff not JSON"))
	unknown := newID(t)
	noItems := record("order-events", unknown, envelopeOf(t, "OrderCreated", unknown, map[string]any{"order_id": unknown, "items": []any{}}))
	wrongType := newID(t)
	badAmount := record("order-events", wrongType, envelopeOf(t, "OrderCreated", wrongType, map[string]any{"order_id": wrongType, "total_amount": "much"}))
	for _, r := range []*kgo.Record{notJSON, noItems, badAmount} {
		sent := d.produce(t, r)
		for _, letter := range d.awaitDeadLetters(t, sent, 2) {
			if letter.RetryCount != 1 {
				t.Errorf("%s tried %q %d times, want once", letter.ConsumerGroup, r.Value, letter.RetryCount)
			}
		}
	}
}

// testMismatch produces a PaymentCompleted with another amount than the order has.
func (d *deployment) testMismatch(t *testing.T) {
	pending := d.place(t, ivan("guest+hang-always@example.com"))
	payment := newID(t)
	sent := d.produce(t, record("payment-events", payment, envelopeOf(t, "PaymentCompleted", payment, map[string]any{
		"payment_id": payment, "order_id": pending.OrderID, "amount": json.RawMessage("1.00"), "currency": "RUB",
		"transaction_id": "ch_e2e", "completed_at": time.Now().UTC(),
	})))
	if letter := d.awaitDeadLetters(t, sent, 1)[0]; letter.ConsumerGroup != "order-service" || letter.RetryCount != 1 {
		t.Errorf("dead letter of %s after %d attempts, want order-service after 1", letter.ConsumerGroup, letter.RetryCount)
	}
	if o := d.await(t, pending.OrderID, "pending", paidLimit); o.PaidAt != nil {
		t.Errorf("paid by another amount: %+v", o)
	}
	mark := d.rows(t, "order", `SELECT attention_reason, attention_since IS NOT NULL FROM orders WHERE id = $1`, pending.OrderID)[0]
	if mark[0] != "payment_amount_mismatch" || mark[1] != "1" && mark[1] != "true" {
		t.Errorf("the order's mark is %v, want payment_amount_mismatch and since when", mark)
	}
}

// awaitDeadLetters waits for n dead letters of the record, each of another group,
// and checks them.
func (d *deployment) awaitDeadLetters(t *testing.T, sent *kgo.Record, n int) []deadLetter {
	t.Helper()
	var letters []deadLetter
	eventually(t, paidLimit, func() string {
		if letters = d.deadLetters(t, sent); len(letters) < n {
			return fmt.Sprintf("%d dead letters of %q, want %d", len(letters), sent.Value, n)
		}
		return ""
	})
	groups := map[string]bool{}
	for _, l := range letters {
		groups[l.ConsumerGroup] = true
		if l.OriginalOffset != sent.Offset || l.ErrorReason == "" || time.Since(l.FailedAt) > 5*time.Minute {
			t.Errorf("dead letter %+v", l)
		}
		switch {
		case !json.Valid(sent.Value) && (string(l.OriginalMessage) != "null" || string(l.OriginalValueBase64) != string(sent.Value)):
			t.Errorf("the value that is not JSON became %s and %q", l.OriginalMessage, l.OriginalValueBase64)
		case json.Valid(sent.Value) && (string(l.OriginalMessage) != string(sent.Value) || l.OriginalValueBase64 != nil):
			t.Errorf("the original message became %s, was %s", l.OriginalMessage, sent.Value)
		}
	}
	if len(letters) != n || len(groups) != n {
		t.Errorf("%d dead letters of %d groups, want %d of as many", len(letters), len(groups), n)
	}
	return letters
}

// letters are the dead letters of the record, whose key and headers they keep.
func (d *deployment) deadLetters(t *testing.T, sent *kgo.Record) []deadLetter {
	t.Helper()
	var letters []deadLetter
	for _, r := range d.records(t, sent.Topic+"-dlq") {
		var l deadLetter
		if err := json.Unmarshal(r.Value, &l); err != nil {
			t.Fatalf("dead letter %q: %v", r.Value, err)
		}
		if l.OriginalTopic != sent.Topic || l.OriginalPartition != sent.Partition || l.OriginalOffset != sent.Offset {
			continue
		}
		if string(r.Key) != string(sent.Key) {
			t.Errorf("the dead letter's key is %q, was %q", r.Key, sent.Key)
		}
		for _, h := range sent.Headers {
			if !slices.ContainsFunc(r.Headers, func(o kgo.RecordHeader) bool { return o.Key == h.Key && string(o.Value) == string(h.Value) }) {
				t.Errorf("the dead letter has lost the header %s=%s: %s", h.Key, h.Value, headersText(r))
			}
		}
		letters = append(letters, l)
	}
	return letters
}

func newID(t *testing.T) string {
	t.Helper()
	id, err := uuid.NewV7()
	if err != nil {
		t.Fatal(err)
	}
	return id.String()
}

// envelopeOf is an event as another program may write it.
func envelopeOf(t *testing.T, eventType, aggregate string, data any) []byte {
	t.Helper()
	value, err := json.Marshal(map[string]any{
		"event_id": newID(t), "event_type": eventType, "aggregate_id": aggregate, "event_data": data, "timestamp": time.Now().UTC(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// record is a record with headers as another program may write them.
func record(topic, key string, value []byte) *kgo.Record {
	r := &kgo.Record{Topic: topic, Key: []byte(key), Value: value, Headers: []kgo.RecordHeader{
		{Key: "x-writer", Value: []byte("e2e")}, {Key: "x-binary", Value: []byte{0, 0xff, 7}},
	}}
	var e envelope
	if json.Unmarshal(value, &e) == nil {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: "ce_id", Value: []byte(e.EventID)})
	}
	return r
}
