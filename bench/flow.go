package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"
)

// A deployment is the binary with everything in one process.
type deployment struct {
	where     string
	child     *child
	dir       string
	shop      placer
	admin     string
	brokers   []string
	kafkaPID  int               // 0: the broker is in the process
	addresses map[string]string // by the option that asks for them
	bodies    func(int) []byte
	started   time.Duration
	next      int // the next guest
}

// flowPart runs the binary: orders are placed over HTTP, paid by the sandbox,
// which answers at once, and told by mail and SMS.
func flowPart(ctx context.Context, b *bench) error {
	if err := b.buildPizza(ctx); err != nil {
		return err
	}
	rows := [][]string{{"", "orders/s", "to the end", "201 p50 / p99", "201 → paid p50 / p99", "behind", "memory", "processor µs an order: ours + PostgreSQL + Kafka + load", "enough for"}}
	var profiles []flowProfile
	errs := []error{
		b.flow(ctx, "SQLite → embedded", nil, &rows, &profiles),
		b.flow(ctx, "PostgreSQL → Kafka", []string{"KAFKA_BROKERS=" + strings.Join(b.brokers, ",")}, &rows, &profiles),
	}
	if len(rows) > 1 {
		b.report.table(rows...)
		b.report.note("The load is open: each order has its scheduled time, from which its 201 is counted. “To the end” is how many orders a second " +
			"were paid and told by two mails and two SMS, from the first order to the last message that the sandbox accepted; “behind” is how long " +
			"after the last order that was. Memory is the most that was seen while it lasted. The load also reads the topic. “Enough for” is how many orders a " +
			"second all of the machine's processor time comes to.")
	}
	for _, p := range profiles {
		errs = append(errs, b.report.fieldTable(fmt.Sprintf("ours, %s, at %d orders/s", p.where, p.rate), p.profile, p.orders))
	}
	return errors.Join(errs...)
}

func (b *bench) buildPizza(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", b.path("pizza"), "./cmd/pizza") //nolint:gosec // our own
	cmd.Dir, cmd.Env = b.root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build pizza: %w: %s", err, out)
	}
	return nil
}

// A flowProfile is where the binary's processor time went.
type flowProfile struct {
	where        string
	rate, orders int
	profile      []byte
}

// flow measures one deployment at rising rates, and then takes a profile of it.
func (b *bench) flow(ctx context.Context, where string, env []string, rows *[][]string, profiles *[]flowProfile) (err error) {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if env != nil {
		url, err := b.createDatabase(ctx, "flow", "")
		if err != nil {
			return err
		}
		env = append(env, "DATABASE_URL="+url)
	}
	listens := []string{"HTTP_ADDR", "ADMIN_ADDR"}
	if env == nil {
		listens = append(listens, "KAFKA_LISTEN")
	}
	d, err := b.deploy(ctx, where, env, listens...)
	if err != nil {
		return fmt.Errorf("%s: %w", where, err)
	}
	defer func() {
		_, e := d.child.stop()
		err = errors.Join(err, e)
	}()
	d.brokers, d.kafkaPID = b.brokers, b.kafkaPID
	if env == nil {
		d.kafkaPID = 0
		d.brokers = []string{d.addresses["KAFKA_LISTEN"]}
	}
	if d.bodies, err = requests(ctx, d.shop); err != nil {
		return fmt.Errorf("%s: %w", where, err)
	}
	b.say("  %s: started in %s", where, d.started.Round(time.Millisecond))
	if env == nil {
		b.report.reach("start", d.started <= 2*time.Second, "%s", d.started.Round(10*time.Millisecond))
	}
	for _, rate := range []int{50, 100, 500, 1500} {
		got, err := d.load(ctx, b, rate)
		if err != nil {
			return fmt.Errorf("%s at %d orders/s: %w", where, rate, err)
		}
		b.say("  %s at %d orders/s: %s", where, rate, got)
		spent, limit := got.effort.an(got.orders)
		*rows = append(*rows, []string{
			where, fmt.Sprint(rate), group(got.perSecond), ms(got.answered.at(0.5)) + " / " + ms(got.answered.at(0.99)),
			ms(got.paid.at(0.5)) + " / " + ms(got.paid.at(0.99)), got.behind.Round(time.Millisecond).String(), mib(got.memory), spent, group(limit) + "/s",
		})
		b.reachFlow(env == nil, rate, got)
		if rate >= 500 && !got.sustained() {
			break
		}
	}
	p, err := d.profile(ctx, b)
	if err != nil {
		return fmt.Errorf("%s: %w", where, err)
	}
	*profiles = append(*profiles, p)
	return nil
}

// profile has the binary profile itself under a load that the figures above do
// not count, and until that is worked off.
func (d *deployment) profile(ctx context.Context, b *bench) (p flowProfile, err error) {
	p.where, p.rate = d.where, 500
	var g errgroup.Group
	g.Go(func() (err error) {
		p.profile, err = fetchProfile(ctx, d.admin, 2*b.size.flow)
		return err
	})
	got, err := d.load(ctx, b, p.rate)
	p.orders = got.orders
	return p, errors.Join(err, g.Wait())
}

func (b *bench) reachFlow(embedded bool, rate int, got flowResult) {
	name := map[bool]string{true: "embedded", false: "real"}[embedded]
	switch rate {
	case 50:
		p50, p99 := got.paid.at(0.5), got.paid.at(0.99)
		b.report.reach("paid "+name, p50 <= 25*time.Millisecond && p99 <= 100*time.Millisecond, "p50 %s, p99 %s", ms(p50), ms(p99))
	case 100:
		if embedded {
			b.report.reach("memory", got.memory <= 200<<20, "%s", mib(got.memory))
		}
	case 500:
		b.report.reach("flow "+name, got.sustained(), "%s of 500/s", group(got.perSecond))
	case 1500:
		if got.sustained() {
			b.report.reach("flow "+name, true, "%s of 1,500/s", group(got.perSecond))
		}
	}
}

// deploy starts the binary in a folder of its own and waits until it has said
// where it listens and is ready.
func (b *bench) deploy(ctx context.Context, where string, env []string, listens ...string) (_ *deployment, err error) {
	d := &deployment{where: where}
	if d.dir, err = os.MkdirTemp(b.dir, "pizza-"); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, b.path("pizza")) //nolint:gosec // it was just built
	cmd.Dir = d.dir
	cmd.Env = append([]string{
		"DATA_DIR=" + d.dir, "HTTP_ADDR=127.0.0.1:0", "ADMIN_ADDR=127.0.0.1:0", "KAFKA_LISTEN=127.0.0.1:0",
		"SANDBOX_ADDR=127.0.0.1:0", "SANDBOX_SMTP_ADDR=127.0.0.1:0", "HOME=" + d.dir, "PATH=" + os.Getenv("PATH"),
	}, env...)
	began := time.Now()
	if d.child, err = b.start(ctx, "pizza", cmd); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_, e := d.child.stop()
			err = d.child.failed(errors.Join(err, e))
		}
	}()
	if err := d.readAddresses(listens); err != nil {
		return nil, err
	}
	d.shop, d.admin = web("http://"+d.addresses["HTTP_ADDR"], 64), "http://"+d.addresses["ADMIN_ADDR"]
	if err := d.ready(ctx); err != nil {
		return nil, err
	}
	d.started = time.Since(began)
	return d, nil
}

// readAddresses reads where the process listens from what it prints.
func (d *deployment) readAddresses(listens []string) error {
	d.addresses = map[string]string{}
	for slices.ContainsFunc(listens, func(k string) bool { return d.addresses[k] == "" }) {
		line, err := d.child.out.ReadString('\n')
		if err != nil {
			return err
		}
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		d.addresses[key] = value
	}
	return nil
}

// ready waits until the process says that it is.
func (d *deployment) ready(ctx context.Context) error {
	ask := web(d.admin, 1)
	for deadline := time.Now().Add(time.Minute); ; {
		status, text, err := ask(ctx, http.MethodGet, "/readyz", nil)
		if err == nil && status == http.StatusOK {
			return nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("it does not become ready: %d %s: %w", status, text, errors.Join(err, ctx.Err()))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// A flowResult is what one rate came to.
type flowResult struct {
	rate      int
	orders    int
	effort    effort        // for all of them
	answered  lags          // from the scheduled time to the 201
	paid      lags          // from the 201 to a reader's receipt of OrderPaid
	behind    time.Duration // from the last order to the last message
	perSecond float64
	memory    int64 // the most that was resident when looked at, every 100 ms
}

func (f flowResult) sustained() bool { return f.perSecond >= 0.95*float64(f.rate) }

func (f flowResult) String() string {
	return fmt.Sprintf("%s/s to the end, %s behind; 201 p50 %s p99 %s; paid p50 %s p99 %s; %s", group(f.perSecond), f.behind.Round(time.Millisecond),
		ms(f.answered.at(0.5)), ms(f.answered.at(0.99)), ms(f.paid.at(0.5)), ms(f.paid.at(0.99)), mib(f.memory))
}

// load places orders at a rate and waits until all are paid and told.
func (d *deployment) load(ctx context.Context, b *bench, rate int) (f flowResult, err error) {
	n := int(b.size.flow.Seconds() * float64(rate))
	if rate == 1500 {
		n = n * 2 / 3
	}
	f.rate, f.orders = rate, n
	payments, err := watchPayments(ctx, d.brokers)
	if err != nil {
		return f, err
	}
	defer payments.close()
	messages := &messageFiles{names: []string{d.dir + "/sandbox/mail.jsonl", d.dir + "/sandbox/sms.jsonl"}}
	if err := messages.skip(); err != nil {
		return f, err
	}
	stopLooking := d.watchMemory(&f.memory)
	defer stopLooking()
	placed := make([]placedOrder, n)
	spent, err := b.spend(d.child.cmd.Process.Pid, d.kafkaPID)
	if err != nil {
		return f, err
	}
	began := time.Now()
	first := d.next
	d.next += n
	openLoop(ctx, rate, n, 512, func(i int, due time.Time) { placed[i] = d.place(ctx, first+i, due) })
	ended := time.Now()
	told, err := messages.await(ctx, 4*n, b.size.catchUp)
	stopLooking()
	if err != nil {
		return f, err
	}
	if f.effort, err = spent(); err != nil {
		return f, err
	}
	got := payments.all(ctx, n, b.size.catchUp)
	for _, p := range placed {
		if p.err != nil {
			return f, fmt.Errorf("an order was not accepted: %w", p.err)
		}
		at, ok := got[p.id]
		if !ok {
			return f, fmt.Errorf("order %s was not paid, of %d orders %d were", p.id, n, len(got))
		}
		f.answered = append(f.answered, p.at.Sub(p.due))
		f.paid = append(f.paid, max(0, at.Sub(p.at)))
	}
	slices.Sort(f.answered)
	slices.Sort(f.paid)
	f.behind = max(0, told.Sub(ended))
	f.perSecond = float64(n) / told.Sub(began).Seconds()
	return f, nil
}

type placedOrder struct {
	id      string
	due, at time.Time
	err     error
}

func (d *deployment) place(ctx context.Context, guest int, due time.Time) placedOrder {
	status, text, err := d.shop(ctx, http.MethodPost, "/api/v1/orders", d.bodies(guest))
	p := placedOrder{due: due, at: time.Now(), err: err}
	if err == nil && status != http.StatusCreated {
		p.err = fmt.Errorf("answer %d: %.300s", status, text)
	}
	if p.err != nil {
		return p
	}
	var answer struct {
		OrderID string `json:"order_id"`
	}
	p.err = json.Unmarshal(text, &answer)
	p.id = answer.OrderID
	return p
}

// watchMemory keeps the most that the process had resident.
func (d *deployment) watchMemory(most *int64) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var looking sync.WaitGroup
	looking.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			if now, err := residentMemory(d.child.cmd.Process.Pid); err == nil {
				*most = max(*most, now)
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	return func() {
		cancel()
		looking.Wait()
	}
}

// messageFiles are the sandbox's own records of what it has accepted, a line
// each, synced before it answers.
type messageFiles struct {
	names []string
	from  []int64
}

// skip forgets what is in them.
func (m *messageFiles) skip() error {
	m.from = make([]int64, len(m.names))
	for i, name := range m.names {
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		m.from[i] = info.Size()
	}
	return nil
}

// await returns when so many messages more had been accepted.
func (m *messageFiles) await(ctx context.Context, n int, patience time.Duration) (time.Time, error) {
	seen := 0
	for moved := time.Now(); ; {
		for i, name := range m.names {
			lines, size, err := linesFrom(name, m.from[i])
			if err != nil {
				return time.Time{}, err
			}
			if lines > 0 {
				moved = time.Now()
			}
			seen, m.from[i] = seen+lines, size
		}
		if seen >= n {
			return time.Now(), nil
		}
		if time.Since(moved) > patience || ctx.Err() != nil {
			return time.Time{}, fmt.Errorf("of %d messages %d were accepted: %w", n, seen, ctx.Err())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// linesFrom counts the whole lines of a file behind a place in it.
func linesFrom(name string, from int64) (lines int, to int64, err error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, from, err
	}
	defer func() { _ = f.Close() }() // nothing was written
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return 0, from, err
	}
	r := bufio.NewReaderSize(f, 1<<20)
	for {
		line, err := r.ReadSlice('\n')
		switch {
		case err == nil:
			lines++
			from += int64(len(line))
		case errors.Is(err, bufio.ErrBufferFull):
			return lines, from, fmt.Errorf("%s: a line of more than a megabyte", name)
		case errors.Is(err, io.EOF):
			return lines, from, nil
		default:
			return lines, from, err
		}
	}
}

// A paymentWatch notes when OrderPaid came for each order.
type paymentWatch struct {
	client *kgo.Client
	cancel context.CancelFunc
	done   sync.WaitGroup
	mu     sync.Mutex
	got    map[string]time.Time
}

func watchPayments(ctx context.Context, brokers []string) (*paymentWatch, error) {
	s, err := mark(ctx, brokers, orderTopic)
	if err != nil {
		return nil, err
	}
	defer s.client.Close()
	from := map[int32]kgo.Offset{}
	for p, end := range s.from {
		from[p] = kgo.NewOffset().At(end)
	}
	c, err := client(brokers, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{orderTopic: from}))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	w := &paymentWatch{client: c, cancel: cancel, got: map[string]time.Time{}}
	w.done.Go(func() {
		for ctx.Err() == nil {
			fetches := c.PollFetches(ctx)
			now := time.Now()
			w.mu.Lock()
			fetches.EachRecord(func(r *kgo.Record) {
				if _, again := w.got[string(r.Key)]; !again && bytes.Contains(r.Value, []byte(`"event_type":"OrderPaid"`)) {
					w.got[string(r.Key)] = now
				}
			})
			w.mu.Unlock()
		}
	})
	return w, nil
}

// all waits for n payments and returns what came.
func (w *paymentWatch) all(ctx context.Context, n int, patience time.Duration) map[string]time.Time {
	for deadline := time.Now().Add(patience); ctx.Err() == nil && time.Now().Before(deadline); {
		w.mu.Lock()
		came := len(w.got)
		w.mu.Unlock()
		if came >= n {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	w.close()
	return w.got
}

func (w *paymentWatch) close() {
	w.cancel()
	w.done.Wait()
	w.client.Close()
}
