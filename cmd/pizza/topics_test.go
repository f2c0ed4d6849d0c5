package main

import (
	"encoding/json"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"

	"pizzaflow/kafka"
	"pizzaflow/kafka/kafkatest"
)

func TestTopics(t *testing.T) {
	broker := kafkatest.Start(t).Brokers[0]
	env := map[string]string{"KAFKA_BROKERS": broker, "KAFKA_PARTITIONS": "3", "KAFKA_RETENTION": "24h"}
	topics := func(code int, words string, args ...string) string {
		t.Helper()
		got, stdout, stderr := pizza(t, env, append([]string{"topics"}, args...)...)
		if got != code || !strings.Contains(stdout+stderr, words) {
			t.Fatalf("topics %v: exit %d, want %d and %q\nstdout: %s\nstderr: %s", args, got, code, words, stdout, stderr)
		}
		return stdout
	}
	plan := func(args ...string) []kafka.Difference {
		t.Helper()
		var out []kafka.Difference
		code := exitDone
		if args[0] == "apply" && slices.Contains(args, "fails") {
			code, args = exitFailed, args[:1]
		}
		if err := json.Unmarshal([]byte(topics(code, "", append(args, "-o", "json")...)), &out); err != nil {
			t.Fatal(err)
		}
		return out
	}

	topics(exitDone, "4 changes pending, 0 left to you", "plan")
	topics(exitFailed, "the topics differ from the options in 4 ways", "plan", "--check")
	if missing := plan("plan"); len(missing) != 4 || missing[0].Action != "create" || missing[0].Done {
		t.Errorf("plan of nothing: %+v", missing)
	}
	topics(exitDone, "is missing", "describe")
	if done := plan("apply"); len(done) != 4 || !done[3].Done {
		t.Errorf("apply to nothing: %+v", done)
	}
	topics(exitDone, "The topics are as the options say.", "plan", "--check")
	topics(exitDone, "The topics are as the options say.", "apply")
	if none := plan("apply"); len(none) != 0 {
		t.Errorf("apply once more: %+v", none)
	}

	env["KAFKA_RETENTION"] = "48h"
	topics(exitDone, "48h0m0s") // lists what is needed, and leaves what is there as it is
	topics(exitDone, " 86400000 ", "describe")
	env["KAFKA_PARTITIONS"] = "4"
	if left := plan("apply", "fails"); len(left) != 8 || left[0].Setting != "partitions" || left[0].Done || !strings.Contains(left[0].Why, "--allow-repartition") || !left[1].Done {
		t.Errorf("apply with more partitions: %+v", left)
	}
	topics(exitDone, "extend", "apply", "--allow-repartition")
	out := topics(exitDone, "172800000", "describe")
	if got := strings.Count(out, "\norder-events "); got != 5 { // itself, and its partitions
		t.Errorf("%d lines about order-events, want 5:\n%s", got, out)
	}
}

func TestTopicsSaysWhatIsWrong(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := silent.Addr().String()
	if err := silent.Close(); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"plan", "apply", "describe"} {
		for want, env := range map[string]map[string]string{
			"KAFKA_BROKERS":         {},
			"KAFKA_TLS":             {"KAFKA_BROKERS": "192.0.2.1:9092"},
			"KAFKA_TLS_CA":          {"KAFKA_BROKERS": nobody, "KAFKA_TLS": "true", "KAFKA_TLS_CA": "nowhere"},
			"KAFKA_TLS_CERT":        {"KAFKA_BROKERS": nobody, "KAFKA_TLS": "true", "KAFKA_TLS_CERT": "nowhere", "KAFKA_TLS_KEY": "nowhere"},
			"KAFKA_RETENTION":       {"KAFKA_BROKERS": nobody, "KAFKA_RETENTION": "1000h"},
			"no answer from the br": {"KAFKA_BROKERS": nobody},
		} {
			code := exitUsage
			if strings.HasPrefix(want, "no ") {
				code = exitFailed
			}
			if got, _, stderr := pizza(t, maps.Clone(env), "topics", command); got != code || !strings.Contains(stderr, want) {
				t.Errorf("topics %s: exit %d, want %d and %q: %s", command, got, code, want, stderr)
			}
		}
	}
}
