package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/ops"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

const opsToken = "a-token-for-the-tests"

// A system is `pizza run` with its addresses.
type system struct {
	t     *testing.T
	admin string
	kafka string
	talk  *transcript
	stop  func()
}

// onBothEngines runs fn in a clean environment whose databases are of the engine.
func onBothEngines(t *testing.T, env map[string]string, fn func(t *testing.T)) {
	for _, engine := range []sqldb.Engine{sqldb.SQLite, sqldb.Postgres} {
		t.Run(string(engine), func(t *testing.T) {
			urls := map[string]string{}
			for _, service := range []string{"ORDER", "PAYMENT", "NOTIFICATION"} {
				if engine == sqldb.Postgres {
					urls[service+"_DATABASE_URL"] = sqltest.URL(t, engine)
				}
			}
			cleanEnvironment(t, env)
			for key, value := range urls {
				t.Setenv(key, value)
			}
			t.Setenv("LOG_FORMAT", "json")
			fn(t)
		})
	}
}

// startSystem starts `pizza run` and waits until it is up.
func startSystem(t *testing.T) *system {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var stdout bytes.Buffer
	s := &system{t: t, talk: &transcript{awaited: "order-events -C -e", said: make(chan struct{})}}
	ended := make(chan int, 1)
	go func() { ended <- run(ctx, []string{"run"}, &stdout, s.talk) }()
	stopped := false
	s.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if code := <-ended; code != exitDone {
			t.Errorf("exit %d: %s", code, s.talk)
		}
	}
	t.Cleanup(s.stop)
	select {
	case <-s.talk.said:
	case code := <-ended:
		stopped = true
		cancel()
		t.Fatalf("ended with %d: %s", code, s.talk)
	}
	for line := range strings.Lines(stdout.String()) {
		key, address, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "ADMIN_ADDR":
			s.admin = "http://" + address
		case "KAFKA_LISTEN":
			s.kafka = address
		}
	}
	return s
}

// spoil produces records on order-events that no service can handle, all with one key.
func (s *system) spoil(key string, values ...string) {
	s.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(s.kafka), kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)))
	if err != nil {
		s.t.Fatal(err)
	}
	defer client.Close()
	for _, value := range values {
		r := &kgo.Record{Topic: "order-events", Key: []byte(key), Value: []byte(value), Headers: []kgo.RecordHeader{{Key: "smell", Value: []byte("burnt")}}}
		err := client.ProduceSync(s.t.Context(), r).FirstErr()
		for began := time.Now(); err != nil && time.Since(began) < 10*time.Second; { // the topic may not be there yet
			err = client.ProduceSync(s.t.Context(), r).FirstErr()
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
}

// command runs a command line and wants its exit code.
func command(t *testing.T, want int, args ...string) (stdout, stderr string) {
	t.Helper()
	var out, talk bytes.Buffer
	if code := run(t.Context(), args, &out, &talk); code != want {
		t.Fatalf("%v: exit %d, want %d\nstdout: %s\nstderr: %s", args, code, want, &out, &talk)
	}
	return out.String(), talk.String()
}

// records lists parked records of the payment service.
func records(t *testing.T, state string) []ops.ParkedRecord {
	t.Helper()
	stdout, _ := command(t, exitDone, "dlq", "list", "--service", "payment", "--state", state, "-o", "json")
	var list []ops.ParkedRecord
	if err := json.Unmarshal([]byte(stdout), &list); err != nil {
		t.Fatalf("%v: %s", err, stdout)
	}
	return list
}

// awaitRecords waits until so many records are in the state.
func awaitRecords(t *testing.T, state string, n int) []ops.ParkedRecord {
	t.Helper()
	var list []ops.ParkedRecord
	await(t, fmt.Sprintf("%d are %s", n, state), func() bool {
		list = records(t, state)
		return len(list) == n
	})
	return list
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// Dead letters are shown, replayed and discarded while the system runs, and when it has stopped.
func TestDeadLettersByCommand(t *testing.T) {
	onBothEngines(t, nil, func(t *testing.T) {
		s := startSystem(t)
		s.spoil("burnt", "not\x1b[31m JSON")
		s.spoil("raw", `{"event_id":"`+"00000000-0000-4000-8000-000000000001"+`"}`)
		dead := awaitRecords(t, "dead", 2)
		await(t, "the notification service gives up as well", func() bool {
			stdout, _ := command(t, exitDone, "dlq", "list", "--service", "notification")
			return strings.Count(stdout, "dead") >= 2
		})
		id := dead[0].EventID

		stdout, _ := command(t, exitDone, "dlq", "show", id, "--service", "payment")
		for _, want := range []string{id, "smell: burnt", "bm90G1szMW0gSlNPTg==", "payment-service", "permanent", "0 records"} {
			if !strings.Contains(stdout, want) {
				t.Errorf("show does not tell %q:\n%s", want, stdout)
			}
		}
		stdout, _ = command(t, exitDone, "dlq", "show", dead[1].EventID, "--service", "payment", "-o", "json")
		var letters []ops.DeadLetter
		if err := json.Unmarshal([]byte(stdout), &letters); err != nil || len(letters) != 1 || !strings.Contains(string(letters[0].Value), "event_id") {
			t.Errorf("show as JSON: %v\n%s", err, stdout)
		}
		if stdout, _ = command(t, exitDone, "dlq", "list"); strings.Contains(stdout, "\x1b") || strings.Count(stdout, "burnt") != 2 {
			t.Errorf("list:\n%q", stdout)
		}

		_, stderr := command(t, exitDone, "dlq", "discard", "--key", "burnt", "--service", "payment", "--dry-run")
		if !strings.Contains(stderr, "dry run") || !strings.Contains(stderr, "discarded 1 record;") || len(records(t, "dead")) != 2 {
			t.Errorf("a dry run: %s", stderr)
		}
		first := records(t, "dead")[0].LastFailedAt
		_, stderr = command(t, exitDone, "dlq", "replay", id, "--service", "payment", "--why", "to see")
		if !strings.Contains(stderr, "replayed 1 record; 0 that waited behind them follow") {
			t.Errorf("replay says %q", stderr)
		}
		await(t, "it was tried again and is dead again", func() bool {
			list := records(t, "dead")
			return len(list) == 2 && list[0].LastFailedAt.After(first)
		})
		command(t, exitDone, "dlq", "discard", "--type", "none-such", "--service", "payment")

		s.stop()
		_, stderr = command(t, exitDone, "dlq", "discard", id, "--service", "payment")
		if !strings.Contains(stderr, "discarded 1 record;") || len(records(t, "discarded")) != 1 {
			t.Errorf("discard says %q", stderr)
		}
		if _, stderr = command(t, exitFailed, "dlq", "discard", id, "--service", "payment"); !strings.Contains(stderr, "nothing to do for "+id) {
			t.Errorf("a second discard says %q", stderr)
		}
		command(t, exitDone, "dlq", "replay", "--all", "--service", "payment")
		if n := len(records(t, "retrying")); n != 1 {
			t.Errorf("%d records are retrying, want 1", n)
		}
		if _, stderr = command(t, exitDone, "dlq", "list", "--service", "payment"); !strings.Contains(stderr, "nothing is dead") {
			t.Errorf("an empty list says %q", stderr)
		}
	})
}

// The commands for the outbox work where nothing is blocked.
func TestOutboxByCommand(t *testing.T) {
	onBothEngines(t, nil, func(t *testing.T) {
		s := startSystem(t)
		await(t, "all are led", func() bool {
			stdout, _ := command(t, exitDone, "outbox", "status")
			return strings.Count(stdout, "led by") == 3
		})
		if stdout, stderr := command(t, exitDone, "outbox", "blocked"); stdout != "" || !strings.Contains(stderr, "nothing is blocked") {
			t.Errorf("blocked: %q %q", stdout, stderr)
		}
		if _, stderr := command(t, exitDone, "outbox", "retry", "--all"); !strings.Contains(stderr, "nothing such is blocked") {
			t.Errorf("retry says %q", stderr)
		}
		command(t, exitDone, "outbox", "skip", "--refused", "order-events")
		if _, stderr := command(t, exitDone, "outbox", "republish", "--since", "2h"); !strings.Contains(stderr, "nothing that is retained") {
			t.Errorf("republish says %q", stderr)
		}
		s.stop()
		stdout, _ := command(t, exitDone, "outbox", "status", "-o", "json")
		var list []ops.Status
		if err := json.Unmarshal([]byte(stdout), &list); err != nil || len(list) != 3 || list[0].Service != "order" || list[0].Leader != "none" {
			t.Errorf("%v: %s", err, stdout)
		}
	})
}

// Blocked events are listed, skipped and retried by number, key and topic while no service runs.
func TestBlockedEventsByCommand(t *testing.T) {
	onBothEngines(t, nil, func(t *testing.T) {
		command(t, exitDone, "migrate")
		orders := os.Getenv("ORDER_DATABASE_URL")
		if orders == "" {
			orders = "sqlite:" + filepath.Join("pizza-data", "order.db")
		}
		db := sqltest.Connect(t, orders)
		for i, reason := range []string{"MESSAGE_TOO_LARGE", "its key is blocked", ""} {
			id := fmt.Sprintf("00000000-0000-4000-8000-00000000000%d", i)
			var seq int64
			err := db.QueryRowContext(t.Context(), `
				INSERT INTO outbox_events (id, aggregate_id, aggregate_version, event_type, topic, key, headers, value, created_at)
				VALUES ($1, 'big', $2, 'OrderCreated', 'order-events', $3, '[]', $3, $4) RETURNING seq`, id, i+1, []byte("big"), sqldb.Now()).Scan(&seq)
			if err == nil && reason != "" {
				_, err = db.ExecContext(t.Context(), `INSERT INTO outbox_blocked (seq, topic, key, reason, since) VALUES ($1, 'order-events', $2, $3, $4)`, seq, []byte("big"), reason, sqldb.Now())
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		says := func(want string, args ...string) {
			t.Helper()
			stdout, stderr := command(t, exitDone, args...)
			if !strings.Contains(stdout+stderr, want) {
				t.Errorf("%v does not say %q:\n%s%s", args, want, stdout, stderr)
			}
		}
		says("MESSAGE_TOO_LARGE", "outbox", "blocked", "--key", "big")
		says("nothing is blocked", "outbox", "blocked", "--topic", "payment-events")
		says("order has more than 1", "outbox", "blocked", "--limit", "1")
		says("dry run: would have released 2 events", "outbox", "retry", "--all", "--dry-run")
		says("nothing such is blocked", "outbox", "skip", "--seq", "1", "--service", "payment")
		says("given up 1 event", "outbox", "skip", "--seq", "1", "--service", "order", "--why", "nobody wants it")
		says("given up 2 events", "outbox", "skip", "--refused", "order-events", "--dry-run")
		says("rewound 2 events", "outbox", "republish", "--since", "1h")
		stdout, _ := command(t, exitDone, "outbox", "status", "--service", "order", "-o", "json")
		var list []ops.Status
		if err := json.Unmarshal([]byte(stdout), &list); err != nil || len(list) != 1 || list[0].Skipped != 1 || list[0].Unpublished != 2 {
			t.Errorf("%v: %s", err, stdout)
		}
		var by, why string
		if err := db.QueryRowContext(t.Context(), `SELECT operator, reason FROM operator_actions WHERE action = 'skip'`).Scan(&by, &why); err != nil || !strings.Contains(by, "@") || why != "nobody wants it" {
			t.Errorf("noted %q %q: %v", by, why, err)
		}
	})
}

// Every fault of a command line is named, and then nothing is created or changed.
func TestOperatorUsage(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "data")
	cleanEnvironment(t, map[string]string{"DATA_DIR": folder})
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"outbox status", exitFailed, "nothing has run here yet"},
		{"outbox status --service order", exitFailed, "no database at " + filepath.Join(folder, "order.db")},
		{"outbox status --service oven", exitUsage, "--service"},
		{"outbox retry", exitUsage, "--topic, --key, --seq or --all"},
		{"outbox retry --all --key x", exitUsage, "--all"},
		{"outbox retry --seq 1", exitUsage, "--service"},
		{"outbox skip", exitUsage, "--seq, --key, --topic or --refused"},
		{"outbox skip --refused x --key y", exitUsage, "--refused"},
		{"outbox republish", exitUsage, "--since"},
		{"outbox republish --since yesterday", exitUsage, "--since"},
		{"outbox blocked --limit 0", exitUsage, "--limit"},
		{"dlq replay", exitUsage, "event ids, --key, --topic, --type, --class or --all"},
		{"dlq discard --all --key x", exitUsage, "--all"},
		{"dlq list --state lost", exitUsage, "--state"},
		{"dlq list --limit 0", exitUsage, "--limit"},
		{"dlq show", exitUsage, "event-id"},
	} {
		if stdout, stderr := command(t, c.code, strings.Fields(c.args)...); !strings.Contains(stderr, c.says) || stdout != "" && c.code == exitFailed {
			t.Errorf("%s: %q", c.args, stderr)
		}
	}
	if _, err := os.Stat(folder); err == nil {
		t.Error("the folder was made")
	}
	command(t, exitDone, "migrate")
	if _, stderr := command(t, exitFailed, "dlq", "show", "x"); !strings.Contains(stderr, "UUID") {
		t.Errorf("show x says %q", stderr)
	}
	db := sqltest.Connect(t, "sqlite:"+filepath.Join(folder, "order.db"))
	if _, err := db.ExecContext(t.Context(), `DROP TABLE operator_actions`); err != nil {
		t.Fatal(err)
	}
	if _, stderr := command(t, exitFailed, "dlq", "list"); !strings.Contains(stderr, "run `pizza migrate` first") {
		t.Errorf("old tables: %q", stderr)
	}
}

// ask sends a request to the operator API; a body makes it a POST.
func (s *system) ask(token, path, body string) (status int, header http.Header, answer string) {
	s.t.Helper()
	method := http.MethodGet
	if body != "" {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.admin+"/api/v1/"+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Error(err)
		return 0, nil, ""
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Error(err)
	}
	return res.StatusCode, res.Header, string(text)
}

func TestOperatorAPIIsShutWithoutAToken(t *testing.T) {
	cleanEnvironment(t, map[string]string{"LOG_FORMAT": "json"})
	s := startSystem(t)
	for _, token := range []string{"", opsToken} {
		if status, _, answer := s.ask(token, "outbox", ""); status != http.StatusForbidden || !strings.Contains(answer, "OPS_TOKEN") {
			t.Errorf("%d %s", status, answer)
		}
	}
}

// The operator API does what the commands do, for requests with the token.
func TestOperatorAPI(t *testing.T) {
	onBothEngines(t, map[string]string{"OPS_TOKEN": opsToken}, func(t *testing.T) {
		s := startSystem(t)
		for _, token := range []string{"", "another-token-of-16", opsToken + "x"} {
			status, header, _ := s.ask(token, "dead-letters/replay", `{"operator":"ann","all":true}`)
			if status != http.StatusUnauthorized || !strings.HasPrefix(header.Get("WWW-Authenticate"), "Bearer") {
				t.Errorf("with the token %q: %d", token, status)
			}
		}
		s.checkFaults()
		s.spoil("burnt", "not JSON")
		dead := awaitRecords(t, "dead", 1)
		s.checkReads(dead[0])
		s.checkChanges(dead[0])
		if log := s.talk.String(); !strings.Contains(log, `"action":"replay","affected":1`) || strings.Contains(log, `"ann"`) || strings.Contains(log, opsToken) {
			t.Errorf("the log lacks what was done, or has too much:\n%s", log)
		}
	})
}

// checkFaults wants every fault of a request named.
func (s *system) checkFaults() {
	for _, c := range []struct {
		path, body string
		status     int
		says       string
	}{
		{"outbox?service=oven", "", 422, `"#/service"`},
		{"outbox/blocked?limit=0", "", 422, `"#/limit"`},
		{"outbox/blocked?key=%00", "", 422, `"#/key"`},
		{"outbox/blocked?key=%ff", "", 422, `"#/key"`},
		{"dead-letters?state=lost", "", 422, `"#/state"`},
		{"dead-letters?class=lost", "", 422, `"#/class"`},
		{"dead-letters?sate=dead", "", 422, "unknown_field"},
		{"dead-letters?key=a&key=b", "", 422, `"#/key"`},
		{"dead-letters/payment/x", "", 422, `"#/event_id"`},
		{"dead-letters/payment/00000000-0000-4000-8000-000000000000", "", 404, "not-found"},
		{"nothing", "", 404, "not-found"},
		{"outbox/retry", "", 405, "method-not-allowed"},
		{"outbox/retry", `{"operator":"ann"}`, 422, "topic, key, seq or all"},
		{"outbox/retry", `{"all":true}`, 422, `"#/operator"`},
		{"outbox/retry", `{"operator":"ann","seq":1}`, 422, `"#/service"`},
		{"outbox/retry", `{"operator":"ann","seq":-1,"service":"order"}`, 422, `"#/seq"`},
		{"outbox/skip", `{"operator":"ann","all":true}`, 400, `"#/all"`},
		{"outbox/skip", `{"operator":"ann","refused":"x","key":"y"}`, 422, `"#/refused"`},
		{"outbox/republish", `{"operator":"ann"}`, 422, `"#/since"`},
		{"outbox/republish", `{"operator":"ann","since":"soon"}`, 400, `"#/since"`},
		{"dead-letters/replay", `{"operator":"ann","all":true,"key":"x"}`, 422, `"#/all"`},
		{"dead-letters/replay", `{"operator":"ann","event_ids":["x"]}`, 422, `"#/event_ids/0"`},
		{"dead-letters/replay", `{"operator":"ann","All":true}`, 400, `"#/All"`},
		{"dead-letters/discard", `{"operator":"ann","class":"lost"}`, 422, `"#/class"`},
		{"dead-letters/discard", `{"operator":"ann","all":true,"reason":"` + strings.Repeat("x", 1001) + `"}`, 422, `"#/reason"`},
	} {
		status, header, answer := s.ask(opsToken, c.path, c.body)
		if status != c.status || !strings.Contains(answer, c.says) || !strings.HasPrefix(header.Get("Content-Type"), "application/problem+json") {
			s.t.Errorf("%s %s: %d %s, want %d and %s", c.path, c.body, status, answer, c.status, c.says)
		}
		if header.Get("Cache-Control") != "no-store" {
			s.t.Errorf("%s may be stored", c.path)
		}
	}
}

// checkReads makes every GET.
func (s *system) checkReads(dead ops.ParkedRecord) {
	for path, says := range map[string]string{
		"outbox":                                        `"service":"notification"`,
		"outbox?service=order":                          `"leader":"`,
		"outbox/blocked?topic=x":                        `{"items":[],"more":false}`,
		"dead-letters?service=payment":                  dead.EventID,
		"dead-letters?limit=1":                          `"more":`,
		"dead-letters?state=handled":                    `{"items":[],"more":false}`,
		"dead-letters?class=transient":                  `{"items":[],"more":false}`,
		"dead-letters?key=" + url.QueryEscape(dead.Key): dead.EventID,
		"dead-letters/payment/" + dead.EventID:          `"value_base64":"bm90IEpTT04="`,
	} {
		status, header, answer := s.ask(opsToken, path, "")
		if status != http.StatusOK || !strings.Contains(answer, says) || header.Get("Cache-Control") != "no-store" {
			s.t.Errorf("%s: %d %s, want %s", path, status, answer, says)
		}
	}
}

// checkChanges makes every POST.
func (s *system) checkChanges(dead ops.ParkedRecord) {
	t := s.t
	post := func(path, body string) (affected int) {
		status, _, answer := s.ask(opsToken, path, body)
		var a struct{ Affected int }
		if err := json.Unmarshal([]byte(answer), &a); err != nil || status != http.StatusOK {
			t.Errorf("%s %s: %d %s", path, body, status, answer)
		}
		return a.Affected
	}
	for _, c := range []struct {
		path, body string
		affected   int
	}{
		{"outbox/retry", `{"operator":"ann","all":true}`, 0},
		{"outbox/skip", `{"operator":"ann","key":"x"}`, 0},
		{"outbox/skip", `{"operator":"ann","refused":"order-events"}`, 0},
		{"outbox/republish", `{"operator":"ann","since":"2020-01-01T00:00:00Z","reason":"to see"}`, 2}, // the dead letters of two groups
	} {
		if n := post(c.path, c.body); n != c.affected {
			t.Errorf("%s %s: %d events, want %d", c.path, c.body, n, c.affected)
		}
	}
	one := `{"operator":"ann","service":"payment","event_ids":["` + dead.EventID + `"]`
	if n := post("dead-letters/discard", one+`,"dry_run":true}`); n != 1 || len(records(t, "dead")) != 1 {
		t.Errorf("a dry run of %d records", n)
	}
	if n := post("dead-letters/replay", one+`}`); n != 1 {
		t.Errorf("replayed %d records, want 1", n)
	}
	await(t, "it is dead again", func() bool {
		list := records(t, "dead")
		return len(list) == 1 && list[0].LastFailedAt.After(dead.LastFailedAt)
	})
	if n := post("dead-letters/discard", `{"operator":"ann","key":"burnt"}`); n != 2 { // of payment and of notification
		t.Errorf("discarded %d records, want 2", n)
	}
}
