package relay

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"pizzaflow/internal/crash"
	"pizzaflow/outbox/internal/store"
	"pizzaflow/outbox/internal/wire"
	"pizzaflow/sqldb"
)

// readLoop reads batch after batch for publishLoop, and waits when there are no
// more rows.
func (t *term) readLoop(ctx context.Context) error {
	t.offers = t.cfg.Outbox.Local().Begin()
	defer t.cfg.Outbox.Local().End()
	poll := time.NewTicker(t.cfg.Poll)
	defer poll.Stop()
	for ctx.Err() == nil {
		b, more, err := t.read(ctx)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			t.metrics.errors.Inc()
			return err
		}
		t.dispatch(ctx, b)
		if !more {
			t.dispatchOffers(ctx, poll.C)
		}
	}
	return nil
}

// dispatchOffers dispatches offered rows until the table must be read.
func (t *term) dispatchOffers(ctx context.Context, poll <-chan time.Time) {
	var gaps <-chan time.Time
	for {
		if gaps == nil && len(t.cursor.gaps) > 0 {
			timer := time.NewTimer(gapPause)
			defer timer.Stop()
			gaps = timer.C
		}
		select {
		case <-ctx.Done():
			return
		case <-poll:
			return
		case <-gaps:
			return
		case <-t.cfg.Outbox.Local().Woken():
			return
		case rows := <-*t.offers:
			b := t.acceptOffered(rows)
			if b == nil {
				return
			}
			t.dispatch(ctx, b)
		}
	}
}

// dispatch gives a batch, if there is one, to publishLoop.
func (t *term) dispatch(ctx context.Context, b *batch) {
	if b == nil {
		return
	}
	crash.Point("relay: read")
	t.setDispatching(time.Now())
	defer t.setDispatching(time.Time{})
	select {
	case t.batches <- b:
	case <-ctx.Done():
	}
}

func (t *term) setDispatching(since time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dispatchingSince = since
}

// load builds the cursor from the tables alone: memory of an earlier term may be
// newer than a database that was failed over. A blocked row is not read again
// until an operator has it retried.
func (t *term) load(ctx context.Context, lowWatermark int64) error {
	done, blocked, n, err := t.loadDone(ctx, lowWatermark)
	if err != nil {
		return fmt.Errorf("load cursor: %w", err)
	}
	t.mu.Lock() // the lease is being kept already
	defer t.mu.Unlock()
	t.cursor, t.blocked, t.blockedRows, t.catchingUp = newCursor(lowWatermark, done), blocked, n, true
	return nil
}

const loadSQL = `
	SELECT first_seq, last_seq, '' AS topic, NULL AS key FROM outbox_published WHERE ` + store.RangesAbove + `
	UNION ALL
	SELECT seq, seq, CASE WHEN skipped_at IS NULL THEN topic ELSE '' END, key FROM outbox_blocked WHERE seq > $1
	UNION ALL
	SELECT seq, seq, topic, key FROM outbox_blocked WHERE skipped_at IS NULL AND seq <= $1
	ORDER BY 1`

// loadDone reads the spans that are published or blocked, from which seq on each
// ordering key is blocked, and how many blocked events there are.
func (t *term) loadDone(ctx context.Context, lowWatermark int64) (done []span, blocked map[string]int64, n int, err error) {
	rows, err := t.reads.QueryContext(ctx, loadSQL, lowWatermark)
	if err != nil {
		return nil, nil, 0, err
	}
	defer rows.Close()
	blocked = map[string]int64{}
	for rows.Next() {
		var s span
		var w store.Row
		if err := rows.Scan(&s.lo, &s.hi, &w.Topic, &w.Key); err != nil {
			return nil, nil, 0, err
		}
		if w.Topic != "" {
			n++
		}
		if w.Topic != "" && w.Key != nil {
			if _, known := blocked[w.OrderingKey()]; !known { // the rows come in order
				blocked[w.OrderingKey()] = s.lo
			}
		}
		switch last := len(done) - 1; {
		case s.hi <= lowWatermark:
		case last >= 0 && s.lo <= done[last].hi+1: // there may be a range for each mark
			done[last].hi = max(done[last].hi, s.hi)
		default:
			done = append(done, s)
		}
	}
	return done, blocked, n, rows.Err()
}

const rowColumns = `seq, id, aggregate_id, aggregate_version, event_type, event_data, topic, key, headers, value, created_at`

// readSQL selects the rows in the gaps and those above the high watermark in one
// statement, and so in one snapshot: with two statements, a row could be missed
// in the gaps and the next of its aggregate be found above the high watermark.
// Each engine takes a list of gaps in its own way.
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

// gapPause is how often the open transactions are listed, and the gaps read
// although nothing woke the reader.
const gapPause = 100 * time.Millisecond

// read makes a batch, nil if empty, of the next rows in order. There are more
// when the read was cut off by its limit.
func (t *term) read(ctx context.Context) (b *batch, more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	query := `SELECT ` + rowColumns + ` FROM outbox_events WHERE seq > $1 ORDER BY seq LIMIT $2`
	args := []any{t.cursor.highWatermark, batchRows} // only the reader changes the cursor, and so reads it without the lock
	if len(t.cursor.gaps) > 0 {
		query = readSQL[t.db.Engine]
		los, his := make([]int64, len(t.cursor.gaps)), make([]int64, len(t.cursor.gaps))
		for i, g := range t.cursor.gaps {
			los[i], his[i] = g.lo, g.hi
		}
		args = append(args, t.array(los), t.array(his))
	}
	result, err := t.reads.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, false, fmt.Errorf("read outbox: %w", err)
	}
	rows, cut, err := t.scanBatch(result)
	if err != nil {
		return nil, false, fmt.Errorf("read outbox: %w", err)
	}
	complete := everywhere
	if cut {
		complete = rows[len(rows)-1].Seq
	}
	if !cut { // in a backlog no offered row is accepted
		for i := range rows {
			t.readVersions.note(&rows[i])
		}
	}
	b = t.startBatch(rows, complete)
	return b, cut, t.refreshGaps(ctx)
}

// startBatch makes a batch of rows that were read, which are in flight from here
// on. See cursor.noteRead for complete.
func (t *term) startBatch(rows []store.Row, complete int64) *batch {
	seqs := make([]int64, len(rows))
	for i := range rows {
		seqs[i] = rows[i].Seq
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cursor.noteRead(seqs, complete)
	if complete != nowhere {
		t.catchingUp = complete != everywhere
	}
	if len(rows) == 0 {
		return nil
	}
	b := &batch{rows: rows, unpublished: len(rows)}
	t.inFlight = append(t.inFlight, b)
	return b
}

// refreshGaps lists the transactions that can still fill gaps, at most once in
// gapPause.
func (t *term) refreshGaps(ctx context.Context) error {
	if len(t.cursor.gaps) == 0 || time.Since(t.writersListed) < gapPause {
		return nil
	}
	writers, err := t.listWriters(ctx)
	if err != nil {
		return err
	}
	t.writersListed = time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cursor.noteWriters(writers)
	return nil
}

// array makes an argument of a query from a list of numbers.
func (t *term) array(n []int64) any {
	if t.db.Engine == sqldb.Postgres {
		return n
	}
	b, _ := json.Marshal(n)
	return string(b)
}

// scanBatch reads rows until a batch is full: the rows of each partition in it fit
// into one record batch. A topic whose partitions are not known yet counts as one
// partition.
func (t *term) scanBatch(result *sql.Rows) (rows []store.Row, cut bool, err error) {
	defer result.Close()
	type destination struct {
		topic     string
		partition int32
	}
	sizes := map[destination]int{}
	total := 0
	headers := wire.HeaderReader{}
	t.mu.Lock()
	partitions := maps.Clone(t.partitions)
	t.mu.Unlock()
	for result.Next() {
		var w store.Row
		var stored string
		err := result.Scan(&w.Seq, &w.ID, &w.AggregateID, &w.Version, &w.EventType, &w.Data, &w.Topic, &w.Key, &stored, &w.Value, sqldb.Time(&w.CreatedAt))
		if err != nil {
			return nil, false, err
		}
		if w.Headers, err = headers.Read(stored); err != nil {
			return nil, false, fmt.Errorf("headers of event %s: %w", w.ID, err)
		}
		w.Partition = partitionOf(&w, partitions[w.Topic])
		at, size := destination{w.Topic, w.Partition}, w.Size()
		sizes[at] += size
		if total += size; len(rows) > 0 && (sizes[at] > recordBatchBytes || total > batchBytes) {
			return rows, true, nil
		}
		rows = append(rows, w)
	}
	return rows, len(rows) == batchRows, result.Err()
}

// listWriters lists the transactions that hold a lock for writing the outbox. On
// SQLite there is one writer, and its rollback leaves no gap.
func (t *term) listWriters(ctx context.Context) ([]string, error) {
	if t.db.Engine != sqldb.Postgres {
		return nil, nil
	}
	rows, err := t.reads.QueryContext(ctx, `
		SELECT virtualtransaction FROM pg_locks
		WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND relation = 'outbox_events'::regclass
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`)
	if err != nil {
		return nil, fmt.Errorf("list writers: %w", err)
	}
	defer rows.Close()
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
