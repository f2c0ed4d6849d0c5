package inbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// maxBatchBytes is what a fetched batch may unpack to: a small record must not
// become all of the memory.
const maxBatchBytes = 16 << 20

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
