package relay

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"pizzaflow/internal/retry"
	"pizzaflow/outbox/internal/store"
)

// resolveTopics finds out about the topics of rows that the term does not know
// yet, and assigns each row its partition. It pauses a topic that does not exist.
func (t *term) resolveTopics(ctx context.Context, rows []store.Row) error {
	last := ""
	for i := range rows {
		if rows[i].Topic == last {
			continue
		}
		last = rows[i].Topic
		t.mu.Lock()
		_, known := t.partitions[last]
		known = known || t.paused[last] != nil
		t.mu.Unlock()
		if known {
			continue
		}
		refusal, err := t.resolveTopic(ctx, t.producer, last)
		if err != nil {
			return err
		}
		if refusal != nil {
			t.mu.Lock()
			rows[i].Partition = -1
			t.pause(&rows[i], refusal)
			t.mu.Unlock()
		}
	}
	t.assignPartitions(rows)
	return nil
}

// resolveTopic finds out how many partitions a topic has, and stores its id. A
// refusal is why the topic takes no records; it stays unknown then.
func (t *term) resolveTopic(ctx context.Context, client *kgo.Client, topic string) (refusal, err error) {
	found, err := t.describe(ctx, client, topic)
	if err != nil {
		return nil, err
	}
	f, ok := found[topic]
	if !ok {
		f.err = kerr.UnknownTopicOrPartition
	}
	if f.err != nil {
		return f.err, nil
	}
	if err := t.rememberTopicID(ctx, topic, f.identity); err != nil {
		return nil, err
	}
	if err := t.checkTopics(ctx); err != nil { // nothing may be sent to a new topic before the events of the old one
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.partitions[topic] = f.partitions
	return nil, nil
}

// assignPartitions notes which partition each row will go to, -1 when it has no
// key or its topic is not known.
func (t *term) assignPartitions(rows []store.Row) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range rows {
		rows[i].Partition = partitionOf(&rows[i], t.partitions[rows[i].Topic])
	}
}

// byKey is how the producer chooses the partition of a record with a key.
var byKey = kgo.StickyKeyPartitioner(nil).ForTopic("")

func partitionOf(row *store.Row, partitions int32) int32 {
	if row.Key == nil || partitions == 0 {
		return -1
	}
	return int32(byKey.Partition(&kgo.Record{Key: row.Key}, int(partitions)))
}

// A foundTopic is what the brokers say of a topic.
type foundTopic struct {
	identity   topicIdentity
	partitions int32
	err        error
}

// describe asks the brokers for topics, until one answers.
func (t *term) describe(ctx context.Context, client *kgo.Client, topics ...string) (map[string]foundTopic, error) {
	for attempt := 1; ; attempt++ {
		// the client asks any of the brokers, and one of them may be silent
		ask, cancel := context.WithTimeout(ctx, time.Duration(min(2*attempt, 10))*time.Second)
		resp, err := topicsRequest(topics).RequestWith(ask, client)
		cancel()
		if err == nil {
			return foundTopics(resp), nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("ask for topics: %w", ctx.Err())
		}
		if attempt == 1 {
			t.metrics.errors.Inc()
			t.cfg.Log.Warn("the broker does not answer", "service", t.cfg.Service, "err", err)
		}
		retry.Sleep(ctx, retry.Backoff(attempt, 100*time.Millisecond, 2*time.Second))
	}
}

func topicsRequest(topics []string) *kmsg.MetadataRequest {
	req := kmsg.NewPtrMetadataRequest()
	for _, topic := range topics {
		rt := kmsg.NewMetadataRequestTopic()
		rt.Topic = new(topic)
		req.Topics = append(req.Topics, rt)
	}
	return req
}

func foundTopics(resp *kmsg.MetadataResponse) map[string]foundTopic {
	found := map[string]foundTopic{}
	for _, rt := range resp.Topics {
		if rt.Topic == nil {
			continue
		}
		f := foundTopic{partitions: int32(len(rt.Partitions)), err: kerr.ErrorForCode(rt.ErrorCode)}
		if resp.ClusterID != nil {
			f.identity.cluster = *resp.ClusterID
		}
		f.identity.topic = uuid.UUID(rt.TopicID).String()
		if f.err == nil && f.partitions == 0 {
			f.err = kerr.UnknownTopicOrPartition
		}
		found[*rt.Topic] = f
	}
	return found
}
