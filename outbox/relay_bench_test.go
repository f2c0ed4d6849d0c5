package outbox_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/internal/testkit"
	"pizzaflow/kafka"
	"pizzaflow/kafka/kafkatest"
	"pizzaflow/outbox"
	"pizzaflow/outbox/relay"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// BenchmarkRelay drains a backlog of b.N events of 400 bytes, 50,000
// aggregates, on each engine, to the embedded broker or to KAFKA_BROKERS.
// Run it with -benchtime=1000000x.
func BenchmarkRelay(b *testing.B) {
	for _, engine := range []sqldb.Engine{sqldb.Postgres, sqldb.SQLite} {
		b.Run(string(engine), func(b *testing.B) {
			db := sqltest.Open(b, engine, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
			benchmarkRelay(b, newFixture(b, db, broker(b)))
		})
	}
}

// broker is Apache Kafka if KAFKA_BROKERS says where, and the embedded one
// otherwise.
func broker(b *testing.B) kafka.Config {
	addrs := os.Getenv("KAFKA_BROKERS")
	if addrs == "" {
		return kafkatest.Start(b, topics()...)
	}
	cfg := kafka.Config{Brokers: strings.Split(addrs, ",")}
	if err := kafka.EnsureTopics(b.Context(), cfg, slog.New(slog.DiscardHandler), topics()...); err != nil {
		b.Fatal(err)
	}
	return cfg
}

func benchmarkRelay(b *testing.B, f *fixture) {
	b.StopTimer()
	f.log = slog.New(slog.NewJSONHandler(b.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	f.backlog(b.N)
	before := processorTime(b)
	b.StartTimer()
	stop := testkit.Run(b, relay.New(relay.Config{Outbox: f.out, Service: "accounts", Kafka: f.kafka, Log: f.log}).Run)
	for f.count(`SELECT COALESCE(MAX(last_seq), 0) FROM outbox_published`) < b.N {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-b.Context().Done():
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric((processorTime(b)-before).Seconds()/float64(b.N)*1e6, "cpu-µs/event")
	stop()
}

// backlog writes n events as fast as the engine takes them.
func (f *fixture) backlog(n int) {
	f.t.Helper()
	note := strings.Repeat("x", 350)
	for from := 0; from < n; from += 5000 {
		err := f.out.Tx(context.Background(), func(tx *outbox.Tx) error {
			for i := from; i < min(n, from+5000); i++ {
				account := i % 50000
				tx.Add(int64(i/50000+1), Moved{Account: fmt.Sprintf("account-%08d", account), To: i, Note: note})
			}
			return nil
		})
		if err != nil {
			f.t.Fatal(err)
		}
	}
}

func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkLatency is from the commit of one event to the hands of a consumer.
func BenchmarkLatency(b *testing.B) {
	for _, engine := range []sqldb.Engine{sqldb.Postgres, sqldb.SQLite} {
		b.Run(string(engine), func(b *testing.B) {
			f := newFixture(b, sqltest.Open(b, engine, sqltest.Schema{Name: "outbox", FS: outbox.Schema}), broker(b))
			f.log = slog.New(slog.NewJSONHandler(b.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
			testkit.Run(b, relay.New(relay.Config{Outbox: f.out, Service: "accounts", Kafka: f.kafka, Log: f.log}).Run)
			client, err := kgo.NewClient(append(slices.Clone(f.kafka), kgo.ConsumeTopics("moves"), kgo.ConsumeResetOffset(kgo.NewOffset().AtEnd()))...)
			if err != nil {
				b.Fatal(err)
			}
			defer client.Close()
			received := make(chan string, 100)
			go func() {
				for {
					fetches := client.PollFetches(b.Context())
					if fetches.IsClientClosed() || b.Context().Err() != nil {
						return
					}
					fetches.EachRecord(func(r *kgo.Record) { received <- string(r.Key) })
				}
			}()
			var took []time.Duration
			once := func(account string, every time.Duration) {
				f.move(account, 1)
				began := time.Now()
				again := time.NewTicker(every) // the consumer's first fetch may come after the first event
				defer again.Stop()
				for {
					select {
					case key := <-received:
						if key == account {
							took = append(took, time.Since(began))
							return
						}
					case <-again.C:
						f.move(account, 1)
					}
				}
			}
			once("first", time.Second)
			took = nil
			b.ResetTimer()
			for i := range b.N {
				once(fmt.Sprintf("account-%d", i), time.Minute)
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
		})
	}
}
