package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	server "pizzaflow/e2e/servers"
	"pizzaflow/kafka"
	"pizzaflow/sqldb"
)

// rejoinLimit is how long a broker that was restarted may take to be in sync again.
const rejoinLimit = 3 * time.Minute

// TestCluster kills and restarts each of three brokers in turn: orders are paid
// meanwhile, and pizza topics describe warns.
func TestCluster(t *testing.T) {
	t.Parallel()
	began := time.Now()
	cluster := server.Kafka(t, 3)
	t.Logf("the cluster took %s to start", time.Since(began).Round(time.Millisecond))
	s := setup{engine: sqldb.SQLite, realKafka: true, own: &ownServers{brokers: strings.Split(cluster.Brokers, ",")}}
	d := prepare(t, s.with("KAFKA_REPLICATION=3", "KAFKA_PARTITIONS=3"))
	d.command(t, "topics", "apply")
	for _, topic := range d.describe(t) {
		if topic.ReplicationFactor != 3 || topic.Settings["min.insync.replicas"] != "2" || len(topic.Warnings) > 0 {
			t.Errorf("after apply: %+v", topic)
		}
	}
	d.start("")
	for broker := 1; broker <= 3; broker++ {
		cluster.Kill(broker)
		o := d.place(t, customer(broker, ""))
		d.checkServed(t, o, broker)
		d.awaitTopics(t, func(topic kafka.TopicState) string {
			if w := fmt.Sprint(topic.Warnings); !strings.Contains(w, "under-replicated: 2 of 3 replicas are in sync") {
				return "no warning of under-replication: " + w
			}
			for _, p := range topic.Partitions {
				if p.Leader < 0 || p.Leader == int32(broker) {
					return fmt.Sprintf("partition %d is led by %d", p.Partition, p.Leader)
				}
			}
			return ""
		})
		began := time.Now()
		cluster.Restart(broker)
		d.awaitTopics(t, func(topic kafka.TopicState) string { return strings.Join(topic.Warnings, "; ") })
		t.Logf("broker %d was back after %s", broker, time.Since(began).Round(time.Millisecond))
	}
	d.checkServed(t, d.place(t, customer(0, "")), 0)
}

// describe is the output of pizza topics describe.
func (d *deployment) describe(t *testing.T) []kafka.TopicState {
	t.Helper()
	var topics []kafka.TopicState
	if err := json.Unmarshal(d.command(t, "topics", "describe", "-o", "json"), &topics); err != nil {
		t.Fatal(err)
	}
	if len(topics) != 4 {
		t.Fatalf("%d topics are described", len(topics))
	}
	return topics
}

// awaitTopics waits until wrong returns "" for every topic.
func (d *deployment) awaitTopics(t *testing.T, wrong func(kafka.TopicState) string) {
	t.Helper()
	eventually(t, rejoinLimit, func() string {
		// Not command, which would end the test: with a broker away it may fail.
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, pizza, "topics", "describe", "-o", "json")
		cmd.Env, cmd.Dir = d.environment(""), filepath.Dir(d.dir)
		out, err := cmd.Output()
		var topics []kafka.TopicState
		if err == nil {
			err = json.Unmarshal(out, &topics)
		}
		if err != nil {
			return err.Error()
		}
		for _, topic := range topics {
			if w := wrong(topic); w != "" {
				return topic.Name + ": " + w
			}
		}
		return ""
	})
}
