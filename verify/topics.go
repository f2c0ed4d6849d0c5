package verify

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/event"
)

// stalled is how long a broker may be silent about records that it has.
const stalled = time.Minute

// A topicSet is topics whose records are copied to one table.
type topicSet struct {
	topics  []string
	table   string
	columns int
	row     func(r *kgo.Record, beforeSnapshot bool) []any
}

var (
	eventTopics      = topicSet{event.Topics(), "records", 11, recordRow}
	deadLetterTopics = topicSet{deadLetterTopicNames(), "dlq_records", 2, dlqRow}
)

// A subscription is a type of event that a consumer handles, with an inbox.
type subscription struct{ consumer, topic, eventType string }

var subscriptions = []subscription{
	{"payment-service", event.OrderTopic, "OrderCreated"},
	{"notification-service", event.OrderTopic, "OrderCreated"},
	{"notification-service", event.PaymentTopic, "PaymentCompleted"},
	{"notification-service", event.PaymentTopic, "PaymentFailed"},
	{"order-service", event.PaymentTopic, "PaymentCompleted"},
	{"order-service", event.PaymentTopic, "PaymentFailed"},
}

// offsets lists offsets, and fails when a partition has none.
func offsets(ctx context.Context, list func(context.Context, ...string) (kadm.ListedOffsets, error), topics []string) (kadm.ListedOffsets, error) {
	listed, err := list(ctx, topics...)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("read the topics: %w", err)
	}
	return listed, nil
}

// ends are the offsets at which the partitions end.
func (s topicSet) ends(ctx context.Context, client *kgo.Client) (kadm.ListedOffsets, error) {
	return offsets(ctx, kadm.NewClient(client).ListEndOffsets, s.topics)
}

// copyTopics copies the records up to where the topics end now. Records before the offsets of snapshot were there before
// the databases were read.
func (e *evidence) copyTopics(ctx context.Context, options []kgo.Opt, s topicSet, snapshot kadm.ListedOffsets) error {
	// a control record may be the last of a partition, and a reader that is not given it would not see the end
	client, err := kgo.NewClient(slices.Concat(options, []kgo.Opt{kgo.KeepControlRecords()})...)
	if err != nil {
		return fmt.Errorf("read the topics: %w", err)
	}
	defer client.Close()
	r, err := newTopicReader(ctx, client, s, snapshot)
	if err != nil {
		return err
	}
	if err := e.fill(ctx, s.table, s.columns, func(insert func(...any) error) error { return r.readAll(ctx, insert) }); err != nil {
		return err
	}
	return e.fill(ctx, "partitions", 4, r.partitions)
}

// A topicReader reads each partition of a topicSet from its first record to its end.
type topicReader struct {
	set        topicSet
	client     *kgo.Client
	snapshot   kadm.ListedOffsets
	begin, end kadm.ListedOffsets
	unread     map[string]map[int32]int64 // by topic and partition: the end of those that are not read to it
	count      int                        // of unread
	firsts     []kgo.Record               // the first record of each partition, without its value
}

func newTopicReader(ctx context.Context, client *kgo.Client, s topicSet, snapshot kadm.ListedOffsets) (r *topicReader, err error) {
	r = &topicReader{set: s, client: client, snapshot: snapshot, unread: map[string]map[int32]int64{}}
	if r.end, err = s.ends(ctx, client); err != nil {
		return nil, err
	}
	if r.begin, err = offsets(ctx, kadm.NewClient(client).ListStartOffsets, s.topics); err != nil {
		return nil, err
	}
	from := map[string]map[int32]kgo.Offset{}
	r.end.Each(func(end kadm.ListedOffset) {
		begin, _ := r.begin.Lookup(end.Topic, end.Partition)
		if end.Offset <= begin.Offset {
			return
		}
		if from[end.Topic] == nil {
			from[end.Topic], r.unread[end.Topic] = map[int32]kgo.Offset{}, map[int32]int64{}
		}
		from[end.Topic][end.Partition] = kgo.NewOffset().At(begin.Offset)
		r.unread[end.Topic][end.Partition] = end.Offset
		r.count++
	})
	client.AddConsumePartitions(from)
	return r, nil
}

// readAll inserts a row for each record.
func (r *topicReader) readAll(ctx context.Context, insert func(...any) error) error {
	for r.count > 0 {
		fetches, err := poll(ctx, r.client)
		if err != nil {
			return fmt.Errorf("read the topics: %d partitions are not read to their end: %w", r.count, err)
		}
		var failed error
		fetches.EachPartition(func(p kgo.FetchTopicPartition) { failed = errors.Join(failed, p.Err, r.take(p, insert)) })
		if failed != nil {
			return fmt.Errorf("read the topics: %w", failed)
		}
	}
	return nil
}

// take inserts what was fetched of a partition, up to its end.
func (r *topicReader) take(p kgo.FetchTopicPartition, insert func(...any) error) (failed error) {
	end, wanted := r.unread[p.Topic][p.Partition]
	if !wanted {
		return nil
	}
	begin, _ := r.begin.Lookup(p.Topic, p.Partition)
	snapshot, _ := r.snapshot.Lookup(p.Topic, p.Partition)
	for _, record := range p.Records {
		if record.Offset >= end {
			break
		}
		if record.Offset == begin.Offset {
			r.firsts = append(r.firsts, kgo.Record{Topic: record.Topic, Partition: record.Partition, Timestamp: record.Timestamp})
		}
		if !record.Attrs.IsControl() {
			failed = errors.Join(failed, insert(r.set.row(record, record.Offset < snapshot.Offset)...))
		}
	}
	if n := len(p.Records); n > 0 && p.Records[n-1].Offset >= end-1 {
		delete(r.unread[p.Topic], p.Partition)
		r.count--
	}
	return failed
}

// partitions inserts a row for each partition.
func (r *topicReader) partitions(insert func(...any) error) error {
	var errs []error
	r.end.Each(func(end kadm.ListedOffset) {
		begin, _ := r.begin.Lookup(end.Topic, end.Partition)
		retainedSince := int64(0)
		if begin.Offset > 0 {
			retainedSince = time.Now().UnixMicro() // if no record is left
			i := slices.IndexFunc(r.firsts, func(f kgo.Record) bool { return f.Topic == end.Topic && f.Partition == end.Partition })
			if i >= 0 {
				retainedSince = r.firsts[i].Timestamp.UnixMicro()
			}
		}
		errs = append(errs, insert(end.Topic, end.Partition, begin.Offset, retainedSince))
	})
	return errors.Join(errs...)
}

// poll returns the next records. When none comes for as long as stalled, it fails: the partitions would never be read to
// their ends.
func poll(ctx context.Context, client *kgo.Client) (kgo.Fetches, error) {
	ctx, cancel := context.WithTimeout(ctx, stalled)
	defer cancel()
	fetches := client.PollFetches(ctx)
	return fetches, fetches.Err0()
}

// recordRow is the row of records for a record. If its value is no envelope, the row tells its position and no event.
func recordRow(r *kgo.Record, beforeSnapshot bool) []any {
	var m struct {
		EventID     string          `json:"event_id"`
		EventType   string          `json:"event_type"`
		AggregateID string          `json:"aggregate_id"`
		Timestamp   time.Time       `json:"timestamp"`
		EventData   json.RawMessage `json:"event_data"`
	}
	err := json.Unmarshal(r.Value, &m)
	id, e := uuid.Parse(m.EventID)
	if m.EventID = id.String(); err != nil || e != nil {
		m.EventID = "" // it matches no row of an outbox
	}
	if m.Timestamp.IsZero() {
		m.Timestamp = r.Timestamp
	}
	sum, version := sha256.Sum256(m.EventData), int64(0)
	for _, h := range r.Headers {
		if h.Key == "aggregate_version" {
			version, _ = strconv.ParseInt(string(h.Value), 10, 64) // 0 is no version
		}
	}
	return []any{
		r.Topic, r.Partition, r.Offset, string(r.Key), m.EventID, m.EventType, version, sum[:16], m.Timestamp.UnixMicro(), r.Timestamp.UnixMicro(), boolean(beforeSnapshot),
	}
}

func boolean(b bool) int {
	if b {
		return 1
	}
	return 0
}
