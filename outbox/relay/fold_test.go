package relay

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"pizzaflow/outbox"
	"pizzaflow/outbox/admin"
	"pizzaflow/outbox/internal/store"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// idleTerm is a term of the holder of epoch 0 that does nothing by itself.
func idleTerm(db *sqldb.DB) *term {
	relay := New(Config{Outbox: outbox.New(db, "/accounts"), Log: slog.New(slog.DiscardHandler)})
	return &term{Relay: relay, cursor: newCursor(0, nil), lease: new(lease), reads: db, paused: map[string]*pausedPartition{}}
}

func exec(t *testing.T, db *sqldb.DB, query string, args ...any) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), query, args...); err != nil {
		t.Fatal(err)
	}
}

func storeRanges(t *testing.T, db *sqldb.DB, ranges []publishedRange) {
	t.Helper()
	err := sqldb.Chunks(len(ranges), 512, func(from, to int) error {
		var args []any
		for _, r := range ranges[from:to] {
			args = append(args, r.lo, r.hi, r.at)
		}
		_, err := db.ExecContext(t.Context(), `INSERT INTO outbox_published (first_seq, last_seq, published_at) VALUES `+sqldb.Values(3, to-from), args...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func storedRanges(t *testing.T, db *sqldb.DB) []publishedRange {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), `SELECT first_seq, last_seq, published_at FROM outbox_published ORDER BY first_seq`)
	ranges, err := sqldb.ReadAll(rows, err, scanRange, "read ranges")
	if err != nil {
		t.Fatal(err)
	}
	return ranges
}

// Folded, the same numbers are published, each by at most a minute later than it
// was, in as few ranges as the minutes and holes allow; young ranges stay.
func TestFoldTogether(t *testing.T) {
	closed := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		published := map[int64]time.Time{}
		var ranges []publishedRange
		seq, at := int64(1), closed.Add(-5*time.Minute)
		for range rapid.IntRange(0, 60).Draw(t, "ranges") {
			seq += rapid.SampledFrom([]int64{0, 0, 0, 1, 5}).Draw(t, "hole")
			r := publishedRange{span: span{seq, seq + rapid.Int64Range(0, 2).Draw(t, "more")}, at: at}
			for n := r.lo; n <= r.hi; n++ {
				published[n] = r.at
			}
			ranges, seq = append(ranges, r), r.hi+1
			at = at.Add(time.Duration(rapid.IntRange(-20, 40).Draw(t, "pause")) * time.Second)
		}
		cut := rapid.IntRange(0, len(ranges)).Draw(t, "cut")
		first := foldTogether(folding{}, ranges[:cut], closed)
		open := first[len(first)-1]
		open.gone = nil
		folded := append(first[:len(first)-1], foldTogether(open, ranges[cut:], closed)...)
		for i, f := range folded[1:] {
			before := folded[i]
			if f.at.Before(closed) && before.foldsWith(f.publishedRange) {
				t.Fatalf("%v and %v are neighbours of a minute", before, f)
			}
			for n := f.lo; n <= f.hi; n++ {
				was, ok := published[n]
				if d := f.at.Sub(was); !ok || d < 0 || d >= foldWithin || d > 0 && !was.Before(closed) {
					t.Fatalf("%d was published at %v, and by %+v", n, was, f)
				}
				delete(published, n)
			}
		}
		if len(published) > 0 {
			t.Fatalf("%v are no longer published", published)
		}
	})
}

// An hour of ranges of one event each becomes one range a minute, in statements
// of a few rows; a term that is over folds nothing, and ranges that a rewind
// deleted do not come back.
func TestFold(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		const n = 2600
		began := sqldb.Now().Truncate(time.Minute).Add(-time.Hour)
		var ranges []publishedRange
		for i := range int64(n) {
			ranges = append(ranges, publishedRange{span{i + 1, i + 1}, began.Add(time.Duration(i) * time.Second)})
		}
		storeRanges(t, db, ranges)
		term := idleTerm(db)
		term.lease.epoch = 7 // of another
		fold := func(from int64, now time.Time) int64 {
			t.Helper()
			next, err := term.fold(t.Context(), from, now)
			if err != nil && term.lease.epoch == 0 {
				t.Fatal(err)
			}
			return next
		}
		fold(0, began.Add(time.Hour))
		if got := storedRanges(t, db); len(got) != n {
			t.Fatalf("a term that is over left %d ranges", len(got))
		}
		term.lease.epoch = 0
		now := began.Add(21*time.Minute + 30*time.Second) // so that minutes 0 to 19 are closed
		if next := fold(0, now); next != 20*60+1 {
			t.Errorf("the next call begins at %d", next)
		}
		got := storedRanges(t, db)
		if len(got) != 20+n-20*60 || got[19].span != (span{19*60 + 1, 20 * 60}) || !got[19].at.Equal(began.Add(20*time.Minute-time.Second)) {
			t.Errorf("%d ranges, the 20th is %+v", len(got), got[19])
		}
		tx, err := db.Begin()
		if err == nil {
			err = store.Rewind(t.Context(), tx, 1_000)
		}
		if err != nil || tx.Commit() != nil {
			t.Fatal(err)
		}
		fold(0, began.Add(time.Hour))
		if got := storedRanges(t, db); len(got) != 17 || got[16].span != (span{961, 999}) {
			t.Errorf("after a rewind: %d ranges, %+v", len(got), got[len(got)-1])
		}
	}, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
}

// What relays and operators read of the published ranges does not depend on how
// many there are: with 200,000 below the low watermark, as a day of few events leaves, a
// start reads as much as with none.
func TestFewRangesAreRead(t *testing.T) {
	const many = 200_000
	first := sqldb.Now().Add(-100 * time.Hour) // when the ranges begin, one a second
	db := sqltest.Open(t, sqldb.Postgres, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
	db.SetMaxOpenConns(1) // whose counters are read
	exec(t, db, `ALTER TABLE outbox_published SET (autovacuum_enabled = false)`)
	exec(t, db, `ANALYZE outbox_published`) // it is empty: the worst that a planner can think of it
	exec(t, db, `INSERT INTO outbox_published SELECT 2 * n, 2 * n, $1::timestamptz + n * INTERVAL '1 second' FROM generate_series(1, $2::BIGINT) n`, first, many)
	exec(t, db, `INSERT INTO outbox_blocked (seq, topic, reason, since, skipped_at) SELECT 2 * n + 1, 'moves', 'too large', now(), now() FROM generate_series(1, $1::BIGINT) n`, many)
	exec(t, db, `UPDATE outbox_lease SET floor = $1`, 2*many-10)
	read := func() (n int) {
		t.Helper()
		exec(t, db, `SELECT pg_stat_force_next_flush()`)
		err := db.QueryRow(`SELECT SUM(seq_tup_read + idx_tup_fetch) FROM pg_stat_user_tables WHERE schemaname = current_schema() AND relname IN ('outbox_published', 'outbox_blocked')`).Scan(&n)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	term := idleTerm(db)
	op := admin.New(db)
	for _, step := range []struct {
		name string
		most int
		do   func(context.Context) error
	}{
		{"load", 50, func(ctx context.Context) error {
			if err := term.prepareReads(ctx); err != nil {
				return err
			}
			if err := term.load(ctx, 2*many-10); err != nil {
				return err
			}
			if term.cursor.highWatermark != 2*many+1 {
				return fmt.Errorf("the high watermark is %d", term.cursor.highWatermark)
			}
			return nil
		}},
		{"status", many + 50, func(ctx context.Context) error { _, err := op.Status(ctx); return err }}, // it counts the skipped events
		{"metrics", 50, func(ctx context.Context) error { _, err := term.askUnpublished(ctx); return err }},
		{"skip refused", 50, func(ctx context.Context) error {
			_, err := op.SkipRefused(ctx, "moves", admin.Action{DryRun: true})
			return err
		}},
		{"rewind", 100, func(ctx context.Context) error {
			tx, err := db.Begin()
			if err != nil {
				return err
			}
			defer tx.Rollback() //nolint:errcheck // to be undone
			return store.Rewind(ctx, tx, 2*many-20)
		}},
		{"since", 100, func(ctx context.Context) error {
			term.republishSince = first.Add((many - 10) * time.Second)
			if err := term.rewindSince(ctx); err != errRewound { //nolint:errorlint // itself
				return err
			}
			return nil
		}},
		{"fold", 2 * foldRows, func(ctx context.Context) error {
			_, err := term.fold(ctx, 2*many-100, sqldb.Now().Add(24*time.Hour))
			return err
		}},
		{"prune", 50, func(ctx context.Context) error {
			_, err := term.pruneOnce(ctx, first.Add(10*time.Second))
			return err
		}},
	} {
		before := read()
		if err := step.do(t.Context()); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		n := read() - before
		if t.Logf("%s reads %d rows", step.name, n); n > step.most {
			t.Errorf("%s reads %d rows, want at most %d", step.name, n, step.most)
		}
	}
}

// Ranges that reach above a number are all found, and nothing else is.
func TestRangesAbove(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		at := sqldb.Now()
		storeRanges(t, db, []publishedRange{{span{3, 5}, at}, {span{6, 6}, at}, {span{9, 12}, at}})
		for lowWatermark, want := range map[int64][]span{
			0: {{3, 6}, {9, 12}}, 2: {{3, 6}, {9, 12}}, 3: {{3, 6}, {9, 12}}, 5: {{6, 6}, {9, 12}}, 6: {{9, 12}}, 10: {{9, 12}}, 12: nil, 20: nil,
		} {
			done, _, _, err := idleTerm(db).loadDone(t.Context(), lowWatermark)
			if err != nil || !slices.Equal(done, want) {
				t.Errorf("above %d: %v, %v; want %v", lowWatermark, done, err, want)
			}
		}
	}, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
}

// A thousand marks do not leave a thousand dead versions of the lease's row: with
// an old snapshot open nobody could clear those away, and every mark would have
// to pass by all of them.
func TestMarksSpareTheLease(t *testing.T) {
	const marks = 1000
	db := sqltest.Open(t, sqldb.Postgres, sqltest.Schema{Name: "outbox", FS: outbox.Schema})
	db.SetMaxOpenConns(1) // whose counters are read
	l := &lease{db: db, conn: db, ttl: time.Hour, connLock: make(chan struct{}, 1)}
	for seq := range int64(marks) {
		if err := l.mark(t.Context(), seq+1, []span{{seq + 1, seq + 1}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	var updates, lowWatermark int
	exec(t, db, `SELECT pg_stat_force_next_flush()`)
	err := db.QueryRow(`SELECT n_tup_upd, (SELECT floor FROM outbox_lease) FROM pg_stat_user_tables WHERE schemaname = current_schema() AND relname = 'outbox_lease'`).Scan(&updates, &lowWatermark)
	if err != nil || updates > marks/10 || lowWatermark != updates {
		t.Errorf("%d marks: %d versions, low watermark %d, %v", marks, updates, lowWatermark, err)
	}
	if n := len(storedRanges(t, db)); n != marks {
		t.Errorf("%d ranges of %d", n, marks)
	}
	l.epoch = 9 // another's by now
	for range 2 {
		if err := l.mark(t.Context(), marks+1, []span{{marks + 1, marks + 1}}, nil); err != errLeaseLost { //nolint:errorlint // itself
			t.Errorf("a mark of a term that is over: %v", err)
		}
		l.tokens = 1 // for a mark that stores the low watermark, too
	}
}
