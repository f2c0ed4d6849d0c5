package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// An item is what every contender relays: about 450 bytes of JSON, an order
// as the system's own. Mark is read by the check of the order.
type item struct {
	aggregate int // 0, 1, 2, …
	version   int // 1, 2, 3, … of its aggregate
}

func (i item) id() string { return fmt.Sprintf("018f4e2a-0000-7000-8000-%012x", i.aggregate) }

const markStart = `"mark": "`

// payload is the event's JSON. The space after the colon is how PostgreSQL
// writes jsonb, so that one way of reading finds the mark in all of them.
func (i item) payload() string {
	var b strings.Builder
	fmt.Fprintf(&b, `{%s%d.%d", "order_id": "%s", "order_number": "K7M-%04X", `, markStart, i.aggregate, i.version, i.id(), i.aggregate&0xffff)
	fmt.Fprintf(&b, `"customer_name": "Guest %d", "customer_email": "guest%d@example.com", "customer_phone": "+7900%07d", `,
		i.aggregate, i.aggregate, i.aggregate)
	b.WriteString(`"total_amount": 1200.00, "currency": "RUB", "items": [{"pizza_id": "018f4e2a-0001-7000-8000-000000000001", ` +
		`"name": "Margherita", "size": "large", "quantity": 2, "price": 600.00}], "delivery_address": "ul. Pushkina, d. 10", "locale": "en"}`)
	return b.String()
}

// markOf finds the mark in a record's value.
func markOf(value []byte) (item, error) {
	var i item
	_, text, found := bytes.Cut(value, []byte(`"mark":`))
	text, isText := bytes.CutPrefix(bytes.TrimLeft(text, " "), []byte(`"`))
	text, _, closed := bytes.Cut(text, []byte(`"`))
	if !found || !isText || !closed {
		return i, fmt.Errorf("a record without a mark: %.80q", value)
	}
	n, v, _ := strings.Cut(string(text), ".")
	var err error
	if i.aggregate, err = strconv.Atoi(n); err != nil {
		return i, fmt.Errorf("mark: %w", err)
	}
	if i.version, err = strconv.Atoi(v); err != nil {
		return i, fmt.Errorf("mark: %w", err)
	}
	return i, nil
}

// backlog is n events of so many aggregates, the same ones each time. One in
// five belongs to one of a hundred busy aggregates, so that versions of one
// follow each other closely.
func backlog(n, aggregates int) []item {
	r := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // it must be the same again
	versions := make([]int, aggregates)
	items := make([]item, n)
	for i := range items {
		a := r.IntN(aggregates)
		if r.IntN(5) == 0 {
			a = r.IntN(min(100, aggregates))
		}
		versions[a]++
		items[i] = item{a, versions[a]}
	}
	return items
}

// A verdict is what a consumer saw of the order.
type verdict struct {
	distinct   int // events that came, each counted once
	repeated   int // records that came again
	early      int // first occurrences before that of their predecessor: the order is broken
	strayed    int // records in another partition than their aggregate's first
	seen       []int
	partitions []int32 // by aggregate: the partition of its first record, plus 1
	err        error
}

func newVerdict(aggregates int) *verdict {
	return &verdict{seen: make([]int, aggregates), partitions: make([]int32, aggregates)}
}

// look takes the next record.
func (v *verdict) look(r *kgo.Record) {
	i, err := markOf(r.Value)
	if err == nil && (i.aggregate >= len(v.seen) || i.aggregate < 0) {
		err = fmt.Errorf("a record of aggregate %d, there are %d", i.aggregate, len(v.seen))
	}
	if err != nil {
		v.err = err
		return
	}
	switch seen := v.seen[i.aggregate]; {
	case seen == 0:
		v.partitions[i.aggregate] = r.Partition + 1
	case v.partitions[i.aggregate] != r.Partition+1:
		v.strayed++
	}
	switch seen := v.seen[i.aggregate]; {
	case i.version <= seen:
		v.repeated++
	case i.version > seen+1:
		v.early++
		fallthrough
	default:
		v.distinct++
		v.seen[i.aggregate] = i.version
	}
}

// fault says what is wrong, if anything: with all of the backlog, or with the
// part of it that came.
func (v *verdict) fault(want int) error {
	switch {
	case v.err != nil:
		return v.err
	case v.early > 0 || v.strayed > 0:
		return fmt.Errorf("the order is broken: %d events came before their predecessor, %d in another partition", v.early, v.strayed)
	case v.distinct < want:
		return fmt.Errorf("%d of %d events are missing", want-v.distinct, want)
	}
	return nil
}

// createdAt spreads the events over the last hour, in their order.
func createdAt(i int) time.Time {
	return time.Now().Add(-time.Hour).Add(time.Duration(i) * time.Microsecond).UTC()
}
