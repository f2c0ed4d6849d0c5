package e2e

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// newDatabase creates an empty database and returns its URL.
func newDatabase(t *testing.T) string {
	t.Helper()
	return databaseOn(t, databaseServer(t))
}

// databaseOn creates an empty database on a server, with options, and returns
// its URL.
func databaseOn(t *testing.T, server string, options ...string) string {
	t.Helper()
	name := "e2e_" + strings.ToLower(rand.Text())
	execute(t, server, "CREATE DATABASE "+name+" "+strings.Join(options, " "))
	t.Cleanup(func() { execute(t, server, "DROP DATABASE "+name+" WITH (FORCE)") })
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	return u.String()
}

// execute runs statements on a connection of its own to a PostgreSQL.
func execute(t *testing.T, url string, statements ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute) // the test's has ended in cleanups
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	for _, s := range statements {
		if _, err := conn.Exec(ctx, s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

var (
	topics = []string{"order-events", "order-events-dlq", "payment-events", "payment-events-dlq"}
	groups = []string{"order-service", "payment-service", "notification-service"}
)

// wipeKafka deletes our topics and groups.
func wipeKafka(t *testing.T, brokers []string) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	eventually(t, startLimit, func() string { // the group of a killed member is empty after its session
		deleted, err := admin.DeleteGroups(t.Context(), groups...)
		if err == nil {
			err = deleted.Error()
		}
		if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
			return err.Error()
		}
		return ""
	})
	eventually(t, startLimit, func() string {
		if _, err := admin.DeleteTopics(t.Context(), topics...); err != nil {
			return err.Error()
		}
		left, err := admin.ListTopics(t.Context(), topics...)
		if err != nil {
			return err.Error()
		}
		for name, topic := range left {
			if !errors.Is(topic.Err, kerr.UnknownTopicOrPartition) {
				return fmt.Sprintf("topic %s is still there", name)
			}
		}
		return ""
	})
}

// stableAddress is an address for a server that must come back on the same port: a
// free one below those that the kernel gives to connections.
func stableAddress(t *testing.T) string {
	t.Helper()
	for range 100 {
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 20000+mathrand.IntN(12000)))
		if err == nil {
			defer ln.Close()
			return ln.Addr().String()
		}
	}
	t.Fatal("no free port")
	return ""
}
