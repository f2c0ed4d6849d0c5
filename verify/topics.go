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

// A shelf is topics whose records are kept in one table.
type shelf struct {
	topics   []string
	table    string
	columns  int
	describe func(r *kgo.Record, early bool) []any
}

var (
	events  = shelf{event.Topics(), "records", 11, describe}
	letters = shelf{letterTopics(), "posted", 2, describeLetter}
)

// subscriptions are who handles which events, each with an inbox.
var subscriptions = []struct{ consumer, topic, eventType string }{
	{"payment-service", event.OrderTopic, "OrderCreated"},
	{"notification-service", event.OrderTopic, "OrderCreated"},
	{"notification-service", event.PaymentTopic, "PaymentCompleted"},
	{"notification-service", event.PaymentTopic, "PaymentFailed"},
	{"order-service", event.PaymentTopic, "PaymentCompleted"},
	{"order-service", event.PaymentTopic, "PaymentFailed"},
}

// ends are the offsets at which the partitions end.
func (s shelf) ends(ctx context.Context, client *kgo.Client) (kadm.ListedOffsets, error) {
	listed, err := kadm.NewClient(client).ListEndOffsets(ctx, s.topics...)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("read the topics: %w", err)
	}
	return listed, nil
}

// copyTopics copies the records up to where the topics end now. What lies
// before early was there when nothing else had been read.
func (e *evidence) copyTopics(ctx context.Context, options []kgo.Opt, s shelf, early kadm.ListedOffsets) error {
	// a control record may be the last of a partition, which would not end without it
	client, err := kgo.NewClient(slices.Concat(options, []kgo.Opt{kgo.KeepControlRecords()})...)
	if err != nil {
		return fmt.Errorf("read the topics: %w", err)
	}
	defer client.Close()
	last, err := s.ends(ctx, client)
	if err != nil {
		return err
	}
	first, err := kadm.NewClient(client).ListStartOffsets(ctx, s.topics...)
	if err == nil {
		err = first.Error()
	}
	if err != nil {
		return fmt.Errorf("read the topics: %w", err)
	}
	from, left := map[string]map[int32]kgo.Offset{}, map[string]map[int32]int64{}
	remaining := 0
	last.Each(func(end kadm.ListedOffset) {
		begin, _ := first.Lookup(end.Topic, end.Partition)
		if end.Offset <= begin.Offset {
			return
		}
		if from[end.Topic] == nil {
			from[end.Topic], left[end.Topic] = map[int32]kgo.Offset{}, map[int32]int64{}
		}
		from[end.Topic][end.Partition] = kgo.NewOffset().At(begin.Offset)
		left[end.Topic][end.Partition] = end.Offset
		remaining++
	})
	client.AddConsumePartitions(from)
	var starts []kgo.Record // of the partitions
	err = e.fill(ctx, s.table, s.columns, func(put func(...any) error) error {
		for remaining > 0 {
			fetches, err := poll(ctx, client)
			if err != nil {
				return fmt.Errorf("read the topics: %d partitions are not read to their end: %w", remaining, err)
			}
			var failed error
			fetches.EachPartition(func(p kgo.FetchTopicPartition) {
				end, wanted := left[p.Topic][p.Partition]
				failed = errors.Join(failed, p.Err)
				for _, r := range p.Records {
					if !wanted || r.Offset >= end {
						break
					}
					if begin, _ := first.Lookup(p.Topic, p.Partition); r.Offset == begin.Offset {
						starts = append(starts, kgo.Record{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Timestamp: r.Timestamp})
					}
					if r.Attrs.IsControl() {
						continue
					}
					before, _ := early.Lookup(r.Topic, r.Partition)
					failed = errors.Join(failed, put(s.describe(r, r.Offset < before.Offset)...))
				}
				if n := len(p.Records); wanted && n > 0 && p.Records[n-1].Offset >= end-1 {
					delete(left[p.Topic], p.Partition)
					remaining--
				}
			})
			if failed != nil {
				return fmt.Errorf("read the topics: %w", failed)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return e.fill(ctx, "partitions", 4, func(put func(...any) error) error {
		var errs []error
		last.Each(func(end kadm.ListedOffset) {
			begin, _ := first.Lookup(end.Topic, end.Partition)
			since := int64(0)
			if begin.Offset > 0 {
				since = time.Now().UnixMicro() // nothing is left of it
				i := slices.IndexFunc(starts, func(r kgo.Record) bool { return r.Topic == end.Topic && r.Partition == end.Partition })
				if i >= 0 {
					since = starts[i].Timestamp.UnixMicro()
				}
			}
			errs = append(errs, put(end.Topic, end.Partition, begin.Offset, since))
		})
		return errors.Join(errs...)
	})
}

// poll returns what is read next. Where nothing comes for stalled, nothing more
// will.
func poll(ctx context.Context, client *kgo.Client) (kgo.Fetches, error) {
	ctx, cancel := context.WithTimeout(ctx, stalled)
	defer cancel()
	fetches := client.PollFetches(ctx)
	return fetches, fetches.Err0()
}

// describe is a record as evidence. Of one that is no envelope there is only
// where it is.
func describe(r *kgo.Record, early bool) []any {
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
		m.EventID = "" // it is told as one without a row
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
	return []any{r.Topic, r.Partition, r.Offset, string(r.Key), m.EventID, m.EventType, version, sum[:16], m.Timestamp.UnixMicro(), r.Timestamp.UnixMicro(), boolean(early)}
}

func boolean(b bool) int {
	if b {
		return 1
	}
	return 0
}
