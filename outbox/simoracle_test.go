//go:build synctests

package outbox_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/kafka"
)

// readers are the groups by the topic they read.
var readers = map[string]string{"moves": "ledger", "notes": "audit"}

// A tail reads every record of every topic.
type tail struct {
	client *kgo.Client
	stop   func()
	mu     sync.Mutex
	seen   []*kgo.Record
}

func newTail(t testing.TB, cfg kafka.Config) *tail {
	opts, err := cfg.Options()
	if err != nil {
		t.Fatal(err)
	}
	client, err := kgo.NewClient(append(opts, kgo.ConsumeTopics("moves", "notes", "moves-dlq", "notes-dlq"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r, done := &tail{client: client}, make(chan struct{})
	r.stop = func() { cancel(); <-done; client.Close() }
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			fetched := client.PollFetches(ctx).Records()
			r.mu.Lock()
			r.seen = append(r.seen, fetched...)
			r.mu.Unlock()
		}
	}()
	return r
}

func (r *tail) all() []*kgo.Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.seen)
}

func recordHeader(r *kgo.Record, name string) string {
	for _, h := range r.Headers {
		if h.Key == name {
			return string(h.Value)
		}
	}
	return ""
}

func (u *universe) strings(query string, args ...any) (out []string) {
	u.t.Helper()
	rows, err := u.db.Read().QueryContext(u.t.Context(), query, args...)
	if err != nil {
		u.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			u.t.Fatal(err)
		}
		out = append(out, s)
	}
	if err := rows.Err(); err != nil {
		u.t.Fatal(err)
	}
	return out
}

// open is everything that is still on its way.
func (u *universe) open() []string {
	var out []string
	for _, q := range []string{
		`SELECT 'not published: ' || aggregate_id || ' ' || COALESCE(aggregate_version, 0) || ' on ' || topic FROM outbox WHERE published_at IS NULL`,
		`SELECT 'refused for ever: ' || seq || ' on ' || topic FROM outbox_blocked`,
		`SELECT 'to be charged: ' || id FROM charges WHERE due_at IS NOT NULL`,
		`SELECT 'parked: ' || p.state || ' ' || p.event_id FROM parked_records p WHERE p.state = 'retrying' OR p.state = 'waiting' AND NOT EXISTS (
			SELECT 1 FROM parked_records q WHERE q.consumer = p.consumer AND q.topic = p.topic AND q.key = p.key AND q.state = 'dead' AND q.seq < p.seq)`,
		`SELECT 'not received: ' || e.aggregate_id || ' ' || e.aggregate_version FROM outbox_events e
			JOIN (SELECT 'moves' AS topic, 'ledger' AS consumer UNION ALL SELECT 'notes', 'audit') g ON g.topic = e.topic
			WHERE NOT EXISTS (SELECT 1 FROM inbox_events i WHERE i.consumer = g.consumer AND i.event_id = e.id)`,
	} {
		out = append(out, u.strings(q)...)
	}
	return out
}

// settles waits until nothing is on its way.
func (u *universe) settles(when string) {
	u.t.Helper()
	for began := time.Now(); ; {
		left := u.open()
		if len(left) == 0 && u.tailed() {
			u.record("all is settled %s", when)
			return
		}
		if time.Since(began) > 10*time.Minute {
			u.t.Fatalf("%s, this is not settled after 10 minutes:\n%s\nthe groups:\n%s", when, strings.Join(left, "\n"), u.groups())
		}
		time.Sleep(500 * time.Millisecond) // virtual
	}
}

// tailed reports whether the tail has seen all that is on the topics.
func (u *universe) tailed() bool {
	ctx, cancel := context.WithTimeout(u.t.Context(), 5*time.Second)
	defer cancel()
	ends, err := kadm.NewClient(u.tail.client).ListEndOffsets(ctx)
	if err != nil || ends.Error() != nil {
		return false
	}
	left := map[string]int64{}
	ends.Each(func(e kadm.ListedOffset) { left[e.Topic] += e.Offset })
	for _, r := range u.tail.all() {
		left[r.Topic]--
	}
	for _, n := range left {
		if n != 0 {
			return false
		}
	}
	return true
}

// checkDead looks at the dead records: each has its dead letter and was
// one call of OnDead, and nothing of its key was handled ahead of it.
func (u *universe) checkDead() {
	letters := map[string]bool{}
	for _, r := range u.tail.all() {
		if strings.HasSuffix(r.Topic, "-dlq") {
			for _, group := range readers {
				if bytes.Contains(r.Value, []byte(`"consumer_group":"`+group+`"`)) {
					letters[group+" "+recordHeader(r, "ce_id")] = true
				}
			}
		}
	}
	calls := map[string]int{}
	for _, b := range u.strings(`SELECT consumer || ' ' || event_id FROM on_dead_calls`) {
		calls[b]++
	}
	dead := u.strings(`SELECT consumer || ' ' || event_id FROM parked_records WHERE state = 'dead'`)
	for _, d := range dead {
		if !letters[d] {
			u.t.Errorf("no dead letter of %s", d)
		}
		if calls[d] != 1 {
			u.t.Errorf("%s: %d calls of OnDead, want one", d, calls[d])
		}
	}
	if len(dead) != len(calls) {
		u.t.Errorf("%d are dead, OnDead was called for %d", len(dead), len(calls))
	}
	ahead := u.strings(`SELECT e.consumer || ' ' || e.key || ' ' || e.version FROM parked_records p
		JOIN outbox_events o ON o.id = p.event_id
		JOIN effects e ON e.consumer = p.consumer AND e.key = o.aggregate_id AND e.version >= o.aggregate_version
		WHERE p.state = 'dead'`)
	for _, a := range ahead {
		u.t.Errorf("handled ahead of a dead record of its key: %s", a)
	}
}

// checkTopics: every committed event is there, those of one key in order when
// first seen, and nothing else is.
func (u *universe) checkTopics() {
	last, ids := map[string]int64{}, map[string]bool{}
	for _, r := range u.tail.all() {
		id := recordHeader(r, "ce_id")
		if strings.HasSuffix(r.Topic, "-dlq") || ids[id] {
			continue
		}
		ids[id] = true
		var version int64
		if _, err := fmt.Sscan(recordHeader(r, "aggregate_version"), &version); err != nil {
			u.t.Error(err)
		}
		queue := r.Topic + " " + string(r.Key)
		if version != last[queue]+1 {
			u.t.Errorf("%s: version %d first appears after %d", queue, version, last[queue])
		}
		last[queue] = version
	}
	committed := u.strings(`SELECT id FROM outbox_events WHERE event_data IS NOT NULL`)
	for _, id := range committed {
		if !ids[id] {
			u.t.Errorf("event %s is on no topic", id)
		}
	}
	if len(committed) != len(ids) {
		u.t.Errorf("%d events are committed, %d are on the topics", len(committed), len(ids))
	}
}

// checkEffects: each event once for its group, each key in order.
func (u *universe) checkEffects() {
	last := map[string]int64{}
	rows, err := u.db.Read().QueryContext(u.t.Context(), `SELECT consumer, key, version FROM effects ORDER BY n`)
	if err != nil {
		u.t.Fatal(err)
	}
	defer rows.Close()
	n := 0
	for rows.Next() {
		var group, key string
		var version int64
		if err := rows.Scan(&group, &key, &version); err != nil {
			u.t.Fatal(err)
		}
		if version != last[group+key]+1 {
			u.t.Errorf("%s handled version %d of %s after %d", group, version, key, last[group+key])
		}
		last[group+key] = version
		n++
	}
	if err := rows.Err(); err != nil {
		u.t.Fatal(err)
	}
	if events := len(u.strings(`SELECT id FROM outbox_events WHERE event_data IS NOT NULL`)); n != events {
		u.t.Errorf("%d events had %d effects", events, n)
	}
}

// checkCharges: each move was charged once, and noted so once.
func (u *universe) checkCharges() {
	moves := u.strings(`SELECT aggregate_id || '/' || aggregate_version FROM outbox_events WHERE topic = 'moves'`)
	for _, m := range moves {
		if n := u.outside.charged[m]; n != 1 {
			u.t.Errorf("%s was charged %d times", m, n)
		}
		account, _, _ := strings.Cut(m, "/")
		noted := u.strings(`SELECT id FROM outbox_events WHERE topic = 'notes' AND aggregate_id = $1 AND event_data LIKE '%"charged ' || $2 || '"%'`, Noted{Account: account}.AggregateID(), m)
		if len(noted) != 1 {
			u.t.Errorf("%s was noted %d times as charged", m, len(noted))
		}
	}
	if len(moves) != len(u.outside.charged) {
		u.t.Errorf("%d moves, %d charges", len(moves), len(u.outside.charged))
	}
}

// watchOffsets looks again and again whether a group has committed an offset
// above a record that it neither handled nor parked.
func (u *universe) watchOffsets() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	admin := kadm.NewClient(u.tail.client)
	go func() {
		defer close(done)
		for sleep(ctx, 400*time.Millisecond) == nil {
			for topic, group := range readers {
				asking, cancel := context.WithTimeout(ctx, 5*time.Second)
				offsets, err := admin.FetchOffsets(asking, group)
				cancel()
				if err == nil {
					u.checkOffsets(topic, group, offsets)
				}
			}
		}
	}()
	u.watching = func() { cancel(); <-done }
}

func (u *universe) checkOffsets(topic, group string, offsets kadm.OffsetResponses) {
	received := map[string]bool{}
	for _, id := range u.strings(`SELECT event_id FROM inbox_events WHERE consumer = $1`, group) {
		received[id] = true
	}
	for _, r := range u.tail.all() {
		if r.Topic != topic {
			continue
		}
		if o, ok := offsets.Lookup(topic, r.Partition); ok && r.Offset < o.At && !received[recordHeader(r, "ce_id")] {
			u.t.Errorf("%s committed offset %d of %s/%d, and record %d is not handled", group, o.At, topic, r.Partition, r.Offset)
			return
		}
	}
}

// groups shows the members of each group and how far it has read.
func (u *universe) groups() string {
	ctx, cancel := context.WithTimeout(u.t.Context(), 10*time.Second)
	defer cancel()
	lags, err := kadm.NewClient(u.tail.client).Lag(ctx, "ledger", "audit")
	if err != nil {
		return err.Error()
	}
	var out strings.Builder
	for _, l := range lags.Sorted() {
		fmt.Fprintf(&out, "%s is %s with %d members\n", l.Group, l.State, len(l.Members))
		for _, p := range l.Lag.Sorted() {
			member := "nobody"
			if p.Member != nil {
				member = p.Member.MemberID
			}
			fmt.Fprintf(&out, "  %s/%d: %d of %d, read by %s\n", p.Topic, p.Partition, p.Commit.At, p.End.Offset, member)
		}
	}
	return out.String()
}
