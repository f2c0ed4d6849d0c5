//go:build unix

package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"pizzaflow/internal/testkit"
	"pizzaflow/job/jobtest"
	"pizzaflow/kafka"
	"pizzaflow/kafka/kafkatest"
	"pizzaflow/outbox"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// crashPoints are the places where a node is killed with SIGKILL. What each
// shows is what would be wrong afterwards if the code were less careful.
var crashPoints = []struct {
	name string
	plan crashPlan
}{
	{"before the commit that adds an event", crashPlan{Point: "tx: written", Nth: 5}},
	{"after the commit that adds an event", crashPlan{Point: "tx: committed", Nth: 5}},
	{"read, and the lease renewed twice", crashPlan{Point: "relay: read", Nth: 2, Then: "lease: renewed", Times: 2}},
	{"produced, nothing sent", crashPlan{Point: "relay: produced", Nth: 2}},
	{"sent, not acknowledged", crashPlan{Point: "relay: sent", Nth: 2}},
	{"acknowledged, not seen", crashPlan{Point: "relay: answered", Nth: 2}},
	{"acknowledged, not marked", crashPlan{Point: "relay: acked", Nth: 2}},
	{"acknowledged, and the lease renewed twice", crashPlan{Point: "relay: acked", Nth: 2, Then: "lease: renewed", Times: 2}},
	{"marked", crashPlan{Point: "relay: marked", Nth: 2}},
	{"fetched, not handled", crashPlan{Point: "consumer: taken", Nth: 1}},
	{"fetched, and offsets committed twice", crashPlan{Point: "consumer: taken", Nth: 2, Then: "offsets: committed", Times: 2}},
	{"handled, before the commit", crashPlan{Point: "consumer: handled", Nth: 2}},
	{"committed, its offset not", crashPlan{Point: "consumer: committed", Nth: 2}},
	{"offsets committed", crashPlan{Point: "offsets: committed", Nth: 2}},
	{"marked in the inbox, not parked", crashPlan{Point: "parked: marked", Nth: 1}},
	{"dead letter written, before the commit", crashPlan{Point: "dead letter: written", Nth: 1}},
	{"parked or dead, its offset not committed", crashPlan{Point: "parked: committed", Nth: 1}},
	{"dead, and the offsets committed", crashPlan{Point: "parked: committed", Nth: 1, Then: "offsets: committed", Times: 2}},
	{"retried, before the commit", crashPlan{Point: "retry: handled", Nth: 1}},
	{"retried, and the next released, before the commit", crashPlan{Point: "retry: released", Nth: 1}},
	{"retried, after the commit", crashPlan{Point: "retry: committed", Nth: 1}},
	{"job leased, not begun", crashPlan{Point: "job: leased", Nth: 2}},
	{"call made, not settled", crashPlan{Point: "work: called", Nth: 2}},
}

// TestCrashPoints kills a whole node at each point of its way, has another go
// on, and looks at everything that was promised: right after the crash, and
// when all is done.
func TestCrashPoints(t *testing.T) {
	for _, c := range crashPoints {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for _, engine := range []sqldb.Engine{sqldb.SQLite, sqldb.Postgres} {
				t.Run(string(engine), func(t *testing.T) {
					w := newWorld(t, engine, kafkatest.Start(t, worldTopics()...))
					w.crash(c.plan)
				})
			}
		})
	}
}

// TestCrashPointsWithKafka is the same with Apache Kafka at the points between
// the database and the broker.
func TestCrashPointsWithKafka(t *testing.T) {
	if os.Getenv("KAFKA_BROKERS") == "" {
		if strings.Contains(os.Getenv("PIZZA_TEST_REQUIRE"), "kafka") {
			t.Fatal("PIZZA_TEST_REQUIRE promises kafka, but KAFKA_BROKERS is not set")
		}
		t.Skip("KAFKA_BROKERS is not set: `make test` starts an Apache Kafka")
	}
	cfg := kafka.Config{Brokers: strings.Split(os.Getenv("KAFKA_BROKERS"), ",")}
	for _, c := range crashPoints {
		switch c.plan.Point {
		case "relay: sent", "relay: acked", "consumer: committed", "parked: committed":
		default:
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			wipe(t, cfg)
			if err := kafka.EnsureTopics(t.Context(), cfg, nil, worldTopics()...); err != nil {
				t.Fatal(err)
			}
			newWorld(t, sqldb.Postgres, cfg).crash(c.plan)
		})
	}
}

// wipe deletes the tests' topics and group from a broker that outlives them.
func wipe(t *testing.T, cfg kafka.Config) {
	t.Helper()
	opts, err := cfg.Options()
	if err != nil {
		t.Fatal(err)
	}
	client, err := kgo.NewClient(opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	var names []string
	for _, topic := range worldTopics() {
		names = append(names, topic.Name)
	}
	if _, err := admin.DeleteTopics(t.Context(), names...); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "topics and group are gone", func() bool {
		if _, err := admin.DeleteGroup(t.Context(), "readers"); err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
			return false
		}
		left, err := admin.ListTopics(t.Context(), names...)
		if err != nil {
			return false
		}
		for _, l := range left {
			if l.Err == nil {
				return false
			}
		}
		return true
	})
}

func worldTopics() []kafka.Topic {
	bookings := topics()[0]
	bookings.Name = "bookings"
	return append(topics(), bookings)
}

// A world is a database and a broker that outlive the nodes, and what the
// nodes shall do there.
type world struct {
	*fixture
	t    *testing.T
	node node
}

const worldJobs = 4

// targets is how far the accounts are to be moved. Of "poison" the first event
// dies and two wait behind it; of "shaky" the first is handled at the second
// try, and three wait behind it until then.
var targets = map[string]int{"calm-0": 12, "calm-1": 12, "calm-2": 12, "calm-3": 12, "shaky": 4, "poison": 3}

const worldEffects = 4*12 + 4

func newWorld(t *testing.T, engine sqldb.Engine, cfg kafka.Config) *world {
	t.Helper()
	url := sqltest.URL(t, engine)
	f := newFixture(t, sqltest.Connect(t, url, sqltest.Schema{Name: "outbox", FS: outbox.Schema}), cfg)
	for _, q := range []string{
		`CREATE TABLE effects (event_id TEXT NOT NULL, account TEXT NOT NULL, version BIGINT NOT NULL, n BIGINT NOT NULL)`,
		`CREATE TABLE deaths (event_id TEXT NOT NULL)`,
		`CREATE TABLE calls (job TEXT NOT NULL, attempt INTEGER NOT NULL)`,
	} {
		if _, err := f.db.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	jobtest.Table(t, f.db, worldJobs)
	return &world{fixture: f, t: t, node: node{
		Database: url, Brokers: cfg.Brokers, Writes: targets, Relay: true, Consumer: true, Work: true, TTL: 400 * time.Millisecond,
	}}
}

// crash has a node die as planned and another finish.
func (w *world) crash(plan crashPlan) {
	w.t.Helper()
	doomed := w.node
	doomed.Crash = plan
	c := spawn(w.t, doomed)
	c.awaitCrash()
	w.checkMarks()
	w.checkOffsets()
	w.checkTogether()
	w.evictDead()
	stop := testkit.Run(w.t, func(ctx context.Context) error { return w.node.run(ctx, w.db, w.log, newCrasher(crashPlan{})) })
	w.awaitDone()
	stop()
	w.checkMarks()
	w.checkOffsets()
	w.checkTogether()
	w.checkEnd()
	if w.t.Failed() {
		w.t.Logf("what the killed node said:\n%s", c.log)
	}
}

// evictDead has the dead member leave the group at once, which it would do when its
// session is over.
func (w *world) evictDead() {
	w.t.Helper()
	client, err := kgo.NewClient(w.kafka...)
	if err != nil {
		w.t.Fatal(err)
	}
	defer client.Close()
	groups, err := kadm.NewClient(client).DescribeGroups(w.t.Context(), "readers")
	if errors.Is(err, kerr.GroupIDNotFound) {
		return // it died before it joined
	}
	if err != nil {
		w.t.Fatal(err)
	}
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Group = "readers"
	for _, m := range groups["readers"].Members {
		member := kmsg.NewLeaveGroupRequestMember()
		member.MemberID = m.MemberID
		req.Members = append(req.Members, member)
	}
	if len(req.Members) == 0 {
		return
	}
	if _, err := req.RequestWith(w.t.Context(), client); err != nil {
		w.t.Fatal(err)
	}
}

// awaitDone waits until there is nothing left to do.
func (w *world) awaitDone() {
	w.t.Helper()
	written := 0
	for _, n := range targets {
		written += n
	}
	for _, step := range []struct {
		what, query string
		want        int
	}{
		{"all is written", `SELECT COUNT(*) FROM outbox_events WHERE event_type = 'Moved' AND topic = 'moves'`, written},
		{"all is received", `SELECT COUNT(*) FROM inbox_events`, written},
		{"nothing is tried again", `SELECT COUNT(*) FROM parked_records WHERE state = 'retrying' OR state = 'waiting' AND key <> CAST('poison' AS ` + w.bytes() + `)`, 0},
		{"all jobs are done", `SELECT COUNT(*) FROM jobs WHERE done = 0`, 0},
		{"all is published", `SELECT COUNT(*) FROM outbox WHERE published_at IS NULL`, 0},
	} {
		last := 0
		w.until(func() string {
			if last = w.count(step.query); last == step.want {
				return ""
			}
			return fmt.Sprintf("%s: %d, want %d", step.what, last, step.want)
		})
	}
}

func (w *world) bytes() string {
	if w.db.Engine == sqldb.Postgres {
		return "BYTEA"
	}
	return "BLOB"
}

// until waits until wrong returns "".
func (w *world) until(wrong func() string) {
	w.t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		said := wrong()
		if said == "" {
			return
		}
		select {
		case <-deadline:
			w.t.Fatal(said)
		case <-tick.C:
		}
	}
}

// published reads the ids of the events on a topic, each as often as it is there.
func (w *world) published(topic string) map[string]int {
	w.t.Helper()
	ids := map[string]int{}
	for _, r := range w.consumeAll(topic) {
		for _, h := range r.Headers {
			if h.Key == "ce_id" {
				ids[string(h.Value)]++
			}
		}
	}
	return ids
}

// column is the first column of a query.
func (w *world) column(query string, args ...any) (out []string) {
	w.t.Helper()
	rows, err := w.db.Read().Query(query, args...)
	if err != nil {
		w.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			w.t.Fatal(err)
		}
		out = append(out, s)
	}
	if err := rows.Err(); err != nil {
		w.t.Fatal(err)
	}
	return out
}

// checkMarks wants nothing marked, or left behind by the low watermark, that is not on
// its topic, and nothing on a topic that was not committed.
func (w *world) checkMarks() {
	w.t.Helper()
	for _, topic := range []string{"moves", "bookings"} {
		there := w.published(topic)
		for _, id := range w.column(`SELECT id FROM outbox WHERE topic = $1 AND (published_at IS NOT NULL OR seq <= (SELECT floor FROM outbox_lease))`, topic) {
			if there[id] == 0 {
				w.t.Errorf("event %s is recorded as published and is not on %s", id, topic)
			}
		}
		for _, id := range w.column(`SELECT id FROM outbox_events WHERE topic = $1`, topic) {
			delete(there, id)
		}
		for id := range there {
			w.t.Errorf("event %s is on %s and was never committed", id, topic)
		}
	}
	for _, account := range w.column(`SELECT id FROM accounts a WHERE version <> (SELECT COUNT(*) FROM outbox_events e WHERE e.aggregate_id = a.id AND topic IN ('moves', 'bookings'))`) {
		w.t.Errorf("account %s has not as many events as versions", account)
	}
}

// checkOffsets wants no committed offset above a record that is not in the inbox.
func (w *world) checkOffsets() {
	w.t.Helper()
	client, err := kgo.NewClient(w.kafka...)
	if err != nil {
		w.t.Fatal(err)
	}
	defer client.Close()
	committed, err := kadm.NewClient(client).FetchOffsets(w.t.Context(), "readers")
	if errors.Is(err, kerr.GroupIDNotFound) {
		return
	}
	if err != nil {
		w.t.Fatal(err)
	}
	received := map[string]bool{}
	for _, id := range w.column(`SELECT event_id FROM inbox_events`) {
		received[id] = true
	}
	for _, r := range w.consumeAll("moves") {
		at, ok := committed.Lookup("moves", r.Partition)
		if !ok || r.Offset >= at.At {
			continue
		}
		for _, h := range r.Headers {
			if h.Key == "ce_id" && !received[string(h.Value)] {
				w.t.Errorf("offset %d of partition %d is committed, and event %s at %d was not received", at.At, r.Partition, h.Value, r.Offset)
			}
		}
	}
}

// checkTogether wants what belongs together: every event in the inbox has its
// effect or is parked, every dead record its dead letter and its note.
func (w *world) checkTogether() {
	w.t.Helper()
	for _, q := range []struct{ what, query string }{
		{"received without effect", `SELECT event_id FROM inbox_events i WHERE NOT EXISTS (SELECT 1 FROM effects e WHERE e.event_id = ` + w.text("i.event_id") + `)
			AND NOT EXISTS (SELECT 1 FROM parked_records p WHERE p.event_id = i.event_id AND state <> 'handled')`},
		{"effect twice", `SELECT event_id FROM effects GROUP BY event_id HAVING COUNT(*) > 1`},
		{"effect without its event", `SELECT event_id FROM effects e WHERE NOT EXISTS (SELECT 1 FROM outbox_events o WHERE o.aggregate_id = 'booking-' || e.account AND o.aggregate_version = e.n)`},
		{"dead without one note", `SELECT event_id FROM parked_records p WHERE state = 'dead' AND 1 <> (SELECT COUNT(*) FROM deaths d WHERE d.event_id = ` + w.text("p.event_id") + `)`},
		{"dead record without one dead letter", `SELECT event_id FROM parked_records p WHERE state = 'dead' AND 1 <> (SELECT COUNT(*) FROM outbox_events o WHERE o.topic = 'moves-dlq' AND o.key = p.key)`},
		{"noted and not dead", `SELECT event_id FROM deaths d WHERE NOT EXISTS (SELECT 1 FROM parked_records p WHERE ` + w.text("p.event_id") + ` = d.event_id AND state = 'dead')`},
		{"dead letter without a dead record", `SELECT id FROM outbox_events o WHERE topic = 'moves-dlq' AND NOT EXISTS (SELECT 1 FROM parked_records p WHERE p.key = o.key AND state = 'dead')`},
		{"job done twice", `SELECT id FROM jobs WHERE done > 1`},
		{"job done without a call", `SELECT id FROM jobs j WHERE done = 1 AND NOT EXISTS (SELECT 1 FROM calls c WHERE c.job = j.id)`},
	} {
		if ids := w.column(q.query); len(ids) > 0 {
			w.t.Errorf("%s: %v", q.what, ids)
		}
	}
}

func (w *world) text(column string) string { return "CAST(" + column + " AS TEXT)" }

// checkEnd wants everything done that was to be done, in order.
func (w *world) checkEnd() {
	w.t.Helper()
	last := w.inOrder(w.consumeAll("moves"))
	for account, want := range targets {
		if last[account] != want {
			w.t.Errorf("%s is published up to %d, want %d", account, last[account], want)
		}
	}
	w.inOrder(w.consumeAll("bookings"))
	for what, want := range map[string]int{
		`SELECT COUNT(*) FROM effects`:                                  worldEffects,
		`SELECT COUNT(*) FROM effects WHERE version <> n`:               0,
		`SELECT COUNT(*) FROM parked_records WHERE state = 'dead'`:      1,
		`SELECT COUNT(*) FROM parked_records WHERE state = 'waiting'`:   2,
		`SELECT COUNT(*) FROM outbox_blocked`:                           0,
		`SELECT COUNT(DISTINCT job) FROM calls`:                         worldJobs,
		`SELECT COUNT(*) FROM jobs WHERE done = 1 AND due_at IS NULL`:   worldJobs,
		`SELECT COUNT(*) FROM outbox_events WHERE topic = 'moves-dlq'`:  1,
		`SELECT COUNT(*) FROM outbox_events WHERE topic = 'bookings'`:   worldEffects,
		`SELECT COUNT(*) FROM outbox WHERE published_at IS NULL`:        0,
		`SELECT COUNT(*) FROM inbox_events WHERE consumer <> 'readers'`: 0,
	} {
		if got := w.count(what); got != want {
			w.t.Errorf("%s is %d, want %d", what, got, want)
		}
	}
	if letters := w.consumeAll("moves-dlq"); len(letters) == 0 || string(letters[0].Key) != "poison" {
		w.t.Errorf("%d dead letters on the topic, want poison's", len(letters))
	}
}
