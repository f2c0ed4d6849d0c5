package inbox

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/outbox"
	"pizzaflow/outbox/internal/store"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// TestProducedAgain has somebody produce dead records again, repaired or not,
// as one does with a tool for Kafka: that has no effect, and is said once for
// each such record, with what would have one.
func TestProducedAgain(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		c, handled := relocations(t, db)
		var said bytes.Buffer
		c.cfg.Log, c.cfg.Replay = slog.New(slog.NewTextHandler(&said, nil)), "replay it"
		hotKey(t, c, "hot", 1) // event 1 is dead, event 2 waits behind it
		again := func(n int, offset int64, value string) string {
			t.Helper()
			said.Reset()
			msg := c.relocation("hot", n)
			msg.rec.Offset = offset
			if value != "" {
				msg.rec.Value = bytes.Replace(msg.rec.Value, []byte(`{}`), []byte(value), 1)
			} else if err := db.QueryRow(`SELECT value FROM parked_records WHERE event_id = $1`, msg.id).Scan(&msg.rec.Value); err != nil {
				t.Fatal(err)
			}
			c.processBatch(t.Context(), []*message{msg})
			if !msg.processed {
				t.Error("it is not settled")
			}
			return said.String()
		}
		for _, e := range []struct {
			what   string
			n      int
			offset int64
			value  string
			want   []string // in the one line, none for no line
		}{
			{"read again", 1, 1, "", nil},
			{"dead", 1, 7, "", []string{"level=WARN", "offset=7", "replay it", "changed=false", "state=dead"}},
			{"dead, and repaired", 1, 8, `{"a":1}`, []string{"level=WARN", "offset=8", "replay it", "changed=true", "event id of its own"}},
			{"waiting", 2, 9, "", nil},
			{"waiting, and repaired", 2, 10, `{"a":1}`, []string{"level=WARN", "offset=10", "changed=true", "state=waiting"}},
		} {
			line := again(e.n, e.offset, e.value)
			if want := min(1, len(e.want)); strings.Count(line, "\n") != want {
				t.Errorf("%s: said %q, want %d lines", e.what, line, want)
			}
			for _, want := range e.want {
				if !strings.Contains(line, want) {
					t.Errorf("%s: %q does not say %s", e.what, line, want)
				}
			}
		}
		if _, err := db.Exec(`UPDATE parked_records SET state = 'discarded' WHERE state = 'dead'`); err != nil {
			t.Fatal(err)
		}
		if line := again(1, 11, ""); !strings.Contains(line, "level=WARN") || !strings.Contains(line, "given up") {
			t.Errorf("discarded: %q", line)
		}
		counts := c.subscriptions[route{"new-topic", "Relocated"}].outcomes
		if n, d := testutil.ToFloat64(counts[outcome("again")]), testutil.ToFloat64(counts[duplicate]); n != 4 || d != 2 || len(*handled) > 0 {
			t.Errorf("%v counted as produced again and %v as duplicates, want 4 and 2; handled %v", n, d, *handled)
		}
	}, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
}

// TestInboxRemembersWhatStillComes reads events again that were handled long
// ago: they are remembered from now on, others are forgotten, and on SQLite the
// rows stay in the order of their time.
func TestInboxRemembersWhatStillComes(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		c, _ := relocations(t, db)
		now := sqldb.Now()
		ages := []time.Duration{-365 * 24 * time.Hour, 50 * time.Hour, 49 * time.Hour, 48 * time.Hour, time.Hour, 0} // the first when the clock was wrong
		for n, age := range ages {
			if _, err := db.Exec(`INSERT INTO inbox_events (consumer, event_id, handled_at) VALUES ('g', $1, $2)`, c.relocation("a", n).id, now.Add(-age)); err != nil {
				t.Fatal(err)
			}
		}
		for _, n := range []int{2, 4} {
			c.processBatch(t.Context(), []*message{c.relocation("a", n)})
		}
		handledAt := func(n int) (at time.Time) {
			t.Helper()
			if err := db.QueryRow(`SELECT handled_at FROM inbox_events WHERE event_id = $1`, c.relocation("a", n).id).Scan(sqldb.Time(&at)); err != nil {
				t.Fatal(err)
			}
			return at
		}
		if at := handledAt(2); at.Before(now) {
			t.Errorf("what came again is remembered from %v, want from now, %v", at, now)
		}
		if at := handledAt(4); !at.Equal(now.Add(-time.Hour)) {
			t.Errorf("what is young was written again: %v", at)
		}
		if n, err := c.prune(t.Context(), now.Add(-24*time.Hour)); err != nil || n != 2 {
			t.Errorf("%d rows deleted, %v; want the two that are old", n, err)
		}
		if db.Engine == sqldb.Postgres {
			return
		}
		var disorder int
		if err := db.QueryRow(`SELECT COUNT(*) FROM inbox_events a JOIN inbox_events b ON a.rowid < b.rowid AND a.handled_at > b.handled_at AND a.handled_at <= $1`, sqldb.Now()).Scan(&disorder); err != nil || disorder > 0 {
			t.Errorf("%d rows stand before older ones, %v", disorder, err)
		}
	}, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
}

// A row that was written while the clock was a year early does not keep those
// behind it until then.
func TestForgetBehindTheFuture(t *testing.T) {
	db := sqltest.Open(t, sqldb.SQLite, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
	c, _ := relocations(t, db)
	now := sqldb.Now()
	_, err := db.Exec(`
		WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n <= $1)
		INSERT INTO inbox_events (consumer, event_id, handled_at) SELECT 'g', 'event ' || n, CASE n WHEN 1 THEN $2 ELSE $3 END FROM numbers`,
		2*pruneRows, now.Add(365*24*time.Hour), now.Add(-24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := c.prune(t.Context(), now.Add(-time.Hour)); err != nil || n != 2*pruneRows {
		t.Errorf("%d rows deleted, %v; want %d", n, err, 2*pruneRows)
	}
}

// An inbox that forgets what may still come is refused.
func TestRetentionTooShort(t *testing.T) {
	db := sqltest.Open(t, sqldb.SQLite, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
	const day = 24 * time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, e := range []struct {
		outbox, topic, inbox time.Duration
		ok                   bool
	}{
		{0, 0, 0, true},
		{0, 0, 15 * day, false},
		{30 * day, 0, 0, true},
		{30 * day, 0, 37 * day, false},
		{0, 0, 16 * day, true},
		{day, 0, 10 * day, true},
		{day, 9 * day, 10 * day, false},
	} {
		c := New(Config{
			Outbox: outbox.New(db, "/t"), Group: "g", Log: slog.New(slog.DiscardHandler),
			OutboxRetention: e.outbox, TopicRetention: e.topic, Retention: e.inbox,
		})
		if err := c.Run(ctx); (err == nil) != e.ok {
			t.Errorf("an inbox of %v for an outbox of %v and a topic of %v: %v", e.inbox, e.outbox, e.topic, err)
		}
	}
}

// The poll never waits for a commit, also when a batch is stepped over.
func TestStepOverNeverWaits(t *testing.T) {
	db := sqltest.Open(t, sqldb.SQLite, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
	c, _ := relocations(t, db)
	client, err := kgo.NewClient(kgo.SeedBrokers("127.0.0.1:1"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	d := newDispatcher(c, []string{"new-topic"})
	d.onAssigned(t.Context(), client, map[string][]int32{"new-topic": {0}})
	d.offsetsLock <- struct{}{} // the broker does not answer
	polled := make(chan struct{})
	go func() {
		defer close(polled)
		for offset := range int64(3) {
			d.handleFetchError(client, "new-topic", [16]byte{}, 0, &kgo.ErrDecompressTooLarge{Topic: "new-topic", Offset: offset, NextOffset: offset + 1})
		}
		d.handleFetchError(client, "new-topic", [16]byte{}, 1, &kgo.ErrDecompressTooLarge{Topic: "new-topic", Partition: 1, NextOffset: 1})
	}()
	select {
	case <-polled:
	case <-time.After(30 * time.Second):
		t.Fatal("the poll waits for a commit")
	}
	if n := len(d.awaitBatch()); n != 3 || len(d.seeks) != 3 {
		t.Errorf("%d records to bury and %d steps, want three of the partition that is ours", n, len(d.seeks))
	}
	<-d.offsetsLock
	d.applySeeks(t.Context(), client)
	if len(d.seeks) != 0 {
		t.Errorf("%d steps are not taken", len(d.seeks))
	}
}

// A window is bounded by all that its records hold, not by their values alone.
func TestWindowCountsKeysAndHeaders(t *testing.T) {
	db := sqltest.Open(t, sqldb.SQLite, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
	c, _ := relocations(t, db)
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
			t.Errorf("when all with large %s are done it is paused: %t, and holds %d bytes", what, p.paused, p.bytes)
		}
	}
}

// A record that was parked and done comes again after the inbox has forgotten
// it, and fails again: it is parked as any other.
func TestParkedTwice(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		c, _ := relocations(t, db)
		for _, state := range []string{"handled", "discarded"} {
			for range 2 {
				o := outcome("")
				if err := c.park(t.Context(), c.relocation("a", 1), parkedState{state: store.Retrying, attempts: 1}, &o); err != nil || o != retrying {
					t.Fatalf("parked: %s, %v", o, err)
				}
				if _, err := db.Exec(`UPDATE parked_records SET state = $1`, state); err != nil {
					t.Fatal(err)
				}
				if _, err := db.Exec(`DELETE FROM inbox_events`); err != nil {
					t.Fatal(err)
				}
			}
		}
	}, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
}

// A few records of one topic among very many of another are taken without
// looking at all the others, and nothing is lost or changes places.
func TestTakeLooksAtFew(t *testing.T) {
	db := sqltest.Open(t, sqldb.SQLite, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
	c, _ := relocations(t, db)
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
		t.Errorf("%d records taken, %d keys left: it looked at all", len(batch), len(d.ready))
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
