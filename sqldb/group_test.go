package sqldb_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// A thing is an item of the tests: a row of the table things.
type thing struct {
	id string
	n  int
}

// store is a flush function: all things in one transaction, which an id that
// is there already fails.
func store(db *sqldb.DB) func(context.Context, []thing) ([]int, error) {
	return func(ctx context.Context, things []thing) ([]int, error) {
		results := make([]int, len(things))
		err := db.Tx(ctx, func(tx *sql.Tx) error {
			for i, th := range things {
				if _, err := tx.ExecContext(ctx, `INSERT INTO things (id, n) VALUES ($1, $2)`, th.id, th.n); err != nil {
					return err
				}
				results[i] = th.n * 2
			}
			return nil
		})
		return results, err
	}
}

func count(t *testing.T, db *sqldb.DB) (n int) {
	t.Helper()
	if err := db.QueryRow(`SELECT COUNT(*) FROM things`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// A gate holds flushes up until it is opened.
type gate struct {
	entered chan []thing  // the items of each flush that came to the gate
	open    chan struct{} // closed to let all go
}

func newGate() *gate { return &gate{entered: make(chan []thing, 1000), open: make(chan struct{})} }

func (g *gate) around(flush func(context.Context, []thing) ([]int, error)) func(context.Context, []thing) ([]int, error) {
	return func(ctx context.Context, things []thing) ([]int, error) {
		g.entered <- things
		<-g.open
		return flush(ctx, things)
	}
}

// queue starts calls that wait behind the gate, n at least: those the flushers
// took first, and the rest in the queue, in the order of their numbers.
func (g *gate) queue(group *sqldb.Group[thing, int], flushers int, things []thing, done func(thing, int, error)) *sync.WaitGroup {
	var wg sync.WaitGroup
	for i, th := range things {
		before := sqldb.Queued(group)
		wg.Go(func() {
			r, err := group.Do(context.Background(), th)
			done(th, r, err)
		})
		if i < flushers {
			<-g.entered
			continue
		}
		for sqldb.Queued(group) == before {
			runtime.Gosched() // until it is in the queue
		}
	}
	return &wg
}

func flushers(db *sqldb.DB) int {
	if db.Engine == sqldb.SQLite {
		return 1
	}
	return 2
}

func things(n int) []thing {
	list := make([]thing, n)
	for i := range list {
		list[i] = thing{id: fmt.Sprint("t", i), n: i}
	}
	return list
}

func TestGroupStoresAllAndAnswersEach(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		var flushes, running, most atomic.Int64
		inner := store(db)
		group := sqldb.NewGroup(db, func(ctx context.Context, things []thing) ([]int, error) {
			flushes.Add(1)
			if now := running.Add(1); now > most.Load() {
				most.Store(now)
			}
			defer running.Add(-1)
			return inner(ctx, things)
		})
		const n = 500
		var wg sync.WaitGroup
		for _, th := range things(n) {
			wg.Go(func() {
				r, err := group.Do(t.Context(), th)
				if err != nil || r != 2*th.n {
					t.Errorf("%s: %d, %v", th.id, r, err)
				}
			})
		}
		wg.Wait()
		if got := count(t, db); got != n {
			t.Errorf("%d things are stored, want %d", got, n)
		}
		if flushes.Load() > n/4 || most.Load() > int64(flushers(db)) {
			t.Errorf("%d flushes, %d at a time", flushes.Load(), most.Load())
		}
		for sqldb.Flushers(group) > 0 { // the test hangs if one stays
			runtime.Gosched()
		}
	}, schema)
}

// Whoever finds a flusher free waits for nobody; the next flush takes what is
// queued, in order, and at most its size.
func TestGroupTakesWhatIsQueued(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		g := newGate()
		group := sqldb.NewGroup(db, g.around(store(db)))
		free := flushers(db)
		wg := g.queue(group, free, things(free+300), func(th thing, r int, err error) {
			if err != nil || r != 2*th.n {
				t.Errorf("%s: %d, %v", th.id, r, err)
			}
		})
		close(g.open)
		first := <-g.entered
		wg.Wait()
		second := <-g.entered
		if len(first) < len(second) {
			first, second = second, first
		}
		if len(first) != 256 || len(second) != 300-256 || first[0].n != free || second[0].n != free+256 {
			t.Errorf("flushes of %d from %d and %d from %d", len(first), first[0].n, len(second), second[0].n)
		}
	}, schema)
}

// A second flush goes out beside the first when it has no less to do, and not
// before.
func TestGroupSecondFlush(t *testing.T) {
	db := sqltest.Open(t, sqldb.Postgres, schema)
	var wg sync.WaitGroup
	entered, leave := make(chan []thing, 10), make(chan struct{})
	group := sqldb.NewGroup(db, func(_ context.Context, things []thing) ([]int, error) {
		entered <- things
		<-leave
		return make([]int, len(things)), nil
	})
	do := func(th thing) {
		queued, flushing := sqldb.Queued(group), sqldb.Flushers(group)
		wg.Go(func() {
			if _, err := group.Do(context.Background(), th); err != nil {
				t.Error(err)
			}
		})
		for sqldb.Queued(group) == queued && sqldb.Flushers(group) == flushing {
			runtime.Gosched()
		}
	}
	all := things(9)
	do(all[0])
	<-entered
	do(all[1])
	<-entered // one beside one
	for _, th := range all[2:5] {
		do(th)
	}
	leave <- struct{}{} // one of the two, whose flusher takes all three
	if next := <-entered; len(next) != 3 {
		t.Fatalf("a flush of %d, want 3", len(next))
	}
	leave <- struct{}{} // the other, or the three
	for sqldb.Flushers(group) > 1 {
		runtime.Gosched()
	}
	left := 3
	if sqldb.Taken(group) == 1 {
		left = 1
	}
	for n := 1; n <= left; n++ {
		if len(entered) > 0 {
			t.Fatalf("beside %d a flush of %d", left, n-1)
		}
		do(all[4+n])
	}
	if next := <-entered; len(next) != left {
		t.Errorf("beside %d a flush of %d", left, len(next))
	}
	close(leave)
	wg.Wait()
}

func TestGroupBadItemsFailAlone(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		for name, bad := range map[string][]int{"first": {2}, "middle": {40}, "last": {65}, "three": {10, 11, 50}, "no": nil} {
			t.Run(name, func(t *testing.T) {
				mustExec(t, db, `DELETE FROM things`)
				mustExec(t, db, `INSERT INTO things (id, n) VALUES ('there', 0)`)
				g := newGate()
				group := sqldb.NewGroup(db, g.around(store(db)))
				list := things(66)
				for _, i := range bad {
					list[i].id = "there"
				}
				wg := g.queue(group, flushers(db), list, func(th thing, _ int, err error) {
					if isBad := slices.Contains(bad, th.n); isBad != sqldb.IsUnique(err) || !isBad && err != nil {
						t.Errorf("%d: %v", th.n, err)
					}
				})
				close(g.open)
				wg.Wait()
				if got := count(t, db); got != 1+66-len(bad) {
					t.Errorf("%d things are stored, want %d", got, 1+66-len(bad))
				}
			})
		}
	}, schema)
}

// A database that is away is asked once for all who wait.
func TestGroupDatabaseAway(t *testing.T) {
	for _, engine := range []sqldb.Engine{sqldb.SQLite, sqldb.Postgres} {
		t.Run(string(engine), func(t *testing.T) {
			url := sqltest.URL(t, engine)
			db := sqltest.Connect(t, url, schema)
			if engine == sqldb.Postgres { // as after a fail-over that was not noticed
				db = sqltest.Connect(t, url+"&default_transaction_read_only=on")
			} else {
				mustExec(t, db, `PRAGMA query_only(1)`)
			}
			g := newGate()
			group := sqldb.NewGroup(db, g.around(store(db)))
			var refused atomic.Int64
			wg := g.queue(group, flushers(db), things(flushers(db)+200), func(_ thing, _ int, err error) {
				if sqldb.IsUnavailable(err) {
					refused.Add(1)
				}
			})
			close(g.open)
			wg.Wait()
			if n := refused.Load(); n != int64(200+flushers(db)) || len(g.entered) != 1 {
				t.Errorf("%d are told that the database is away, after %d more flushes", n, len(g.entered))
			}
		})
	}
}

// When the database goes away while a bad item is looked for, the search ends.
func TestGroupStopsLookingWhenTheDatabaseIsAway(t *testing.T) {
	db := sqltest.Open(t, sqldb.SQLite, schema)
	g := newGate()
	var sizes []int
	group := sqldb.NewGroup(db, g.around(func(_ context.Context, things []thing) ([]int, error) {
		sizes = append(sizes, len(things))
		switch len(sizes) {
		case 1: // whom the gate held up
			return []int{0}, nil
		case 2:
			return nil, errors.New("one of them is bad")
		}
		return nil, io.ErrUnexpectedEOF
	}))
	wg := g.queue(group, 1, things(65), func(th thing, _ int, err error) {
		if th.n > 0 && !sqldb.IsUnavailable(err) {
			t.Errorf("%d: %v", th.n, err)
		}
	})
	close(g.open)
	wg.Wait()
	if got := fmt.Sprint(sizes); got != "[1 64 32]" {
		t.Errorf("flushes of %s, want [1 64 32]", got)
	}
}

// A caller who leaves is taken out of the queue; one whose item is in a flush
// hears what became of it, and neither stops the others.
// Whoever queues while a flush waits for a silent database is answered with it,
// and not after a silence of his own.
func TestGroupAnswersAllWhoWaitForASilentDatabase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		group := sqldb.NewGroup(&sqldb.DB{Engine: sqldb.SQLite}, func(ctx context.Context, _ []thing) ([]int, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		began := time.Now()
		var asking sync.WaitGroup
		for i := range 3 {
			asking.Go(func() {
				time.Sleep(time.Duration(i) * time.Second) // virtual
				if _, err := group.Do(t.Context(), thing{n: i}); !sqldb.IsUnavailable(err) {
					t.Errorf("caller %d got %v", i, err)
				}
				if took := time.Since(began); took != 10*time.Second {
					t.Errorf("caller %d was answered after %s, want 10s", i, took)
				}
			})
		}
		asking.Wait()
	})
}

func TestGroupCallerLeaves(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		g := newGate()
		group := sqldb.NewGroup(db, g.around(store(db)))
		taken, leave := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		for i := range flushers(db) {
			wg.Go(func() {
				if r, err := group.Do(taken, thing{id: fmt.Sprint("taken", i), n: 3}); err != nil || r != 6 {
					t.Errorf("left in mid-flush: %d, %v", r, err)
				}
			})
			<-g.entered
		}
		leave()
		queued, leave := context.WithCancel(context.Background())
		result := make(chan error)
		go func() {
			_, err := group.Do(queued, thing{id: "queued"})
			result <- err
		}()
		for sqldb.Queued(group) == 0 {
			runtime.Gosched()
		}
		leave()
		if err := <-result; !errors.Is(err, context.Canceled) {
			t.Errorf("left while queued: %v", err)
		}
		stays := g.queue(group, 0, []thing{{id: "stays", n: 4}}, func(_ thing, r int, err error) {
			if r != 8 || err != nil {
				t.Errorf("who stays gets %d, %v", r, err)
			}
		})
		close(g.open)
		stays.Wait()
		wg.Wait()
		if _, err := group.Do(queued, thing{id: "late"}); !errors.Is(err, context.Canceled) {
			t.Errorf("left before: %v", err)
		}
		if n := count(t, db); n != flushers(db)+1 {
			t.Errorf("%d things are stored, want what was taken and who stayed", n)
		}
	}, schema)
}

func TestGroupOutlivesPanics(t *testing.T) {
	db := sqltest.Open(t, sqldb.SQLite, schema)
	g := newGate()
	inner := store(db)
	group := sqldb.NewGroup(db, g.around(func(ctx context.Context, things []thing) ([]int, error) {
		if slices.ContainsFunc(things, func(th thing) bool { return th.n == 13 }) {
			panic("thirteen")
		}
		return inner(ctx, things)
	}))
	wg := g.queue(group, 1, things(64), func(th thing, _ int, err error) {
		if th.n == 13 && (err == nil || !strings.Contains(err.Error(), "thirteen")) || th.n != 13 && err != nil {
			t.Errorf("%d: %v", th.n, err)
		}
	})
	close(g.open)
	wg.Wait()
	if n := count(t, db); n != 63 {
		t.Errorf("%d things are stored, want 63", n)
	}
}

func TestGroupNeedsAResultForEach(t *testing.T) {
	db := sqltest.Open(t, sqldb.SQLite, schema)
	runs := 0
	group := sqldb.NewGroup(db, func(context.Context, []thing) ([]int, error) { runs++; return nil, nil })
	if _, err := group.Do(t.Context(), thing{}); err == nil || runs != 1 {
		t.Errorf("%v after %d runs", err, runs)
	}
}

func TestGroupRefusesWhenFull(t *testing.T) {
	db := sqltest.Open(t, sqldb.SQLite, schema)
	g := newGate()
	group := sqldb.NewGroup(db, g.around(func(_ context.Context, things []thing) ([]int, error) { return make([]int, len(things)), nil }))
	const waiting = 16 * 256
	wg := g.queue(group, 1, things(1+waiting), func(_ thing, _ int, err error) {
		if err != nil {
			t.Error(err)
		}
	})
	if _, err := group.Do(t.Context(), thing{}); !errors.Is(err, sqldb.ErrFull) || !sqldb.IsUnavailable(err) {
		t.Errorf("one more: %v", err)
	}
	close(g.open)
	wg.Wait()
}

// Random callers, some of whom leave and some of whose items are bad, against
// what is stored in the end.
func TestGroupAtRandom(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		rng := rand.New(rand.NewPCG(seed, 0))
		group := sqldb.NewGroup(db, store(db))
		mustExec(t, db, `INSERT INTO things (id, n) VALUES ('there', 0)`)
		const n = 400
		var mu sync.Mutex
		var stored []string
		var wg sync.WaitGroup
		for i := range n {
			th := thing{id: fmt.Sprint("t", i), n: i}
			if rng.IntN(20) == 0 {
				th.id = "there"
			}
			ctx, cancel := context.WithCancel(context.Background())
			if rng.IntN(10) == 0 {
				ctx, cancel = context.WithTimeout(context.Background(), time.Duration(rng.IntN(3000))*time.Microsecond)
			}
			wg.Go(func() {
				defer cancel()
				r, err := group.Do(ctx, th)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil && r == 2*i && th.id != "there":
					stored = append(stored, th.id)
				case errors.Is(err, context.DeadlineExceeded), th.id == "there" && sqldb.IsUnique(err):
				default:
					t.Errorf("%s: %d, %v", th.id, r, err)
				}
			})
		}
		wg.Wait()
		rows, err := db.Query(`SELECT id FROM things WHERE id <> 'there'`)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var id string
			if err := rows.Scan(&id); err != nil {
				t.Fatal(err)
			}
			i := slices.Index(stored, id)
			if i < 0 {
				t.Fatalf("%s is stored, and its caller was told otherwise", id)
			}
			stored = slices.Delete(stored, i, i+1)
		}
		if err := rows.Err(); err != nil || len(stored) > 0 {
			t.Errorf("told to be stored, and not there: %v (%v)", stored, err)
		}
	}, schema)
}

// BenchmarkGroup stores rows for 32 callers, one transaction each and grouped.
func BenchmarkGroup(b *testing.B) {
	for _, engine := range []sqldb.Engine{sqldb.SQLite, sqldb.Postgres} {
		for _, grouped := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/grouped=%t", engine, grouped), func(b *testing.B) {
				db := sqltest.Open(b, engine, schema)
				do := store(db)
				group := sqldb.NewGroup(db, do)
				var n atomic.Int64
				b.SetParallelism(16) // times the two processors this is measured on
				b.ResetTimer()
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						th := thing{id: fmt.Sprint("t", n.Add(1))}
						var err error
						if grouped {
							_, err = group.Do(b.Context(), th)
						} else {
							_, err = do(b.Context(), []thing{th})
						}
						if err != nil {
							b.Error(err)
							return
						}
					}
				})
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "items/s")
			})
		}
	}
}
