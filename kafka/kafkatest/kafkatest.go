// Package kafkatest gives tests a broker: the embedded one, as it runs in production, in a directory of the
// test's own, with the topics the test asks for. It is stopped when the test ends.
package kafkatest

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"pizzaflow/kafka"
	"pizzaflow/kafka/embedded"
)

// limit is for each wait for a broker: for the topics, for an acknowledgement.
const limit = 30 * time.Second

// Start runs a broker on a free port of the loopback interface, creates the topics and returns how to reach it.
// Clients should be closed before the test ends.
func Start(t testing.TB, topics ...kafka.Topic) kafka.Config {
	t.Helper()
	return start(t, embedded.Config{Listen: "127.0.0.1:0"}, kafka.Config{}, topics)
}

// Virtual is Start on a network in memory, for tests in a bubble of testing/synctest: a socket would keep its
// clock from moving. Such tests are built with -tags synctests, which franz-go needs inside a bubble.
func Virtual(t testing.TB, topics ...kafka.Topic) kafka.Config {
	t.Helper()
	network := new(kfake.VirtualNetwork)
	return start(t, embedded.Config{ListenFn: network.Listen}, kafka.Config{Dial: network.DialContext}, topics)
}

func start(t testing.TB, server embedded.Config, client kafka.Config, topics []kafka.Topic) kafka.Config {
	t.Helper()
	server.Dir = t.TempDir()
	server.Log = testLog(t)
	b, err := embedded.Start(server)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	client.Brokers = b.Addrs()
	Ensure(t, client, topics...)
	return client
}
