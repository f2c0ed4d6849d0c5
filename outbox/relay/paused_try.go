package relay

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"

	"pizzaflow/outbox/internal/store"
	"pizzaflow/sqldb"
)

// A try sends the first rows of paused partitions.
type try struct {
	t            *term
	client       *kgo.Client
	parts        []*part
	topicRefused bool // a topic was refused as a whole
}

// A part of a try is about one paused partition.
type part struct {
	paused   *pausedPartition
	oneByOne bool
	seqs     []int64
	rows     []store.Row
	errs     []error // the outcome of each row
	keep     map[int64]bool
	cause    error // why rows are kept in the paused partition
}

// run reads the rows, sends them, has the outcome recorded, and takes those that
// were published or blocked out of their paused partitions.
func (tr *try) run(ctx context.Context, paused []*pausedPartition) error {
	for _, p := range paused {
		part, err := tr.read(ctx, p)
		if err != nil {
			return err
		}
		tr.parts = append(tr.parts, part)
	}
	if err := tr.send(ctx); err != nil {
		return err
	}
	if err := tr.record(); err != nil {
		return err
	}
	for _, p := range tr.parts {
		tr.t.releaseTried(p.paused, p.seqs, p.keep, p.cause)
		tr.t.storePaused(ctx, p.paused)
	}
	return nil
}

// read reads the rows of a paused partition that are tried next.
func (tr *try) read(ctx context.Context, paused *pausedPartition) (*part, error) {
	tr.t.mu.Lock()
	p := &part{paused: paused, seqs: slices.Clone(paused.seqs[:min(paused.limit, len(paused.seqs))]), oneByOne: paused.oneByOne}
	tr.t.mu.Unlock()
	var err error
	if p.rows, err = tr.t.readRows(ctx, p.seqs); err != nil {
		return nil, err
	}
	tr.t.setOldest(paused, p.rows)
	tr.t.storePaused(ctx, paused)
	if len(p.rows) < len(p.seqs) && len(p.rows) > 0 { // cut off by the limit, or rows were deleted, which are not kept
		last := p.rows[len(p.rows)-1].Seq
		p.seqs = slices.DeleteFunc(p.seqs, func(seq int64) bool { return seq > last })
	}
	p.errs = make([]error, len(p.rows))
	return p, nil
}

// readRows reads rows of a paused partition, as many as one batch takes.
func (t *term) readRows(ctx context.Context, seqs []int64) ([]store.Row, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	conn, giveBack, err := t.borrowConn(ctx)
	if err != nil {
		return nil, fmt.Errorf("read outbox: %w", err)
	}
	defer giveBack()
	query := `SELECT ` + rowColumns + ` FROM outbox_events WHERE seq = ANY ($1::bigint[]) ORDER BY seq`
	if t.db.Engine == sqldb.SQLite {
		query = `SELECT ` + rowColumns + ` FROM outbox_events WHERE seq IN (SELECT value FROM json_each($1)) ORDER BY seq`
	}
	result, err := conn.QueryContext(ctx, query, t.array(seqs))
	if err != nil {
		return nil, fmt.Errorf("read outbox: %w", err)
	}
	rows, _, err := t.scanBatch(result)
	if err != nil {
		return nil, fmt.Errorf("read outbox: %w", err)
	}
	return rows, nil
}

// send sends the rows of all parts at once, or those of a single part one by one.
func (tr *try) send(ctx context.Context) error {
	refusals := map[string]error{} // of topics
	for _, p := range tr.parts {
		refusal, known := refusals[p.paused.topic]
		if !known {
			var err error
			if refusal, err = tr.t.resolveTopic(ctx, tr.client, p.paused.topic); err != nil {
				return err
			}
			refusals[p.paused.topic] = refusal
		}
		tr.t.assignPartitions(p.rows)
		tr.refuse(p, refusal)
		if p.oneByOne && refusal == nil {
			return tr.sendOneByOne(ctx, p)
		}
	}
	var rows []store.Row
	var errs []error
	for _, p := range tr.parts {
		rows, errs = append(rows, p.rows...), append(errs, p.errs...)
	}
	err := tr.t.send(ctx, tr.client, rows, errs)
	for _, p := range tr.parts {
		n := copy(p.errs, errs)
		errs = errs[n:]
	}
	return err
}

// refuse notes which rows of a part are not sent: those of blocked keys, or all if
// their topic is refused.
func (tr *try) refuse(p *part, refusal error) {
	tr.t.mu.Lock()
	defer tr.t.mu.Unlock()
	for i := range p.rows {
		switch {
		case refusal != nil:
			p.errs[i] = refusal
		case tr.t.isBlocked(&p.rows[i]):
			p.errs[i] = errBlocked
		}
	}
}

// sendOneByOne sends one row after the other until one is refused that may be taken
// later.
func (tr *try) sendOneByOne(ctx context.Context, p *part) error {
	for i := range p.rows {
		tr.t.mu.Lock()
		if tr.t.isBlocked(&p.rows[i]) {
			p.errs[i] = errBlocked
		}
		tr.t.mu.Unlock()
		if err := tr.t.send(ctx, tr.client, p.rows[i:i+1], p.errs[i:i+1]); err != nil {
			return err
		}
		switch err := p.errs[i]; {
		case err == nil, errors.Is(err, errBlocked):
		case permanentlyRefused(err):
			tr.t.mu.Lock()
			tr.t.block(&p.rows[i])
			tr.t.mu.Unlock()
		default:
			for j := i + 1; j < len(p.rows); j++ {
				p.errs[j] = errPaused
			}
			return nil
		}
	}
	return nil
}

// record decides what becomes of each row, and has the marker record those that
// are published or blocked.
func (tr *try) record() error {
	a := ack{recorded: make(chan error, 1)}
	for _, p := range tr.parts {
		tr.decide(p, &a)
		tr.topicRefused = tr.topicRefused || refusesTopic(p.cause)
	}
	if len(a.published)+len(a.blocked) == 0 {
		return nil
	}
	tr.t.acks <- a
	return <-a.recorded
}

// decide adds the rows of a part that are published or blocked to the ack, and
// keeps the others for the next try. A permanent refusal blocks the row only if no
// other row was in its record batch.
func (tr *try) decide(p *part, a *ack) {
	tr.t.mu.Lock()
	defer tr.t.mu.Unlock()
	certain := p.oneByOne || len(tr.parts) == 1 && len(p.rows) == 1
	p.keep = map[int64]bool{}
	for i := range p.rows {
		row, err := &p.rows[i], p.errs[i]
		switch {
		case err == nil:
			a.published = append(a.published, row)
		case errors.Is(err, errBlocked):
			a.blocked = append(a.blocked, blockedRow{row, store.Reason(err)})
		case permanentlyRefused(err) && certain:
			tr.t.block(row)
			tr.t.reportBlocked(row, err)
			a.blocked = append(a.blocked, blockedRow{row, store.Reason(err)})
		default:
			p.keep[row.Seq] = true
			if p.cause == nil {
				p.cause = err
			}
		}
	}
}
