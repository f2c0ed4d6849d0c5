package outbox_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"pizzaflow/kafka"
	"pizzaflow/kafka/embedded"
)

// places are closed and deleted when the tests have run.
var places []func() error

// somewhere is a new database and an embedded broker with the topics, for the
// example, which has no test to belong to.
func somewhere(topics ...string) (url string, brokers []string) {
	dir, err := os.MkdirTemp("", "outbox-example-")
	check(err)
	broker, err := embedded.Start(embedded.Config{Dir: filepath.Join(dir, "broker"), Listen: "127.0.0.1:0"})
	check(err)
	places = append(places, broker.Close, func() error { return os.RemoveAll(dir) })
	for _, name := range topics {
		topic := kafka.Topic{Name: name, Partitions: 3, Replicas: 1}
		check(kafka.EnsureTopics(context.Background(), kafka.Config{Brokers: broker.Addrs()}, slog.New(slog.DiscardHandler), topic))
	}
	return "sqlite:" + filepath.Join(dir, "box-office.db"), broker.Addrs()
}

func TestMain(m *testing.M) {
	if node := os.Getenv(nodeEnvironment); node != "" {
		os.Exit(serveNode(node))
	}
	code := m.Run()
	for _, end := range places {
		check(end())
	}
	os.Exit(code)
}
