package outbox

import (
	"cmp"
	"slices"
)

// Rows that this process has just committed need not be read back when its own
// relay leads: they are handed over. The relay takes them only if nothing of
// their aggregates can be missing before them; otherwise, and whenever there
// are too many, the table decides.

const handOffs = 256 // transactions waiting to be taken

// A hand takes what is committed during one term of this process's relay, from
// the beginning of the transaction on. Nothing of it reaches a later term: that
// may stand on another server, which never received it and gives its numbers
// to other events.
type hand chan []row

// handOver gives committed rows to the relay of this process; false says that
// it must read them. They are told apart from the table's by nothing.
func (o *Outbox) handOver(to *hand, rows []row) bool {
	if to == nil || o.hand.Load() != to {
		return false
	}
	for i := range rows {
		if !rows[i].version.Valid || rows[i].seq == 0 {
			return false
		}
	}
	select {
	case *to <- rows:
		return true
	default:
		return false
	}
}

// takeHanded makes a round of rows that were handed over, with whatever else
// waits there. Nil says that the table must be read.
func (t *term) takeHanded(rows []row) *round {
gather:
	for len(rows) < roundRows {
		select {
		case more := <-*t.hand:
			rows = append(slices.Clip(rows), more...)
		default:
			break gather
		}
	}
	slices.SortFunc(rows, func(a, b row) int { return cmp.Compare(a.seq, b.seq) })
	rows = slices.DeleteFunc(rows, func(r row) bool { return !t.cursor.wants(r.seq) }) // read meanwhile
	size := 0
	for i := range rows {
		if size += rows[i].size(); size > batchBytes || len(rows) > roundRows || !t.seen.follows(&rows[i]) {
			return nil
		}
	}
	return t.take(rows, nowhere)
}

// versions remembers up to which version aggregates were read: the latest few
// thousand of them.
type versions struct{ latest, earlier map[aggregate]int64 }

// An aggregate is what versions are counted for: topics number the events of
// one id each for themselves.
type aggregate struct{ topic, id string }

const versionsKept = 8192

func (v *versions) of(a aggregate) int64 {
	if n, ok := v.latest[a]; ok {
		return n
	}
	return v.earlier[a]
}

// follows notes that the row is read, if all before it of its aggregate were.
func (v *versions) follows(r *row) bool {
	if r.version.Int64 != 1 && v.of(aggregate{r.topic, r.aggregateID}) != r.version.Int64-1 {
		return false
	}
	v.note(r)
	return true
}

func (v *versions) note(r *row) {
	if !r.version.Valid {
		return
	}
	if len(v.latest) >= versionsKept {
		v.latest, v.earlier = nil, v.latest
	}
	if v.latest == nil {
		v.latest = map[aggregate]int64{}
	}
	v.latest[aggregate{r.topic, r.aggregateID}] = r.version.Int64
}
