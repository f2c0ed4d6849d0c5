package inbox

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"pizzaflow/internal/crash"
)

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

func (d *dispatcher) commitLoop(ctx context.Context, client *kgo.Client) {
	tick := time.NewTicker(commitEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		d.commitAll(ctx, client)
		d.applySeeks(ctx, client)
		crash.Point("offsets: committed")
	}
}

func (d *dispatcher) commitAll(ctx context.Context, client *kgo.Client) {
	d.mu.Lock()
	parts := make([]*partition, 0, len(d.partitions))
	for _, p := range d.partitions {
		parts = append(parts, p)
	}
	d.mu.Unlock()
	d.commitPartitions(ctx, client, parts)
}

// commitOf tells the broker up to where everything is done. A commit that
// fails costs no more than reading some records again.
func (d *dispatcher) commitPartitions(ctx context.Context, client *kgo.Client, parts []*partition) {
	select {
	case d.offsetsLock <- struct{}{}:
		defer func() { <-d.offsetsLock }()
	case <-ctx.Done():
		return
	}
	offsets, ids := d.takeUncommitted(parts)
	if len(offsets) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := commitOffsets(withTopicIDs(ctx, ids), client, offsets); err != nil {
		d.c.errorLog.report("commit offsets", "", 0, err)
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, p := range parts {
			p.committed = -1 // once more
		}
	}
}

// toCommit is what the broker should know and does not: for each partition up
// to where everything is done, and the topic it is said of.
func (d *dispatcher) takeUncommitted(parts []*partition) (offsets map[string]map[int32]kgo.EpochOffset, ids map[topicPartition][16]byte) {
	offsets, ids = map[string]map[int32]kgo.EpochOffset{}, map[topicPartition][16]byte{}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range parts {
		if p.lowWatermark <= p.committed {
			continue
		}
		p.committed, ids[p.topicPartition] = p.lowWatermark, p.topicID
		d.setLag(p)
		if offsets[p.topic] == nil {
			offsets[p.topic] = map[int32]kgo.EpochOffset{}
		}
		offsets[p.topic][p.partition] = kgo.EpochOffset{Epoch: p.epoch, Offset: p.lowWatermark}
	}
	return offsets, ids
}

func commitOffsets(ctx context.Context, client *kgo.Client, offsets map[string]map[int32]kgo.EpochOffset) error {
	var first error
	client.CommitOffsetsSync(ctx, offsets, func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
		if first = err; err != nil || resp == nil {
			return
		}
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil && first == nil {
					first = fmt.Errorf("%s/%d: %w", t.Topic, p.Partition, err)
				}
			}
		}
	})
	return first
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

// topicIDText is a topic's id as it is stored with an offset; "" when the
// broker gives none.
func topicIDText(topicID [16]byte) string {
	if topicID == [16]byte{} {
		return ""
	}
	return uuid.UUID(topicID).String()
}
