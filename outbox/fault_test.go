package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pizzaflow/internal/testkit"
	"pizzaflow/kafka/kafkatest"
	"pizzaflow/outbox"
	"pizzaflow/outbox/inbox"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// gauge reads one metric of a registry; -1 when it is not there.
func gauge(reg *prometheus.Registry, name string) float64 {
	families, _ := reg.Gather() // a metric that needs the database may fail
	sum := -1.0
	for _, family := range families {
		if family.GetName() == name {
			for _, m := range family.GetMetric() {
				sum = max(sum, 0) + m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// A logged counts the lines with a message.
type logged struct {
	slog.Handler
	mu    sync.Mutex
	count map[string]int
}

func (l *logged) Handle(ctx context.Context, r slog.Record) error {
	l.mu.Lock()
	l.count[r.Message]++
	l.mu.Unlock()
	return l.Handler.Handle(ctx, r)
}

func (l *logged) of(message string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for m, k := range l.count {
		if strings.HasPrefix(m, message) {
			n += k
		}
	}
	return n
}

func countLogs(f *fixture) *logged {
	l := &logged{Handler: f.log.Handler(), count: map[string]int{}}
	f.log = slog.New(l)
	return l
}

// While a handler says that what it needs is away, for new records and for one
// that is tried again, the consumer waits: nothing is parked, no attempt spent.
func TestUnavailableSpendsNothing(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		logs := countLogs(f)
		var away atomic.Bool
		var refused atomic.Int64
		var got received
		reg := prometheus.NewRegistry()
		c := inbox.New(inbox.Config{Outbox: f.out, Group: "readers", Kafka: f.kafka, Delay: 30 * time.Millisecond, Log: f.log, Metrics: reg})
		inbox.On(c, func(_ context.Context, _ *outbox.Tx, d inbox.Delivery[Moved]) error {
			if away.Load() {
				refused.Add(1)
				return fmt.Errorf("ask the oracle: %w", inbox.Unavailable(errors.New("it sleeps")))
			}
			if d.Event.Account == "shaky" && d.Attempt == 1 {
				away.Store(true)
				return errors.New("no luck")
			}
			got.add(d)
			return nil
		})
		testkit.Run(t, c.Run)
		f.produce(moved("shaky", 1))
		testkit.Eventually(t, "the first is parked", func() bool { return f.count(`SELECT COUNT(*) FROM parked_records`) == 1 })
		for i := range 40 {
			f.produce(moved(fmt.Sprint("a", i), 1))
		}
		testkit.Eventually(t, "it has probed some times", func() bool { return refused.Load() >= 4 })
		if g := gauge(reg, "consumer_paused"); g != 1 {
			t.Errorf("consumer_paused is %v while it waits", g)
		}
		if n := f.count(`SELECT COUNT(*) FROM parked_records`) + f.count(`SELECT COUNT(*) FROM inbox_events`); n != 2 {
			t.Errorf("%d rows: something was done while it waits", n)
		}
		if n := logs.of("consumer paused"); n != 1 {
			t.Errorf("%d lines say that it is paused, want one", n)
		}
		away.Store(false)
		testkit.Eventually(t, "all are handled", func() bool {
			return f.count(`SELECT COUNT(*) FROM inbox_events`) == 41 && f.count(`SELECT COUNT(*) FROM parked_records WHERE state = 'handled' AND attempts = 2`) == 1
		})
		if g := gauge(reg, "consumer_paused"); g != 0 {
			t.Errorf("consumer_paused is %v afterwards", g)
		}
		for _, d := range got.list {
			if want := 1 + strings.Count(d.Event.Account, "shaky"); d.Attempt != want {
				t.Errorf("%s was handled in attempt %d, want %d", d.Event.Account, d.Attempt, want)
			}
		}
		if n := logs.of("consumer resumed"); n > 2 {
			t.Errorf("%d lines say that it resumed", n)
		}
	})
}

// While the database is away nothing is spent, there is one line for the
// beginning and one for the end, and when it is back everything goes on.
func TestDatabaseAwaySpendsNothing(t *testing.T) {
	if os.Getenv("DATABASE_URL") == "" {
		t.Skip("DATABASE_URL is not set: `make test` starts a PostgreSQL")
	}
	direct := sqltest.URL(t, sqldb.Postgres)
	way, through := testkit.NewURLProxy(t, direct)
	observer := sqltest.Connect(t, direct, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
	f := newFixture(t, sqltest.Connect(t, through), kafkatest.Start(t, topics()...))
	logs := countLogs(f)
	reg := prometheus.NewRegistry()
	c := inbox.New(inbox.Config{Outbox: f.out, Group: "readers", Kafka: f.kafka, Delay: 30 * time.Millisecond, Log: f.log, Metrics: reg})
	inbox.On(c, func(_ context.Context, tx *outbox.Tx, d inbox.Delivery[Moved]) error {
		_, err := bump(tx, d.Event.Account)
		return err
	})
	testkit.Run(t, c.Run)
	f.produce(moved("first", 1))
	testkit.Eventually(t, "it works", func() bool { return sqltest.Count(t, observer, `SELECT COUNT(*) FROM inbox_events`) == 1 })
	way.Cut()
	for i := range 100 {
		f.produce(moved(fmt.Sprint("a", i), 1))
	}
	testkit.Eventually(t, "it waits", func() bool { return gauge(reg, "consumer_paused") == 1 })
	way.Restore()
	testkit.Eventually(t, "all are handled", func() bool {
		return sqltest.Count(t, observer, `SELECT COUNT(*) FROM accounts WHERE version = 1`) == 101
	})
	testkit.Eventually(t, "it goes on", func() bool { return gauge(reg, "consumer_paused") == 0 })
	if n := sqltest.Count(t, observer, `SELECT COUNT(*) FROM parked_records`); n != 0 {
		t.Errorf("%d records are parked", n)
	}
	if n := logs.of("consumer paused"); n != 1 {
		t.Errorf("%d lines say that it is paused, want one", n)
	}
}

// A hook that cannot note a death, even by panic, blocks no worker: the record
// waits among the parked ones and dies when it can.
func TestHookFailsForALongTime(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		c := f.consumer(func(_ context.Context, _ *outbox.Tx, d inbox.Delivery[Moved]) error {
			if d.Event.Account == "good" {
				return nil
			}
			return inbox.Permanent(errors.New("never"))
		})
		var well atomic.Bool
		c.OnDead(func(_ context.Context, _ *outbox.Tx, d inbox.Dead) error {
			switch {
			case well.Load():
				return nil
			case d.Offset%2 == 0:
				panic("cannot")
			}
			return inbox.Permanent(errors.New("cannot"))
		})
		testkit.Run(t, c.Run)
		for i := range 20 { // more than there are workers
			f.produce(moved(fmt.Sprint("bad", i), 1))
		}
		f.produce(moved("good", 1))
		testkit.Eventually(t, "the good one is handled, the bad ones are kept", func() bool {
			return f.count(`SELECT COUNT(*) FROM inbox_events`) == 21 && f.count(`SELECT COUNT(*) FROM parked_records WHERE state = 'retrying' AND attempts = 0`) == 20
		})
		well.Store(true)
		testkit.Eventually(t, "they die", func() bool {
			return f.count(`SELECT COUNT(*) FROM parked_records WHERE state = 'dead' AND attempts = 1`) == 20
		})
	})
}
