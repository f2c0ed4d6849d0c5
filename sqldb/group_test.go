package sqldb_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

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

// A memory is a store without a database: all things of a flush or none, which an
// id that is there already fails.
type memory struct {
	mu  sync.Mutex
	ids []string
}

var errThere = errors.New("one of them is there already")

func (m *memory) store(_ context.Context, things []thing) ([]int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	ids, results := m.ids, make([]int, len(things))
	for i, th := range things {
		if slices.Contains(ids, th.id) {
			return nil, errThere
		}
		ids, results[i] = append(ids, th.id), th.n*2
	}
	m.ids = ids
	return results, nil
}

// A gate holds flushes up until it is opened. It is for a bubble, in which a call
// has reached the queue or its flush the gate once everything is blocked.
type gate struct {
	entered chan []thing  // the items of each flush that came to the gate
	open    chan struct{} // closed to let all go
}

func newGate() *gate { return &gate{entered: make(chan []thing, 1000), open: make(chan struct{})} }

// group makes a group on an engine whose flushes come to the gate first.
func (g *gate) group(engine sqldb.Engine, flush func(context.Context, []thing) ([]int, error)) *sqldb.Group[thing, int] {
	return sqldb.NewGroup(&sqldb.DB{Engine: engine}, func(ctx context.Context, things []thing) ([]int, error) {
		g.entered <- things
		<-g.open
		return flush(ctx, things)
	})
}

// queue starts a call for each thing, one after the other: the flushers take the
// first ones to the gate, and the rest wait in the queue, in this order.
func (g *gate) queue(group *sqldb.Group[thing, int], things []thing, done func(thing, int, error)) *sync.WaitGroup {
	var wg sync.WaitGroup
	for _, th := range things {
		wg.Go(func() {
			r, err := group.Do(context.Background(), th)
			done(th, r, err)
		})
		synctest.Wait()
	}
	return &wg
}

// flushes are the items of the flushes that have come to the gate.
func (g *gate) flushes() (all [][]thing) {
	for len(g.entered) > 0 {
		all = append(all, <-g.entered)
	}
	return all
}

// flushers is how many flushes a group has at a time.
func flushers(engine sqldb.Engine) int {
	if engine == sqldb.SQLite {
		return 1
	}
	return 2
}

// eachInBubble runs fn for each engine in a bubble. The bubble ends only when the
// flushers of the groups have.
func eachInBubble(t *testing.T, fn func(t *testing.T, engine sqldb.Engine)) {
	for _, engine := range []sqldb.Engine{sqldb.SQLite, sqldb.Postgres} {
		t.Run(string(engine), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { fn(t, engine) })
		})
	}
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
		if flushes.Load() > n/4 || most.Load() > int64(flushers(db.Engine)) {
			t.Errorf("%d flushes, %d at a time", flushes.Load(), most.Load())
		}
	}, schema)
}

// A caller that finds a flusher free waits for no other; the next flush takes the
// queue, in order, and at most its size.
func TestGroupTakesWhatIsQueued(t *testing.T) {
	eachInBubble(t, func(t *testing.T, engine sqldb.Engine) {
		g := newGate()
		group := g.group(engine, new(memory).store)
		free := flushers(engine)
		wg := g.queue(group, things(free+300), func(th thing, r int, err error) {
			if err != nil || r != 2*th.n {
				t.Errorf("%s: %d, %v", th.id, r, err)
			}
		})
		for n, at := range g.flushes() {
			if len(at) != 1 || at[0].n != n || n >= free {
				t.Errorf("flush %d of %d flushers takes %d from %d", n, free, len(at), at[0].n)
			}
		}
		close(g.open)
		wg.Wait()
		next := g.flushes()
		if len(next) != 2 || len(next[0]) != 256 || len(next[1]) != 300-256 || next[0][0].n != free || next[1][0].n != free+256 {
			t.Errorf("then %d flushes, the first of %d from %d", len(next), len(next[0]), next[0][0].n)
		}
	})
}

// A second flush goes out beside the first when it has no less to do, and not
// before.
func TestGroupSecondFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type flush struct {
			items int
			end   chan struct{}
		}
		var begun []flush
		group := sqldb.NewGroup(&sqldb.DB{Engine: sqldb.Postgres}, func(_ context.Context, things []thing) ([]int, error) {
			f := flush{len(things), make(chan struct{})}
			begun = append(begun, f)
			<-f.end
			return make([]int, len(things)), nil
		})
		var wg sync.WaitGroup
		do := func(n int) {
			for range n {
				wg.Go(func() {
					if _, err := group.Do(context.Background(), thing{}); err != nil {
						t.Error(err)
					}
				})
				synctest.Wait()
			}
		}
		want := func(sizes ...int) {
			t.Helper()
			synctest.Wait()
			var got []int
			for _, f := range begun {
				got = append(got, f.items)
			}
			if !slices.Equal(got, sizes) {
				t.Fatalf("flushes of %d, want %d", got, sizes)
			}
		}
		do(1)
		want(1)
		do(1) // as much as the first has
		want(1, 1)
		do(3)
		want(1, 1)
		close(begun[0].end) // its flusher takes all three
		want(1, 1, 3)
		close(begun[1].end)
		do(2) // less than the three
		want(1, 1, 3)
		do(1)
		want(1, 1, 3, 3)
		do(1)
		close(begun[2].end) // one is less than the three beside it
		want(1, 1, 3, 3)
		close(begun[3].end)
		want(1, 1, 3, 3, 1)
		close(begun[4].end)
		wg.Wait()
	})
}

func TestGroupBadItemsFailAlone(t *testing.T) {
	for name, bad := range map[string][]int{"first": {2}, "middle": {40}, "last": {65}, "three": {10, 11, 50}, "no": nil} {
		t.Run(name, func(t *testing.T) {
			eachInBubble(t, func(t *testing.T, engine sqldb.Engine) {
				stored := &memory{ids: []string{"there"}}
				g := newGate()
				group := g.group(engine, stored.store)
				list := things(66)
				for _, i := range bad {
					list[i].id = "there"
				}
				wg := g.queue(group, list, func(th thing, _ int, err error) {
					if isBad := slices.Contains(bad, th.n); isBad != errors.Is(err, errThere) || !isBad && err != nil {
						t.Errorf("%d: %v", th.n, err)
					}
				})
				close(g.open)
				wg.Wait()
				if got := len(stored.ids); got != 1+66-len(bad) {
					t.Errorf("%d things are stored, want %d", got, 1+66-len(bad))
				}
			})
		})
	}
}

// A database that is away is asked once for all callers that wait.
func TestGroupDatabaseAway(t *testing.T) {
	eachInBubble(t, func(t *testing.T, engine sqldb.Engine) {
		g := newGate()
		group := g.group(engine, func(context.Context, []thing) ([]int, error) {
			return nil, &pgconn.PgError{Code: "25006"} // as after a fail-over that was not noticed
		})
		var refused atomic.Int64
		wg := g.queue(group, things(flushers(engine)+200), func(_ thing, _ int, err error) {
			if sqldb.IsUnavailable(err) {
				refused.Add(1)
			}
		})
		g.flushes()
		close(g.open)
		wg.Wait()
		if n, more := refused.Load(), len(g.flushes()); n != int64(200+flushers(engine)) || more != 1 {
			t.Errorf("%d callers got the error, after %d more flushes", n, more)
		}
	})
}

// A flush of a database that writes no more fails as such a group wants it.
func TestGroupOfAReadOnlyDatabase(t *testing.T) {
	for _, engine := range []sqldb.Engine{sqldb.SQLite, sqldb.Postgres} {
		t.Run(string(engine), func(t *testing.T) {
			url := sqltest.URL(t, engine)
			db := sqltest.Connect(t, url, schema)
			if engine == sqldb.Postgres {
				db = sqltest.Connect(t, url+"&default_transaction_read_only=on")
			} else {
				mustExec(t, db, `PRAGMA query_only(1)`)
			}
			if _, err := sqldb.NewGroup(db, store(db)).Do(t.Context(), thing{id: "a"}); !sqldb.IsUnavailable(err) {
				t.Errorf("stored in a read-only database: %v", err)
			}
		})
	}
}

// When the database goes away while the flush is halved to find a bad item, the
// search ends.
func TestGroupStopsLookingWhenTheDatabaseIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		var sizes []int
		group := g.group(sqldb.SQLite, func(_ context.Context, things []thing) ([]int, error) {
			sizes = append(sizes, len(things))
			switch len(sizes) {
			case 1: // the one that the gate held up
				return []int{0}, nil
			case 2:
				return nil, errors.New("one of them is bad")
			}
			return nil, io.ErrUnexpectedEOF
		})
		wg := g.queue(group, things(65), func(th thing, _ int, err error) {
			if th.n > 0 && !sqldb.IsUnavailable(err) {
				t.Errorf("%d: %v", th.n, err)
			}
		})
		close(g.open)
		wg.Wait()
		if got := fmt.Sprint(sizes); got != "[1 64 32]" {
			t.Errorf("flushes of %s, want [1 64 32]", got)
		}
	})
}

// A caller that queues while a flush waits for a silent database gets the error of
// that flush, and does not wait as long again.
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

// A caller that leaves is removed from the queue; one whose item is in a flush gets
// its result, and neither stops the others.
func TestGroupCallerLeaves(t *testing.T) {
	eachInBubble(t, func(t *testing.T, engine sqldb.Engine) {
		stored := new(memory)
		g := newGate()
		group := g.group(engine, stored.store)
		taken, leave := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		for i := range flushers(engine) {
			wg.Go(func() {
				if r, err := group.Do(taken, thing{id: fmt.Sprint("taken", i), n: 3}); err != nil || r != 6 {
					t.Errorf("left in mid-flush: %d, %v", r, err)
				}
			})
			synctest.Wait()
		}
		leave()
		queued, leave := context.WithCancel(context.Background())
		result := make(chan error)
		go func() {
			_, err := group.Do(queued, thing{id: "queued"})
			result <- err
		}()
		synctest.Wait()
		leave()
		if err := <-result; !errors.Is(err, context.Canceled) {
			t.Errorf("left while queued: %v", err)
		}
		stays := g.queue(group, []thing{{id: "stays", n: 4}}, func(_ thing, r int, err error) {
			if r != 8 || err != nil {
				t.Errorf("the caller that stays gets %d, %v", r, err)
			}
		})
		close(g.open)
		stays.Wait()
		wg.Wait()
		if _, err := group.Do(queued, thing{id: "late"}); !errors.Is(err, context.Canceled) {
			t.Errorf("left before: %v", err)
		}
		if n := len(stored.ids); n != flushers(engine)+1 || slices.Contains(stored.ids, "queued") {
			t.Errorf("%q are stored, want those that were taken and the one that stayed", stored.ids)
		}
	})
}

func TestGroupOutlivesPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stored := new(memory)
		g := newGate()
		group := g.group(sqldb.SQLite, func(ctx context.Context, things []thing) ([]int, error) {
			if slices.ContainsFunc(things, func(th thing) bool { return th.n == 13 }) {
				panic("thirteen")
			}
			return stored.store(ctx, things)
		})
		wg := g.queue(group, things(64), func(th thing, _ int, err error) {
			if th.n == 13 && (err == nil || !strings.Contains(err.Error(), "thirteen")) || th.n != 13 && err != nil {
				t.Errorf("%d: %v", th.n, err)
			}
		})
		close(g.open)
		wg.Wait()
		if n := len(stored.ids); n != 63 {
			t.Errorf("%d things are stored, want 63", n)
		}
	})
}

func TestGroupNeedsAResultForEach(t *testing.T) {
	runs := 0
	group := sqldb.NewGroup(&sqldb.DB{Engine: sqldb.SQLite}, func(context.Context, []thing) ([]int, error) { runs++; return nil, nil })
	if _, err := group.Do(t.Context(), thing{}); err == nil || runs != 1 {
		t.Errorf("%v after %d runs", err, runs)
	}
}

func TestGroupRefusesWhenFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		group := g.group(sqldb.SQLite, func(_ context.Context, things []thing) ([]int, error) { return make([]int, len(things)), nil })
		const waiting = 16 * 256
		wg := g.queue(group, things(1+waiting), func(_ thing, _ int, err error) {
			if err != nil {
				t.Error(err)
			}
		})
		if _, err := group.Do(t.Context(), thing{}); !errors.Is(err, sqldb.ErrFull) || !sqldb.IsUnavailable(err) {
			t.Errorf("one more: %v", err)
		}
		close(g.open)
		wg.Wait()
	})
}

// Random callers, some of which leave and some of whose items are bad: what they are
// told is what is stored in the end.
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
