package inbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"pizzaflow/internal/retry"
)

// maxBatchBytes is what a fetched batch may unpack to: a small record must not
// become all of the memory.
const maxBatchBytes = 16 << 20

// lookEvery is how often a consumer looks at its topics: how long they are, and
// whether they are those it knows.
const checkTopicsEvery = 5 * time.Second

// A committed offset carries the id of its topic, as the commit's metadata: an
// offset of a topic that was deleted says nothing about one of the same name.

// adjust decides where each assigned partition begins. Above all it skips
// nothing in silence: what cannot be right is read again from the start, where
// the inbox knows what was handled, and what is gone is reported.
func (d *dispatcher) adjustOffsets(ctx context.Context, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	d.mu.Lock()
	adm := kadm.NewClient(d.client)
	d.mu.Unlock()
	topics := slices.Sorted(maps.Keys(offsets))
	if len(topics) == 0 {
		return offsets, nil
	}
	details, err := adm.ListTopics(ctx, topics...)
	if err != nil {
		return nil, fmt.Errorf("look at topics: %w", err)
	}
	committed, err := adm.FetchOffsetsForTopics(ctx, d.c.cfg.Group, topics...)
	if err != nil {
		return nil, fmt.Errorf("read committed offsets: %w", err)
	}
	starts, err := adm.ListStartOffsets(ctx, topics...)
	if err != nil {
		return nil, fmt.Errorf("look for the start: %w", err)
	}
	ends, err := adm.ListEndOffsets(ctx, topics...)
	if err != nil {
		return nil, fmt.Errorf("look for the end: %w", err)
	}
	for topic, parts := range offsets {
		d.rememberTopicID(topic, details[topic].ID)
		topicID := topicIDText(details[topic].ID)
		for partition, offset := range parts {
			start, ok1 := starts.Lookup(topic, partition)
			end, ok2 := ends.Lookup(topic, partition)
			if !ok1 || !ok2 || start.Err != nil || end.Err != nil {
				continue // it is being moved, or is gone: the client sees to that
			}
			o := partitionOffsets{topic: topic, partition: partition, committed: offset.EpochOffset().Offset, start: start.Offset, end: end.Offset}
			if c, ok := committed.Lookup(topic, partition); ok && c.At == o.committed {
				o.otherTopic = c.Metadata != "" && topicID != "" && c.Metadata != topicID
			}
			if at := d.startPartition(o); at != o.committed {
				parts[partition] = kgo.NewOffset().At(at)
			}
		}
	}
	return offsets, nil
}

// meet remembers the id of a topic that was not known.
func (d *dispatcher) rememberTopicID(topic string, topicID [16]byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.topicIDs[topic] == [16]byte{} {
		d.topicIDs[topic] = topicID
	}
}

// topicIDText is a topic's id as it is stored with an offset; "" when the
// broker gives none.
func topicIDText(topicID [16]byte) string {
	if topicID == [16]byte{} {
		return ""
	}
	return uuid.UUID(topicID).String()
}

// A beginning is what is known of a partition when it is assigned.
type partitionOffsets struct {
	topic      string
	partition  int32
	committed  int64 // committed; negative without
	otherTopic bool  // for another topic of this name
	start      int64
	end        int64
}

// startPartition has a partition begin at its start offset, and returns it.
func (d *dispatcher) startPartition(o partitionOffsets) (at int64) {
	d.c.reportOffsets(o)
	at = o.startOffset()
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.partitions[topicPartition{o.topic, o.partition}]; p != nil {
		p.lowWatermark, p.committed, p.nextOffset, p.highWatermark = at, at, at, o.end
		d.setLag(p)
	}
	return at
}

// startOffset is the committed offset, or the start of the log when there is
// none, or none that can be right.
func (o partitionOffsets) startOffset() int64 {
	if o.committed < o.start || o.committed > o.end || o.otherTopic {
		return o.start
	}
	return o.committed
}

// reportOffsets raises the alarm when a partition has a committed offset and
// cannot begin there.
func (c *Consumer) reportOffsets(o partitionOffsets) {
	log := c.cfg.Log.With("consumer_group", c.cfg.Group, "topic", o.topic, "partition", o.partition)
	switch {
	case o.committed < 0:
	case o.otherTopic:
		log.Warn("the topic was created anew: it is read from its start")
	case o.committed > o.end:
		log.Error("the log ends below the committed offset: it is read again from its start", "committed", o.committed, "end", o.end)
	case o.committed < o.start:
		c.reportDeleted(o.topic, o.partition, o.committed, o.start)
	}
}

// skipped raises the alarm: records were deleted before they were read.
func (c *Consumer) reportDeleted(topic string, partition int32, from, to int64) {
	c.metrics.deletedUnread.WithLabelValues(topic, strconv.Itoa(int(partition))).Add(float64(to - from))
	c.cfg.Log.Error("records were deleted before they were read", "consumer_group", c.cfg.Group, "topic", topic, "partition", partition,
		"first_offset", from, "records", to-from)
}

// watch looks at the topics until ctx ends.
func (d *dispatcher) watchTopics(ctx context.Context, client *kgo.Client) {
	tick := time.NewTicker(checkTopicsEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-d.checkNow:
		}
		look, cancel := context.WithTimeout(ctx, checkTopicsEvery)
		if err := d.checkTopics(look, client); err != nil && ctx.Err() == nil {
			d.c.errorLog.report("look at the topics", "", 0, err)
		}
		cancel()
		d.c.errorLog.closeQuiet()
		if !retry.Sleep(ctx, time.Second) { // whatever the suspicions
			return
		}
	}
}

// look measures the lag of what is assigned, paused or idle as it may be, and
// finds topics that were deleted and created again.
func (d *dispatcher) checkTopics(ctx context.Context, client *kgo.Client) error {
	adm := kadm.NewClient(client)
	details, err := adm.ListTopics(ctx, d.topics...)
	if err != nil {
		return err
	}
	for topic, detail := range details {
		if detail.Err == nil && d.adoptIfRecreated(topic, detail.ID) {
			d.c.cfg.Log.Warn("a topic was created anew: it is taken up", "consumer_group", d.c.cfg.Group, "topic", topic)
			// the client never takes up another topic of the same name by itself
			client.PurgeTopicsFromConsuming(topic)
			client.AddConsumeTopics(topic)
		}
	}
	ends, err := adm.ListEndOffsets(ctx, d.topics...)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.partitions {
		if end, ok := ends.Lookup(p.topic, p.partition); ok && end.Err == nil {
			p.highWatermark = end.Offset
			d.setLag(p)
		}
	}
	return nil
}

// isNew reports whether a topic is another than the one that is consumed.
func (d *dispatcher) adoptIfRecreated(topic string, topicID [16]byte) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	known, lost := d.topicIDs[topic], d.unknownTopics[topic]
	if topicID == [16]byte{} || !lost && (known == topicID || known == [16]byte{}) {
		return false
	}
	delete(d.unknownTopics, topic)
	d.topicIDs[topic] = topicID
	return true
}

// fetchFailed takes an error that came instead of records.
func (d *dispatcher) handleFetchError(client *kgo.Client, topic string, topicID [16]byte, partition int32, err error) {
	if tooLarge, ok := errors.AsType[*kgo.ErrDecompressTooLarge](err); ok {
		d.deadLetterOversized(client, tooLarge, topicID)
		return
	}
	d.c.errorLog.report("fetch", topic, partition, err)
	if errors.Is(err, kerr.UnknownTopicID) || errors.Is(err, kerr.UnknownTopicOrPartition) {
		d.mu.Lock()
		d.unknownTopics[topic] = true
		d.mu.Unlock()
		select {
		case d.checkNow <- struct{}{}:
		default:
		}
	}
}

// stepOver puts a batch that unpacks to more than is allowed among the dead
// letters, and has the client go on behind it. It stands for records nobody will
// know. The client tells of it once, and fetches nothing more of the partition
// until it is told where to.
func (d *dispatcher) deadLetterOversized(client *kgo.Client, batch *kgo.ErrDecompressTooLarge, topicID [16]byte) {
	rec := &kgo.Record{Topic: batch.Topic, Partition: batch.Partition, Offset: batch.Offset, LeaderEpoch: batch.Epoch}
	msg := d.c.decode(rec, topicID)
	msg.nextOffset = batch.NextOffset
	msg.err = Permanent(fmt.Errorf("a batch of %d records unpacks to more than %d MiB", batch.NextOffset-batch.Offset, maxBatchBytes>>20))
	d.enqueue(client, batch.Topic, topicID, kgo.FetchPartition{Partition: batch.Partition, LogStartOffset: -1}, msg)
	if msg.part == nil {
		return // taken away meanwhile
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seeks = append(d.seeks, seek{msg.part, kgo.EpochOffset{Epoch: batch.Epoch, Offset: batch.NextOffset}})
}

// A step is where the client shall go on in a partition.
type seek struct {
	part *partition
	to   kgo.EpochOffset
}

// takeSteps has the client go on behind what was stepped over. Its own idea of
// offsets must not change under a commit, for which the poll must not wait.
func (d *dispatcher) applySeeks(ctx context.Context, client *kgo.Client) {
	select {
	case d.offsetsLock <- struct{}{}:
		defer func() { <-d.offsetsLock }()
	case <-ctx.Done():
		return
	}
	d.mu.Lock()
	seeks := d.seeks
	d.seeks = nil
	d.mu.Unlock()
	for _, s := range seeks {
		if !s.part.revoked.Load() {
			client.SetOffsets(map[string]map[int32]kgo.EpochOffset{s.part.topic: {s.part.partition: s.to}})
		}
	}
}

// withTopicIDs writes the ids of the topics into a commit.
func withTopicIDs(ctx context.Context, ids map[topicPartition][16]byte) context.Context {
	return kgo.PreCommitFnContext(ctx, func(req *kmsg.OffsetCommitRequest) error {
		for i := range req.Topics {
			t := &req.Topics[i]
			for j := range t.Partitions {
				if topicID := topicIDText(ids[topicPartition{t.Topic, t.Partitions[j].Partition}]); topicID != "" {
					t.Partitions[j].Metadata = &topicID
				}
			}
		}
		return nil
	})
}

// complaints logs what goes wrong again and again when it begins and when it
// has ended.
type errorLog struct {
	cfg       Config
	mu        sync.Mutex
	incidents map[incidentKey]*incident
}

type incidentKey struct {
	doing, topic string
	partition    int32
}

type incident struct{ since, last time.Time }

// calm is how long nothing must be heard of a trouble that it has ended.
const quietPeriod = 15 * time.Second

func (c *errorLog) report(what, topic string, partition int32, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, now := incidentKey{what, topic, partition}, time.Now()
	if c.incidents[at] == nil {
		c.incidents[at] = &incident{since: now}
		c.cfg.Log.Error("trouble with the brokers", "doing", what, "consumer_group", c.cfg.Group, "topic", topic, "partition", partition, "err", err)
	}
	c.incidents[at].last = now
}

// settle says of what has ended.
func (c *errorLog) closeQuiet() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for at, t := range c.incidents {
		if time.Since(t.last) > quietPeriod {
			delete(c.incidents, at)
			c.cfg.Log.Info("no more trouble with the brokers", "doing", at.doing, "consumer_group", c.cfg.Group, "topic", at.topic, "partition", at.partition,
				"trouble_seconds", t.last.Sub(t.since).Seconds())
		}
	}
}
