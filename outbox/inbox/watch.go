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
const lookEvery = 5 * time.Second

// A committed offset carries the id of its topic, as the commit's metadata: an
// offset of a topic that was deleted says nothing about one of the same name.

// adjust decides where each assigned partition begins. Above all it skips
// nothing in silence: what cannot be right is read again from the start, where
// the inbox knows what was handled, and what is gone is reported.
func (d *dispatcher) adjust(ctx context.Context, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
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
		d.meet(topic, details[topic].ID)
		id := topicIDText(details[topic].ID)
		for partition, offset := range parts {
			start, ok1 := starts.Lookup(topic, partition)
			end, ok2 := ends.Lookup(topic, partition)
			if !ok1 || !ok2 || start.Err != nil || end.Err != nil {
				continue // it is being moved, or is gone: the client sees to that
			}
			b := beginning{topic: topic, partition: partition, at: offset.EpochOffset().Offset, start: start.Offset, end: end.Offset}
			if c, ok := committed.Lookup(topic, partition); ok && c.At == b.at {
				b.foreign = c.Metadata != "" && id != "" && c.Metadata != id
			}
			if at := d.begin(b); at != b.at {
				parts[partition] = kgo.NewOffset().At(at)
			}
		}
	}
	return offsets, nil
}

// meet remembers the id of a topic that was not known.
func (d *dispatcher) meet(topic string, id [16]byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.topicIDs[topic] == [16]byte{} {
		d.topicIDs[topic] = id
	}
}

// topicIDText is a topic's id as it is stored with an offset; "" when the
// broker gives none.
func topicIDText(id [16]byte) string {
	if id == [16]byte{} {
		return ""
	}
	return uuid.UUID(id).String()
}

// A beginning is what is known of a partition when it is assigned.
type beginning struct {
	topic     string
	partition int32
	at        int64 // committed; negative without
	foreign   bool  // for another topic of this name
	start     int64
	end       int64
}

// begin notes where a partition begins.
func (d *dispatcher) begin(b beginning) int64 {
	at, log := b.at, d.c.cfg.Log.With("consumer_group", d.c.cfg.Group, "topic", b.topic, "partition", b.partition)
	switch {
	case b.at < 0:
		at = b.start
	case b.foreign:
		log.Warn("the topic was created anew: it is read from its start")
		at = b.start
	case b.at > b.end:
		log.Error("the log ends below the committed offset: it is read again from its start", "committed", b.at, "end", b.end)
		at = b.start
	case b.at < b.start:
		d.c.skipped(b.topic, b.partition, b.at, b.start)
		at = b.start
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.partitions[topicPartition{b.topic, b.partition}]; p != nil {
		p.lowWater, p.committed, p.next, p.highWater = at, at, at, b.end
		d.showLag(p)
	}
	return at
}

// skipped raises the alarm: records were deleted before they were read.
func (c *Consumer) skipped(topic string, partition int32, from, to int64) {
	c.metrics.skipped.WithLabelValues(topic, strconv.Itoa(int(partition))).Add(float64(to - from))
	c.cfg.Log.Error("records were deleted before they were read", "consumer_group", c.cfg.Group, "topic", topic, "partition", partition,
		"first_offset", from, "records", to-from)
}

// watch looks at the topics until ctx ends.
func (d *dispatcher) watch(ctx context.Context, client *kgo.Client) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-d.suspect:
		}
		look, cancel := context.WithTimeout(ctx, lookEvery)
		if err := d.look(look, client); err != nil && ctx.Err() == nil {
			d.c.complaints.add("look at the topics", "", 0, err)
		}
		cancel()
		d.c.complaints.settle()
		if !retry.Sleep(ctx, time.Second) { // whatever the suspicions
			return
		}
	}
}

// look measures the lag of what is assigned, paused or idle as it may be, and
// finds topics that were deleted and created again.
func (d *dispatcher) look(ctx context.Context, client *kgo.Client) error {
	adm := kadm.NewClient(client)
	details, err := adm.ListTopics(ctx, d.topics...)
	if err != nil {
		return err
	}
	for topic, detail := range details {
		if detail.Err == nil && d.isNew(topic, detail.ID) {
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
			p.highWater = end.Offset
			d.showLag(p)
		}
	}
	return nil
}

// isNew reports whether a topic is another than the one that is consumed.
func (d *dispatcher) isNew(topic string, id [16]byte) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	known, lost := d.topicIDs[topic], d.lostTopics[topic]
	if id == [16]byte{} || !lost && (known == id || known == [16]byte{}) {
		return false
	}
	delete(d.lostTopics, topic)
	d.topicIDs[topic] = id
	return true
}

// fetchFailed takes an error that came instead of records.
func (d *dispatcher) fetchFailed(client *kgo.Client, topic string, topicID [16]byte, partition int32, err error) {
	if tooLarge, ok := errors.AsType[*kgo.ErrDecompressTooLarge](err); ok {
		d.stepOver(client, tooLarge, topicID)
		return
	}
	d.c.complaints.add("fetch", topic, partition, err)
	if errors.Is(err, kerr.UnknownTopicID) || errors.Is(err, kerr.UnknownTopicOrPartition) {
		d.mu.Lock()
		d.lostTopics[topic] = true
		d.mu.Unlock()
		select {
		case d.suspect <- struct{}{}:
		default:
		}
	}
}

// stepOver puts a batch that unpacks to more than is allowed among the dead
// letters, and has the client go on behind it. It stands for records nobody will
// know. The client tells of it once, and fetches nothing more of the partition
// until it is told where to.
func (d *dispatcher) stepOver(client *kgo.Client, batch *kgo.ErrDecompressTooLarge, topicID [16]byte) {
	rec := &kgo.Record{Topic: batch.Topic, Partition: batch.Partition, Offset: batch.Offset, LeaderEpoch: batch.Epoch}
	in := d.c.open(rec, topicID)
	in.next = batch.NextOffset
	in.err = Permanent(fmt.Errorf("a batch of %d records unpacks to more than %d MiB", batch.NextOffset-batch.Offset, maxBatchBytes>>20))
	d.enqueue(client, batch.Topic, topicID, kgo.FetchPartition{Partition: batch.Partition, LogStartOffset: -1}, in)
	if in.part == nil {
		return // taken away meanwhile
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.steps = append(d.steps, step{in.part, kgo.EpochOffset{Epoch: batch.Epoch, Offset: batch.NextOffset}})
}

// A step is where the client shall go on in a partition.
type step struct {
	part *partition
	to   kgo.EpochOffset
}

// takeSteps has the client go on behind what was stepped over. Its own idea of
// offsets must not change under a commit, for which the poll must not wait.
func (d *dispatcher) takeSteps(ctx context.Context, client *kgo.Client) {
	select {
	case d.committing <- struct{}{}:
		defer func() { <-d.committing }()
	case <-ctx.Done():
		return
	}
	d.mu.Lock()
	steps := d.steps
	d.steps = nil
	d.mu.Unlock()
	for _, s := range steps {
		if !s.part.gone.Load() {
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
				if id := topicIDText(ids[topicPartition{t.Topic, t.Partitions[j].Partition}]); id != "" {
					t.Partitions[j].Metadata = &id
				}
			}
		}
		return nil
	})
}

// complaints logs what goes wrong again and again when it begins and when it
// has ended.
type complaints struct {
	cfg Config
	mu  sync.Mutex
	now map[complaint]*trouble
}

type complaint struct {
	what, topic string
	partition   int32
}

type trouble struct{ since, last time.Time }

// calm is how long nothing must be heard of a trouble that it has ended.
const calm = 15 * time.Second

func (c *complaints) add(what, topic string, partition int32, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, now := complaint{what, topic, partition}, time.Now()
	if c.now[at] == nil {
		c.now[at] = &trouble{since: now}
		c.cfg.Log.Error("trouble with the brokers", "doing", what, "consumer_group", c.cfg.Group, "topic", topic, "partition", partition, "err", err)
	}
	c.now[at].last = now
}

// settle says of what has ended.
func (c *complaints) settle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for at, t := range c.now {
		if time.Since(t.last) > calm {
			delete(c.now, at)
			c.cfg.Log.Info("no more trouble with the brokers", "doing", at.what, "consumer_group", c.cfg.Group, "topic", at.topic, "partition", at.partition,
				"trouble_seconds", t.last.Sub(t.since).Seconds())
		}
	}
}
