package inbox

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"

	"pizzaflow/outbox"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// A dispatcherModel runs a dispatcher with random workers, fetches, assignments and
// commits, and knows what must be true of it.
type dispatcherModel struct {
	*dispatcher
	client *kgo.Client
	logs   map[topicPartition][]*kgo.Record // what the broker has
	next   map[topicPartition]int           // of them was fetched
	stored map[topicPartition]int64         // offsets the broker was told
	acked  map[topicPartition]map[int64]bool
	atWork [][]*message
	last   map[string]int64 // of each key and partition, in this assignment: the last offset taken
}

// assign assigns a partition as the group does.
func (d *dispatcherModel) assign(tp topicPartition) {
	d.onAssigned(nil, d.client, map[string][]int32{tp.topic: {tp.partition}}) //nolint:staticcheck // it asks for no context
	at := d.startPartition(partitionOffsets{topic: tp.topic, partition: tp.partition, committed: d.stored[tp], end: 1 << 40})
	d.next[tp] = slices.IndexFunc(d.logs[tp], func(r *kgo.Record) bool { return r.Offset >= at })
	if d.next[tp] < 0 {
		d.next[tp] = len(d.logs[tp])
	}
	for key := range d.last {
		if strings.HasPrefix(key, fmt.Sprint(tp)) {
			delete(d.last, key)
		}
	}
}

// write appends records to a partition, with holes as compaction and transactions
// leave them.
func (d *dispatcherModel) write(t *rapid.T, tp topicPartition) {
	offset := int64(0)
	if log := d.logs[tp]; len(log) > 0 {
		offset = log[len(log)-1].Offset + 1
	}
	for range rapid.IntRange(1, 40).Draw(t, "records") {
		offset += int64(rapid.SampledFrom([]int{0, 0, 0, 0, 1, 7}).Draw(t, "hole"))
		rec := &kgo.Record{Topic: tp.topic, Partition: tp.partition, Offset: offset, Value: []byte("{}")} // it cannot be opened, which is all the same here
		if key := rapid.IntRange(-1, 6).Draw(t, "key"); key >= 0 {
			rec.Key = fmt.Append(nil, tp.partition, key)
		}
		d.logs[tp] = append(d.logs[tp], rec)
		offset++
	}
}

// take takes a batch as a worker does, if a message is ready.
func (d *dispatcherModel) take(t *rapid.T) {
	d.mu.Lock()
	ready := slices.ContainsFunc(d.ready, func(key string) bool { q := d.queues[key]; return q != nil && !q.busy && len(q.waiting) > 0 })
	d.sizer.size = rapid.IntRange(1, 12).Draw(t, "limit")
	d.mu.Unlock()
	if !ready {
		return
	}
	batch := d.awaitBatch()
	busy := map[string]bool{}
	for _, other := range d.atWork {
		for _, msg := range other {
			busy[msg.key] = true
		}
	}
	for _, msg := range batch {
		if busy[msg.key] {
			t.Fatalf("two records of key %q at work", msg.key)
		}
		busy[msg.key] = true
		key := fmt.Sprint(msg.part.topicPartition, msg.key)
		if last, ok := d.last[key]; ok && msg.rec.Offset <= last {
			t.Fatalf("offset %d after %d of its key", msg.rec.Offset, last)
		}
		d.last[key] = msg.rec.Offset
	}
	d.atWork = append(d.atWork, batch)
}

// finish returns a batch as a worker does. Messages of revoked partitions may be
// unprocessed, all others are processed.
func (d *dispatcherModel) finish(t *rapid.T) {
	if len(d.atWork) == 0 {
		return
	}
	i := rapid.IntRange(0, len(d.atWork)-1).Draw(t, "batch")
	batch := d.atWork[i]
	d.atWork = slices.Delete(d.atWork, i, i+1)
	for _, msg := range batch {
		if msg.processed = !msg.part.revoked.Load() || rapid.Bool().Draw(t, "processed although revoked"); msg.processed {
			d.acked[msg.part.topicPartition][msg.rec.Offset] = true
		}
	}
	d.finishBatch(d.client, batch, time.Duration(rapid.IntRange(0, 300).Draw(t, "ms"))*time.Millisecond)
}

// commit stores the offsets that would be committed.
func (d *dispatcherModel) commit(parts ...*partition) {
	offsets, _ := d.takeUncommitted(parts)
	for topic, ids := range offsets {
		for id, o := range ids {
			d.stored[topicPartition{topic, id}] = o.Offset
		}
	}
}

// check fails the test when an offset is committed above a message that is not acked.
func (d *dispatcherModel) check(t *rapid.T) {
	for tp, stored := range d.stored {
		for _, rec := range d.logs[tp] {
			if rec.Offset < stored && !d.acked[tp][rec.Offset] {
				t.Fatalf("%v: %d is committed and %d is not processed", tp, stored, rec.Offset)
			}
		}
	}
}

// In whatever order workers finish, partitions are assigned and revoked and offsets
// are committed: no offset is committed above a message that is not processed, the
// messages of a key are taken one after the other and in order, and in the end every
// message is processed and committed.
func TestDispatcher(t *testing.T) {
	db := sqltest.Open(t, sqldb.SQLite)
	client, err := kgo.NewClient(kgo.SeedBrokers("127.0.0.1:1")) // it is never asked for anything
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	rapid.Check(t, func(t *rapid.T) {
		c := New(Config{Outbox: outbox.New(db, "/accounts"), Group: "readers", Log: slog.New(slog.DiscardHandler)})
		parts := []topicPartition{{"moves", 0}, {"moves", 1}, {"other", 0}}
		d := &dispatcherModel{
			dispatcher: newDispatcher(c, []string{"moves", "other"}), client: client,
			logs: map[topicPartition][]*kgo.Record{}, next: map[topicPartition]int{}, stored: map[topicPartition]int64{},
			acked: map[topicPartition]map[int64]bool{}, last: map[string]int64{},
		}
		for _, tp := range parts {
			d.acked[tp] = map[int64]bool{}
		}
		draw := func(t *rapid.T) topicPartition { return rapid.SampledFrom(parts).Draw(t, "partition") }
		fetch := func(t *rapid.T, tp topicPartition, n int) {
			if d.partitions[tp] == nil {
				return
			}
			recs := d.logs[tp][d.next[tp]:min(d.next[tp]+n, len(d.logs[tp]))]
			d.next[tp] += len(recs)
			d.enqueueFetched(client, tp.topic, [16]byte{1}, kgo.FetchPartition{Partition: tp.partition, Records: recs})
		}
		actions := []func(){
			func() { d.write(t, draw(t)) },
			func() { fetch(t, draw(t), rapid.IntRange(1, 30).Draw(t, "n")) },
			func() { d.take(t) },
			func() { d.finish(t) },
			func() {
				if p := d.partitions[draw(t)]; p != nil {
					d.commit(p)
				}
			},
			func() {
				if tp := draw(t); d.partitions[tp] == nil {
					d.assign(tp)
				}
			},
			func() { // revoked, with some time to finish the messages at work
				tp := draw(t)
				dropped := d.dropPartitions(map[string][]int32{tp.topic: {tp.partition}})
				for range rapid.IntRange(0, 3).Draw(t, "finished in time") {
					d.finish(t)
				}
				d.commit(dropped...)
			},
			func() { d.assign(draw(t)) }, // without having been revoked
		}
		odds := []int{0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 5, 5, 5, 6, 7}
		for range rapid.IntRange(20, 400).Draw(t, "steps") {
			actions[odds[rapid.IntRange(0, len(odds)-1).Draw(t, "action")]]()
			d.check(t)
		}
		for _, tp := range parts { // in the end every message is read and processed
			if d.partitions[tp] == nil {
				d.assign(tp)
			}
			fetch(t, tp, len(d.logs[tp]))
		}
		for range 10_000 {
			d.take(t)
			if len(d.atWork) == 0 {
				break
			}
			d.finish(t)
		}
		for _, tp := range parts {
			d.commit(d.partitions[tp])
			if log := d.logs[tp]; len(log) > 0 && d.stored[tp] != log[len(log)-1].Offset+1 {
				t.Fatalf("%v: %d of %d are committed", tp, d.stored[tp], log[len(log)-1].Offset+1)
			}
		}
		d.check(t)
		if len(d.queues) != 0 {
			t.Fatalf("%d queues are left", len(d.queues))
		}
	})
}

// A window is bounded by the size of keys and headers, too.
func TestWindowCountsKeysAndHeaders(t *testing.T) {
	db := sqltest.Open(t, sqldb.SQLite, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
	c, _ := newTestConsumer(t, db)
	client, err := kgo.NewClient(kgo.SeedBrokers("127.0.0.1:1"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	big := bytes.Repeat([]byte("x"), maxWindowBytes/4)
	for what, rec := range map[string]kgo.Record{
		"values": {Value: big}, "keys": {Key: big}, "headers": {Headers: []kgo.RecordHeader{{Key: "h", Value: big}}}, "names": {Headers: []kgo.RecordHeader{{Key: string(big)}}},
	} {
		d := newDispatcher(c, []string{"new-topic"})
		d.onAssigned(t.Context(), client, map[string][]int32{"new-topic": {0}})
		for offset := range int64(4) {
			rec.Topic, rec.Offset = "new-topic", offset
			d.enqueueFetched(client, "new-topic", [16]byte{}, kgo.FetchPartition{Records: []*kgo.Record{&rec}})
		}
		p := d.partitions[topicPartition{"new-topic", 0}]
		if !p.paused {
			t.Errorf("%d records with large %s do not pause the partition", len(p.window), what)
		}
		for batch := d.awaitBatch(); ; batch = d.awaitBatch() {
			for _, msg := range batch {
				msg.processed = true
			}
			d.finishBatch(client, batch, 0)
			if len(p.window) == 0 {
				break
			}
		}
		if p.paused || p.bytes != 0 {
			t.Errorf("when all with large %s are processed it is paused: %t, and holds %d bytes", what, p.paused, p.bytes)
		}
	}
}

// Few messages of one topic among many of another are taken without looking at all
// the others. No message is lost or overtakes another.
func TestTakeReadyOfTwoTopics(t *testing.T) {
	db := sqltest.Open(t, sqldb.SQLite, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
	c, _ := newTestConsumer(t, db)
	d := newDispatcher(c, []string{"few", "many"})
	client, err := kgo.NewClient(kgo.SeedBrokers("127.0.0.1:1"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	d.onAssigned(t.Context(), client, map[string][]int32{"few": {0}, "many": {0}})
	add := func(topic string, n int) {
		t.Helper()
		var records []*kgo.Record
		for i := range n {
			records = append(records, &kgo.Record{Topic: topic, Offset: int64(i), Key: fmt.Append(nil, topic, i), Value: []byte("{}")})
		}
		d.enqueueFetched(client, topic, [16]byte{}, kgo.FetchPartition{Records: records})
	}
	add("few", 1)
	add("many", 2*maxBatch)
	d.ready = append(d.ready, "few\x00few1") // behind them all
	d.queues["few\x00few1"] = &queue{waiting: []*message{{rec: &kgo.Record{Topic: "few"}, part: d.partitions[topicPartition{"few", 0}]}}}
	if batch := d.awaitBatch(); len(batch) != 1 || len(d.ready) != 2*maxBatch+1 {
		t.Errorf("%d records taken, %d keys left: want 1 of the first topic and all of the other", len(batch), len(d.ready))
	}
	next := 0
	for len(d.ready) > 1 {
		for _, msg := range d.awaitBatch() {
			if got := string(msg.rec.Key); got != fmt.Sprint("many", next) {
				t.Fatalf("%s is taken as number %d", got, next)
			}
			next++
		}
	}
	if next != 2*maxBatch {
		t.Errorf("%d records taken", next)
	}
}
