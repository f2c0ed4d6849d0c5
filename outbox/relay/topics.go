package relay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"pizzaflow/internal/retry"
	"pizzaflow/outbox/internal/store"
	"pizzaflow/sqldb"
)

// watchEvery is how often the topics are looked at while nothing is wrong.
const watchEvery = 10 * time.Second

// A topicIdentity is what tells a topic from another of the same name.
type topicIdentity struct{ cluster, topic string }

// told reports whether the broker has said which topic it is: an old one knows
// no ids, and one that is starting may not know its own.
func (i topicIdentity) told() bool { return i.cluster != "" && i.topic != uuid.Nil.String() }

// watchTopics ends the term when a topic turns out to be a new one.
func (t *term) watchTopics(ctx context.Context) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-t.suspect:
		}
		ask, cancel := context.WithTimeout(ctx, watchEvery)
		err := t.checkTopics(ask)
		cancel()
		if errors.Is(err, errRewound) || err != nil && ctx.Err() == nil && ask.Err() == nil {
			return err
		}
	}
}

// checkTopics compares the topics that are remembered with those that are
// there. A topic that is gone has no say: it may come back.
func (t *term) checkTopics(ctx context.Context) error {
	known, err := t.knownTopics(ctx)
	if err != nil || len(known) == 0 {
		return err
	}
	found, err := t.describe(ctx, t.producer, slices.Sorted(maps.Keys(known))...)
	if err != nil {
		return err
	}
	for topic, f := range found {
		if f.err == nil && f.identity.told() && f.identity != known[topic] {
			t.cfg.Log.Error("a topic was created anew: all retained events are published again", "service", t.cfg.Service, "topic", topic)
			return t.rewindAll(ctx, found)
		}
	}
	return nil
}

func (t *term) knownTopics(ctx context.Context) (map[string]topicIdentity, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	conn, done, err := t.occasional(ctx)
	if err != nil {
		return nil, fmt.Errorf("read topics: %w", err)
	}
	defer done()
	rows, err := conn.QueryContext(ctx, `SELECT topic, cluster_id, topic_id FROM outbox_topics`)
	if err != nil {
		return nil, fmt.Errorf("read topics: %w", err)
	}
	defer rows.Close()
	known := map[string]topicIdentity{}
	for rows.Next() {
		var topic string
		var id topicIdentity
		if err := rows.Scan(&topic, &id.cluster, &id.topic); err != nil {
			return nil, fmt.Errorf("read topics: %w", err)
		}
		known[topic] = id
	}
	return known, rows.Err()
}

// A foundTopic is what the brokers say of a topic.
type foundTopic struct {
	identity   topicIdentity
	partitions int32
	err        error
}

// describe asks the brokers for topics, for as long as it takes.
func (t *term) describe(ctx context.Context, client *kgo.Client, topics ...string) (map[string]foundTopic, error) {
	for attempt := 1; ; attempt++ {
		// one broker of several may be silent, and it is drawn by lot which is asked
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
		pause := time.NewTimer(retry.Backoff(attempt, 100*time.Millisecond, 2*time.Second))
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		pause.Stop()
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

// learn finds out about topics that the term has not met, and gives each row
// its partition. The lane of a topic that does not exist is opened here.
func (t *term) learn(ctx context.Context, rows []store.Row) error {
	last := ""
	for i := range rows {
		if rows[i].Topic == last {
			continue
		}
		last = rows[i].Topic
		t.mu.Lock()
		_, known := t.partitions[last]
		known = known || t.lanes[last] != nil
		t.mu.Unlock()
		if known {
			continue
		}
		refusal, err := t.learnTopic(ctx, t.producer, last)
		if err != nil {
			return err
		}
		if refusal != nil {
			t.mu.Lock()
			rows[i].Partition = -1
			t.openLane(&rows[i], refusal)
			t.mu.Unlock()
		}
	}
	t.place(rows)
	return nil
}

// learnTopic finds out how many partitions a topic has, and remembers which
// one it is. It is known afterwards, unless there is a refusal.
func (t *term) learnTopic(ctx context.Context, client *kgo.Client, topic string) (refusal, err error) {
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
	if err := t.rememberTopic(ctx, topic, f.identity); err != nil {
		return nil, err
	}
	if err := t.checkTopics(ctx); err != nil { // nothing may be sent to a new one before what the old one had
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.partitions[topic] = f.partitions
	return nil, nil
}

// rememberTopic notes which topic the events go to, unless that is known.
func (t *term) rememberTopic(ctx context.Context, topic string, is topicIdentity) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	done, err := t.lease.take(ctx)
	if err != nil {
		return fmt.Errorf("remember topic: %w", err)
	}
	defer done()
	_, err = t.lease.conn.ExecContext(ctx, `INSERT INTO outbox_topics (topic, cluster_id, topic_id, since) VALUES ($1, $2, $3, $4) ON CONFLICT (topic) DO NOTHING`,
		topic, is.cluster, is.topic, sqldb.Now())
	if err != nil {
		return fmt.Errorf("remember topic: %w", err)
	}
	return nil
}

// place says which partition each row will go to, -1 when it has no key or the
// topic is not known.
func (t *term) place(rows []store.Row) {
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
