package inbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// maxBatchBytes is how large a fetched batch may be when it is decompressed: a
// small record must not fill the memory.
const maxBatchBytes = 16 << 20

// handleFetchError dead-letters a batch that is too large, and logs any other error;
// when the broker does not know the topic, it has the topics checked.
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
		default: // a check is asked for already
		}
	}
}

// deadLetterOversized enqueues one message that stands for all records of a batch
// that is too large when decompressed; its error has it dead-lettered. The client
// reports such a batch once and stops fetching the partition until it is told to
// seek, so a seek behind the batch is noted for applySeeks.
func (d *dispatcher) deadLetterOversized(client *kgo.Client, batch *kgo.ErrDecompressTooLarge, topicID [16]byte) {
	rec := &kgo.Record{Topic: batch.Topic, Partition: batch.Partition, Offset: batch.Offset, LeaderEpoch: batch.Epoch}
	msg := d.c.decode(rec, topicID)
	msg.nextOffset = batch.NextOffset
	msg.err = Permanent(fmt.Errorf("a batch of %d records unpacks to more than %d MiB", batch.NextOffset-batch.Offset, maxBatchBytes>>20))
	d.enqueue(client, batch.Topic, topicID, kgo.FetchPartition{Partition: batch.Partition, LogStartOffset: -1}, msg)
	if msg.part == nil {
		return // the partition was revoked meanwhile
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seeks = append(d.seeks, seek{msg.part, kgo.EpochOffset{Epoch: batch.Epoch, Offset: batch.NextOffset}})
}

// A seek moves the fetch position of a partition.
type seek struct {
	part *partition
	to   kgo.EpochOffset // the offset to fetch next
}

// applySeeks moves the client behind the batches that were dead-lettered. It runs in
// the commit loop: the client's offsets must not change during a commit, and poll
// must not wait for one.
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
