package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/internal/testkit"
	"pizzaflow/outbox"
	"pizzaflow/outbox/admin"
	"pizzaflow/outbox/inbox"
	"pizzaflow/outbox/relay"
	"pizzaflow/sqldb"
)

// look reads all metrics of a registry, by name and labels. None may fail or
// keep the others waiting.
func look(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	began := time.Now()
	families, err := reg.Gather()
	if took := time.Since(began); err != nil || took > time.Second {
		t.Fatalf("after %v: %v", took, err)
	}
	values := map[string]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				if l.GetName() != "service" && l.GetName() != "group" {
					labels = append(labels, l.GetValue())
				}
			}
			values[strings.TrimSpace(family.GetName()+" "+strings.Join(labels, " "))] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return values
}

// wantMetrics waits until the metrics have the values; -1 is for one that must
// not be there.
func wantMetrics(t *testing.T, reg *prometheus.Registry, want map[string]float64) {
	t.Helper()
	var wrong string
	defer func() {
		if t.Failed() {
			t.Log(wrong)
		}
	}()
	testkit.Eventually(t, fmt.Sprint("the metrics are ", want), func() bool {
		wrong = ""
		values := look(t, reg)
		for name, n := range want {
			if value, shown := values[name]; shown != (n >= 0) || shown && value != n {
				wrong += fmt.Sprintf("%s is %v (shown: %v), want %v; ", name, value, shown, n)
			}
		}
		return wrong == ""
	})
}

// watchedRelay is a relay with the default intervals, and its metrics.
func (f *fixture) watchedRelay(kafka ...kgo.Opt) (*relay.Relay, *prometheus.Registry) {
	reg := prometheus.NewRegistry()
	return relay.New(relay.Config{Outbox: f.out, Service: "accounts", Kafka: kafka, Metrics: reg, Log: f.log}), reg
}

// occupy takes all connections of the pools: every statement waits.
func occupy(t *testing.T, db *sqldb.DB) {
	t.Helper()
	for use, pool := range db.Pools() {
		if use == "sessions" {
			continue
		}
		for range pool.Stats().MaxOpenConnections {
			conn, err := pool.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
		}
	}
}

// With a topic that refuses everything, and others that flow above it, the
// relay tells what waits by what it knows: nobody asks a database that has
// grown while the low watermark stood still, or has no connection left.
func TestMetricsOfARefusedTopic(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		f.log = slog.New(slog.DiscardHandler) // a line for each refusal
		f.out = outbox.New(f.db, "/accounts")
		err := f.out.Tx(t.Context(), func(tx *outbox.Tx) error {
			for i := range 1200 {
				tx.Add(1, Strayed{Moved{Account: fmt.Sprint("strayed-", i)}})
			}
			tx.Add(1, Moved{Account: "big", Note: strings.Repeat("x", 1_100_000)})
			tx.Add(2, Moved{Account: "big"})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		relay, reg := f.watchedRelay(f.kafka...)
		stop := testkit.Run(t, relay.Run)
		for range 30 { // many ranges above the low watermark
			f.move("good", 1)
			published := f.count(`SELECT version FROM accounts WHERE id = 'good'`)
			testkit.Eventually(t, "it is published", func() bool {
				return f.count(`SELECT COUNT(*) FROM outbox WHERE topic = 'moves' AND published_at IS NOT NULL`) == published
			})
		}
		standing := map[string]float64{
			"outbox_leader": 1, "outbox_unpublished": 1200, "outbox_refused nowhere": 1200, "outbox_blocked": 2, "metrics_errors_total outbox_unpublished": 0,
		}
		wantMetrics(t, reg, standing)
		stop()
		wantMetrics(t, reg, map[string]float64{"outbox_leader": 0, "outbox_unpublished": -1, "outbox_blocked": -1, "outbox_oldest_seconds": -1})

		relay, reg = f.watchedRelay(f.kafka...)
		testkit.Run(t, relay.Run)
		wantMetrics(t, reg, standing) // a later term knows as much
		before := look(t, reg)["outbox_oldest_seconds"]
		occupy(t, f.db)
		testkit.Eventually(t, "the age of the oldest grows", func() bool {
			age := look(t, reg)["outbox_oldest_seconds"]
			return age > before+.1 && age < 120
		})
		wantMetrics(t, reg, standing)
	})
}

// manyEvents puts n events that are ten minutes old into the outbox.
var manyEvents = map[sqldb.Engine]string{
	sqldb.Postgres: `
		INSERT INTO outbox_events (id, aggregate_id, aggregate_version, event_type, event_data, topic, key, headers, created_at)
		SELECT gen_random_uuid(), 'm' || i, 1, 'Moved', '{"account": "m", "to": 1}', 'moves', convert_to('m' || i, 'UTF8'), '[]', $1 FROM generate_series(1, $2::int) i`,
	sqldb.SQLite: `
		WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $2)
		INSERT INTO outbox_events (id, aggregate_id, aggregate_version, event_type, event_data, topic, key, headers, created_at)
		SELECT lower(hex(randomblob(16))), 'm' || i, 1, 'Moved', '{"account": "m", "to": 1}', 'moves', CAST('m' || i AS BLOB), '[]', $1 FROM n`,
}

// Of a backlog that the relay cannot read because no broker is there, the page
// tells what was counted behind its back, as far as one counts.
func TestMetricsOfALargeBacklog(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		f.log = slog.New(slog.DiscardHandler)
		patient := sqldb.WithStatementTimeout(t.Context(), time.Minute)
		if _, err := f.db.ExecContext(patient, manyEvents[f.db.Engine], sqldb.Now().Add(-10*time.Minute), 120_000); err != nil {
			t.Fatal(err)
		}
		nobody, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		nobody.Close()
		relay, reg := f.watchedRelay(kgo.SeedBrokers(nobody.Addr().String()))
		testkit.Run(t, relay.Run)
		testkit.Eventually(t, "all are counted", func() bool {
			values := look(t, reg)
			n, shown := values["outbox_unpublished"]
			if shown && n != 100_001 {
				t.Fatalf("%v are counted as waiting", n)
			}
			return shown && values["outbox_leader"] == 1
		})
		before := look(t, reg)["outbox_oldest_seconds"]
		if before < 600 || before > 720 {
			t.Errorf("the oldest is %v s old, want ten minutes", before)
		}
		testkit.Eventually(t, "the age of the oldest grows between two counts", func() bool { return look(t, reg)["outbox_oldest_seconds"] > before+.1 })
		status, err := admin.New(f.db).Status(t.Context())
		if err != nil || status.Unpublished != 120_000 {
			t.Errorf("the operator sees %d, %v", status.Unpublished, err)
		}
	})
}

// A silence falls on connections: nothing passes while it lasts.
type silence struct{ sync.RWMutex }

func (s *silence) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	return silenced{conn, s}, err
}

func (s *silence) wait() {
	s.RLock()
	s.RUnlock() //nolint:staticcheck // to have waited is all
}

type silenced struct {
	net.Conn
	silence *silence
}

func (s silenced) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	s.silence.wait()
	return n, err
}

func (s silenced) Write(p []byte) (int, error) {
	s.silence.wait()
	return s.Conn.Write(p)
}

// A broker that falls silent while everything has been read: what the relay
// has in hand tells the age, and what came after is counted.
func TestMetricsWhileTheBrokerIsSilent(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		f.log = slog.New(slog.DiscardHandler)
		var silent silence
		relay, reg := f.watchedRelay(append(f.kafka, kgo.Dialer(silent.dial))...)
		testkit.Run(t, relay.Run)
		f.move("a", 3)
		testkit.Eventually(t, "all are published", func() bool { return f.count(`SELECT COUNT(*) FROM outbox WHERE published_at IS NOT NULL`) == 3 })
		wantMetrics(t, reg, map[string]float64{"outbox_published_total": 3, "outbox_unpublished": 0, "outbox_oldest_seconds": 0})
		silent.Lock()
		over := sync.OnceFunc(silent.Unlock)
		defer over()
		for n := range 5 { // more than the relay reads before it waits
			f.move(fmt.Sprint("b", n), 1)
		}
		testkit.Eventually(t, "the age is shown", func() bool { return look(t, reg)["outbox_oldest_seconds"] > 0 })
		wantMetrics(t, reg, map[string]float64{"outbox_unpublished": 5})
		over()
		wantMetrics(t, reg, map[string]float64{"outbox_published_total": 8, "outbox_unpublished": 0, "outbox_oldest_seconds": 0})
	})
}

// A dead record is told of from the first look but one on.
func TestMetricsOfTheDead(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		reg := prometheus.NewRegistry()
		c := inbox.New(inbox.Config{Outbox: f.out, Group: "readers", Kafka: f.kafka, Log: f.log, Metrics: reg})
		inbox.On(c, func(context.Context, *outbox.Tx, inbox.Delivery[Moved]) error {
			return inbox.Permanent(errors.New("never"))
		})
		testkit.Run(t, c.Run)
		f.produce(moved("a", 1), moved("b", 1))
		testkit.Eventually(t, "both are dead", func() bool { return f.count(`SELECT COUNT(*) FROM parked_records WHERE state = 'dead'`) == 2 })
		if _, shown := look(t, reg)["dead_letters moves"]; shown {
			t.Error("shown before the first scrape")
		}
		wantMetrics(t, reg, map[string]float64{"dead_letters moves": 2, "metrics_errors_total dead_letters": 0})
	})
}

// What is counted is found by an index, however much stands beside it.
func TestDeadAreCountedByAnIndex(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		var plan strings.Builder
		explain := map[sqldb.Engine]string{sqldb.Postgres: `EXPLAIN `, sqldb.SQLite: `EXPLAIN QUERY PLAN `}[f.db.Engine]
		err := f.db.Tx(t.Context(), func(tx *sql.Tx) error {
			if f.db.Engine == sqldb.Postgres { // its tables are empty
				if _, err := tx.ExecContext(t.Context(), `SET LOCAL enable_seqscan = off`); err != nil {
					return err
				}
			}
			rows, err := tx.QueryContext(t.Context(), explain+`SELECT topic FROM parked_records WHERE consumer = 'readers' AND state = 'dead' LIMIT 100001`)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var id, parent, unused, line string
				into := []any{&id, &parent, &unused, &line}
				if f.db.Engine == sqldb.Postgres {
					into = []any{&line}
				}
				if err := rows.Scan(into...); err != nil {
					return err
				}
				plan.WriteString(line + "\n")
			}
			return rows.Err()
		})
		if err != nil || !strings.Contains(plan.String(), "parked_records_dead") {
			t.Errorf("%v\n%s", err, plan.String())
		}
	})
}
