package payment

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"pizzaflow/event"
	"pizzaflow/job"
	"pizzaflow/sqldb"
	"pizzaflow/sqldb/sqltest"
)

// TestOneOfAGroupLostItsLease: of payments that are begun and settled in one
// transaction, the one that is another's by now is left alone, and the others
// are stored with their attempts and events.
func TestOneOfAGroupLostItsLease(t *testing.T) {
	t.Parallel()
	sqltest.Each(t, func(t *testing.T, db *sqldb.DB) {
		b := openBank(t)
		s := newService(t, db, b.provider(), patient)
		const n, stolen, moved = 5, 1, 3
		begins, settles := make([]attempt, n), make([]settlement, n)
		rows := make([]row, n)
		for i := range n {
			o := order("")
			accept(t, s, o)
			rows[i] = readRow(t, db, o.OrderID)
			c := job.Job{ID: rows[i].ID, Token: fmt.Sprint("ours-", i), Attempt: 1}
			if _, err := db.ExecContext(t.Context(), `UPDATE payments SET lease_token = $1 WHERE id = $2`, c.Token, c.ID); err != nil {
				t.Fatal(err)
			}
			p := rows[i].Payment
			begins[i] = attempt{claim: c, from: p.Status, next: p.Begin(CallCharge, sqldb.Now()), call: CallCharge, before: interrupted}
			a := Answer{Outcome: Captured, TransactionID: fmt.Sprint("ch_", i), Amount: p.Amount, Currency: p.Currency}
			next, step := begins[i].next.Apply(a, sqldb.Now(), time.Hour)
			settles[i] = settlement{claim: c, from: begins[i].next, next: next, step: step, answer: a}
		}
		begins[stolen].claim.Token = "theirs"
		results, err := s.beginAll(t.Context(), begins)
		if err != nil {
			t.Fatal(err)
		}
		wantLost(t, results, stolen)
		settles[moved].from.Status = Unknown // it is not what we believe it is
		results, err = s.settleAll(t.Context(), settles)
		if err != nil {
			t.Fatal(err)
		}
		wantLost(t, results, stolen, moved) // what was not begun is not processing
		for i, r := range rows {
			now := readRow(t, db, r.OrderID)
			want, events, story := Completed, 1, "charge captured"
			switch i {
			case stolen:
				want, events, story = Pending, 0, ""
			case moved:
				want, events, story = Processing, 0, "charge open"
			}
			if now.Status != want || now.leased != (want != Completed) || history(t, db, r.ID) != story {
				t.Errorf("payment %d is %s after %q, leased %v; want %s after %q", i, now.Status, history(t, db, r.ID), now.leased, want, story)
			}
			if got := countRows(t, db, "outbox_events WHERE aggregate_id = '"+r.ID+"'"); got != events {
				t.Errorf("payment %d has %d events, want %d", i, got, events)
			}
			if want == Completed && now.TransactionID != fmt.Sprint("ch_", i) {
				t.Errorf("payment %d got the transaction id %s", i, now.TransactionID)
			}
		}
	}, schemas...)
}

func wantLost(t *testing.T, results []error, lost ...int) {
	t.Helper()
	want := map[int]bool{}
	for _, i := range lost {
		want[i] = true
	}
	for i, err := range results {
		if errors.Is(err, errLeaseLost) != want[i] || err != nil && !want[i] {
			t.Errorf("the result of %d is %v", i, err)
		}
	}
}

// TestDatabaseCutOffUnderLoad cuts every connection to the database again and
// again while payments begin and settle: each order still ends with one charge
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
