package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"pizzaflow/kafka"
	"pizzaflow/kafka/kafkatest"
)

// text is a plan in words: what differs, and the action.
func text(plan []kafka.Difference) string {
	var out []string
	for _, d := range plan {
		done := ""
		if d.Done {
			done = " done"
		}
		out = append(out, fmt.Sprintf("%s %s %s→%s %s%s", d.Topic, d.Setting, d.Is, d.Want, d.Action, done))
	}
	return strings.Join(out, "; ")
}

func TestApplyDoesThePlan(t *testing.T) {
	testApply(t, kafkatest.Start(t), orders, kafka.Topic{Name: "payment-events", Partitions: 2, Replicas: -1})
}

// testApply plans and applies on a broker that has neither topic.
func testApply(t *testing.T, config kafka.Config, topic, missing kafka.Topic) {
	t.Helper()
	kafkatest.Ensure(t, config, topic)
	wanted, name := topic, topic.Name
	wanted.Retention, wanted.Partitions, wanted.Replicas = time.Hour, 5, 3
	replicas := name + " replication.factor 1→3 leave; " + name + " min.insync.replicas 1→2 leave" // older brokers would take no records
	partitions := name + " partitions 3→5 leave; " + replicas + "; "
	changes := name + " retention.ms 604800000→3600000 change; " + name + " segment.ms 86400000→514285 change; "
	creation := missing.Name + " topic →partitions=2, the broker's number of replicas, cleanup.policy=delete create"

	for range 2 { // a plan changes nothing
		plan, err := kafka.PlanTopics(t.Context(), config, false, wanted, missing)
		if err != nil || text(plan) != partitions+changes+creation {
			t.Fatalf("plan: %s, %v", text(plan), err)
		}
		if why := plan[slices.IndexFunc(plan, func(d kafka.Difference) bool { return d.Setting == "retention.ms" })].Why; !strings.Contains(why, "older than 1h0m0s are deleted") {
			t.Errorf("the plan does not say what the shorter retention deletes: %q", why)
		}
	}
	plan, err := kafka.ApplyTopics(t.Context(), config, nil, false, wanted, missing)
	if want := partitions + strings.ReplaceAll(changes, " change", " change done") + creation + " done"; err != nil || text(plan) != want {
		t.Fatalf("apply: %s, %v", text(plan), err)
	}
	states, err := kafka.DescribeTopics(t.Context(), config, name, missing.Name)
	if err != nil || len(states) != 2 || len(states[0].Partitions) != 3 || states[0].Settings["retention.ms"] != "3600000" ||
		states[0].Settings["max.message.bytes"] != "1048576" || len(states[1].Partitions) != 2 || states[1].Settings["cleanup.policy"] != "delete" {
		t.Fatalf("after it: %+v, %v", states, err)
	}

	plan, err = kafka.ApplyTopics(t.Context(), config, nil, true, wanted, missing)
	if want := name + " partitions 3→5 extend done; " + replicas; err != nil || text(plan) != want {
		t.Fatalf("apply with leave to add partitions: %s, %v", text(plan), err)
	}
	wanted.Partitions, wanted.Replicas, wanted.MinInsync = 5, -1, 1
	if plan, err := kafka.PlanTopics(t.Context(), config, true, wanted, missing); err != nil || len(plan) > 0 {
		t.Fatalf("when all is done: %s, %v", text(plan), err)
	}
	wanted.Partitions = 4
	if plan, err := kafka.ApplyTopics(t.Context(), config, nil, true, wanted); err != nil || text(plan) != name+" partitions 5→4 leave" {
		t.Fatalf("fewer partitions: %s, %v", text(plan), err)
	}
}

func TestApplyByManyAtOnce(t *testing.T) {
	testApplyByMany(t, kafkatest.Start(t), orders)
}

// testApplyByMany has many processes extend a topic and create its dead letters.
func testApplyByMany(t *testing.T, config kafka.Config, topic kafka.Topic) {
	t.Helper()
	kafkatest.Ensure(t, config, topic)
	wanted := topic
	wanted.Partitions, wanted.Retention = 6, time.Hour
	var all sync.WaitGroup
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	errs := make([]error, 8)
	for i := range errs {
		all.Go(func() {
			_, errs[i] = kafka.ApplyTopics(ctx, config, nil, true, wanted, kafka.DeadLetters(topic))
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if plan, err := kafka.PlanTopics(t.Context(), config, false, wanted, kafka.DeadLetters(topic)); err != nil || len(plan) > 0 {
		t.Errorf("%s, %v", text(plan), err)
	}
}

func TestDescribeTopics(t *testing.T) {
	config := kafkatest.Start(t, orders)
	kafkatest.Produce(t, kafkatest.Client(t, config), "order-events", "a", "b", "c")
	states, err := kafka.DescribeTopics(t.Context(), config, "order-events", "nowhere")
	if err != nil {
		t.Fatal(err)
	}
	records := int64(0)
	for _, p := range states[0].Partitions {
		if p.Leader < 0 || len(p.Replicas) != 1 || len(p.ISR) != 1 || p.Start != 0 {
			t.Errorf("%+v", p)
		}
		records += p.End - p.Start
	}
	if records != 3 || len(states[0].Warnings) > 0 {
		t.Errorf("%d records and the warnings %q, want 3 and none", records, states[0].Warnings)
	}
	if !states[1].Missing || len(states[1].Warnings) != 1 || !strings.Contains(states[1].Warnings[0], "pizza topics apply") {
		t.Errorf("a missing topic: %+v", states[1])
	}
}

func TestErrorsNameTheMissingRight(t *testing.T) {
	_, root, pizza := guarded(t)
	kafkatest.Ensure(t, root, orders)
	for what, err := range map[string]error{
		"plan":     func() error { _, err := kafka.PlanTopics(t.Context(), pizza, false, orders); return err }(),
		"describe": func() error { _, err := kafka.DescribeTopics(t.Context(), pizza, orders.Name); return err }(),
	} {
		if !errors.Is(err, kerr.TopicAuthorizationFailed) || !strings.Contains(err.Error(), "this user may not describe its configuration") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestPlanGivesUpWithoutBrokers(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := kafka.PlanTopics(ctx, kafka.Config{Brokers: []string{"127.0.0.1:1"}}, false, orders)
	if err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "no answer from the brokers 127.0.0.1:1") {
		t.Errorf("%v, want the brokers that do not answer", err)
	}
}
