package outbox_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/internal/testkit"
	"pizzaflow/kafka"
	"pizzaflow/kafka/kafkatest"
	"pizzaflow/outbox"
	"pizzaflow/outbox/inbox"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// benchTopic is new in each run: a real broker remembers.
var benchTopic = "bench-" + strings.ToLower(rand.Text())

// Counted is the event of the benchmark, and what its handlers add.
type Counted struct {
	Account string    `json:"account"`
	By      int       `json:"by"`
	Order   string    `json:"order"`
	At      time.Time `json:"at"`
}

func (Counted) EventType() string     { return "Counted" }
func (Counted) Topic() string         { return benchTopic }
func (c Counted) AggregateID() string { return c.Account }

const benchAccounts = 20_000

// BenchmarkConsumer consumes b.N records from a topic. The effect of each is a
// changed row and an event of its own, with the inbox in one transaction:
//
//	literal   one record after the other, a transaction each
//	On        the handler is given one record
//	OnBatch   the handler is given many
//
// Run it with -benchtime=20000x. With KAFKA_BROKERS it asks that broker too.
func BenchmarkConsumer(b *testing.B) {
	brokers := map[string]func(testing.TB) kafka.Config{"embedded": func(t testing.TB) kafka.Config { return kafkatest.Start(t) }}
	if addrs := os.Getenv("KAFKA_BROKERS"); addrs != "" {
		brokers["kafka"] = func(testing.TB) kafka.Config { return kafka.Config{Brokers: strings.Split(addrs, ",")} }
	}
	for _, engine := range []sqldb.Engine{sqldb.Postgres, sqldb.SQLite} {
		for broker, start := range brokers {
			for _, way := range []string{"literal", "On", "OnBatch"} {
				b.Run(fmt.Sprintf("%s/%s/%s", engine, broker, way), func(b *testing.B) {
					benchConsumer(b, sqltest.Open(b, engine, sqltest.Schema{Name: "outbox", FS: outbox.Schema}), start(b), way)
				})
			}
		}
	}
}

func benchConsumer(b *testing.B, db *sqldb.DB, cfg kafka.Config, way string) {
	f := newFixture(b, db, cfg)
	log, err := os.Create(filepath.Join(b.TempDir(), "log"))
	if err != nil {
		b.Fatal(err)
	}
	f.log = slog.New(slog.NewJSONHandler(log, nil)) // with a line for each record, as in production
	total := b.N
	f.fillBench(cfg, total)
	var seen atomic.Int64
	all := make(chan struct{})
	done := func(n int) {
		if seen.Add(int64(n)) == int64(total) {
			close(all)
		}
	}
	var consume func(context.Context) error
	c := inbox.New(inbox.Config{Outbox: f.out, Group: benchTopic + way, Kafka: f.kafka, Log: f.log, Metrics: prometheus.NewRegistry()})
	consume = c.Run
	switch way {
	case "On":
		inbox.On(c, func(ctx context.Context, tx *outbox.Tx, d inbox.Delivery[Counted]) error {
			var version int64
			err := tx.QueryRowContext(ctx, `UPDATE accounts SET version = version + 1, value = value + $1 WHERE id = $2 RETURNING version`,
				d.Event.By, d.Event.Account).Scan(&version)
			tx.Add(version, d.Event)
			tx.AfterCommit(func() { done(1) })
			return err
		})
	case "OnBatch":
		inbox.OnBatch(c, func(ctx context.Context, tx *outbox.Tx, ds []inbox.Delivery[Counted]) error {
			tx.AfterCommit(func() { done(len(ds)) })
			return countMany(ctx, tx, db.Engine, ds)
		})
	default:
		consume = f.literalConsumer(done)
	}
	b.ResetTimer()
	stop := testkit.Run(b, consume)
	<-all
	b.StopTimer()
	stop()
	b.ReportMetric(float64(total)/b.Elapsed().Seconds(), "records/s")
	if n := f.count(`SELECT SUM(value) FROM accounts`); n != total {
		b.Fatalf("effects of %d records come to %d", total, n)
	}
	if n := f.count(`SELECT COUNT(*) FROM outbox_events`); n != total {
		b.Fatalf("%d events of %d records", n, total)
	}
}

// countMany does with one statement what the handler of one does with many.
func countMany(ctx context.Context, tx *outbox.Tx, engine sqldb.Engine, ds []inbox.Delivery[Counted]) error {
	at := make(map[string]int, len(ds))
	ids, by := make([]string, len(ds)), make([]int, len(ds))
	for i, d := range ds {
		at[d.Event.Account], ids[i], by[i] = i, d.Event.Account, d.Event.By
	}
	query, args := `UPDATE accounts SET version = version + 1, value = value + m.by
		FROM (SELECT unnest($1::text[]) AS id, unnest($2::bigint[]) AS by) m WHERE accounts.id = m.id RETURNING accounts.id, version`, []any{ids, by}
	if engine == sqldb.SQLite {
		args = args[:0]
		for i := range ids {
			args = append(args, ids[i], by[i])
		}
		query = `UPDATE accounts SET version = version + 1, value = value + m.column2
			FROM (VALUES ` + sqldb.Values(2, len(ids)) + `) m WHERE accounts.id = m.column1 RETURNING accounts.id, version`
	}
	rows, err := tx.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		var version int64
		if err := rows.Scan(&id, &version); err != nil {
			return err
		}
		d := ds[at[id]]
		tx.Cause(d.EventID, d.Traceparent)
		tx.Add(version, d.Event)
	}
	return rows.Err()
}

// fillBench makes the accounts and the topic, with n records of as many keys as
// there are accounts.
func (f *fixture) fillBench(cfg kafka.Config, n int) {
	f.t.Helper()
	_, err := f.db.Exec(`WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < $1)
		INSERT INTO accounts (id, version, value) SELECT 'account-' || i, 0, 0 FROM n`, benchAccounts-1)
	if err != nil {
		f.t.Fatal(err)
	}
	client, err := kgo.NewClient(append(f.kafka, kgo.MaxBufferedRecords(n+1))...)
	if err != nil {
		f.t.Fatal(err)
	}
	defer client.Close()
	adm, ctx := kadm.NewClient(client), f.t.Context()
	adm.DeleteTopics(ctx, benchTopic) //nolint:errcheck // it may not be there
	testkit.Eventually(f.t, "there is a topic", func() bool {
		return kafka.EnsureTopics(ctx, cfg, slog.New(slog.DiscardHandler), kafka.Topic{Name: benchTopic, Partitions: 3, Replicas: 1, Retention: time.Hour, MaxMessageBytes: 1 << 20}) == nil
	})
	for i := range n {
		id, _ := uuid.NewV7()
		e := Counted{Account: fmt.Sprint("account-", i%benchAccounts), By: 1, Order: id.String(), At: time.Now()}
		rec := &kgo.Record{
			Topic: benchTopic, Key: []byte(e.Account), Value: fmt.Appendf(nil,
				`{"event_id":%q,"event_type":"Counted","aggregate_id":%q,"event_data":{"account":%q,"by":1,"order":%q,"at":%q},"timestamp":%q}`,
				id, e.Account, e.Account, id, e.At.Format(time.RFC3339Nano), e.At.Format(time.RFC3339Nano)),
			Headers: []kgo.RecordHeader{
				{Key: "ce_specversion", Value: []byte("1.0")},
				{Key: "ce_id", Value: []byte(id.String())},
				{Key: "ce_type", Value: []byte("Counted")},
				{Key: "ce_source", Value: []byte("/accounts")},
				{Key: "content-type", Value: []byte("application/json")},
				{Key: "aggregate_version", Value: fmt.Append(nil, i/benchAccounts+1)},
				{Key: "schema_version", Value: []byte("1")},
				{Key: "traceparent", Value: []byte("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")},
			},
		}
		client.Produce(ctx, rec, func(_ *kgo.Record, err error) {
			if err != nil {
				f.t.Error(err)
			}
		})
	}
	if err := client.Flush(ctx); err != nil {
		f.t.Fatal(err)
	}
}

// literalConsumer handles one record after the other, a transaction each.
func (f *fixture) literalConsumer(done func(int)) func(context.Context) error {
	return func(ctx context.Context) error {
		client, err := kgo.NewClient(append(f.kafka, kgo.ConsumerGroup(benchTopic+"literal"), kgo.ConsumeTopics(benchTopic), kgo.DisableAutoCommit(),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
		if err != nil {
			return err
		}
		defer client.Close()
		for ctx.Err() == nil {
			fetches := client.PollFetches(ctx)
			for _, rec := range fetches.Records() {
				if err := f.literally(ctx, rec); err != nil {
					return err
				}
				done(1)
			}
			if err := client.CommitUncommittedOffsets(context.WithoutCancel(ctx)); err != nil {
				return err
			}
		}
		return nil
	}
}

func (f *fixture) literally(ctx context.Context, rec *kgo.Record) error {
	var m struct {
		EventID   string  `json:"event_id"`
		EventData Counted `json:"event_data"`
	}
	if err := json.Unmarshal(rec.Value, &m); err != nil {
		return err
	}
	return f.out.Tx(context.WithoutCancel(ctx), func(tx *outbox.Tx) error {
		res, err := tx.Exec(`INSERT INTO inbox_events (consumer, event_id, handled_at) VALUES ('literal', $1, $2) ON CONFLICT DO NOTHING`, m.EventID, sqldb.Now())
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); n == 0 {
			return err
		}
		var version int64
		if err := tx.QueryRow(`UPDATE accounts SET version = version + 1, value = value + $1 WHERE id = $2 RETURNING version`, m.EventData.By, m.EventData.Account).Scan(&version); err != nil {
			return err
		}
		tx.Add(version, m.EventData)
		return nil
	})
}
