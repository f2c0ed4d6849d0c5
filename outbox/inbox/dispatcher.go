package inbox

import (
	"context"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/internal/crash"
	"pizzaflow/sqldb"
)

const (
	usualBatch       = 64                     // messages in one transaction, unless more are ready for each worker
	maxBatch         = 512                    // messages in one transaction; still larger ones gain nothing
	batchTarget      = 100 * time.Millisecond // for the messages of a transaction: above it batches get smaller
	maxWindowRecords = 4000                   // fetched and not acked of one partition: above it fetching pauses
	maxWindowBytes   = 8 << 20                // the same in bytes
	commitEvery      = 500 * time.Millisecond
	drainTimeout     = 6 * time.Second // for the messages at work of a revoked partition; shorter than RebalanceTimeout
)

// A dispatcher spreads messages over workers: those of one key one after the other,
// those of different keys at the same time. For each partition it keeps the low
// watermark, below which every message is processed, and commits no offset above it.
type dispatcher struct {
	c       *Consumer
	workers int

	topics      []string
	checkNow    chan struct{} // wakes watchTopics
	offsetsLock chan struct{} // full while offsets are committed or the client seeks: a lock whose wait ends with a context

	mu            sync.Mutex
	client        *kgo.Client // known from the first assignment on
	topicIDs      map[string][16]byte
	unknownTopics map[string]bool // whose id or name the broker did not know at the last fetch
	sizer         batchSizer
	changed       *sync.Cond // a key is ready, a batch is finished, or stopping
	partitions    map[topicPartition]*partition
	queues        map[string]*queue
	ready         []string // keys with a waiting message and none at work
	seeks         []seek   // for applySeeks
	stopping      bool
}

// A topicPartition identifies a partition.
type topicPartition struct {
	topic     string
	partition int32
}

// A partition is one that is assigned to this process. Its fields but revoked are
// guarded by dispatcher.mu.
type partition struct {
	topicPartition
	window        []*message // fetched, from the first that is not acked
	topicID       [16]byte
	nextOffset    int64 // the offset expected from the next fetch; -1 when unknown
	lowWatermark  int64 // every message below it is acked; -1 when unknown
	epoch         int32 // the leader epoch of the last message below it
	committed     int64 // the last committed low watermark; -1 when unknown
	highWatermark int64 // the end of the log, as of the last fetch or check
	bytes         int   // size of the window
	atWork        int   // messages that workers have
	paused        bool  // fetching is
	lag           prometheus.Gauge
	revoked       atomic.Bool // or lost: no longer assigned to this process
}

// A queue holds the messages of one key that wait until the one at work is
// finished.
type queue struct {
	waiting []*message
	busy    bool // a worker has a message of the key
}

// newDispatcher makes a dispatcher without partitions.
func newDispatcher(c *Consumer, topics []string) *dispatcher {
	d := &dispatcher{
		c: c, workers: 4, sizer: batchSizer{target: batchTarget, max: maxBatch, size: usualBatch},
		topics: topics, checkNow: make(chan struct{}, 1), topicIDs: map[string][16]byte{}, unknownTopics: map[string]bool{},
		partitions: map[topicPartition]*partition{}, queues: map[string]*queue{},
	}
	if c.db.Engine == sqldb.SQLite {
		d.workers, d.sizer.max, d.sizer.target = 1, maxBatch/4, batchTarget/4 // SQLite has one writer, for which all other writes wait
	}
	d.changed, d.offsetsLock = sync.NewCond(&d.mu), make(chan struct{}, 1)
	return d
}

// onAssigned adds the partitions that the group assigns to this process.
// adjustOffsets sets their offsets before the first fetch.
func (d *dispatcher) onAssigned(_ context.Context, client *kgo.Client, parts map[string][]int32) {
	d.dropPartitions(parts) // a recreated topic is assigned again without having been revoked
	d.mu.Lock()
	defer d.mu.Unlock()
	d.client = client
	for topic, ids := range parts {
		for _, id := range ids {
			tp := topicPartition{topic, id}
			d.partitions[tp] = &partition{
				topicPartition: tp, nextOffset: -1, lowWatermark: -1, committed: -1,
				lag: d.c.metrics.lag.WithLabelValues(topic, strconv.Itoa(int(id))),
			}
		}
	}
	client.ResumeFetchPartitions(parts) // the client keeps pauses of earlier assignments
}

// onRevoked stops taking messages of the partitions, lets the workers finish those
// at work (for at most drainTimeout) and commits the offsets.
func (d *dispatcher) onRevoked(ctx context.Context, client *kgo.Client, parts map[string][]int32) {
	dropped := d.dropPartitions(parts)
	began := time.Now()
	deadline := time.AfterFunc(drainTimeout, func() {
		d.mu.Lock() // without it the broadcast could fall between the check of the time and the wait
		defer d.mu.Unlock()
		d.changed.Broadcast()
	})
	defer deadline.Stop()
	d.mu.Lock()
	for _, p := range dropped {
		for p.atWork > 0 && time.Since(began) < drainTimeout {
			d.changed.Wait()
		}
	}
	d.mu.Unlock()
	d.commitPartitions(ctx, client, dropped)
}

// onLost forgets partitions that another process may own already.
func (d *dispatcher) onLost(_ context.Context, _ *kgo.Client, parts map[string][]int32) {
	d.dropPartitions(parts)
}

// dropPartitions removes the partitions and their waiting messages, marks them as
// revoked, and returns them.
func (d *dispatcher) dropPartitions(parts map[string][]int32) (dropped []*partition) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for topic, ids := range parts {
		for _, id := range ids {
			tp := topicPartition{topic, id}
			if p := d.partitions[tp]; p != nil {
				p.revoked.Store(true)
				dropped = append(dropped, p)
				delete(d.partitions, tp)
			}
			d.c.metrics.lag.DeleteLabelValues(topic, strconv.Itoa(int(id)))
		}
	}
	for key, q := range d.queues {
		kept := q.waiting[:0]
		for _, msg := range q.waiting {
			if !msg.part.revoked.Load() {
				kept = append(kept, msg)
			}
		}
		q.waiting = kept
		if !q.busy && len(kept) == 0 {
			delete(d.queues, key)
		}
	}
	d.c.gate.wakeAll() // messages of revoked partitions are no longer wanted
	return dropped
}

// enqueueFetched decodes the fetched records of one partition and enqueues them.
// Messages without a handler are counted and need no work.
func (d *dispatcher) enqueueFetched(client *kgo.Client, topic string, topicID [16]byte, fetched kgo.FetchPartition) {
	msgs := make([]*message, len(fetched.Records))
	for i, rec := range fetched.Records {
		msgs[i] = d.c.decode(rec, topicID)
		if msgs[i].ignored() {
			msgs[i].acked = true
			d.c.metrics.countIgnored(topic)
		}
	}
	d.enqueue(client, topic, topicID, fetched, msgs...)
}

// enqueue adds messages to the window of their partition and to the queues of
// their keys. It drops them when the partition is no longer assigned, and pauses
// fetching when the window is full.
func (d *dispatcher) enqueue(client *kgo.Client, topic string, topicID [16]byte, fetched kgo.FetchPartition, msgs ...*message) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.partitions[topicPartition{topic, fetched.Partition}]
	if p == nil {
		return
	}
	if d.topicIDs[topic] == [16]byte{} {
		d.topicIDs[topic] = topicID
	}
	p.topicID = topicID
	p.highWatermark = max(p.highWatermark, fetched.HighWatermark)
	if p.nextOffset >= 0 && fetched.LogStartOffset > p.nextOffset {
		d.c.reportDeleted(topic, p.partition, p.nextOffset, fetched.LogStartOffset)
		p.nextOffset = fetched.LogStartOffset
	}
	for _, msg := range msgs {
		msg.part = p
		p.window = append(p.window, msg)
		p.bytes += msg.size()
		p.nextOffset = msg.nextOffset
		if msg.acked {
			continue
		}
		q := d.queues[msg.key]
		if q == nil {
			q = &queue{}
			d.queues[msg.key] = q
		}
		q.waiting = append(q.waiting, msg)
		if !q.busy && len(q.waiting) == 1 {
			d.ready = append(d.ready, msg.key)
		}
	}
	d.advanceLowWatermark(p)
	if !p.paused && (len(p.window) > maxWindowRecords || p.bytes > maxWindowBytes) {
		p.paused = true
		client.PauseFetchPartitions(map[string][]int32{topic: {p.partition}})
	}
	d.changed.Broadcast()
}

// workLoop processes batches until the dispatcher stops.
func (d *dispatcher) workLoop(ctx context.Context, client *kgo.Client) {
	for {
		batch := d.awaitBatch()
		if batch == nil {
			return
		}
		crash.Point("consumer: taken")
		began := time.Now()
		d.c.processBatch(ctx, batch)
		d.finishBatch(client, batch, time.Since(began))
	}
}

// awaitBatch waits until a message is ready and returns a batch; nil when the
// dispatcher stops.
func (d *dispatcher) awaitBatch() []*message {
	d.mu.Lock()
	defer d.mu.Unlock()
	for !d.stopping {
		if batch := d.takeReady(); len(batch) > 0 {
			return batch
		}
		d.changed.Wait()
	}
	return nil
}

// takeReady takes the first message of as many ready keys as a batch may have, all
// of one topic: a batch that locked rows for two topics could deadlock with one
// that locks them in the other order. Keys of other topics stay in front.
func (d *dispatcher) takeReady() (batch []*message) {
	var others []string // keys of other topics
	size := min(d.sizer.size, max(usualBatch, len(d.ready)/d.workers))
	next := 0
	for next < len(d.ready) && len(batch) < size && len(others) < maxBatch { // not through all of a long queue of another topic
		q := d.queues[d.ready[next]]
		next++
		if q == nil || q.busy || len(q.waiting) == 0 {
			continue // its partition was revoked
		}
		msg := q.waiting[0]
		if len(batch) > 0 && msg.rec.Topic != batch[0].rec.Topic {
			others = append(others, msg.key)
			continue
		}
		q.waiting, q.busy = q.waiting[1:], true
		msg.part.atWork++
		msg.startedAt = time.Now()
		batch = append(batch, msg)
	}
	next -= len(others)
	copy(d.ready[next:], others)
	d.ready = d.ready[next:]
	return batch
}

// finishBatch returns a batch after its transaction: it frees the keys and advances
// the low watermarks. Messages that were not processed, because the consumer stops
// or the partition was revoked, hold the low watermark, and are fetched again.
func (d *dispatcher) finishBatch(client *kgo.Client, batch []*message, took time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sizer.observe(len(batch), took)
	touched := map[*partition]bool{}
	for _, msg := range batch {
		msg.acked = msg.processed
		msg.part.atWork--
		q := d.queues[msg.key]
		q.busy = false
		if len(q.waiting) > 0 {
			d.ready = append(d.ready, msg.key)
		} else {
			delete(d.queues, msg.key)
		}
		touched[msg.part] = true
	}
	for p := range touched {
		d.advanceLowWatermark(p)
		d.resumeFetch(client, p)
	}
	d.changed.Broadcast()
}

// advanceLowWatermark moves the low watermark of p up to the first message that is
// not acked, and drops the messages below it from the window.
func (d *dispatcher) advanceLowWatermark(p *partition) {
	n := 0
	for n < len(p.window) && p.window[n].acked {
		p.lowWatermark, p.epoch = p.window[n].nextOffset, p.window[n].rec.LeaderEpoch
		p.bytes -= p.window[n].size()
		n++
	}
	clear(p.window[:n]) // the array stays, without references to them
	p.window = p.window[n:]
}

// setLag sets the lag metric of p.
func (d *dispatcher) setLag(p *partition) {
	if p.lowWatermark >= 0 && !p.revoked.Load() {
		p.lag.Set(float64(max(0, p.highWatermark-p.lowWatermark)))
	}
}

// resumeFetch resumes fetching of p once its window is down to half.
func (d *dispatcher) resumeFetch(client *kgo.Client, p *partition) {
	if p.paused && !p.revoked.Load() && len(p.window) <= maxWindowRecords/2 && p.bytes <= maxWindowBytes/2 {
		p.paused = false
		client.ResumeFetchPartitions(map[string][]int32{p.topic: {p.partition}})
	}
}

// stop has each worker end after the batch at work.
func (d *dispatcher) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stopping = true
	d.changed.Broadcast()
}
