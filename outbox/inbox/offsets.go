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

// adjustOffsets decides where each newly assigned partition begins; kgo calls it
// with the committed offsets. It skips no record silently: when the committed
// offset cannot be right, the partition is read from its start, where the inbox
// drops what was handled, and records that are gone are reported.
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
		return nil, fmt.Errorf("list topics: %w", err)
	}
	committed, err := adm.FetchOffsetsForTopics(ctx, d.c.cfg.Group, topics...)
	if err != nil {
		return nil, fmt.Errorf("read committed offsets: %w", err)
	}
	starts, err := adm.ListStartOffsets(ctx, topics...)
	if err != nil {
		return nil, fmt.Errorf("list start offsets: %w", err)
	}
	ends, err := adm.ListEndOffsets(ctx, topics...)
	if err != nil {
		return nil, fmt.Errorf("list end offsets: %w", err)
	}
	for topic, parts := range offsets {
		d.rememberTopicID(topic, details[topic].ID)
		topicID := topicIDText(details[topic].ID)
		for partition, offset := range parts {
			start, ok1 := starts.Lookup(topic, partition)
			end, ok2 := ends.Lookup(topic, partition)
			if !ok1 || !ok2 || start.Err != nil || end.Err != nil {
				continue // the partition moves or is deleted: the client retries or drops it
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

// partitionOffsets are what the broker knows of a partition when it is assigned.
type partitionOffsets struct {
	topic      string
	partition  int32
	committed  int64 // negative when there is none
	otherTopic bool  // committed for a deleted topic of the same name
	start      int64 // of the log
	end        int64 // of the log
}

// startPartition sets the watermarks of a partition by its start offset, and
// returns that offset.
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

// startOffset is where consuming begins: at the committed offset, or at the start
// of the log when there is none or it cannot be right.
func (o partitionOffsets) startOffset() int64 {
	if o.committed < o.start || o.committed > o.end || o.otherTopic {
		return o.start
	}
	return o.committed
}

// reportOffsets logs why consuming does not begin at the committed offset.
func (c *Consumer) reportOffsets(o partitionOffsets) {
	log := c.cfg.Log.With("consumer_group", c.cfg.Group, "topic", o.topic, "partition", o.partition)
	switch {
	case o.committed < 0: // a new group or partition
	case o.otherTopic:
		log.Warn("topic recreated: reading it from its start")
	case o.committed > o.end:
		log.Error("committed offset is beyond the end of the log: reading it from its start", "committed", o.committed, "end", o.end)
	case o.committed < o.start:
		c.reportDeleted(o.topic, o.partition, o.committed, o.start)
	}
}

// reportDeleted logs and counts records that the broker deleted before this group
// read them.
func (c *Consumer) reportDeleted(topic string, partition int32, from, to int64) {
	c.metrics.deletedUnread.WithLabelValues(topic, strconv.Itoa(int(partition))).Add(float64(to - from))
	c.cfg.Log.Error("records were deleted before they were read", "consumer_group", c.cfg.Group, "topic", topic, "partition", partition,
		"first_offset", from, "records", to-from)
}

// commitLoop commits offsets and applies seeks every commitEvery until ctx ends.
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

// commitAll commits the low watermarks of all assigned partitions.
func (d *dispatcher) commitAll(ctx context.Context, client *kgo.Client) {
	d.mu.Lock()
	parts := make([]*partition, 0, len(d.partitions))
	for _, p := range d.partitions {
		parts = append(parts, p)
	}
	d.mu.Unlock()
	d.commitPartitions(ctx, client, parts)
}

// commitPartitions commits the low watermarks of parts. A failed commit is logged
// and repeated by the next one; should the process die before that, some records
// are read again.
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
			p.committed = -1 // the next commit repeats it
		}
	}
}

// takeUncommitted returns the low watermarks that are not committed yet, with the
// ids of their topics, and marks them as committed.
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

// commitOffsets commits synchronously and returns the first error, be it of the
// request or of one partition.
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

// withTopicIDs returns a context that has commits carry the ids of the topics as
// metadata: an offset of a topic that was deleted says nothing about a new topic of
// the same name.
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

// topicIDText is a topic id as commits carry it; "" when the broker has no ids.
func topicIDText(topicID [16]byte) string {
	if topicID == [16]byte{} {
		return ""
	}
	return uuid.UUID(topicID).String()
}
