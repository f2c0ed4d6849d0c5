package outbox

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"pizzaflow/sqldb"
)

const (
	roundRows  = 1000
	roundBytes = 900_000 // so that what one round has for a partition is one batch

	// maxRecordBytes is the broker's default for max.message.bytes (1,048,588)
	// with room for the batch around the record. Dead letters carry a whole
	// record in JSON or base64, so their topics must take four times as much.
	maxRecordBytes     = 1_000_000
	maxDeadLetterBytes = 4_000_000

	retryPause = time.Second // before a refused record is tried again
)

// RelayConfig is what a Relay needs.
type RelayConfig struct {
	Outbox  *Outbox
	Service string        // the label "service" of its metrics
	Kafka   []kgo.Opt     // how to reach the brokers
	Poll    time.Duration // the safety net behind the wake-up: 5 s when zero
	TTL     time.Duration // how long a silent holder keeps the lease: 2 s when zero
	Metrics prometheus.Registerer
	Log     *slog.Logger
}

// A Relay publishes what is committed to an outbox: at least once, and each
// aggregate's events in the order of their versions. Of all the relays of one
// database only the holder of the lease publishes.
type Relay struct {
	cfg     RelayConfig
	db      *sqldb.DB
	holder  string
	metrics relayMetrics

	mu     sync.Mutex
	cursor *cursor // nil while another relay leads

	// of the round alone
	held    map[string]time.Time // keys of refused records, and when to try them again
	blocked map[string]bool      // keys that stand in outbox_blocked
	single  bool                 // record by record, to find out which one spoils a batch
}

// NewRelay makes a Relay; Run starts it.
func NewRelay(cfg RelayConfig) *Relay {
	if cfg.Poll == 0 {
		cfg.Poll = 5 * time.Second
	}
	if cfg.TTL == 0 {
		cfg.TTL = 2 * time.Second
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	r := &Relay{cfg: cfg, db: cfg.Outbox.db, holder: fmt.Sprintf("%s/%d/%s", host, os.Getpid(), rand.Text()[:8])}
	r.metrics = newRelayMetrics(cfg, r)
	return r
}

// Run publishes until ctx ends; then it finishes the round it is in and gives
// the lease back.
func (r *Relay) Run(ctx context.Context) error {
	for {
		l, floor, err := acquireLease(ctx, r.db, r.holder, r.cfg.TTL, func(err error) {
			if ctx.Err() == nil {
				r.cfg.Log.Warn("relay stands by", "service", r.cfg.Service, "err", err)
			}
		})
		if err != nil {
			return nil //nolint:nilerr // ctx has ended
		}
		r.cfg.Log.Info("relay leads", "service", r.cfg.Service, "epoch", l.epoch, "floor", floor)
		err = r.lead(ctx, l, floor)
		if ctx.Err() != nil {
			if err != nil { // what is not given back is taken from the dead
				r.cfg.Log.Warn("relay stops", "service", r.cfg.Service, "err", err)
			}
			return nil
		}
		r.cfg.Log.Warn("relay no longer leads", "service", r.cfg.Service, "epoch", l.epoch, "err", err)
	}
}

// lead publishes for as long as the lease is held. Each term of office has a
// producer of its own: to close it is the only safe way to abandon records
// whose fate is unknown.
func (r *Relay) lead(ctx context.Context, l *lease, floor int64) (err error) {
	defer func() { // whatever ended it, the next one need not wait for the TTL
		if !errors.Is(err, errLeaseLost) {
			err = errors.Join(err, l.release(ctx))
		}
	}()
	producer, err := kgo.NewClient(append(r.cfg.Kafka[:len(r.cfg.Kafka):len(r.cfg.Kafka)],
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ManualFlushing(), // one batch a partition in a round, so that nothing overtakes a refused batch
		kgo.MaxBufferedRecords(2*roundRows),
		kgo.ProducerBatchMaxBytesFn(func(topic string) int32 { return int32(maxBytes(topic)) }), //nolint:gosec // a constant
		kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)),
	)...)
	if err != nil {
		return fmt.Errorf("make producer: %w", err)
	}
	defer producer.Close()
	if err := r.load(ctx, floor); err != nil {
		return err
	}
	defer r.forget()

	keepCtx, stopKeeping := context.WithCancel(context.WithoutCancel(ctx))
	defer stopKeeping()
	g, leadCtx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.keep(keepCtx, r.floor) })
	g.Go(func() error {
		defer stopKeeping()
		return r.publishRounds(leadCtx, ctx, producer, l)
	})
	return g.Wait()
}

// publishRounds publishes until ctx ends. The end of ctx is a clean stop when
// run has ended too: then the round in flight may take a few seconds more.
func (r *Relay) publishRounds(ctx, run context.Context, producer *kgo.Client, l *lease) error {
	poll := time.NewTicker(r.cfg.Poll)
	defer poll.Stop()
	for ctx.Err() == nil {
		again, err := r.round(ctx, run, producer, l)
		switch {
		case errors.Is(err, errLeaseLost):
			return err
		case err != nil && ctx.Err() == nil:
			r.metrics.errors.Inc()
			r.cfg.Log.Error("publish", "service", r.cfg.Service, "err", err)
			if err := r.reload(ctx, l); err != nil {
				return err
			}
			continue
		case again:
			continue
		}
		retry := time.NewTimer(r.untilRetry())
		select {
		case <-ctx.Done():
		case <-r.cfg.Outbox.wake:
		case <-poll.C:
		case <-retry.C:
		}
		retry.Stop()
	}
	if run.Err() == nil { // ended by keep
		return errLeaseLost
	}
	return nil
}

// round reads what is unpublished, sends it, awaits every acknowledgement and
// records those that came. It says whether there is more to do at once.
func (r *Relay) round(ctx, run context.Context, producer *kgo.Client, l *lease) (again bool, err error) {
	rows, cut, err := r.read(ctx)
	if err != nil || len(rows) == 0 {
		return false, err
	}
	if !l.fresh() { // this process may have slept through its own end: ask before anything is sent
		if err := l.renew(ctx, r.floor()); err != nil {
			return false, err
		}
	}
	flushCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		if run.Err() == nil {
			cancel() // the lease is gone
			return
		}
		time.AfterFunc(5*time.Second, cancel)
	})
	defer stop()
	fate, err := r.send(flushCtx, producer, rows)
	if err != nil {
		return false, err
	}
	return cut, r.mark(flushCtx, l, rows, fate)
}

// A fate is what became of the rows of a round.
type fate struct {
	acked   []int64
	failed  []int64      // to be read and tried again
	blocked []blockedRow // refused for ever, or behind one that was
}

type blockedRow struct {
	*row
	reason string
}

// Why a row is not sent because of another of its key.
var (
	errWaits   = errors.New("waits behind a refused record of its key")
	errBlocked = errors.New("its key is blocked")
)

// send produces the rows in order and waits for the outcome of each. After a
// row that cannot be sent none of its key follows.
func (r *Relay) send(ctx context.Context, producer *kgo.Client, rows []row) (fate, error) {
	errs := make([]error, len(rows))
	var outcome sync.WaitGroup
	refused := map[string]bool{} // by what was sent one by one
	now := time.Now()
	for i := range rows {
		key := rows[i].queue()
		if errs[i] = r.sendable(&rows[i], refused[key], now); errs[i] == nil {
			outcome.Add(1)
			producer.Produce(context.Background(), rows[i].record(r.cfg.Outbox.source), func(_ *kgo.Record, err error) {
				errs[i] = err
				outcome.Done()
			})
		}
		if r.single || i == len(rows)-1 {
			if err := r.await(ctx, producer, &outcome); err != nil {
				return fate{}, err
			}
		}
		if r.single && errs[i] != nil {
			refused[key] = true
		}
	}
	return r.sort(rows, errs), nil
}

// await waits for the acknowledgements. When it must not wait any longer, what
// was sent is in the dark: this producer is done for, and whoever reads the
// table next sends it again.
func (r *Relay) await(ctx context.Context, producer *kgo.Client, outcome *sync.WaitGroup) error {
	slow := time.AfterFunc(5*time.Second, func() {
		r.metrics.errors.Inc()
		r.cfg.Log.Warn("the broker has not acknowledged for 5 s", "service", r.cfg.Service)
	})
	defer slow.Stop()
	err := producer.Flush(ctx)
	if err != nil {
		producer.Close()
		err = fmt.Errorf("await acknowledgements: %w", errors.Join(errLeaseLost, err))
	}
	outcome.Wait()
	return err
}

// sendable says why a row may not be sent now.
func (r *Relay) sendable(row *row, refused bool, now time.Time) error {
	switch n, key := row.size(), row.queue(); {
	case r.blocked[key]:
		return errBlocked
	case n > maxBytes(row.topic):
		r.blocked[key] = true
		return fmt.Errorf("%w: %d bytes, %d are allowed", kerr.MessageTooLarge, n, maxBytes(row.topic))
	case refused || now.Before(r.held[key]):
		return errWaits
	}
	return nil
}

// sort decides the fate of each row. A refusal for ever blocks the key, once
// it is certain which record is meant: the client fails a whole batch for one
// record, so a refused batch is sent again record by record first.
func (r *Relay) sort(rows []row, errs []error) (f fate) {
	wasSingle := r.single || len(rows) == 1
	r.single = false
	for i := range rows {
		row, err := &rows[i], errs[i]
		key := row.queue()
		forEver := errors.Is(err, kerr.MessageTooLarge) || errors.Is(err, kerr.RecordListTooLarge) || errors.Is(err, kerr.InvalidRecord)
		switch {
		case err == nil:
			f.acked = append(f.acked, row.seq)
			continue
		case forEver && (wasSingle || r.blocked[key]):
			r.blocked[key] = true
			f.blocked = append(f.blocked, blockedRow{row, reason(err)})
		case r.blocked[key]:
			f.blocked = append(f.blocked, blockedRow{row, reason(errBlocked)})
			continue
		default:
			f.failed = append(f.failed, row.seq)
			if errors.Is(err, errWaits) {
				continue
			}
			if forEver {
				r.single = true
				continue
			}
			r.held[key] = time.Now().Add(retryPause)
		}
		r.metrics.errors.Inc()
		r.cfg.Log.Error("event refused", "service", r.cfg.Service, "event_id", row.id, "event_type", row.eventType,
			"aggregate_id", row.aggregateID, "topic", row.topic, "blocked", r.blocked[key], "err", err)
	}
	return f
}

// queue is what must stay in order: the records of one key on one topic.
func (r *row) queue() string { return r.topic + "\x00" + string(r.key) }

// untilRetry is how long until a held key may be tried again.
func (r *Relay) untilRetry() time.Duration {
	wait := r.cfg.Poll
	now := time.Now()
	for key, at := range r.held {
		if d := at.Sub(now); d > 0 {
			wait = min(wait, d)
		} else {
			delete(r.held, key)
			wait = time.Millisecond
		}
	}
	return wait
}

// mark records what was acknowledged and what is blocked. Only when that is
// committed are the rows out of flight: a floor stored meanwhile must not pass
// them.
func (r *Relay) mark(ctx context.Context, l *lease, rows []row, f fate) error {
	r.mu.Lock()
	after := r.cursor.landed(f.failed)
	r.mu.Unlock()
	if len(f.acked)+len(f.blocked) > 0 {
		if err := l.mark(ctx, after.floor(), spans(f.acked), f.blocked); err != nil {
			return err
		}
	}
	r.mu.Lock()
	r.cursor = after
	r.mu.Unlock()
	at, acked := sqldb.Now(), f.acked
	for i := range rows {
		if len(acked) == 0 || rows[i].seq != acked[0] {
			continue
		}
		acked = acked[1:]
		r.metrics.published.Inc()
		r.metrics.delay.Observe(at.Sub(rows[i].createdAt).Seconds())
		r.cfg.Log.Info("Event published", "event_id", rows[i].id, "event_type", rows[i].eventType,
			"aggregate_id", rows[i].aggregateID, "topic", rows[i].topic, "timestamp", at)
	}
	return nil
}

// load builds the cursor from the tables, and from nothing else: what memory
// knows may be newer than a database that was failed over. A blocked row is
// done with, like a published one, until an operator says otherwise.
func (r *Relay) load(ctx context.Context, floor int64) error {
	done, blocked, err := r.loadDone(ctx, floor)
	if err != nil {
		return fmt.Errorf("load cursor: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cursor, r.held, r.blocked, r.single = newCursor(floor, done), map[string]time.Time{}, blocked, false
	return nil
}

func (r *Relay) loadDone(ctx context.Context, floor int64) (done []span, blocked map[string]bool, err error) {
	rows, err := r.db.Read().QueryContext(ctx, `
		SELECT first_seq, last_seq, '' AS topic, NULL AS key FROM outbox_published WHERE last_seq > $1
		UNION ALL
		SELECT seq, seq, topic, key FROM outbox_blocked
		ORDER BY 1`, floor)
	if err != nil {
		return nil, nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	blocked = map[string]bool{}
	for rows.Next() {
		var s span
		var w row
		if err := rows.Scan(&s.lo, &s.hi, &w.topic, &w.key); err != nil {
			return nil, nil, err
		}
		if w.topic != "" {
			blocked[w.queue()] = true
		}
		if s.hi > floor {
			done = append(done, s)
		}
	}
	return done, blocked, rows.Err()
}

// reload waits until the database answers and starts over from what it says.
func (r *Relay) reload(ctx context.Context, l *lease) error {
	for attempt := 1; ; attempt++ {
		var epoch, floor int64
		err := r.db.Read().QueryRowContext(ctx, `SELECT epoch, floor FROM outbox_lease WHERE id = 1`).Scan(&epoch, &floor)
		if err == nil && epoch != l.epoch {
			return errLeaseLost
		}
		if err == nil {
			err = r.load(ctx, floor)
		}
		pause := time.NewTimer(Backoff(attempt, 100*time.Millisecond, 2*time.Second))
		select {
		case <-ctx.Done():
			pause.Stop()
			return nil
		case <-pause.C:
		}
		if err == nil {
			return nil
		}
	}
}

func (r *Relay) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cursor = nil
}

func (r *Relay) floor() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cursor.floor()
}

// size is about what the row takes as a record: the envelope and the headers
// come to less than 700 bytes beside what is counted.
func (r *row) size() int {
	n := 700 + 2*len(r.key) + len(r.data.String) + len(r.value)
	for _, h := range r.headers {
		n += len(h.Key) + len(h.Value) + 4
	}
	return n
}

func maxBytes(topic string) int {
	if strings.HasSuffix(topic, deadLetterSuffix) {
		return maxDeadLetterBytes
	}
	return maxRecordBytes
}

const rowColumns = `seq, id, aggregate_id, aggregate_version, event_type, event_data, topic, key, headers, value, created_at`

// readSQL asks for the gaps and for what is above the head in one statement,
// and so in one snapshot: asked for apart, a row could be missed in the gaps
// and its aggregate's next be found above the head. Each engine has its own
// way to be handed a list of gaps.
var readSQL = map[sqldb.Engine]string{
	sqldb.Postgres: `
		SELECT ` + rowColumns + ` FROM (
			(SELECT e.* FROM unnest($3::bigint[], $4::bigint[]) g (lo, hi) CROSS JOIN LATERAL
				(SELECT * FROM outbox_events WHERE seq BETWEEN g.lo AND g.hi ORDER BY seq LIMIT $2) e ORDER BY e.seq LIMIT $2)
			UNION ALL
			(SELECT * FROM outbox_events WHERE seq > $1 ORDER BY seq LIMIT $2)) u
		ORDER BY seq LIMIT $2`,
	sqldb.SQLite: `
		SELECT ` + rowColumns + ` FROM (
			SELECT e.* FROM json_each($3) lo JOIN json_each($4) hi ON hi.key = lo.key
				CROSS JOIN outbox_events e ON e.seq BETWEEN lo.value AND hi.value
			UNION ALL
			SELECT * FROM (SELECT * FROM outbox_events WHERE seq > $1 ORDER BY seq LIMIT $2))
		ORDER BY seq LIMIT $2`,
}

// read takes the next rows, in order; cut says that there may be more.
func (r *Relay) read(ctx context.Context) (rows []row, cut bool, err error) {
	query := `SELECT ` + rowColumns + ` FROM outbox_events WHERE seq > $1 ORDER BY seq LIMIT $2`
	args := []any{r.cursor.head, roundRows}
	if len(r.cursor.gaps) > 0 {
		query = readSQL[r.db.Engine]
		los, his := make([]int64, len(r.cursor.gaps)), make([]int64, len(r.cursor.gaps))
		for i, g := range r.cursor.gaps {
			los[i], his[i] = g.lo, g.hi
		}
		args = append(args, r.array(los), r.array(his))
	}
	result, err := r.db.Read().QueryContext(ctx, query, args...)
	if err != nil {
		return nil, false, fmt.Errorf("read outbox: %w", err)
	}
	rows, cut, err = scanRound(result)
	if err != nil {
		return nil, false, fmt.Errorf("read outbox: %w", err)
	}
	seqs := make([]int64, len(rows))
	for i := range rows {
		seqs[i] = rows[i].seq
	}
	r.mu.Lock()
	r.cursor.read(seqs, cut)
	gaps := len(r.cursor.gaps) > 0
	r.mu.Unlock()
	if !gaps {
		return rows, cut, nil
	}
	writers, err := r.writers(ctx)
	if err != nil {
		return nil, false, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cursor.locks(writers)
	return rows, cut, nil
}

// array is a list of numbers as an argument of readSQL.
func (r *Relay) array(n []int64) any {
	if r.db.Engine == sqldb.Postgres {
		return n
	}
	b, _ := json.Marshal(n) //nolint:errcheck // numbers always have a JSON form
	return string(b)
}

// scanRound reads rows until a round is full.
func scanRound(result *sql.Rows) (rows []row, cut bool, err error) {
	defer result.Close() //nolint:errcheck // result.Err tells
	bytes := 0
	for result.Next() {
		var w row
		var headers string
		err := result.Scan(&w.seq, &w.id, &w.aggregateID, &w.version, &w.eventType, &w.data, &w.topic, &w.key, &headers, &w.value, sqldb.Time(&w.createdAt))
		if err != nil {
			return nil, false, err
		}
		if err := json.Unmarshal([]byte(headers), &w.headers); err != nil {
			return nil, false, fmt.Errorf("headers of event %s: %w", w.id, err)
		}
		bytes += w.size()
		if bytes > roundBytes && len(rows) > 0 {
			return rows, true, nil
		}
		rows = append(rows, w)
	}
	return rows, len(rows) == roundRows, result.Err()
}

// writers lists the transactions that hold a lock for writing the outbox. On
// SQLite there is one writer, what it rolls back leaves no gap, and every gap
// is a row that waits to be published.
func (r *Relay) writers(ctx context.Context) ([]string, error) {
	if r.db.Engine != sqldb.Postgres {
		return nil, nil
	}
	rows, err := r.db.Read().QueryContext(ctx, `
		SELECT virtualtransaction FROM pg_locks
		WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND relation = 'outbox_events'::regclass
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`)
	if err != nil {
		return nil, fmt.Errorf("list writers: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	var out []string
	for rows.Next() {
		var tx string
		if err := rows.Scan(&tx); err != nil {
			return nil, fmt.Errorf("list writers: %w", err)
		}
		out = append(out, tx)
	}
	return out, rows.Err()
}
