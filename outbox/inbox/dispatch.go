package inbox

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"pizzaflow/internal/crash"
	"pizzaflow/sqldb"
)

const (
	batchRecords  = 64                     // of different keys in one transaction; more when so many are waiting that every worker has as many
	batchLimit    = 512                    // then up to this, where the gain of still larger ones has gone
	batchTime     = 100 * time.Millisecond // the records of a transaction should take no longer: above it batches get smaller
	windowRecords = 4000                   // of one partition between fetched and done; above it fetching pauses
	windowBytes   = 8 << 20                // the same, by the size of the records
	commitEvery   = 500 * time.Millisecond
	drainTimeout  = 6 * time.Second // of a partition that is taken away; less than the group waits for a member
)

// A dispatcher spreads records over workers: those of one key one after the
// other, those of different keys at once. It knows for each partition up to
// where everything is done, and commits that and nothing above it.
type dispatcher struct {
	c       *Consumer
	workers int

	topics     []string
	suspect    chan struct{} // the topics should be looked at
	committing chan struct{} // has one in it while offsets are told to the broker, or to the client

	mu         sync.Mutex
	client     *kgo.Client // as the first assignment told
	topicIDs   map[string][16]byte
	lostTopics map[string]bool // those the broker does not know as we do
	pace       pace            // of transactions
	changed    *sync.Cond      // a key became ready, a record was done, the end
	partitions map[topicPartition]*partition
	queues     map[string]*queue
	ready      []string // keys that have a record waiting and none at work
	steps      []step   // over what cannot be read
	ending     bool
}

type topicPartition struct {
	topic     string
	partition int32
}

// A partition is one that this process consumes.
type partition struct {
	topicPartition
	window    []*inbound // fetched, from the first that is not done
	topicID   [16]byte
	next      int64 // the offset that should come next; -1 when it is not known
	lowWater  int64 // everything below is done; -1 when it is not known
	epoch     int32
	committed int64
	highWater int64 // the end of the log at the last look
	bytes     int   // of the records in the window
	atWork    int
	paused    bool
	lag       prometheus.Gauge
	gone      atomic.Bool // taken away
}

// A queue holds the records of one key that wait for the one at work.
type queue struct {
	waiting []*inbound
	busy    bool
}

func newDispatcher(c *Consumer, topics []string) *dispatcher {
	d := &dispatcher{
		c: c, workers: 4, pace: pace{longest: batchTime, most: batchLimit, limit: batchRecords},
		topics: topics, suspect: make(chan struct{}, 1), topicIDs: map[string][16]byte{}, lostTopics: map[string]bool{},
		partitions: map[topicPartition]*partition{}, queues: map[string]*queue{},
	}
	if c.db.Engine == sqldb.SQLite {
		d.workers, d.pace.most, d.pace.longest = 1, batchLimit/4, batchTime/4 // there is one writer, and others wait for it
	}
	d.changed, d.committing = sync.NewCond(&d.mu), make(chan struct{}, 1)
	return d
}

func (d *dispatcher) assigned(_ context.Context, client *kgo.Client, parts map[string][]int32) {
	d.drop(parts) // a topic that was taken up anew
	d.mu.Lock()
	defer d.mu.Unlock()
	d.client = client
	for topic, ids := range parts {
		for _, id := range ids {
			tp := topicPartition{topic, id}
			d.partitions[tp] = &partition{
				topicPartition: tp, next: -1, lowWater: -1, committed: -1,
				lag: d.c.metrics.lag.WithLabelValues(topic, strconv.Itoa(int(id))),
			}
		}
	}
	client.ResumeFetchPartitions(parts) // a pause outlives the assignment it was made for
}

// revoked lets the records at work finish, commits, and gives the partitions up.
func (d *dispatcher) revoked(ctx context.Context, client *kgo.Client, parts map[string][]int32) {
	gone := d.drop(parts)
	began := time.Now()
	deadline := time.AfterFunc(drainTimeout, func() {
		d.mu.Lock() // or it could fall between the look at the clock and the wait
		defer d.mu.Unlock()
		d.changed.Broadcast()
	})
	defer deadline.Stop()
	d.mu.Lock()
	for _, p := range gone {
		for p.atWork > 0 && time.Since(began) < drainTimeout {
			d.changed.Wait()
		}
	}
	d.mu.Unlock()
	d.commitOf(ctx, client, gone)
}

// lost gives up partitions that are already another's.
func (d *dispatcher) lost(_ context.Context, _ *kgo.Client, parts map[string][]int32) { d.drop(parts) }

// drop forgets the partitions and what waits in them.
func (d *dispatcher) drop(parts map[string][]int32) (gone []*partition) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for topic, ids := range parts {
		for _, id := range ids {
			tp := topicPartition{topic, id}
			if p := d.partitions[tp]; p != nil {
				p.gone.Store(true)
				gone = append(gone, p)
				delete(d.partitions, tp)
			}
			d.c.metrics.lag.DeleteLabelValues(topic, strconv.Itoa(int(id)))
		}
	}
	for key, q := range d.queues {
		kept := q.waiting[:0]
		for _, in := range q.waiting {
			if !in.part.gone.Load() {
				kept = append(kept, in)
			}
		}
		q.waiting = kept
		if !q.busy && len(kept) == 0 {
			delete(d.queues, key)
		}
	}
	d.c.breaker.nudge() // what is gone need not be waited for
	return gone
}

// open opens what was fetched of one partition and enqueues it.
func (d *dispatcher) open(client *kgo.Client, topic string, topicID [16]byte, fetched kgo.FetchPartition) {
	ins := make([]*inbound, len(fetched.Records))
	for i, rec := range fetched.Records {
		ins[i] = d.c.open(rec, topicID)
	}
	d.enqueue(client, topic, topicID, fetched, ins...)
}

func (d *dispatcher) enqueue(client *kgo.Client, topic string, topicID [16]byte, fetched kgo.FetchPartition, ins ...*inbound) {
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
	p.highWater = max(p.highWater, fetched.HighWatermark)
	if p.next >= 0 && fetched.LogStartOffset > p.next {
		d.c.skipped(topic, p.partition, p.next, fetched.LogStartOffset)
		p.next = fetched.LogStartOffset
	}
	for _, in := range ins {
		in.part = p
		p.window = append(p.window, in)
		p.bytes += in.size()
		p.next = in.next
		if in.done {
			continue
		}
		q := d.queues[in.key]
		if q == nil {
			q = &queue{}
			d.queues[in.key] = q
		}
		q.waiting = append(q.waiting, in)
		if !q.busy && len(q.waiting) == 1 {
			d.ready = append(d.ready, in.key)
		}
	}
	d.advance(p)
	if !p.paused && (len(p.window) > windowRecords || p.bytes > windowBytes) {
		p.paused = true
		client.PauseFetchPartitions(map[string][]int32{topic: {p.partition}})
	}
	d.changed.Broadcast()
}

// take waits for records that may be worked on, each of another key.
func (d *dispatcher) take() []*inbound {
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		if d.ending {
			return nil
		}
		var batch []*inbound
		var others []string // of another topic: a batch that locked rows for two could wait for one that does so the other way round
		size := min(d.pace.limit, max(batchRecords, len(d.ready)/d.workers))
		next := 0
		for next < len(d.ready) && len(batch) < size && len(others) < batchLimit { // however long the other topic's queue
			q := d.queues[d.ready[next]]
			next++
			if q == nil || q.busy || len(q.waiting) == 0 {
				continue // its partition was taken away
			}
			in := q.waiting[0]
			if len(batch) > 0 && in.rec.Topic != batch[0].rec.Topic {
				others = append(others, in.key)
				continue
			}
			q.waiting, q.busy = q.waiting[1:], true
			in.part.atWork++
			in.began = time.Now()
			batch = append(batch, in)
		}
		next -= len(others)
		copy(d.ready[next:], others)
		d.ready = d.ready[next:]
		if len(batch) > 0 {
			return batch
		}
		d.changed.Wait()
	}
}

// finish takes a batch back. What was not settled, because the end came, is
// not done: it will be fetched again.
func (d *dispatcher) finish(client *kgo.Client, batch []*inbound, took time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pace.note(len(batch), took)
	touched := map[*partition]bool{}
	for _, in := range batch {
		in.done = in.settled
		in.part.atWork--
		q := d.queues[in.key]
		q.busy = false
		if len(q.waiting) > 0 {
			d.ready = append(d.ready, in.key)
		} else {
			delete(d.queues, in.key)
		}
		touched[in.part] = true
	}
	for p := range touched {
		d.advance(p)
		d.resume(client, p)
	}
	d.changed.Broadcast()
}

// advance moves the low-water mark over what is done.
func (d *dispatcher) advance(p *partition) {
	n := 0
	for n < len(p.window) && p.window[n].done {
		p.lowWater, p.epoch = p.window[n].next, p.window[n].rec.LeaderEpoch
		p.bytes -= p.window[n].size()
		n++
	}
	clear(p.window[:n]) // the rest keeps the array
	p.window = p.window[n:]
}

// size is how much memory a record takes, about.
func (in *inbound) size() int {
	n := 256 + len(in.rec.Value) + 2*len(in.rec.Key) // once more as its queue's
	for _, h := range in.rec.Headers {
		n += 64 + len(h.Key) + len(h.Value)
	}
	return n
}

// showLag sets the gauge of a partition.
func (d *dispatcher) showLag(p *partition) {
	if p.lowWater >= 0 && !p.gone.Load() {
		p.lag.Set(float64(max(0, p.highWater-p.lowWater)))
	}
}

func (d *dispatcher) work(ctx context.Context, client *kgo.Client) {
	for {
		batch := d.take()
		if batch == nil {
			return
		}
		crash.Point("consumer: taken")
		began := time.Now()
		d.c.settle(ctx, batch)
		d.finish(client, batch, time.Since(began))
	}
}

// stop lets the workers end after the batch they are in.
func (d *dispatcher) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ending = true
	d.changed.Broadcast()
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
		d.commit(ctx, client)
		d.takeSteps(ctx, client)
		crash.Point("offsets: committed")
	}
}

// resume fetches again what was paused and has been worked down to half.
func (d *dispatcher) resume(client *kgo.Client, p *partition) {
	if p.paused && !p.gone.Load() && len(p.window) <= windowRecords/2 && p.bytes <= windowBytes/2 {
		p.paused = false
		client.ResumeFetchPartitions(map[string][]int32{p.topic: {p.partition}})
	}
}

func (d *dispatcher) commit(ctx context.Context, client *kgo.Client) {
	d.mu.Lock()
	parts := make([]*partition, 0, len(d.partitions))
	for _, p := range d.partitions {
		parts = append(parts, p)
	}
	d.mu.Unlock()
	d.commitOf(ctx, client, parts)
}

// toCommit is what the broker should know and does not: for each partition up
// to where everything is done, and the topic it is said of.
func (d *dispatcher) toCommit(parts []*partition) (offsets map[string]map[int32]kgo.EpochOffset, ids map[topicPartition][16]byte) {
	offsets, ids = map[string]map[int32]kgo.EpochOffset{}, map[topicPartition][16]byte{}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range parts {
		if p.lowWater <= p.committed {
			continue
		}
		p.committed, ids[p.topicPartition] = p.lowWater, p.topicID
		d.showLag(p)
		if offsets[p.topic] == nil {
			offsets[p.topic] = map[int32]kgo.EpochOffset{}
		}
		offsets[p.topic][p.partition] = kgo.EpochOffset{Epoch: p.epoch, Offset: p.lowWater}
	}
	return offsets, ids
}

// commitOf tells the broker up to where everything is done. A commit that
// fails costs no more than reading some records again.
func (d *dispatcher) commitOf(ctx context.Context, client *kgo.Client, parts []*partition) {
	select {
	case d.committing <- struct{}{}:
		defer func() { <-d.committing }()
	case <-ctx.Done():
		return
	}
	offsets, ids := d.toCommit(parts)
	if len(offsets) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := commitOffsets(withTopicIDs(ctx, ids), client, offsets); err != nil {
		d.c.complaints.add("commit offsets", "", 0, err)
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, p := range parts {
			p.committed = -1 // once more
		}
	}
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
