//go:build synctests

package outbox_test

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/kafka"
	"pizzaflow/kafka/embedded"
	"pizzaflow/kafka/kafkatest"
	"pizzaflow/outbox"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

var (
	seedsFlag = flag.Uint64("seeds", 30, "how many seeds TestSimulation tries")
	seedFlag  = flag.Uint64("seed", 0, "the one seed that TestSimulation tries, with all that is logged")
)

const simBroker = "127.0.0.1:9092"

// TestSimulation lets a small world run in virtual time: accounts that move, a
// group that notes each move and has it charged outside, a group that audits
// the notes, in up to four processes on one database and one broker. A seed
// decides what goes wrong, and when: processes die at any message to or from
// the broker and in any handler, freeze, stop and start; the broker is cut
// off, silent, restarted; records come again; the outside is down or its
// answer lost; handlers fail, panic, or can never succeed. Then all is healed,
// and what must hold is looked for in the database, on the topics and outside.
//
// The seed decides the faults; how goroutines interleave it does not, so a
// failure may need several runs of its seed (-count) to come again.
func TestSimulation(t *testing.T) {
	first, n := uint64(1), *seedsFlag
	if *seedFlag != 0 {
		first, n = *seedFlag, 1
	}
	for s := first; s < first+n; s++ {
		t.Run(strconv.FormatUint(s, 10), func(t *testing.T) {
			t.Parallel()
			defer func() {
				if t.Failed() {
					t.Logf("again: go test -tags synctests ./outbox -run 'TestSimulation$' -seed %d -count 10 -failfast", s)
				}
			}()
			kafkatest.Bubble(t, func(t *testing.T) { simulate(t, s) })
		})
	}
}

// A universe is one run of the simulation.
type universe struct {
	t        *testing.T
	dice     *dice
	faults   *faults
	net      *kafkatest.Network
	outside  *outside
	dir      string // of the broker
	broker   *embedded.Broker
	url      string
	db       *sqldb.DB // the observer's
	log      *slog.Logger
	tail     *tail
	watching func() // ends the watch over offsets
	accounts int
	quiet    atomic.Bool // nothing goes wrong any more, nobody writes

	procs []*proc // the running ones
	dead  []*proc
	born  int

	mu      sync.Mutex
	began   time.Time
	history []string
}

func simulate(t *testing.T, seed uint64) {
	u := newUniverse(t, seed)
	defer u.end()
	for range 1 + u.dice.below(3) {
		u.procs = append(u.procs, u.start())
	}
	u.watchOffsets()
	for until := time.Now().Add(u.dice.between(8*time.Second, 20*time.Second)); time.Now().Before(until); {
		time.Sleep(u.dice.between(100*time.Millisecond, 4*time.Second)) // virtual
		u.replaceDead()
		u.misfortune()
	}
	u.heal()
	u.settles("with what cannot be handled left dead")
	u.checkDead()
	u.faults.cure()
	u.exec(`UPDATE parked_records SET state = 'retrying', due_at = $1, attempts = 0 WHERE state = 'dead'`, sqldb.Now())
	u.settles("after a replay of the dead records")
	u.checkTopics()
	u.checkEffects()
	u.checkCharges()
	u.record("%d events in %d records, %d charges, %d dead, %d parked, %d processes", len(u.strings(`SELECT id FROM outbox_events`)), len(u.tail.all()),
		len(u.outside.charged), len(u.strings(`SELECT event_id FROM on_dead_calls`)), len(u.strings(`SELECT event_id FROM parked_records`)), u.born)
}

func newUniverse(t *testing.T, seed uint64) *universe {
	u := &universe{
		t: t, dice: newDice(seed), faults: &faults{seed: seed, seen: map[string]int{}}, net: kafkatest.NewNetwork(),
		log: quiet(), began: time.Now(), watching: func() {},
	}
	dir := memory(t)
	u.dir, u.url = filepath.Join(dir, "broker"), "sqlite:"+filepath.Join(dir, "sim.db")
	if *seedFlag != 0 && testing.Verbose() {
		u.log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	u.accounts = 1 + u.dice.below(6)
	latency := newDice(seed + 1<<32)
	u.net.Latency = func() time.Duration {
		if latency.oneIn(30) {
			return latency.between(0, 80*time.Millisecond)
		}
		return latency.between(0, 3*time.Millisecond)
	}
	u.outside = &outside{dice: u.dice, keyOf: map[string]string{}, charged: map[string]int{}}
	u.db = sqltest.Connect(t, u.url, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
	u.exec(`CREATE TABLE accounts (id TEXT PRIMARY KEY, version BIGINT NOT NULL, value BIGINT NOT NULL)`)
	u.exec(`CREATE TABLE effects (n INTEGER PRIMARY KEY AUTOINCREMENT, consumer TEXT NOT NULL, event_id TEXT NOT NULL, key TEXT NOT NULL, version BIGINT NOT NULL)`)
	u.exec(`CREATE TABLE on_dead_calls (consumer TEXT NOT NULL, event_id TEXT NOT NULL)`)
	u.exec(`CREATE TABLE charges (id TEXT PRIMARY KEY, account TEXT NOT NULL, due_at TIMESTAMP, lease_token TEXT, attempts INTEGER NOT NULL)`)
	u.exec(`CREATE INDEX charges_due ON charges (due_at)`)
	u.startBroker()
	cfg := kafka.Config{Brokers: []string{simBroker}, Dial: u.net.Dial}
	if err := kafka.EnsureTopics(t.Context(), cfg, u.log, simTopics()...); err != nil {
		t.Fatal(err)
	}
	u.tail = newTail(t, cfg)
	return u
}

func simTopics() (all []kafka.Topic) {
	for _, name := range []string{"moves", "notes"} {
		t := kafka.Topic{Name: name, Partitions: 2, Replicas: 1, Retention: time.Hour, MaxMessageBytes: 1 << 20}
		all = append(all, t, kafka.DeadLetters(t))
	}
	return all
}

func (u *universe) startBroker() {
	b, err := embedded.Start(embedded.Config{Dir: u.dir, Listen: simBroker, ListenFn: u.net.Listen, Log: u.log})
	if err != nil {
		u.t.Fatal(err)
	}
	u.broker = b
}

func (u *universe) exec(query string, args ...any) {
	u.t.Helper()
	if _, err := u.db.ExecContext(u.t.Context(), query, args...); err != nil {
		u.t.Fatal(err)
	}
}

// record notes what happened, to be shown if the run fails.
func (u *universe) record(format string, args ...any) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.history = append(u.history, fmt.Sprintf("%8.3f  ", time.Since(u.began).Seconds())+fmt.Sprintf(format, args...))
}

// replaceDead starts a process, after a while, for each that has died.
func (u *universe) replaceDead() {
	alive := u.procs[:0:0]
	for _, p := range u.procs {
		if p.isDead() {
			u.dead = append(u.dead, p)
		} else {
			alive = append(alive, p)
		}
	}
	lost := len(u.procs) - len(alive)
	u.procs = alive
	for range lost {
		time.Sleep(u.dice.between(0, 5*time.Second)) // virtual
		u.procs = append(u.procs, u.start())
	}
}

// misfortune has one thing go wrong.
func (u *universe) misfortune() {
	d, p := u.dice, u.procs[u.dice.below(len(u.procs))]
	switch d.below(11) {
	case 0:
		p.kill("")
	case 1, 2, 3:
		role := []string{"relay", "relay", "ledger", "audit"}[d.below(4)]
		p.arm(role+" "+[]string{"reading", "writing", "written"}[d.below(3)], 1+d.below(30))
	case 4:
		u.record("%s stops", p.name)
		p.stop()
		*u.place(p) = u.start()
	case 5:
		if len(u.procs) < 4 {
			u.procs = append(u.procs, u.start())
			u.record("%s starts", u.procs[len(u.procs)-1].name)
		}
	case 6:
		u.record("%s freezes", p.name)
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		thaw := p.freeze(ctx)
		time.Sleep(d.between(0, 14*time.Second)) // virtual
		thaw()
		cancel()
		u.record("%s thaws", p.name)
	case 7:
		u.lasting("the broker is cut off", func() { u.net.Cut(simBroker) }, func() { u.net.Heal(simBroker) })
	case 8:
		u.lasting("the broker is silent", func() { u.net.Freeze(simBroker) }, func() { u.net.Heal(simBroker) })
	case 9:
		u.lasting("the broker is down", u.stopBroker, u.startBroker)
	case 10:
		u.lasting("the outside is down", func() { u.outside.set(true, false) }, func() { u.outside.set(false, false) })
	}
	if d.oneIn(2) {
		u.repeat()
	}
}

func (o *outside) set(down, quiet bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.down, o.quiet = down, quiet
}

func (u *universe) lasting(what string, begin, end func()) {
	u.record("%s", what)
	begin()
	time.Sleep(u.dice.between(0, 9*time.Second)) // virtual
	end()
	u.record("no more: %s", what)
}

func (u *universe) stopBroker() {
	if err := u.broker.Close(); err != nil {
		u.t.Error(err)
	}
}

func (u *universe) place(p *proc) **proc {
	for i := range u.procs {
		if u.procs[i] == p {
			return &u.procs[i]
		}
	}
	panic("not running")
}

// repeat produces some records once more.
func (u *universe) repeat() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for range 3 {
		seen := u.tail.all()
		if len(seen) == 0 {
			return
		}
		r := seen[u.dice.below(len(seen))]
		if !strings.HasSuffix(r.Topic, "-dlq") {
			u.record("%s/%d/%d comes again", r.Topic, r.Partition, r.Offset)
			u.tail.client.ProduceSync(ctx, &kgo.Record{Topic: r.Topic, Key: r.Key, Value: r.Value, Headers: r.Headers}) // or not
		}
	}
}

// heal ends all that goes wrong and leaves two processes running.
func (u *universe) heal() {
	u.record("all is healed")
	u.quiet.Store(true)
	u.outside.set(false, true)
	u.replaceDead()
	for len(u.procs) < 2 {
		u.procs = append(u.procs, u.start())
	}
}

// end stops everything: nothing may outlive the bubble.
func (u *universe) end() {
	for _, p := range append(u.procs, u.dead...) {
		p.stop()
	}
	u.watching()
	u.tail.stop()
	u.stopBroker()
	if u.t.Failed() || *seedFlag != 0 {
		u.t.Logf("what happened:\n%s", strings.Join(u.history, "\n"))
	}
}
