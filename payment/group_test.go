package payment

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"pizzaflow/event"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// A barrier holds calls at the bank until open is closed.
type barrier struct {
	arrived, answered atomic.Int32
	open              chan struct{}
}

func (b *barrier) serve(w http.ResponseWriter, r *http.Request, box http.Handler) {
	b.arrived.Add(1)
	<-b.open
	box.ServeHTTP(w, r)
	b.answered.Add(1)
}

// TestLeasesLostInAGroup: of payments whose attempts are stored together, or whose
// answers are, a payment that is another's by now is left alone, and the others are
// stored with their attempts and events.
func TestLeasesLostInAGroup(t *testing.T) {
	t.Parallel()
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		b := openBank(t)
		lookups, charges := &barrier{open: make(chan struct{})}, &barrier{open: make(chan struct{})}
		b.setFront(func(w http.ResponseWriter, r *http.Request, box http.Handler) {
			if r.Method == http.MethodGet {
				lookups.serve(w, r, box)
			} else {
				charges.serve(w, r, box)
			}
		})
		s := newService(t, db, b.provider(), patient)
		const n, uncharged, stolen, moved = 8, 1, 3, 5
		orders, rows := make([]event.OrderCreated, n), make([]row, n)
		for i := range n {
			orders[i] = order("")
			accept(t, s, orders[i])
			rows[i] = readRow(t, db, orders[i].OrderID)
		}
		for _, statement := range []string{ // as a crash leaves them that broke off the charges
			`UPDATE payments SET status = 'processing', calls = 1`,
			`INSERT INTO payment_attempts (payment_id, attempt, kind, started_at) SELECT id, 1, 'charge', created_at FROM payments`,
		} {
			if _, err := db.ExecContext(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		}
		// pass lets n calls pass together, and makes a change before they are recorded.
		pass := func(what string, calls *barrier, n int32, changes ...string) {
			t.Helper()
			await := func(count *atomic.Int32) {
				t.Helper()
				eventually(t, func() string {
					if got := count.Load(); got < n {
						return fmt.Sprintf("%d %s, want %d", got, what, n)
					}
					return ""
				})
			}
			await(&calls.arrived)
			release := sqltest.Hold(t, db, "payments", changes...)
			close(calls.open)
			await(&calls.answered)
			release()
		}
		steal := func(i int) string {
			return `UPDATE payments SET lease_token = 'theirs' WHERE id = '` + rows[i].ID + `'`
		}
		run(t, s)
		pass("lookups", lookups, n, steal(uncharged))
		pass("charges", charges, n-1, steal(stolen), `UPDATE payments SET status = 'unknown' WHERE id = '`+rows[moved].ID+`'`)
		for i, o := range orders {
			if i != uncharged && i != stolen && i != moved {
				awaitFinal(t, db, o)
			}
		}
		for i, o := range orders {
			want, taken, events, story := Completed, 1, 1, "charge unknown, lookup absent, charge captured"
			switch i {
			case uncharged:
				want, taken, events, story = Unknown, 0, 0, "charge unknown, lookup open"
			case stolen:
				want, events, story = Processing, 0, "charge unknown, lookup absent, charge open"
			case moved:
				want, events, story = Unknown, 0, "charge unknown, lookup absent, charge open"
			}
			r := readRow(t, db, o.OrderID)
			if r.Status != want || r.leased != (want != Completed) || history(t, db, r.ID) != story {
				t.Errorf("payment %d is %s after %q, leased %v; want %s after %q", i, r.Status, history(t, db, r.ID), r.leased, want, story)
			}
			if got := countRows(t, db, "outbox_events WHERE aggregate_id = '"+r.ID+"'"); got != events {
				t.Errorf("payment %d has %d events, want %d", i, got, events)
			}
			charged := b.ledger(o.OrderID)
			if len(charged) != taken || want == Completed && r.TransactionID != charged[0].ID {
				t.Errorf("payment %d has the transaction id %q, the ledger %+v", i, r.TransactionID, charged)
			}
		}
	}, schemas...)
}

// TestDatabaseCutOffUnderLoad cuts every connection to the database again and
// again while attempts begin and end: each order still ends with one charge
// and one event.
func TestDatabaseCutOffUnderLoad(t *testing.T) {
	t.Parallel()
	url := sqltest.URL(t, sqldb.Postgres)
	db, killer := sqltest.Connect(t, url, schemas...), sqltest.Connect(t, url)
	b := openBank(t)
	s := newService(t, db, b.provider(), nil)
	run(t, s)
	orders := make([]event.OrderCreated, 300)
	var stored atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range orders {
			orders[i] = order("")
			eventually(t, func() string { // as its consumer does, until it is stored
				err := deliver(context.Background(), s, orders[i])
				if err != nil {
					return err.Error()
				}
				return ""
			})
			stored.Add(1)
		}
	}()
	cuts := 0
	const shortest = 20 * time.Millisecond
	pause, before := shortest, int64(0)
	for running := true; running; cuts++ {
		select {
		case <-done:
			running = false
		case <-time.After(pause):
		}
		// where nothing gets done between two cuts they come more seldom
		if now := stored.Load(); now > before {
			pause, before = shortest, now
		} else {
			pause = min(2*pause, 4*time.Second)
		}
		_, err := killer.ExecContext(t.Context(), `
			SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE application_name = current_setting('application_name') AND pid <> pg_backend_pid()`)
		if err != nil {
			t.Fatal(err)
		}
	}
	awaitFinal(t, killer, orders...)
	for _, o := range orders {
		if r := audit(t, killer, b, o); r.Status != Completed {
			t.Errorf("%s after %s", r.Status, history(t, killer, r.ID))
		}
	}
	auditKeys(t, b)
	t.Logf("cut %d times", cuts)
}
