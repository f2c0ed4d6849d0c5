package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pizzaflow"
	"pizzaflow/sqldb"
	"pizzaflow/verify"
)

func TestVerify(t *testing.T) {
	cleanEnvironment(t, map[string]string{"LOG_LEVEL": "error"})
	ctx, stop := context.WithCancel(t.Context())
	where := map[string]*address{}
	var all []io.Writer
	for _, key := range []string{"HTTP_ADDR", "SANDBOX_ADDR", "KAFKA_LISTEN"} {
		where[key] = &address{key: key, told: make(chan string, 1)}
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
	if code := run(t.Context(), []string{"load", "--url", "http://" + <-where["HTTP_ADDR"].told, "--rate", "100", "--orders", "20", "--log", "promised"}, &stdout, &stderr); code != exitDone {
		t.Fatalf("load: exit %d\n%s\n%s", code, &stdout, &stderr)
	}
	sandbox, broker := <-where["SANDBOX_ADDR"].told, <-where["KAFKA_LISTEN"].told
	broker = strings.TrimPrefix(broker, "127.0.0.1") // as one that listens everywhere is configured
	ask := func(args ...string) (int, pizzaflow.VerifyReport) {
		stdout.Reset()
		stderr.Reset()
		args = append([]string{"verify", "-o", "json", "--sandbox-addr", sandbox, "--kafka-listen", broker, "--log", "promised"}, args...)
		code := run(t.Context(), args, &stdout, &stderr)
		var r pizzaflow.VerifyReport
		if err := json.Unmarshal(stdout.Bytes(), &r); err != nil && code != exitUsage {
			t.Fatalf("%v: exit %d\n%s\n%s", err, code, &stdout, &stderr)
		}
		return code, r
	}
	code, report := ask("--wait", "30s", "--require", "log,topics,sandbox")
	if code != exitDone || report.Count(verify.Holds) != len(report.Findings) || report.Figures[0].Count != 20 {
		t.Errorf("of a sound system: exit %d\n%s\n%s", code, &stdout, &stderr)
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
	_, err = db.Exec(`UPDATE orders SET total_amount = total_amount + 1 WHERE id = (SELECT MIN(id) FROM orders)`)
	if err = closeBoth(err, db); err != nil {
		t.Fatal(err)
	}
	code, report = ask("--wait", "1s")
	wrong := slices.DeleteFunc(report.Findings, func(f pizzaflow.VerifyFinding) bool { return f.State == verify.Holds })
	if code != exitFailed || len(wrong) < 3 || wrong[0].Name != "promised totals hold" || wrong[0].Count != 1 {
		t.Errorf("of an order that costs more than was promised: exit %d, %+v", code, wrong)
	}
	for _, args := range [][]string{{"--wait", "-1s"}, {"--require", "money"}, {"--skip", "money"}, {"--log", "nowhere"}} {
		if code, _ = ask(args...); code != exitUsage || !strings.Contains(stderr.String(), args[0]) {
			t.Errorf("%v: exit %d: %s", args, code, &stderr)
		}
	}
}

func closeBoth(err error, c io.Closer) error {
	if e := c.Close(); err == nil {
		err = e
	}
	return err
}
