package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
	"pizzaflow/verify"
)

func TestVerify(t *testing.T) {
	cleanEnvironment(t, map[string]string{"LOG_LEVEL": "error"})
	ctx, stop := context.WithCancel(t.Context())
	where := map[string]*address{}
	var all []io.Writer
	for _, key := range []string{"HTTP_ADDR", "SANDBOX_ADDR", "KAFKA_LISTEN"} {
		where[key] = &address{key: key, printed: make(chan string, 1)}
		all = append(all, where[key])
	}
	ended := make(chan int, 1)
	var talk bytes.Buffer
	go func() { ended <- run(ctx, nil, io.MultiWriter(all...), &talk) }()
	defer func() {
		stop()
		if code := <-ended; code != exitDone {
			t.Errorf("the system ended with %d: %s", code, &talk)
		}
	}()
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), []string{"load", "--url", "http://" + <-where["HTTP_ADDR"].printed, "--rate", "100", "--orders", "20", "--log", "promised"}, &stdout, &stderr); code != exitDone {
		t.Fatalf("load: exit %d\n%s\n%s", code, &stdout, &stderr)
	}
	sandbox, broker := <-where["SANDBOX_ADDR"].printed, <-where["KAFKA_LISTEN"].printed
	broker = strings.TrimPrefix(broker, "127.0.0.1") // as one that listens everywhere is configured
	ask := func(args ...string) (int, verify.Report) {
		stdout.Reset()
		stderr.Reset()
		args = append([]string{"verify", "-o", "json", "--sandbox-addr", sandbox, "--kafka-listen", broker, "--log", "promised"}, args...)
		code := run(t.Context(), args, &stdout, &stderr)
		var r verify.Report
		if err := json.Unmarshal(stdout.Bytes(), &r); err != nil && code != exitUsage {
			t.Fatalf("%v: exit %d\n%s\n%s", err, code, &stdout, &stderr)
		}
		return code, r
	}
	code, report := ask("--wait", "30s", "--require", "log,topics,sandbox")
	if code != exitDone || report.Count(verify.Holds) != len(report.Findings) || report.Figures[0].Count != 20 {
		t.Errorf("of a sound system: exit %d\n%s\n%s", code, &stdout, &stderr)
	}
	figures := map[string]int64{}
	for _, f := range report.Figures {
		figures[f.Name] = f.Count
	}
	if figures["deliveries"] != 80 || figures["messages"] < 80 {
		t.Errorf("it was not at rest: %v", figures)
	}
	if _, report = ask("--skip", "sandbox,topics"); report.Count(verify.NotChecked) == 0 {
		t.Error("what was to be skipped was looked at")
	}
	secure := []string{"--kafka-brokers", "127.0.0.1:1", "--kafka-tls", "--kafka-tls-ca", "nowhere"}
	if code := run(t.Context(), append([]string{"verify"}, secure...), io.Discard, &stderr); code != exitUsage || !strings.Contains(stderr.String(), "KAFKA_TLS_CA: ") {
		t.Errorf("of an authority that is not there: exit %d: %s", code, &stderr)
	}
	if code, _ = ask(append(secure, "--skip", "topics")...); code != exitDone {
		t.Errorf("of topics that were to be skipped: exit %d: %s", code, &stderr)
	}
	if code, _ = ask("--skip", "sandbox", "--require", "sandbox"); code != exitFailed {
		t.Errorf("without what was required: exit %d", code)
	}
	db, err := sqldb.Open(t.Context(), "sqlite:"+filepath.Join("pizza-data", "order.db"))
	if err != nil {
		t.Fatal(err)
	}
	for wait, told := range map[string]string{
		"30s": "0 invariants are in flight, 20 payments and messages are too young",
		"1ms": "for long enough: 20 payments and messages are too young",
	} {
		if _, err := db.Exec(`UPDATE orders SET paid_at = $1`, sqldb.Now()); err != nil {
			t.Fatal(err)
		}
		if code, _ = ask("--wait", wait); code != exitDone || !strings.Contains(stderr.String(), told) {
			t.Errorf("of orders that were paid just now, and %s: exit %d: %s", wait, code, &stderr)
		}
	}
	_, err = db.Exec(`UPDATE orders SET total_amount = total_amount + 1 WHERE id = (SELECT MIN(id) FROM orders)`)
	if err = closeBoth(err, db); err != nil {
		t.Fatal(err)
	}
	code, report = ask("--wait", "1s")
	wrong := slices.DeleteFunc(report.Findings, func(f verify.Finding) bool { return f.State == verify.Holds })
	if code != exitFailed || len(wrong) < 3 || wrong[0].Name != "promised totals hold" || wrong[0].Count != 1 {
		t.Errorf("of an order that costs more than was promised: exit %d, %+v", code, wrong)
	}
	for _, args := range [][]string{{"--wait", "-1s"}, {"--require", "money"}, {"--skip", "money"}, {"--log", "nowhere"}} {
		if code, _ = ask(args...); code != exitUsage || !strings.Contains(stderr.String(), args[0]) {
			t.Errorf("%v: exit %d: %s", args, code, &stderr)
		}
	}
}

// Every dead record has its dead letter in the outbox and on the topic, even if the record was no event, and a lost dead letter
// is a violation.
func TestVerifyDeadLetters(t *testing.T) {
	onBothEngines(t, nil, func(t *testing.T) {
		s := startSystem(t)
		s.spoil("burnt", "not JSON \xff")
		client, err := kgo.NewClient(kgo.SeedBrokers(s.kafka))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		r := &kgo.Record{Topic: "order-events", Value: []byte(`{}`), Headers: []kgo.RecordHeader{{Key: "b\xff\xfed", Value: []byte{0xff, 0}}, {Key: "none"}}}
		if err := client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
		dead := awaitRecords(t, "dead", 2)
		command(t, exitDone, "dlq", "replay", dead[0].EventID, "--service", "payment")
		await(t, "it is dead again", func() bool {
			list := records(t, "dead")
			return len(list) == 2 && list[0].LastFailedAt.After(dead[0].LastFailedAt)
		})
		violated := func(want string, args ...string) verify.Report {
			t.Helper()
			args = append([]string{"verify", "-o", "json", "--skip", "sandbox", "--kafka-listen", s.kafka}, args...)
			stdout, stderr := command(t, exitFailed, args...)
			var r verify.Report
			if err := json.Unmarshal([]byte(stdout), &r); err != nil {
				t.Fatal(err)
			}
			var seen []string
			for _, f := range r.Findings {
				if f.State == verify.Violated {
					seen = append(seen, f.Name)
				}
			}
			if got := strings.Join(seen, ", "); got != want {
				t.Errorf("%v: violated: %s\n want: %s\n%s\n%s", args, got, want, stdout, stderr)
			}
			return r
		}
		violated("records come from the outbox", "--wait", "30s")
		db := sqltest.Connect(t, cmp.Or(os.Getenv("PAYMENT_DATABASE_URL"), "sqlite:"+filepath.Join("pizza-data", "payment.db")))
		spoil := func(statement string) {
			t.Helper()
			if _, err := db.ExecContext(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		}
		spoil(`UPDATE outbox_events SET headers = '[{"key":"smell","value":"sweet"}]' WHERE key IS NOT NULL`)
		violated("records come from the outbox, dead letters are on their topic")
		spoil(`DELETE FROM outbox_events`)
		violated("records come from the outbox, dead records have their letter")
		violated("dead records have their letter", "--skip", "topics")

		// the topic need not be there for the rest to be checked
		if _, err := kadm.NewClient(client).DeleteTopic(t.Context(), "payment-events-dlq"); err != nil {
			t.Fatal(err)
		}
		for _, f := range violated("records come from the outbox, dead records have their letter", "--require", "topics").Findings {
			if f.Needs == "the dead-letter topics" && (f.State != verify.NotChecked || f.Why == "") || f.Needs == "the topics" && f.State == verify.NotChecked {
				t.Errorf("without the topic: %+v", f)
			}
		}
	})
}

func closeBoth(err error, c io.Closer) error {
	if e := c.Close(); err == nil {
		err = e
	}
	return err
}
