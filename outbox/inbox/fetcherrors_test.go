package inbox

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/outbox"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// An oversized batch does not have the poll wait for a commit.
func TestOversizedBatchNeverWaits(t *testing.T) {
	db := sqltest.Open(t, sqldb.SQLite, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
	c, _ := newTestConsumer(t, db)
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
		t.Errorf("%d records to dead-letter and %d seeks, want three of the assigned partition", n, len(d.seeks))
	}
	<-d.offsetsLock
	d.applySeeks(t.Context(), client)
	if len(d.seeks) != 0 {
		t.Errorf("%d seeks are not applied", len(d.seeks))
	}
}
