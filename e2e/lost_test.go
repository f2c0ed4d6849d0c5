package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// The orders around a loss: some are done, some are in progress, some are placed
// afterwards.
const (
	lostBefore = 20
	lostDuring = 30
	lostAfter  = 5
)

// testLost lets lose delete all records during a load. All orders must be paid or
// declined all the same, without a second charge or message.
func testLost(t *testing.T, s setup, lose func(d *deployment)) {
	d := deploy(t, s.with("PAYMENT_PROVIDER_TIMEOUT=1s"))
	ctx, cancel := context.WithTimeout(t.Context(), loadLimit)
	defer cancel()
	requests := guests(0, lostBefore+lostDuring+lostAfter)
	orders := d.startLoad(ctx, requests[:lostBefore], loadClients).wait(t)
	d.awaitSettled(t, lostBefore)

	during := d.startLoad(ctx, requests[lostBefore:lostBefore+lostDuring], loadClients)
	during.awaitAccepted(t, lostDuring/3)
	lose(d)
	orders = append(orders, during.wait(t)...)
	d.awaitSettled(t, len(orders))
	orders = append(orders, d.startLoad(ctx, requests[len(orders):], loadClients).wait(t)...)
	d.awaitSettled(t, len(orders))
	d.checkLoad(t, requests, orders, nil)
}

// testBrokerWiped stops all processes, and starts them again with an empty broker.
func testBrokerWiped(t *testing.T, s setup) {
	testLost(t, s, func(d *deployment) {
		d.stop()
		if err := os.RemoveAll(filepath.Join(d.dir, "broker")); err != nil {
			t.Fatal(err)
		}
		d.start(d.setup.processes...)
	})
}

// testTopicsRecreated deletes the topics and creates them again while the
// services run.
func testTopicsRecreated(t *testing.T, s setup) {
	testLost(t, s, func(d *deployment) {
		admin := d.admin(t)
		lost := []string{"order-events", "payment-events"}
		if deleted, err := admin.DeleteTopics(t.Context(), lost...); err != nil || deleted.Error() != nil {
			t.Fatal(err, deleted.Error())
		}
		eventually(t, startLimit, func() string {
			for _, topic := range lost { // it is deleted when its name is free
				created, err := admin.CreateTopic(t.Context(), 12, -1, nil, topic)
				if err == nil {
					err = created.Err
				}
				if err != nil {
					return fmt.Sprintf("%s: %v", topic, err)
				}
				lost = lost[1:]
			}
			return ""
		})
	})
}

// admin is a client that may change topics.
func (d *deployment) admin(t *testing.T) *kadm.Client {
	t.Helper()
	client, err := kgo.NewClient(append(slices.Clip(d.access), kgo.SeedBrokers(d.broker()...))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return kadm.NewClient(client)
}
