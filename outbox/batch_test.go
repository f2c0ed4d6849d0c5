package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/internal/testkit"
	"pizzaflow/outbox"
	"pizzaflow/outbox/inbox"
)

// Echoed is what a handler of these tests adds for each Moved.
type Echoed struct{ Moved }

func (Echoed) EventType() string { return "Echoed" }
func (Echoed) Topic() string     { return "moves-dlq" } // any topic that nobody here consumes

// A batch handler gets the records at hand, different keys in one call, sorted.
// Of those it fails for, only the one to blame is set aside; each other has its
// effect once, and the events added for it name it as their cause.
func TestBatchHandler(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		var mu sync.Mutex
		largest, attempts := 0, 0
		c := inbox.New(inbox.Config{Outbox: f.out, Group: "readers", Kafka: f.kafka, Attempts: 2, Delay: 1, Log: f.log, Metrics: prometheus.NewRegistry()})
		inbox.OnBatch(c, func(ctx context.Context, tx *outbox.Tx, ds []inbox.Delivery[Moved]) error {
			mu.Lock()
			largest = max(largest, len(ds))
			mu.Unlock()
			if !slices.IsSortedFunc(ds, func(a, b inbox.Delivery[Moved]) int { return strings.Compare(a.Event.Account, b.Event.Account) }) {
				return inbox.Permanent(errors.New("keys are out of order"))
			}
			for i, d := range ds {
				if i > 0 && ds[i-1].Event.Account == d.Event.Account {
					return inbox.Permanent(errors.New("one key twice"))
				}
				v, err := bump(tx, d.Event.Account)
				if err != nil {
					return err
				}
				tx.Cause(d.EventID, d.Traceparent)
				tx.Add(v, Echoed{d.Event})
			}
			for _, d := range ds {
				switch d.Event.Account {
				case "bad-040":
					mu.Lock()
					defer mu.Unlock()
					if len(ds) == 1 {
						attempts++
					}
					return errors.New("no luck")
				case "bad-077":
					panic("at the disco")
				}
			}
			return nil
		})
		var records []*kgo.Record
		for i := range 200 {
			r := moved(fmt.Sprintf("a-%03d", i), i)
			switch i {
			case 40, 77:
				r = moved(fmt.Sprintf("bad-%03d", i), i)
			case 90:
				r = moved("", i) // not valid: it never gets to the handler
			}
			r.Headers = []kgo.RecordHeader{{Key: "traceparent", Value: fmt.Appendf(nil, "trace-%03d", i)}}
			records = append(records, r)
		}
		f.produce(records...)
		testkit.Run(t, c.Run)
		testkit.Eventually(t, "all are handled or dead", func() bool {
			return f.count(`SELECT COUNT(*) FROM inbox_events`) == 200 && f.count(`SELECT COUNT(*) FROM parked_records WHERE state = 'dead'`) == 3
		})
		if n := f.count(`SELECT COUNT(*) FROM accounts WHERE version = 1`); n != 197 {
			t.Errorf("%d effects, want 197", n)
		}
		if n := f.count(`SELECT COUNT(*) FROM outbox_events e WHERE event_type = 'Echoed'
			AND EXISTS (SELECT 1 FROM inbox_events i WHERE CAST(e.headers AS TEXT) LIKE '%' || i.event_id || '%')
			AND CAST(headers AS TEXT) LIKE '%trace-' || substr(aggregate_id, 3) || '%'`); n != 197 {
			t.Errorf("%d events name their cause and its trace, want 197", n)
		}
		if largest < 16 || attempts != 2 {
			t.Errorf("the largest call had %d events, and the bad one alone was tried %d times, want twice", largest, attempts)
		}
	})
}
