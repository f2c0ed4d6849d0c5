package relay

import (
	"cmp"
	"slices"

	"pizzaflow/outbox/internal/store"
)

// takeOffered makes a round of offered rows, with all that are offered besides.
// Nil says that the table must be read.
func (t *term) takeOffered(rows []store.Row) *round {
gather:
	for len(rows) < roundRows {
		select {
		case more := <-*t.offers:
			rows = append(slices.Clip(rows), more...)
		default:
			break gather
		}
	}
	slices.SortFunc(rows, func(a, b store.Row) int { return cmp.Compare(a.Seq, b.Seq) })
	rows = slices.DeleteFunc(rows, func(r store.Row) bool { return !t.cursor.wants(r.Seq) }) // read meanwhile
	size := 0
	for i := range rows {
		if size += rows[i].Size(); size > batchBytes || len(rows) > roundRows || !t.seen.follows(&rows[i]) {
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
func (v *versions) follows(r *store.Row) bool {
	if r.Version.Int64 != 1 && v.of(aggregate{r.Topic, r.AggregateID}) != r.Version.Int64-1 {
		return false
	}
	v.note(r)
	return true
}

func (v *versions) note(r *store.Row) {
	if !r.Version.Valid {
		return
	}
	if len(v.latest) >= versionsKept {
		v.latest, v.earlier = nil, v.latest
	}
	if v.latest == nil {
		v.latest = map[aggregate]int64{}
	}
	v.latest[aggregate{r.Topic, r.AggregateID}] = r.Version.Int64
}
