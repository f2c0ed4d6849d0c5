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
	usualBatch       = 64                     // of different keys in one transaction; more when so many are waiting that every worker has as many
	maxBatch         = 512                    // then up to this, where the gain of still larger ones has gone
	batchTarget      = 100 * time.Millisecond // the records of a transaction should take no longer: above it batches get smaller
	maxWindowRecords = 4000                   // of one partition between fetched and done; above it fetching pauses
	maxWindowBytes   = 8 << 20                // the same, by the size of the records
	commitEvery      = 500 * time.Millisecond
	drainTimeout     = 6 * time.Second // of a partition that is taken away; less than the group waits for a member
)

// A dispatcher spreads records over workers: those of one key one after the
// other, those of different keys at once. It knows for each partition up to
// where everything is done, and commits that and nothing above it.
type dispatcher struct {
	c       *Consumer
	workers int

	topics      []string
	checkNow    chan struct{} // the topics should be looked at
	offsetsLock chan struct{} // has one in it while offsets are told to the broker, or to the client

	mu            sync.Mutex
	client        *kgo.Client // as the first assignment told
	topicIDs      map[string][16]byte
	unknownTopics map[string]bool // those the broker does not know as we do
	sizer         batchSizer      // of transactions
	changed       *sync.Cond      // a key became ready, a record was done, the end
	partitions    map[topicPartition]*partition
	queues        map[string]*queue
	ready         []string // keys that have a record waiting and none at work
	seeks         []seek   // over what cannot be read
	stopping      bool
}

type topicPartition struct {
	topic     string
	partition int32
}

// A partition is one that this process consumes.
type partition struct {
	topicPartition
	window        []*message // fetched, from the first that is not done
	topicID       [16]byte
	nextOffset    int64 // the offset that should come next; -1 when it is not known
	lowWatermark  int64 // everything below is done; -1 when it is not known
	epoch         int32
	committed     int64
	highWatermark int64 // the end of the log at the last look
	bytes         int   // of the records in the window
	atWork        int
	paused        bool
	lag           prometheus.Gauge
	revoked       atomic.Bool // taken away
}

// A queue holds the records of one key that wait for the one at work.
type queue struct {
	waiting []*message
	busy    bool
}

func newDispatcher(c *Consumer, topics []string) *dispatcher {
	d := &dispatcher{
		c: c, workers: 4, sizer: batchSizer{target: batchTarget, max: maxBatch, size: usualBatch},
		topics: topics, checkNow: make(chan struct{}, 1), topicIDs: map[string][16]byte{}, unknownTopics: map[string]bool{},
		partitions: map[topicPartition]*partition{}, queues: map[string]*queue{},
	}
	if c.db.Engine == sqldb.SQLite {
		d.workers, d.sizer.max, d.sizer.target = 1, maxBatch/4, batchTarget/4 // there is one writer, and others wait for it
	}
	d.changed, d.offsetsLock = sync.NewCond(&d.mu), make(chan struct{}, 1)
	return d
}

func (d *dispatcher) onAssigned(_ context.Context, client *kgo.Client, parts map[string][]int32) {
	d.dropPartitions(parts) // a topic that was taken up anew
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
	client.ResumeFetchPartitions(parts) // a pause outlives the assignment it was made for
}

// revoked lets the records at work finish, commits, and gives the partitions up.
func (d *dispatcher) onRevoked(ctx context.Context, client *kgo.Client, parts map[string][]int32) {
	dropped := d.dropPartitions(parts)
	began := time.Now()
	deadline := time.AfterFunc(drainTimeout, func() {
		d.mu.Lock() // or it could fall between the look at the clock and the wait
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

// lost gives up partitions that are already another's.
func (d *dispatcher) onLost(_ context.Context, _ *kgo.Client, parts map[string][]int32) {
	d.dropPartitions(parts)
}

// drop forgets the partitions and what waits in them.
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
	d.c.gate.wakeAll() // what is gone need not be waited for
	return dropped
}

// open opens what was fetched of one partition and enqueues it.
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

// awaitBatch waits until messages are ready and takes a batch of them; nil says
// that the dispatcher stops.
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

// takeReady takes the first message of as many ready keys as a batch may have,
// all of one topic: a batch that locked rows for two topics could wait for one
// that locks them the other way round.
func (d *dispatcher) takeReady() (batch []*message) {
	var others []string // keys of other topics, which stay in front
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

// finish takes a batch back. What was not settled, because the end came, is
// not done: it will be fetched again.
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

// advance moves the low-water mark over what is done.
func (d *dispatcher) advanceLowWatermark(p *partition) {
	n := 0
	for n < len(p.window) && p.window[n].acked {
		p.lowWatermark, p.epoch = p.window[n].nextOffset, p.window[n].rec.LeaderEpoch
		p.bytes -= p.window[n].size()
		n++
	}
	clear(p.window[:n]) // the rest keeps the array
	p.window = p.window[n:]
}

// showLag sets the gauge of a partition.
func (d *dispatcher) setLag(p *partition) {
	if p.lowWatermark >= 0 && !p.revoked.Load() {
		p.lag.Set(float64(max(0, p.highWatermark-p.lowWatermark)))
	}
}

// resume fetches again what was paused and has been worked down to half.
func (d *dispatcher) resumeFetch(client *kgo.Client, p *partition) {
	if p.paused && !p.revoked.Load() && len(p.window) <= maxWindowRecords/2 && p.bytes <= maxWindowBytes/2 {
		p.paused = false
		client.ResumeFetchPartitions(map[string][]int32{p.topic: {p.partition}})
	}
}

// stop lets the workers end after the batch they are in.
func (d *dispatcher) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stopping = true
	d.changed.Broadcast()
}
