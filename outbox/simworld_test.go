//go:build synctests

package outbox_test

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/job"
	"pizzaflow/kafka"
	"pizzaflow/outbox"
	"pizzaflow/outbox/inbox"
	"pizzaflow/outbox/relay"
	"pizzaflow/sqldb"
)

// Noted is what the group "ledger" says of a move: that it was seen, and later
// that it was charged for.
type Noted struct {
	Account string `json:"account"`
	What    string `json:"what"`
}

func (Noted) EventType() string     { return "Noted" }
func (Noted) Topic() string         { return "notes" }
func (n Noted) AggregateID() string { return "notes of " + n.Account }

// Dice are thrown by many goroutines.
type dice struct {
	mu sync.Mutex
	r  *rand.Rand
}

func newDice(seed uint64) *dice { return &dice{r: rand.New(rand.NewPCG(seed, 5))} }

func (d *dice) below(n int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.r.IntN(n)
}

func (d *dice) oneIn(n int) bool { return d.below(n) == 0 }

func (d *dice) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(d.below(int(hi-lo)))
}

// A fault is the way in which a handler fails at an event.
type fault int

const (
	noFault      fault = iota
	fails              // once
	failsThrice        // and so is dead until it is replayed
	incurable          // dead at once
	panics             // once
	looksAway          // twice, the database seems to be away
	diesBefore         // the process dies, its transaction with it
	diesAfter          // the process dies, its transaction is still committed
	hangs              // the database hangs after the transaction, for seconds, and then the process dies
	wakesTheDead       // the process dies when the dead letter is written
)

// faults are drawn from the seed and the event, in whichever process and order events
// are handled.
type faults struct {
	seed  uint64
	mu    sync.Mutex
	cured bool
	seen  map[string]int
}

func (s *faults) next(group, key string, version int64) (t fault, nth int) {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d %s %s %d", s.seed, group, key, version)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cured {
		return noFault, 0
	}
	id := fmt.Sprint(group, " ", key, " ", version)
	s.seen[id]++
	kinds := []fault{fails, failsThrice, incurable, panics, looksAway, hangs, hangs, diesBefore, diesAfter, wakesTheDead}
	if n := h.Sum64() >> 7 % 40; n < uint64(len(kinds)) {
		return kinds[n], s.seen[id]
	}
	return noFault, s.seen[id]
}

func (s *faults) cure() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cured = true
}

// The outside takes charges, each key once. It may be down, refuse, or take
// the request and have its answer lost.
type outside struct {
	dice    *dice
	mu      sync.Mutex
	quiet   bool
	down    bool
	keyOf   map[string]string // of a reference: a second key charges a second time
	charged map[string]int    // by reference
}

func (o *outside) charge(ctx context.Context, p *proc, key, reference string) error {
	o.mu.Lock()
	quiet, down := o.quiet, o.down
	o.mu.Unlock()
	delay := o.dice.between(time.Millisecond, 300*time.Millisecond)
	if !quiet && o.dice.oneIn(25) {
		delay = 12 * time.Second // longer than the lease
	}
	if err := sleep(ctx, delay); err != nil {
		return err
	}
	if p.isDead() || down || !quiet && o.dice.oneIn(10) {
		return errors.New("the outside does not answer")
	}
	o.mu.Lock()
	if o.keyOf[reference] != key {
		o.keyOf[reference] = key
		o.charged[reference]++
	}
	o.mu.Unlock()
	if !quiet && o.dice.oneIn(8) {
		return errors.New("the answer was lost")
	}
	return sleep(ctx, delay)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// A proc is a process: its own connections and database handle, a relay, two
// consumers and a worker. It can be killed: then nothing of it reaches anybody.
type proc struct {
	u      *universe
	name   string
	db     *sqldb.DB
	out    *outbox.Outbox
	work   *job.Worker
	cancel context.CancelFunc
	ended  sync.WaitGroup

	mu     sync.Mutex
	thawed *sync.Cond
	dead   bool
	frozen bool
	lines  map[net.Conn]bool
	fuses  map[string]int // how many more of these until the process dies
}

func (u *universe) start() *proc {
	u.born++
	p := &proc{u: u, name: fmt.Sprintf("p%d", u.born), lines: map[net.Conn]bool{}, fuses: map[string]int{}}
	p.thawed = sync.NewCond(&p.mu)
	var err error
	if p.db, err = sqldb.Open(context.Background(), u.url); err != nil {
		u.t.Fatal(err)
	}
	p.out = outbox.New(p.db, "/simulation")
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	p.work = job.New(job.Config{DB: p.db, Table: "charges", Limit: 4, Lease: 10 * time.Second, Do: p.charge, Log: u.log})
	relay := relay.New(relay.Config{Outbox: p.out, Service: "accounts", Kafka: p.options("relay"), Poll: time.Second, Log: u.log, Metrics: prometheus.NewRegistry()})
	ledger, audit := p.consumer("ledger"), p.consumer("audit")
	inbox.On(ledger, p.onMoved)
	inbox.On(audit, p.onNoted)
	p.run(ctx, ledger.Run)
	p.run(ctx, audit.Run)
	p.run(ctx, relay.Run)
	p.run(ctx, p.work.Run)
	p.run(ctx, p.write)
	return p
}

func (p *proc) run(ctx context.Context, fn func(context.Context) error) {
	p.ended.Go(func() {
		if err := fn(ctx); err != nil && !p.isDead() {
			p.u.t.Errorf("%s: %v", p.name, err)
		}
	})
}

func (p *proc) consumer(group string) *inbox.Consumer {
	c := inbox.New(inbox.Config{
		Outbox: p.out, Group: group, Kafka: p.options(group), Delay: time.Second, Log: p.u.log, Metrics: prometheus.NewRegistry(),
	})
	c.OnDead(func(ctx context.Context, tx *outbox.Tx, d inbox.Dead) error {
		if t, n := p.u.faults.next(group+" burial", d.EventID, 0); t == wakesTheDead && n == 1 {
			p.kill("while it buries " + d.EventID)
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO on_dead_calls (consumer, event_id) VALUES ($1, $2)`, group, d.EventID)
		return err
	})
	return c
}

func (p *proc) options(role string) []kgo.Opt {
	opts, err := kafka.Config{Brokers: []string{simBroker}, ClientID: p.name, Dial: p.dial(role)}.Options()
	if err != nil {
		p.u.t.Fatal(err)
	}
	return opts
}

// onMoved has the effect, an event and a charge to make.
func (p *proc) onMoved(ctx context.Context, tx *outbox.Tx, d inbox.Delivery[Moved]) error {
	if err := p.effect(ctx, tx, "ledger", d.EventID, d.Event.Account, d.AggregateVersion); err != nil {
		return err
	}
	if err := note(ctx, tx, Noted{Account: d.Event.Account, What: fmt.Sprint("moved ", d.AggregateVersion)}); err != nil {
		return err
	}
	id := fmt.Sprintf("%s/%d", d.Event.Account, d.AggregateVersion)
	_, err := tx.ExecContext(ctx, `INSERT INTO charges (id, account, due_at, attempts) VALUES ($1, $2, $3, 0)`, id, d.Event.Account, sqldb.Now())
	if err != nil {
		return err
	}
	tx.AfterCommit(p.work.Wake)
	return p.meet("ledger", d.Event.Account, d.AggregateVersion)
}

func (p *proc) onNoted(ctx context.Context, tx *outbox.Tx, d inbox.Delivery[Noted]) error {
	if err := p.effect(ctx, tx, "audit", d.EventID, d.AggregateID, d.AggregateVersion); err != nil {
		return err
	}
	return p.meet("audit", d.AggregateID, d.AggregateVersion)
}

func (p *proc) effect(ctx context.Context, tx *outbox.Tx, group, id, key string, version int64) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO effects (consumer, event_id, key, version) VALUES ($1, $2, $3, $4)`, group, id, key, version)
	return err
}

// meet runs into what the seed has for the event.
func (p *proc) meet(group, key string, version int64) error {
	t, n := p.u.faults.next(group, key, version)
	switch {
	case t == hangs && n == 1:
		p.doom(fmt.Sprintf("after %s %d, its database hanging", key, version))
	case t == incurable:
		return inbox.Permanent(errors.New("incurable"))
	case t == failsThrice && n <= 3, t == fails && n == 1:
		return errors.New("no luck")
	case t == panics && n == 1:
		panic("out of order")
	case t == looksAway && n <= 2:
		return driver.ErrBadConn
	case t == diesBefore && n == 1:
		p.kill(fmt.Sprintf("handling %s %d, undone", key, version))
		return context.Canceled
	case t == diesAfter && n == 1:
		p.kill(fmt.Sprintf("handling %s %d, committed", key, version))
	}
	return nil
}

// note adds an event to the notes of an account.
func note(ctx context.Context, tx *outbox.Tx, n Noted) error {
	var version int64
	err := tx.QueryRowContext(ctx, `INSERT INTO accounts (id, version, value) VALUES ($1, 1, 0)
		ON CONFLICT (id) DO UPDATE SET version = accounts.version + 1 RETURNING version`, n.AggregateID()).Scan(&version)
	if err != nil {
		return err
	}
	tx.Add(version, n)
	return nil
}

// charge calls the outside for one row.
func (p *proc) charge(ctx context.Context, c job.Job) error {
	var account string
	if err := p.db.Read().QueryRowContext(ctx, `SELECT account FROM charges WHERE id = $1`, c.ID).Scan(&account); err != nil {
		return err
	}
	if err := p.u.outside.charge(ctx, p, c.ID, c.ID); err != nil {
		return err
	}
	return p.out.Tx(ctx, func(tx *outbox.Tx) error {
		res, err := tx.ExecContext(ctx, `UPDATE charges SET due_at = NULL, lease_token = NULL WHERE id = $1 AND lease_token = $2`, c.ID, c.Token)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return err
		}
		return note(ctx, tx, Noted{Account: account, What: "charged " + c.ID})
	})
}

var errUndone = errors.New("undone")

// write moves accounts until the world is quiet.
func (p *proc) write(ctx context.Context) error {
	d := p.u.dice
	for !p.u.quiet.Load() {
		if sleep(ctx, d.between(0, 1400*time.Millisecond)) != nil {
			return nil
		}
		accounts := []string{fmt.Sprint("account ", d.below(p.u.accounts))}
		if d.oneIn(2) {
			accounts = append(accounts, fmt.Sprint("account ", d.below(p.u.accounts)))
			slices.Sort(accounts)
		}
		err := p.out.Tx(ctx, func(tx *outbox.Tx) error {
			for _, account := range accounts {
				for range 1 + d.below(3) {
					v, err := bump(tx, account)
					if err != nil {
						return err
					}
					tx.Add(v, Moved{Account: account, To: int(v)})
				}
			}
			if d.oneIn(6) {
				return errUndone
			}
			return nil
		})
		if err != nil && !errors.Is(err, errUndone) && ctx.Err() == nil && !p.isDead() {
			return fmt.Errorf("write: %w", err)
		}
	}
	return nil
}

func (p *proc) isDead() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dead
}

// kill ends the process on the spot. What its goroutines still do reaches
// neither the broker nor the outside nor, but for a transaction that has
// begun, the database.
func (p *proc) kill(why string) {
	p.mu.Lock()
	if p.dead || p.u.quiet.Load() {
		p.mu.Unlock()
		return
	}
	p.dead = true
	lines := p.lines
	p.lines = map[net.Conn]bool{}
	p.thawed.Broadcast()
	p.mu.Unlock()
	p.u.record("%s dies %s", p.name, why)
	for l := range lines {
		_ = l.Close() // it never fails
	}
	_ = p.db.Close() // open connections are closed when they are given back
	p.cancel()
}

// doom has the database hang from the end of the transaction on, and the
// process die seconds later: meanwhile it commits offsets, of records that are
// done and lie among others that are not.
func (p *proc) doom(why string) {
	p.ended.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		conn, err := p.db.Conn(ctx) // there is only one
		if err == nil {
			defer func() { _ = conn.Close() }() // back to the pool
		}
		time.Sleep(p.u.dice.between(time.Second/2, 3*time.Second)) // virtual
		p.kill(why)
	})
}

// stop ends the process in good order.
func (p *proc) stop() {
	p.cancel()
	p.ended.Wait()
	if err := p.db.Close(); err != nil && !p.isDead() {
		p.u.t.Error(err)
	}
}

// freeze stops all that the process does with the broker and all it writes to
// the database, as if it were paused.
func (p *proc) freeze(ctx context.Context) (thaw func()) {
	p.mu.Lock()
	p.frozen = true
	p.mu.Unlock()
	conn, err := p.db.Conn(ctx) // there is only one
	return func() {
		if err == nil {
			_ = conn.Close() // back to the pool
		}
		p.mu.Lock()
		p.frozen = false
		p.thawed.Broadcast()
		p.mu.Unlock()
	}
}

// arm has the process die at the nth event of that kind from now on.
func (p *proc) arm(fuse string, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fuses[fuse] = n
}

func (p *proc) burn(fuse string) {
	p.mu.Lock()
	for p.frozen && !p.dead {
		p.thawed.Wait()
	}
	p.fuses[fuse]--
	now := p.fuses[fuse] == 0
	p.mu.Unlock()
	if now {
		p.kill("at " + fuse)
	}
}

func (p *proc) dial(role string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := p.u.net.Dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.dead {
			return nil, errors.Join(net.ErrClosed, conn.Close())
		}
		p.lines[conn] = true
		return &line{Conn: conn, p: p, role: role}, nil
	}
}

// A line is a connection whose traffic can be the last thing a process did.
type line struct {
	net.Conn
	p    *proc
	role string
}

func (l *line) Read(b []byte) (int, error) {
	n, err := l.Conn.Read(b)
	l.p.burn(l.role + " reading")
	if l.p.isDead() {
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

func (l *line) Write(b []byte) (int, error) {
	l.p.burn(l.role + " writing")
	n, err := l.Conn.Write(b)
	l.p.burn(l.role + " written")
	return n, err
}

func (l *line) Close() error {
	l.p.mu.Lock()
	delete(l.p.lines, l.Conn)
	l.p.mu.Unlock()
	return l.Conn.Close()
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }
