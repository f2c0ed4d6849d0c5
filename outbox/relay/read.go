package relay

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"pizzaflow/outbox/internal/store"
	"pizzaflow/outbox/internal/wire"
	"pizzaflow/sqldb"
)

// load builds the cursor from the tables, and from nothing else: what memory
// knows may be newer than a database that was failed over. A blocked row is
// done with, like a published one, until an operator says otherwise.
func (t *term) load(ctx context.Context, floor int64) error {
	done, blocked, n, err := t.loadDone(ctx, floor)
	if err != nil {
		return fmt.Errorf("load cursor: %w", err)
	}
	t.mu.Lock() // the lease is being kept already
	defer t.mu.Unlock()
	t.cursor, t.blocked, t.blockedRows, t.behind = newCursor(floor, done), blocked, n, true
	return nil
}

const loadSQL = `
	SELECT first_seq, last_seq, '' AS topic, NULL AS key FROM outbox_published WHERE ` + store.RangesAbove + `
	UNION ALL
	SELECT seq, seq, CASE WHEN skipped_at IS NULL THEN topic ELSE '' END, key FROM outbox_blocked WHERE seq > $1
	UNION ALL
	SELECT seq, seq, topic, key FROM outbox_blocked WHERE skipped_at IS NULL AND seq <= $1
	ORDER BY 1`

// loadDone reads the spans that are done with, and the queues that are blocked:
// from which seq on each, and n events in all.
func (t *term) loadDone(ctx context.Context, floor int64) (done []span, blocked map[string]int64, n int, err error) {
	rows, err := t.reads.QueryContext(ctx, loadSQL, floor)
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
			if _, known := blocked[w.Queue()]; !known { // they come in order
				blocked[w.Queue()] = s.lo
			}
		}
		switch last := len(done) - 1; {
		case s.hi <= floor:
		case last >= 0 && s.lo <= done[last].hi+1: // there are as many as there were marks
			done[last].hi = max(done[last].hi, s.hi)
		default:
			done = append(done, s)
		}
	}
	return done, blocked, n, rows.Err()
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

// gapPause is how often the writers are listed, and the gaps looked into
// although nothing calls.
const gapPause = 100 * time.Millisecond

// read takes the next rows, in order; again says that there may be more.
func (t *term) read(ctx context.Context) (rd *round, again bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	query := `SELECT ` + rowColumns + ` FROM outbox_events WHERE seq > $1 ORDER BY seq LIMIT $2`
	args := []any{t.cursor.head, roundRows} // nobody else writes the cursor
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
	rows, cut, err := t.scanRound(result)
	if err != nil {
		return nil, false, fmt.Errorf("read outbox: %w", err)
	}
	complete := everywhere
	if cut {
		complete = rows[len(rows)-1].Seq
	}
	if !cut { // in a backlog nothing is handed over
		for i := range rows {
			t.seen.note(&rows[i])
		}
	}
	rd = t.take(rows, complete)
	return rd, cut, t.askWriters(ctx)
}

// take notes that rows were read and are in flight from here on.
func (t *term) take(rows []store.Row, complete int64) *round {
	seqs := make([]int64, len(rows))
	for i := range rows {
		seqs[i] = rows[i].Seq
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cursor.read(seqs, complete)
	if complete != nowhere {
		t.behind = complete != everywhere
	}
	if len(rows) == 0 {
		return nil
	}
	rd := &round{rows: rows, left: len(rows)}
	t.flights = append(t.flights, rd)
	return rd
}

// askWriters finds out whose the gaps are, now and then.
func (t *term) askWriters(ctx context.Context) error {
	if len(t.cursor.gaps) == 0 || time.Since(t.asked) < gapPause {
		return nil
	}
	writers, err := t.writers(ctx)
	if err != nil {
		return err
	}
	t.asked = time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cursor.locks(writers)
	return nil
}

// readRows reads the rows of a lane, as many as one batch takes.
func (t *term) readRows(ctx context.Context, seqs []int64) ([]store.Row, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	from, done, err := t.occasional(ctx)
	if err != nil {
		return nil, fmt.Errorf("read outbox: %w", err)
	}
	defer done()
	query := `SELECT ` + rowColumns + ` FROM outbox_events WHERE seq = ANY ($1::bigint[]) ORDER BY seq`
	if t.db.Engine == sqldb.SQLite {
		query = `SELECT ` + rowColumns + ` FROM outbox_events WHERE seq IN (SELECT value FROM json_each($1)) ORDER BY seq`
	}
	result, err := from.QueryContext(ctx, query, t.array(seqs))
	if err != nil {
		return nil, fmt.Errorf("read outbox: %w", err)
	}
	rows, _, err := t.scanRound(result)
	if err != nil {
		return nil, fmt.Errorf("read outbox: %w", err)
	}
	return rows, nil
}

// occasional is the connection for what the term reads now and then, until done
// is called: on PostgreSQL the session of the lease, because one more would
// mostly be idle, and the pool may be without a connection for long.
func (t *term) occasional(ctx context.Context) (conn connection, done func(), err error) {
	if t.db.Engine == sqldb.SQLite {
		return t.db.Read(), func() {}, nil
	}
	done, err = t.lease.take(ctx)
	return t.lease.conn, done, err
}

// array is a list of numbers as an argument of a query.
func (t *term) array(n []int64) any {
	if t.db.Engine == sqldb.Postgres {
		return n
	}
	b, _ := json.Marshal(n)
	return string(b)
}

// scanRound reads rows until a round is full: what it has for any partition is
// one batch. A topic that is not known yet is taken for one partition.
func (t *term) scanRound(result *sql.Rows) (rows []store.Row, cut bool, err error) {
	defer result.Close()
	type place struct {
		topic     string
		partition int32
	}
	sizes := map[place]int{}
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
		at, size := place{w.Topic, w.Partition}, w.Size()
		sizes[at] += size
		if total += size; len(rows) > 0 && (sizes[at] > batchBytes || total > roundBytes) {
			return rows, true, nil
		}
		rows = append(rows, w)
	}
	return rows, len(rows) == roundRows, result.Err()
}

// writers lists the transactions that hold a lock for writing the outbox. On
// SQLite there is one writer, and what it rolls back leaves no gap.
func (t *term) writers(ctx context.Context) ([]string, error) {
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
