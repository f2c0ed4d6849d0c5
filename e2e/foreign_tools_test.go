package e2e

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	real "pizzaflow/e2e/servers"
	"pizzaflow/kafka/kafkatest"
)

// TestForeignTools runs Apache Kafka's own command-line tools with the embedded
// broker and with Apache Kafka, and wants the same results.
func TestForeignTools(t *testing.T) {
	t.Parallel()
	home := real.Home(t)
	t.Run("Embedded", func(t *testing.T) { testForeignTools(t, home, kafkatest.Start(t).Brokers) })
	t.Run("Kafka", func(t *testing.T) { testForeignTools(t, home, kafkaBrokers(t)) })
}

const (
	topicTool    = "org.apache.kafka.tools.TopicCommand"
	groupTool    = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"
	offsetTool   = "org.apache.kafka.tools.GetOffsetShell"
	configTool   = "kafka.admin.ConfigCommand"
	readTool     = "org.apache.kafka.tools.consumer.ConsoleConsumer"
	writeTool    = "org.apache.kafka.tools.ConsoleProducer"
	producerTool = "org.apache.kafka.tools.VerifiableProducer"
	consumerTool = "org.apache.kafka.tools.VerifiableConsumer"
)

func testForeignTools(t *testing.T, home string, brokers []string) {
	j := startTools(t, home, strings.Join(brokers, ","))
	suffix := strings.ToLower(strings.ReplaceAll(newID(t), "-", ""))[20:]
	topic := "tools-" + suffix
	group := func(name string) string { return name + "-" + suffix }
	at := []string{"--bootstrap-server", j.brokers}
	t.Cleanup(func() { j.run(t, "", topicTool, append(at, "--delete", "--if-exists", "--topic", topic)...) })

	for _, step := range []struct {
		name, stdin, tool string
		args              []string
		want              []string // patterns of the output, in any order; with "!" before it the output must not match
	}{
		{"create", "", topicTool, append(at, "--create", "--topic", topic, "--partitions", "2", "--replication-factor", "1", "--config", "retention.ms=3600000"), []string{"Created topic " + topic}},
		{"create it again", "", topicTool, append(at, "--create", "--topic", topic, "--partitions", "2"), []string{"already exists"}},
		{"list", "", topicTool, append(at, "--list"), []string{`(?m)^` + topic + `$`}},
		{"describe", "", topicTool, append(at, "--describe", "--topic", topic), []string{`PartitionCount: 2\s+ReplicationFactor: 1\s+Configs: .*retention.ms=3600000`, `Partition: 1\s+Leader: \d+\s+Replicas: \d+\s+Isr: \d+`, `!Exception`}},
		{"write", "a:1\nb:2\n", writeTool, append(at, "--topic", topic, "--property", "parse.key=true", "--property", "key.separator=:"), []string{`!rror`}},
		{"produce", "", producerTool, append(at, "--topic", topic, "--max-messages", "50"), []string{`"acked":50`}},
		{"offsets", "", offsetTool, append(at, "--topic", topic), []string{topic + `:0:\d+\s+` + topic + `:1:\d+`}},
		{"first offsets", "", offsetTool, append(at, "--topic", topic, "--time", "earliest"), []string{topic + `:0:0\s+` + topic + `:1:0`}},
		{"offsets by time", "", offsetTool, append(at, "--topic", topic, "--time", "1000"), []string{topic + `:\d:0`}},
		{"the latest record", "", offsetTool, append(at, "--topic", topic, "--time", "max-timestamp"), []string{topic + `:\d:\d+`}},
		{"read, classic", "", readTool, append(at, "--topic", topic, "--group", group("classic"), "--from-beginning", "--max-messages", "52", "--timeout-ms", "20000"), []string{"Processed a total of 52 messages", `(?m)^49$`}},
		{"read, KIP-848", "", readTool, append(at, "--topic", topic, "--group", group("consumer"), "--from-beginning", "--max-messages", "52", "--timeout-ms", "20000", "--consumer-property", "group.protocol=consumer"), []string{"Processed a total of 52 messages"}},
		{"consume, classic", "", consumerTool, append(at, "--topic", topic, "--group-id", group("verifiable"), "--reset-policy", "earliest", "--max-messages", "52"), []string{`offsets_committed`, `"success":true`}},
		{"consume, KIP-848", "", consumerTool, append(at, "--topic", topic, "--group-id", group("verifiable848"), "--group-protocol", "consumer", "--reset-policy", "earliest", "--max-messages", "52"), []string{`offsets_committed`, `"success":true`}},
		{"groups", "", groupTool, append(at, "--list"), []string{group("classic"), group("consumer"), group("verifiable"), group("verifiable848")}},
		{"groups with states", "", groupTool, append(at, "--list", "--state"), []string{group("classic") + `\s+Empty`, group("consumer") + `\s+Empty`}},
		{"groups with types", "", groupTool, append(at, "--list", "--type"), []string{group("classic") + `\s+Classic`, group("consumer") + `\s+Consumer`}},
		{"empty groups", "", groupTool, append(at, "--list", "--state", "empty"), []string{group("classic"), group("consumer")}},
		{"classic groups", "", groupTool, append(at, "--list", "--type", "classic"), []string{group("classic"), "!" + group("consumer")}},
		{"describe all groups", "", groupTool, append(at, "--describe", "--all-groups"), []string{group("classic") + `\s+` + topic + `\s+0\s+(\d+)\s+\d+\s+0\s`, group("consumer") + `\s+` + topic, `!Exception`}},
		{"the state of a group", "", groupTool, append(at, "--describe", "--state", "--group", group("consumer")), []string{group("consumer") + `.*Empty`}},
		{"its members", "", groupTool, append(at, "--describe", "--members", "--group", group("classic")), []string{"no active members"}},
		{"to the start", "", groupTool, append(at, "--reset-offsets", "--to-earliest", "--execute", "--topic", topic, "--group", group("classic")), []string{group("classic") + `\s+` + topic + `\s+0\s+0`}},
		{"by time", "", groupTool, append(at, "--reset-offsets", "--to-datetime", "2020-01-01T00:00:00.000", "--execute", "--topic", topic, "--group", group("consumer")), []string{group("consumer") + `\s+` + topic + `\s+1\s+0`}},
		{"the lag", "", groupTool, append(at, "--describe", "--group", group("classic")), []string{topic + `\s+0\s+0\s+(\d+)\s+\d+`}},
		{"forget offsets", "", groupTool, append(at, "--delete-offsets", "--topic", topic, "--group", group("classic")), []string{topic + `\s+0\s+Successful`}},
		{"delete groups", "", groupTool, append(at, "--delete", "--group", group("consumer"), "--group", group("verifiable")), []string{"(was|were) successful"}},
		{"are gone", "", groupTool, append(at, "--list"), []string{"!" + group("consumer"), "!" + group("verifiable") + `\s`}},
		{"alter a setting", "", configTool, append(at, "--alter", "--entity-type", "topics", "--entity-name", topic, "--add-config", "retention.ms=7200000,max.message.bytes=2000000"), []string{"Completed updating config"}},
		{"settings", "", configTool, append(at, "--describe", "--entity-type", "topics", "--entity-name", topic), []string{`retention.ms=7200000`, `max.message.bytes=2000000`}},
		{"a setting that is none", "", configTool, append(at, "--alter", "--entity-type", "topics", "--entity-name", topic, "--add-config", "retention.ms=soon"), []string{"InvalidConfigurationException"}},
		{"leave it to the broker", "", configTool, append(at, "--alter", "--entity-type", "topics", "--entity-name", topic, "--delete-config", "max.message.bytes"), []string{"Completed updating config"}},
		{"more partitions", "", topicTool, append(at, "--alter", "--topic", topic, "--partitions", "3"), []string{`!rror`}},
		{"with three", "", topicTool, append(at, "--describe", "--topic", topic), []string{`PartitionCount: 3`, `retention.ms=7200000`}},
		{"delete", "", topicTool, append(at, "--delete", "--topic", topic), []string{`!rror`}},
	} {
		run := j.run
		if step.tool == producerTool {
			run = j.alone
		}
		out := run(t, step.stdin, step.tool, step.args...)
		for _, want := range step.want {
			pattern, not := strings.CutPrefix(want, "!")
			if regexp.MustCompile(pattern).MatchString(out) == not {
				t.Errorf("%s: %s %q in:\n%s", step.name, map[bool]string{true: "there is", false: "no"}[not], pattern, out)
			}
		}
	}
}

// A tools is a Java virtual machine that runs one tool after the other.
type tools struct {
	jars    string
	brokers string
	stdin   io.Writer
	lines   chan string
}

func startTools(t *testing.T, home, brokers string) *tools {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	jars := filepath.Join(home, "kafka", "*")
	cmd := exec.CommandContext(ctx, program(t, "java"), "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error", "-cp", jars, filepath.Join("testdata", "Tools.java"))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	j := &tools{jars: jars, brokers: brokers, stdin: stdin, lines: make(chan string, 1024)}
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer close(j.lines)
		for s := bufio.NewScanner(stdout); s.Scan(); {
			j.lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		cancel()
		for range j.lines { // so that the goroutine that reads can end
		}
		<-read
		_ = cmd.Wait() // killed
	})
	return j
}

// run runs one tool and returns its output.
func (j *tools) run(t *testing.T, stdin, class string, args ...string) string {
	t.Helper()
	words := []string{stdin, class}
	words = append(words, args...)
	for i := range words {
		words[i] = base64.StdEncoding.EncodeToString([]byte(words[i]))
	}
	if _, err := fmt.Fprintln(j.stdin, strings.Join(words, "\t")); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	limit := time.After(time.Minute)
	for {
		select {
		case line, ok := <-j.lines:
			if !ok || strings.HasPrefix(line, "ended ") {
				return out.String()
			}
			out.WriteString(line + "\n")
		case <-limit:
			t.Fatalf("%s %q has not ended within a minute:\n%s", class, args, out.String())
		}
	}
}

// alone runs a tool that prints its result when its virtual machine ends.
func (j *tools) alone(t *testing.T, _, class string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	args = append([]string{"-XX:TieredStopAtLevel=1", "-cp", j.jars, class}, args...)
	out, err := exec.CommandContext(ctx, program(t, "java"), args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v", class, err)
	}
	return string(out)
}
