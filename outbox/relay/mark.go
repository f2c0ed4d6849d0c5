package relay

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"pizzaflow/internal/crash"
	"pizzaflow/outbox/internal/store"
	"pizzaflow/sqldb"
)

// To mark rows is to record that they are published or blocked.

// An ack is the rows that a sender is done with: the rows that the brokers
// acknowledged, and the blocked rows. The marker records it.
type ack struct {
	batch     *batch // nil when the rows come from paused partitions
	published []*store.Row
	blocked   []blockedRow
	recorded  chan error // receives the outcome of recording the ack; nil when the sender does not wait
}

// A blockedRow is a row that goes to outbox_blocked, where an operator decides.
type blockedRow struct {
	*store.Row
	reason string
}

func (a ack) notify(err error) {
	if a.recorded != nil {
		a.recorded <- err
	}
}

// markPause lets acks gather: a mark that is lost to a crash only repeats a
// publish, but each mark costs a transaction, and on SQLite the writer.
var markPause = map[sqldb.Engine]time.Duration{sqldb.Postgres: 2 * time.Millisecond, sqldb.SQLite: 20 * time.Millisecond}

// markLoop marks the rows of acks, of all at once that have gathered.
func (t *term) markLoop(ctx context.Context) error {
	for a := range t.acks {
		gathered := []ack{a}
		pause := time.NewTimer(markPause[t.db.Engine])
	gather:
		for len(gathered) < 16 {
			select {
			case a, ok := <-t.acks:
				if !ok {
					break gather
				}
				gathered = append(gathered, a)
			case <-pause.C:
				break gather
			}
		}
		pause.Stop()
		err := t.mark(ctx, gathered)
		for _, a := range gathered {
			a.notify(err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// refuseAcks answers the acks that come after marking has failed.
func (t *term) refuseAcks(err error) {
	for a := range t.acks {
		a.notify(err)
	}
}

// mark marks the rows of acks. Their batches leave inFlight only once that is
// committed: a low watermark that is stored meanwhile must not pass their rows.
func (t *term) mark(ctx context.Context, acks []ack) error {
	var seqs []int64
	var blocked []blockedRow
	var batches []*batch
	for _, a := range acks {
		for _, row := range a.published {
			seqs = append(seqs, row.Seq)
		}
		blocked = append(blocked, a.blocked...)
		if a.batch != nil {
			batches = append(batches, a.batch)
		}
	}
	slices.Sort(seqs)
	if len(seqs)+len(blocked) > 0 {
		if err := t.lease.mark(ctx, t.lowWatermarkAfter(batches), spans(seqs), blocked); err != nil {
			t.metrics.errors.Inc()
			return err
		}
		crash.Point("relay: marked")
	}
	t.mu.Lock()
	t.inFlight = slices.DeleteFunc(t.inFlight, func(b *batch) bool { return slices.Contains(batches, b) })
	t.blockedRows += len(blocked)
	t.mu.Unlock()
	at := sqldb.Now()
	for _, a := range acks {
		for _, row := range a.published {
			t.reportPublished(row, at)
		}
	}
	return nil
}

// reportPublished counts and logs an event that is marked as published.
func (t *term) reportPublished(row *store.Row, at time.Time) {
	t.metrics.published.Inc()
	t.metrics.delay.Observe(at.Sub(row.CreatedAt).Seconds())
	t.cfg.Log.Info("Event published", "event_id", row.ID, "event_type", row.EventType,
		"aggregate_id", row.AggregateID, "topic", row.Topic, "timestamp", at)
}

// mark stores the ranges as published, the blocked rows and the low watermark,
// if the lease is still this holder's.
func (l *lease) mark(ctx context.Context, lowWatermark int64, ranges []span, blocked []blockedRow) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	unlock, err := l.lockConn(ctx)
	if err != nil {
		return fmt.Errorf("mark published: %w", err)
	}
	defer unlock()
	if l.db.Engine == sqldb.Postgres && len(blocked) == 0 {
		return l.markAtOnce(ctx, lowWatermark, ranges)
	}
	tx, err := l.conn.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("mark published: %w", err)
	}
	if err := l.markIn(ctx, tx, lowWatermark, ranges, blocked); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("mark published: %w", err)
	}
	return nil
}

// markSQL records ranges if the lease is this holder's, and keeps the lease's row
// locked until that is committed; markWatermarkSQL stores the low watermark, too.
// Each stored watermark leaves a dead version of that row behind, which PostgreSQL
// passes by at every look as long as an older snapshot is open: with one that was
// open for half an hour, and a watermark stored with each mark, a mark had to pass
// by some hundred thousand versions.
const (
	markSQL          = `WITH l AS (SELECT 1 FROM outbox_lease WHERE id = 1 AND epoch = $1 FOR NO KEY UPDATE)` + markedSQL
	markWatermarkSQL = `WITH l AS (UPDATE outbox_lease SET floor = $5 WHERE id = 1 AND epoch = $1 RETURNING 1)` + markedSQL
	markedSQL        = `, p AS (INSERT INTO outbox_published (first_seq, last_seq, published_at)
			SELECT lo, hi, $2::timestamptz FROM l, unnest($3::bigint[], $4::bigint[]) u (lo, hi))
		SELECT (SELECT COUNT(*) FROM l) + 0 * length(set_config('synchronous_commit', 'off', true))`
)

// markAtOnce is mark as one statement: a holder that is stopped in the middle of
// a transaction would keep the lease's row locked, and its standby out. The
// statement does not wait for the disk: a lost mark only repeats a publish.
func (l *lease) markAtOnce(ctx context.Context, lowWatermark int64, ranges []span) error {
	los, his := make([]int64, len(ranges)), make([]int64, len(ranges))
	for i, s := range ranges {
		los[i], his[i] = s.lo, s.hi
	}
	query, args := markSQL, []any{l.epoch, sqldb.Now(), los, his}
	if l.takeToken() {
		query, args = markWatermarkSQL, append(args, lowWatermark)
	}
	var held int
	if err := l.conn.QueryRowContext(ctx, query, args...).Scan(&held); err != nil {
		return fmt.Errorf("mark published: %w", err)
	}
	if held == 0 {
		return errLeaseLost
	}
	return nil
}

// takeToken takes a token from the bucket that limits how many marks store the
// low watermark, and reports whether there was one: nearly always while there are
// few marks, and under load as often as the lease is renewed.
func (l *lease) takeToken() bool {
	const most = 50
	every := l.ttl / 4
	if more := time.Since(l.tokensFrom) / every; more > 0 {
		l.tokens = int(min(most, time.Duration(l.tokens)+more))
		l.tokensFrom = time.Now()
	}
	if l.tokens == 0 {
		return false
	}
	l.tokens--
	return true
}

// intoBlocked takes the rows of outbox_blocked.
var intoBlocked = sqldb.Insert{
	Into:  `INSERT INTO outbox_blocked (seq, topic, key, reason, since)`,
	Types: `BIGINT, TEXT, BYTEA, TEXT, TIMESTAMPTZ`,
}

func (l *lease) markIn(ctx context.Context, tx *sql.Tx, lowWatermark int64, ranges []span, blocked []blockedRow) error {
	res, err := tx.ExecContext(ctx, `UPDATE outbox_lease SET floor = $1 WHERE id = 1 AND epoch = $2`, lowWatermark, l.epoch)
	if err != nil {
		return fmt.Errorf("mark published: %w", err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return errors.Join(errLeaseLost, err)
	}
	at := sqldb.Now()
	rows := make([][]any, len(blocked))
	for i, b := range blocked {
		rows[i] = []any{b.Seq, b.Topic, store.NullBytes(b.Key), b.reason, at}
	}
	if _, err := intoBlocked.Exec(ctx, l.db, tx, rows); err != nil {
		return fmt.Errorf("mark blocked: %w", err)
	}
	return sqldb.Chunks(len(ranges), 512, func(from, to int) error {
		args := make([]any, 0, 3*(to-from))
		for _, s := range ranges[from:to] {
			args = append(args, s.lo, s.hi, at)
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO outbox_published (first_seq, last_seq, published_at) VALUES `+sqldb.Values(3, to-from), args...)
		if err != nil {
			return fmt.Errorf("mark published: %w", err)
		}
		return nil
	})
}
