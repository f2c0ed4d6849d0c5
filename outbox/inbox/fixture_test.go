package inbox

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/outbox"
	"pizzaflow/outbox/internal/wire"
	"pizzaflow/sqldb"
)

// A relocated is the event of the tests of this package.
type relocated struct{}

func (relocated) EventType() string { return "Relocated" }

func (relocated) Topic() string { return "new-topic" }

func (relocated) AggregateID() string { return "a" }

// newTestConsumer makes a consumer of relocated events and returns the ids of the
// events that it handles.
func newTestConsumer(t *testing.T, db *sqldb.DB) (c *Consumer, handled *[]string) {
	t.Helper()
	handled = &[]string{}
	c = New(Config{Outbox: outbox.New(db, "/t"), Group: "g", Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	On(c, func(_ context.Context, _ *outbox.Tx, d Delivery[relocated]) error {
		*handled = append(*handled, d.EventID)
		return nil
	})
	return c, handled
}

// testMessage is event number n of a key, as a fetched message.
func (c *Consumer) testMessage(key string, n int) *message {
	id := fmt.Sprintf("00000000-0000-7000-8000-%012d", n)
	value := wire.AppendEnvelope(nil, id, "Relocated", key, `{}`, time.Now())
	msg := c.decode(&kgo.Record{Topic: "new-topic", Key: []byte(key), Value: value, Offset: int64(n)}, [16]byte{})
	msg.part = &partition{}
	return msg
}
