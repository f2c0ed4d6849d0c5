package relay

import (
	"cmp"
	"slices"

	"pizzaflow/outbox/internal/store"
)

// acceptOffered makes a batch of offered rows and of all that are offered besides.
// It accepts none, and returns nil, unless every earlier event of their aggregates
// has been read; then the table must be read.
func (t *term) acceptOffered(rows []store.Row) *batch {
gather:
	for len(rows) < batchRows {
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
		if size += rows[i].Size(); size > recordBatchBytes || len(rows) > batchRows || !t.readVersions.follows(&rows[i]) {
			return nil
		}
		t.readVersions.note(&rows[i])
	}
	return t.startBatch(rows, nowhere)
}

// versions remembers up to which version each aggregate was read, for the latest
// few thousand aggregates.
type versions struct{ latest, earlier map[aggregate]int64 }

// An aggregate is identified by its topic, too: each topic numbers the events of
// an id from 1.
type aggregate struct{ topic, id string }

const versionsKept = 8192

func (v *versions) of(a aggregate) int64 {
	if n, ok := v.latest[a]; ok {
		return n
	}
	return v.earlier[a]
}

// follows reports whether all earlier events of the row's aggregate were read.
func (v *versions) follows(r *store.Row) bool {
	return r.Version.Int64 == 1 || v.of(aggregate{r.Topic, r.AggregateID}) == r.Version.Int64-1
}

// note remembers that the row was read.
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
