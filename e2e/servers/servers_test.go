package servers_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/e2e/servers"
	"pizzaflow/internal/testkit"
)

func TestKafkaKeepsItsDataOverACrash(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cluster := servers.Kafka(t, 1)
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.Brokers), kgo.ConsumeTopics("pizzas"),
		kgo.MetadataMinAge(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := kadm.NewClient(client).CreateTopic(ctx, 1, -1, nil, "pizzas"); err != nil {
		t.Fatal(err)
	}
	record := &kgo.Record{Topic: "pizzas", Value: []byte("margherita")}
	if err := client.ProduceSync(ctx, record).FirstErr(); err != nil {
		t.Fatal(err)
	}

	cluster.Kill(1)
	cluster.Restart(1)
	cluster.Stop(1)
	cluster.Restart(1)

	for {
		fetches := client.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			t.Fatal("the record is not read back:", err)
		}
		if records := fetches.Records(); len(records) > 0 {
			if got := string(records[0].Value); got != "margherita" || len(records) != 1 {
				t.Fatalf("read %d records, the first %q; want margherita alone", len(records), got)
			}
			return
		}
	}
}

func TestPostgresKeepsItsDataOverACrash(t *testing.T) {
	t.Parallel()
	database := servers.Postgres(t)
	if _, err := query(t, database.URL, "CREATE TABLE pizza (name text)"); err != nil {
		t.Fatal(err)
	}
	if _, err := query(t, database.URL, "INSERT INTO pizza VALUES ('маргарита')"); err != nil {
		t.Fatal(err)
	}
	url := database.URL

	database.Crash()
	if _, err := query(t, url, "SELECT name FROM pizza"); err == nil {
		t.Fatal("it answers after the crash")
	}
	database.Start()

	rows, err := query(t, url, "SELECT name FROM pizza")
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 1 || rows[0] != "маргарита" {
		t.Fatalf("read %q, want маргарита alone", rows)
	}
}

func TestStandbyHasWhatThePrimaryHadAndIsPromoted(t *testing.T) {
	t.Parallel()
	primary := servers.Postgres(t)
	standby := primary.Standby()
	if _, err := query(t, primary.URL, "CREATE TABLE pizza AS SELECT 'маргарита' AS name"); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the standby has the table of the primary", func() bool {
		rows, err := query(t, standby.URL, "SELECT name FROM pizza")
		return err == nil && len(rows) == 1
	})
	if _, err := query(t, standby.URL, "DELETE FROM pizza"); err == nil {
		t.Error("a standby takes writes")
	}
	if _, err := query(t, standby.URL, "SELECT pg_promote()::text"); err != nil {
		t.Fatal(err)
	}
	if _, err := query(t, standby.URL, "DELETE FROM pizza"); err != nil {
		t.Errorf("promoted it takes no writes: %v", err)
	}
}

func TestPoolerHasItsDefaultsAndWhatItIsTold(t *testing.T) {
	t.Parallel()
	database := servers.Postgres(t)
	sessions := servers.Pooler(t, database, []string{"postgres"})
	if _, err := query(t, sessions+"&search_path=pizza", "SELECT 1::text"); err == nil || !strings.Contains(err.Error(), "unsupported startup parameter") {
		t.Errorf("with a parameter that a pgbouncer does not know by itself: %v", err)
	}
	ignoring := servers.Pooler(t, database, []string{"postgres"}, "ignore_startup_parameters = search_path")
	if path, err := query(t, ignoring+"&search_path=pizza", "SHOW search_path"); err != nil || path[0] == "pizza" {
		t.Errorf("search_path is %q: %v", path, err)
	}
}

// query runs sql on a connection of its own and returns the first column.
func query(t *testing.T, url, sql string) ([]string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, sql)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}
