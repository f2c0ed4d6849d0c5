package outbox_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/internal/testkit"
	"pizzaflow/job"
	"pizzaflow/kafka/kafkatest"
	"pizzaflow/outbox"
	"pizzaflow/outbox/inbox"
	"pizzaflow/outbox/relay"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// A key of any length can be parked, and does not stop the others.
func TestLongKeysCanBeParked(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		var got received
		testkit.Run(t, f.consumer(func(_ context.Context, _ *outbox.Tx, d inbox.Delivery[Moved]) error { got.add(d); return nil }).Run)
		for range 8 {
			key := make([]byte, 8000)
			rand.Read(key)
			f.produce(&kgo.Record{Topic: "moves", Key: key, Value: []byte("junk")})
		}
		f.produce(moved("after", 1))
		testkit.Eventually(t, "the keys are parked and the other is handled", func() bool {
			return f.count(`SELECT COUNT(*) FROM parked_records WHERE state = 'dead'`) == 8 && len(got.of("after")) == 1
		})
	})
}

// What a handler calls permanent is, though it looks like a broken connection;
// and what looks like one again and again while the database answers is the
// handler's fault.
func TestHandlersErrorsAreNotTheDatabases(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		testkit.Run(t, f.consumer(func(_ context.Context, _ *outbox.Tx, d inbox.Delivery[Moved]) error {
			switch d.Event.Account {
			case "permanent":
				return inbox.Permanent(fmt.Errorf("read the note: %w", io.ErrUnexpectedEOF))
			case "odd":
				return fmt.Errorf("read the note: %w", io.ErrUnexpectedEOF)
			}
			return nil
		}).Run)
		f.produce(moved("permanent", 1), moved("odd", 1), moved("good", 1))
		testkit.Eventually(t, "both are dead, after one attempt and three", func() bool {
			return f.count(`SELECT COUNT(*) FROM parked_records WHERE state = 'dead' AND attempts = 1`) == 1 &&
				f.count(`SELECT COUNT(*) FROM parked_records WHERE state = 'dead' AND attempts = 3`) == 1
		})
		testkit.Eventually(t, "the third is handled", func() bool { return f.count(`SELECT COUNT(*) FROM inbox_events`) == 3 })
	})
}

// A hook that cannot note a death keeps that record, and no other, from dying.
func TestFailingHookStopsNobodyElse(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		c := f.consumer(func(_ context.Context, _ *outbox.Tx, d inbox.Delivery[Moved]) error {
			if d.Event.Account == "bad" || d.Attempt == 1 && d.Event.Account == "shaky" {
				return errors.New("no luck")
			}
			return nil
		})
		called := make(chan struct{})
		var once sync.Once
		c.OnDead(func(context.Context, *outbox.Tx, inbox.Dead) error {
			once.Do(func() { close(called) })
			return errors.New("hook cannot")
		})
		testkit.Run(t, c.Run)
		f.produce(moved("bad", 1))
		<-called
		f.produce(moved("shaky", 1))
		testkit.Eventually(t, "the other is retried and handled", func() bool {
			return f.count(`SELECT COUNT(*) FROM parked_records WHERE state = 'handled'`) == 1
		})
	})
}

// Strayed is an event whose topic does not exist.
type Strayed struct{ Moved }

func (Strayed) Topic() string { return "nowhere" }

// More events of a topic that refuses everything than fit into a batch do not
// keep the others from being published.
func TestRefusedTopicStopsNobodyElse(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		f.log = slog.New(slog.DiscardHandler) // a line for each refusal
		f.out = outbox.New(f.db, "/accounts")
		err := f.out.Tx(t.Context(), func(tx *outbox.Tx) error {
			for i := range 1200 {
				tx.Add(1, Strayed{Moved{Account: fmt.Sprint("strayed-", i)}})
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		f.move("good", 1)
		testkit.Run(t, f.relay().Run)
		testkit.Eventually(t, "the other topic's event is published", func() bool {
			return f.count(`SELECT COUNT(*) FROM outbox WHERE topic = 'moves' AND published_at IS NOT NULL`) == 1
		})
		if floor := f.count(`SELECT floor FROM outbox_lease`); floor != 0 {
			t.Errorf("low watermark %d has passed events that are not published", floor)
		}
		testkit.Eventually(t, "what waits is shown", func() bool {
			return f.count(`SELECT COALESCE(MAX(waiting), 0) FROM outbox_lanes WHERE lane = 'nowhere' AND reason LIKE 'UNKNOWN_TOPIC%'`) == 1200
		})
		if _, err := f.admin().CreateTopic(t.Context(), 1, 1, nil, "nowhere"); err != nil {
			t.Fatal(err)
		}
		f.consume("nowhere", 1200)
		testkit.Eventually(t, "the topic is resumed", func() bool { return f.count(`SELECT COUNT(*) FROM outbox_lanes`) == 0 })
	})
}

// A dead letter that would be too large leaves the message out, and a record
// without a key stands in nobody's way.
func TestLargeDeadLetter(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		testkit.Run(t, f.consumer(func(context.Context, *outbox.Tx, inbox.Delivery[Moved]) error { return nil }).Run)
		testkit.Run(t, f.relay().Run)
		client, err := kgo.NewClient(append(f.kafka, kgo.ProducerBatchMaxBytes(40<<20), kgo.BrokerMaxWriteBytes(100<<20), kgo.ProducerBatchCompression(kgo.GzipCompression()))...)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "moves", Value: bytes.Repeat([]byte("x"), 5<<20)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		f.produce(&kgo.Record{Topic: "moves", Value: []byte("junk")})
		large := 0
		for _, r := range f.consume("moves-dlq", 2) {
			if bytes.Contains(r.Value, []byte("too large for this topic")) {
				large++
			}
		}
		if large != 1 {
			t.Errorf("%d of two dead letters say that the message is too large", large)
		}
		if n := f.count(`SELECT COUNT(*) FROM outbox_blocked`); n != 0 {
			t.Errorf("%d are blocked", n)
		}
	})
}

// After a fail-over to a standby that lacks the last events, numbers come again
// that the relay has seen: what stands behind them is published all the same.
func TestFailOverToALaggingStandby(t *testing.T) {
	f := newFixture(t, sqltest.Open(t, sqldb.Postgres, sqltest.Schema{Name: "outbox", FS: outbox.Schema}), kafkatest.Start(t, topics()...))
	testkit.Run(t, relay.New(relay.Config{Outbox: f.out, Service: "accounts", Kafka: f.kafka, Log: f.log}).Run) // the defaults
	f.move("a", 10)
	f.consume("moves", 10)
	testkit.Eventually(t, "all are marked", func() bool { return f.count(`SELECT floor FROM outbox_lease`) == 10 })
	tx, err := f.db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{
		`LOCK TABLE outbox_lease, outbox_events, outbox_published IN ACCESS EXCLUSIVE MODE`,
		`DELETE FROM outbox_events WHERE seq > 5`, `DELETE FROM outbox_published`, `INSERT INTO outbox_published VALUES (1, 5, now())`,
		`UPDATE outbox_lease SET floor = 5`, `ALTER TABLE outbox_events ALTER seq RESTART WITH 6`,
		// the sessions of this schema break, as they do in a fail-over
		`SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE pid <> pg_backend_pid() AND application_name = current_setting('application_name')`,
	} {
		if _, err := tx.Exec(q); err != nil {
			t.Fatal(q, err)
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	f.move("b", 3) // they get the numbers 6, 7 and 8 again
	testkit.Eventually(t, "they are published", func() bool {
		return f.count(`SELECT COUNT(*) FROM outbox WHERE aggregate_id = 'b' AND published_at IS NOT NULL`) == 3
	})
}

// A take leases no more rows than there is capacity for, whichever plan PostgreSQL
// makes for the table.
func TestTakeKeepsItsLimit(t *testing.T) {
	db := sqltest.Open(t, sqldb.Postgres)
	for _, q := range []string{
		`CREATE TABLE jobs (id TEXT PRIMARY KEY, due_at TIMESTAMPTZ, lease_token TEXT, attempts INTEGER NOT NULL DEFAULT 0)`,
		`CREATE INDEX jobs_due ON jobs (due_at)`,
		`INSERT INTO jobs (id) SELECT 'idle-' || g FROM generate_series(1, 20000) g`,
		`ANALYZE jobs`,
		`INSERT INTO jobs (id, due_at) SELECT 'due-' || g, now() - interval '1 s' FROM generate_series(1, 300) g`,
	} {
		if _, err := db.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	release := make(chan struct{})
	begun := make(chan struct{}, 300)
	stop := testkit.Run(t, job.New(job.Config{DB: db, Table: "jobs", Limit: 5, Log: slog.New(slog.DiscardHandler), Do: func(ctx context.Context, c job.Job) error {
		begun <- struct{}{}
		<-release
		_, err := db.ExecContext(ctx, `UPDATE jobs SET due_at = NULL, lease_token = NULL WHERE id = $1 AND lease_token = $2`, c.ID, c.Token)
		return err
	}}).Run)
	for range 5 {
		<-begun
	}
	if n := sqltest.Count(t, db, `SELECT COUNT(*) FROM jobs WHERE lease_token IS NOT NULL`); n != 10 {
		t.Errorf("%d rows are leased, five can be worked on while five wait", n)
	}
	close(release)
	stop()
}
