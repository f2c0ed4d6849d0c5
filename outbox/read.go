package outbox

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"

	"pizzaflow/sqldb"
)

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
	r.cursor, r.blocked, r.single, r.recallNext = newCursor(floor, done), blocked, false, recallFew
	return nil
}

func (r *Relay) loadDone(ctx context.Context, floor int64) (done []span, blocked map[string]bool, err error) {
	rows, err := r.reads.QueryContext(ctx, `
		SELECT first_seq, last_seq, '' AS topic, NULL AS key FROM outbox_published WHERE last_seq > $1
		UNION ALL
		SELECT seq, seq, topic, key FROM outbox_blocked
		ORDER BY 1`, floor)
	if err != nil {
		return nil, nil, err
	}
	defer rows.Close()
	blocked = map[string]bool{}
	for rows.Next() {
		var s span
		var w row
		if err := rows.Scan(&s.lo, &s.hi, &w.topic, &w.key); err != nil {
			return nil, nil, err
		}
		if w.topic != "" && w.key != nil {
			blocked[w.queue()] = true
		}
		if s.hi > floor {
			done = append(done, s)
		}
	}
	return done, blocked, rows.Err()
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
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
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
	result, err := r.reads.QueryContext(ctx, query, args...)
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
	b, _ := json.Marshal(n)
	return string(b)
}

// scanRound reads rows until a round is full.
func scanRound(result *sql.Rows) (rows []row, cut bool, err error) {
	defer result.Close()
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
	rows, err := r.reads.QueryContext(ctx, `
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
